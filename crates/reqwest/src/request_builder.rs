use std::{
    fmt::{self, Display},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Version};
use reqwest::Body;
use tower_client_credentials::replay::NoReplay;

use crate::{ApiClient, ResponseFuture, sealed::Sealed};

/// Adds [`send_with`](Self::send_with) to [`reqwest::RequestBuilder`].
pub trait RequestBuilderExt: Sealed {
    /// Sends the request through the client of `api`, with an access token.
    ///
    /// The client that the request was built with isn't used. Its default headers aren't sent either:
    /// those of `api`'s client are.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use reqwest::Client;
    /// use tower_client_credentials_reqwest::{ApiClient, Error, RequestBuilderExt};
    ///
    /// async fn search(client: &Client, api: &ApiClient) -> Result<String, Error> {
    ///     let request = client.get("https://api.example.com/orders").query(&[("open", true)]);
    ///     let response = request.send_with(api).await?.error_for_status()?;
    ///     Ok(response.text().await?)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ApiRequestBuilder::send`].
    fn send_with(self, api: &ApiClient) -> ResponseFuture;
}

impl RequestBuilderExt for reqwest::RequestBuilder {
    fn send_with(self, api: &ApiClient) -> ResponseFuture {
        api.send(self.build(), None)
    }
}

/// A [`reqwest::RequestBuilder`] whose request is sent with an access token.
///
/// Created by the methods of [`ApiClient`]. It isn't a `reqwest::RequestBuilder`, because the `send`
/// of that would send the request without a token. It has all of its methods that change a request,
/// `send`, `build` and `try_clone`. For the methods that other crates add, use [`map`](Self::map).
///
/// The methods `json`, `query`, `form` and `multipart` need the feature of the same name in this
/// crate, which also enables reqwest's.
///
/// # Examples
///
#[cfg_attr(feature = "json", doc = "```no_run")]
#[cfg_attr(not(feature = "json"), doc = "```text")]
/// use tower_client_credentials_reqwest::{ApiClient, Error};
///
/// async fn create(api: &ApiClient) -> Result<(), Error> {
///     let order = serde_json::json!({"item": "tea"});
///     let request = api.post("https://api.example.com/orders").json(&order);
///     request.send().await?.error_for_status()?;
///     Ok(())
/// }
/// ```
#[must_use = "a request does nothing until it is sent"]
pub struct ApiRequestBuilder {
    api: ApiClient,
    builder: reqwest::RequestBuilder,
    no_replay: Option<NoReplay>,
}

impl ApiRequestBuilder {
    pub(crate) fn new(api: ApiClient, builder: reqwest::RequestBuilder) -> Self {
        Self {
            api,
            builder,
            no_replay: None,
        }
    }

