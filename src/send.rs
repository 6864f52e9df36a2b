//! The two sends of a request: what is sent, and what is kept for the second.

use std::sync::Arc;

use http::{
    Extensions, Method, Request, Uri, Version,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
    request::Parts,
};
use pin_project_lite::pin_project;
use tower::Service;

use crate::{
    Error, TokenOutcome,
    anchor::Anchor,
    error::Kind,
    replay::{NoReplay, ReplayPolicy},
    token::{CachedToken, Generation},
};

/// How often a request waits again because the token that it was granted expired, or was rejected for
/// another request, while the service became ready.
///
/// A service that takes longer to become ready than tokens live would else ask for ever.
pub(crate) const WAITS: u8 = 10;

/// A request that has not been sent, and the service to send it with, which is not ready.
pub(crate) struct Unsent<S, R, B>
where
    R: ReplayPolicy<B>,
{
    pub(crate) inner: S,
    pub(crate) request: Request<R::Body>,
    pub(crate) retained: Retained<R::Kept>,
    pub(crate) anchor: Arc<Anchor>,
    /// How often the request may still wait for another token.
    pub(crate) waits_left: u8,
    /// What the response will tell.
    pub(crate) outcome: Box<TokenOutcome>,
}

/// What is kept for a second send, or why there will be none.
pub(crate) type Retained<K> = Result<Original<K>, NotKept>;

/// Why there will be no second send, whatever the API says.
#[derive(Clone, Copy)]
pub(crate) enum NotKept {
    /// The replay policy kept nothing of the body.
    Body,
    /// The request said so.
    OptedOut,
    /// This is the second send.
    SentTwice,
}

/// What is kept of a request, if what its policy `kept` of the body can be sent again.
///
/// It has `own_headers` headers other than the token, if that is on it already.
#[inline]
pub(crate) fn retain<K>(
    kept: Option<K>,
    head: &Parts,
    own_headers: usize,
    anchor: &Arc<Anchor>,
) -> Retained<K> {
    match kept {
        Some(_) if head.extensions.get::<NoReplay>().is_some() => Err(NotKept::OptedOut),
        Some(body) => Ok(Original {
            head: Head::of(head, own_headers, anchor),
            body,
        }),
        None => Err(NotKept::Body),
    }
}

/// What is kept of a request until the verdict.
pub(crate) struct Original<K> {
    pub(crate) head: Head,
    pub(crate) body: K,
}

/// What is kept of a request, without its body and without the token: a replay gets another.
///
/// A list holds the headers, as nothing is looked up in it: that takes one allocation, and in the
/// future a sixth of the room of a `HeaderMap`. It is boxed, and no `Vec`, because the future then
/// tells by a byte whether anything is kept, and not by a capacity of 64 bits.
pub(crate) struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Box<[(HeaderName, HeaderValue)]>,
    extensions: Extensions,
    pub(crate) anchor: Arc<Anchor>,
}

impl Head {
    fn of(head: &Parts, own_headers: usize, anchor: &Arc<Anchor>) -> Self {
        Self {
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            headers: list(&head.headers, own_headers),
            extensions: head.extensions.clone(),
            anchor: Arc::clone(anchor),
        }
    }

    /// The request once more.
    pub(crate) fn with_body<B>(self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = map(self.headers);
        *request.extensions_mut() = self.extensions;
        request
    }
}

/// The headers other than the token, `own` in number.
fn list(headers: &HeaderMap, own: usize) -> Box<[(HeaderName, HeaderValue)]> {
    if own == 0 {
        // Asking takes fewer instructions than looking at nothing but the token.
        return Box::default();
    }
    let mut list = Vec::with_capacity(own);
    for (name, value) in headers {
        if *name != AUTHORIZATION {
            list.push((name.clone(), value.clone()));
        }
    }
    debug_assert_eq!(list.len(), own, "else it would be allocated again");
    list.into_boxed_slice()
}

/// The map that the headers were listed from, but for the token.
fn map(list: Box<[(HeaderName, HeaderValue)]>) -> HeaderMap {
    // Collected, a list with more values than a map may have names would panic in http before 1.5.
    let mut headers = HeaderMap::try_with_capacity(list.len()).unwrap_or_default();
    for (name, value) in list {
        headers.append(name, value);
    }
    headers
}

/// A request that was sent: the token that it carried, if that is ours, and what is kept of it.
pub(crate) type Sent<K> = Option<(Generation, Retained<K>)>;

pin_project! {
    /// A request that was sent, and whose response has something to tell.
    pub(crate) struct Underway<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        #[pin]
        pub(crate) response: S::Future,
        pub(crate) sent: Sent<R::Kept>,
        pub(crate) outcome: Option<Box<TokenOutcome>>,
    }
}

impl<S, R, B> Unsent<S, R, B>
where
    S: Clone,
    R: ReplayPolicy<B>,
{
    /// Gives up the readiness of the service, which may be what the next token request waits for.
    pub(crate) fn wait_again(&mut self) -> Result<(), Error> {
        let waits_left = self.waits_left.checked_sub(1);
        self.waits_left = waits_left.ok_or_else(|| Error::new(Kind::Expired))?;
        self.inner = self.inner.clone();
        Ok(())
    }
}

impl<S, R, B> Unsent<S, R, B>
where
    R: ReplayPolicy<B>,
{
    /// Sends the request with the token; the service has to be ready.
    pub(crate) fn send(mut self, granted: &CachedToken) -> Result<Underway<S, R, B>, Error>
    where
        S: Service<Request<R::Body>>,
    {
        let authorized = self.authorize(granted);
        let generation = authorized.map_err(|error| error.after(self.outcome.waited()))?;
        Ok(Underway {
            response: self.inner.call(self.request),
            sent: Some((generation, self.retained)),
            outcome: Some(self.outcome),
        })
    }

    fn authorize(&mut self, granted: &CachedToken) -> Result<Generation, Error> {
        let value = granted.token().header_value().clone();
        let headers = self.request.headers_mut();
        match headers.try_insert(AUTHORIZATION, value) {
            Ok(_none) => Ok(granted.generation()),
            Err(_full) => Err(Error::new(Kind::TooManyHeaders)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tower::{BoxError, service_fn};

    use super::*;
    use crate::{AccessToken, TokenCache, TokenRequest, origin::Destinations};

    fn request(own: usize) -> Request<()> {
        let mut request = Request::new(());
        for n in 0..own {
            request.headers_mut().append("x-own", n.into());
        }
        request
    }

    #[test]
    fn token_is_not_kept_for_the_replay() {
        let cache = TokenCache::new(service_fn(|_: TokenRequest| {
            ready(Err::<AccessToken, BoxError>("nobody asks".into()))
        }));
        let anchor = Arc::new(Anchor {
            cache,
            destinations: Destinations::default(),
        });
        for own in [0, 1, 4] {
            let mut with_token = request(own);
            let token = HeaderValue::from_static("Bearer token-1");
            with_token.headers_mut().append(AUTHORIZATION, token);

            let retained = retain(Some(()), &with_token.into_parts().0, own, &anchor);

            let kept = retained.ok().map(|original| original.head.headers);
            let kept = kept.expect("the body can be sent again");
            assert_eq!(kept.len(), own);
            assert_eq!(map(kept), *request(own).headers());
        }
    }

    #[test]
    fn replay_may_have_more_values_than_a_map_may_have_names() {
        let request = request(40_000);
        let kept = list(request.headers(), 40_000);
        assert_eq!(map(kept), *request.headers());
    }
}