    /// Changes the request with methods of [`reqwest::RequestBuilder`].
    ///
    /// Use it for extension traits of other crates, and for functions that return a builder.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use reqwest::RequestBuilder;
    /// use tower_client_credentials_reqwest::{ApiClient, ResponseFuture};
    ///
    /// fn traced(request: RequestBuilder) -> RequestBuilder {
    ///     request.header("x-request-id", "7")
    /// }
    ///
    /// fn orders(api: &ApiClient) -> ResponseFuture {
    ///     api.get("https://api.example.com/orders").map(traced).send()
    /// }
    /// ```
    pub fn map(
        mut self,
        change: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Self {
        self.builder = change(self.builder);
        self
    }

    /// Adds a header. See [`reqwest::RequestBuilder::header`].
    pub fn header<K, V>(self, name: K, value: V) -> Self
    where
        HeaderName: TryFrom<K>,
        <HeaderName as TryFrom<K>>::Error: Into<http::Error>,
        HeaderValue: TryFrom<V>,
        <HeaderValue as TryFrom<V>>::Error: Into<http::Error>,
    {
        self.map(|builder| builder.header(name, value))
    }

    /// Adds headers, which replace those of the same names. See
    /// [`reqwest::RequestBuilder::headers`].
    pub fn headers(self, headers: HeaderMap) -> Self {
        self.map(|builder| builder.headers(headers))
    }

    /// Adds an `Authorization` header with a user name and a password. See
    /// [`reqwest::RequestBuilder::basic_auth`].
    ///
    /// The request is sent with this header instead of an access token.
    pub fn basic_auth(self, username: impl Display, password: Option<impl Display>) -> Self {
        self.map(|builder| builder.basic_auth(username, password))
    }

    /// Adds an `Authorization` header with a token. See [`reqwest::RequestBuilder::bearer_auth`].
    ///
    /// The request is sent with this header instead of an access token of the client, and isn't sent
    /// again if the API rejects it.
    pub fn bearer_auth(self, token: impl Display) -> Self {
        self.map(|builder| builder.bearer_auth(token))
    }

    /// Sets the body. See [`reqwest::RequestBuilder::body`].
    pub fn body(self, body: impl Into<Body>) -> Self {
        self.map(|builder| builder.body(body))
    }

    /// Sets the total timeout, which covers the wait for a token, both sends, and reading the
    /// response. Default: [that of the client](ApiClient::timeout).
    pub fn timeout(self, timeout: Duration) -> Self {
        self.map(|builder| builder.timeout(timeout))
    }

    /// Sets the HTTP version. See [`reqwest::RequestBuilder::version`].
    pub fn version(self, version: Version) -> Self {
        self.map(|builder| builder.version(version))
    }

    /// Adds parameters to the query of the URL. See [`reqwest::RequestBuilder::query`].
    #[cfg(feature = "query")]
    pub fn query<T: serde::Serialize + ?Sized>(self, query: &T) -> Self {
        self.map(|builder| builder.query(query))
    }

    /// Sends a form. See [`reqwest::RequestBuilder::form`].
    #[cfg(feature = "form")]
    pub fn form<T: serde::Serialize + ?Sized>(self, form: &T) -> Self {
        self.map(|builder| builder.form(form))
    }

    /// Sends JSON. See [`reqwest::RequestBuilder::json`].
    #[cfg(feature = "json")]
    pub fn json<T: serde::Serialize + ?Sized>(self, json: &T) -> Self {
        self.map(|builder| builder.json(json))
    }

    /// Sends a multipart form. See [`reqwest::RequestBuilder::multipart`].
    ///
    /// The form is a stream for reqwest. [`ReplayBodies`](crate::ReplayBodies) says when the request
    /// can be sent again.
    #[cfg(feature = "multipart")]
    pub fn multipart(self, form: reqwest::multipart::Form) -> Self {
        self.map(|builder| builder.multipart(form))
    }

    /// Sends the request only once, even if the API rejects the token.
    ///
    /// A rejected token is still renewed for later requests.
    pub fn no_replay(mut self) -> Self {
        self.no_replay = Some(NoReplay);
        self
    }

    /// Sends the request with an access token.
    ///
    /// # Errors
    ///
    /// Fails if the request can't be built or sent, if there is no token to send it with, or if its
    /// timeout elapses. An error status of the API isn't an error; see
    /// [`reqwest::Response::error_for_status`].
    pub fn send(self) -> ResponseFuture {
        self.api.send(self.builder.build(), self.no_replay)
    }

    /// Returns the request without sending it. It has no token.
    ///
    /// # Errors
    ///
    /// Fails if the URL, a header or the body is invalid.
    pub fn build(self) -> reqwest::Result<reqwest::Request> {
        self.builder.build()
    }

    /// Returns a copy, or `None` if the body is a stream.
    pub fn try_clone(&self) -> Option<Self> {
        Some(Self {
            api: self.api.clone(),
            builder: self.builder.try_clone()?,
            no_replay: self.no_replay,
        })
    }
}

impl fmt::Debug for ApiRequestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiRequestBuilder")
            .field("builder", &self.builder)
            .field("no_replay", &self.no_replay.is_some())
            .finish_non_exhaustive()
    }
}
