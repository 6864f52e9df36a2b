use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, header::AUTHORIZATION, response::Parts};
use http_body::Body;
use tower::{BoxError, Service};

use crate::{
    CloneBody, NoReplay, NotReplayed, Replay, TokenCache,
    future::{Original, ResponseFuture, Retained, Spare, Unsent},
    verdict::Verdict,
};

/// Decides which responses reject the token.
pub(crate) type RejectWhen = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;

/// A service whose requests carry an access token; see the [crate docs](crate).
///
/// Made by [`ClientCredentialsLayer`](crate::ClientCredentialsLayer). Clones share the tokens.
pub struct ClientCredentials<S, R = CloneBody> {
    inner: S,
    config: Arc<Config<R>>,
}

/// What all clones of a service share.
pub(crate) struct Config<R> {
    pub(crate) cache: TokenCache,
    pub(crate) replay: R,
    pub(crate) reject_when: Option<RejectWhen>,
}

impl<S, R> ClientCredentials<S, R> {
    pub(crate) fn new(inner: S, config: Config<R>) -> Self {
        Self {
            inner,
            config: Arc::new(config),
        }
    }

    /// The cache that the tokens come from.
    pub fn cache(&self) -> &TokenCache {
        &self.config.cache
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Gives back the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, R, B, ResBody> Service<Request<B>> for ClientCredentials<S, R>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: Replay<B>,
    ResBody: Body,
{
    type Response = Response<ResBody>;
    type Error = BoxError;
    type Future = ResponseFuture<S, R, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let config = Arc::clone(&self.config);
        if request.headers().contains_key(AUTHORIZATION) {
            let request = request.map(|body| config.replay.split(body).0);
            return ResponseFuture::forwarding(config, self.inner.call(request));
        }

        let (mut request, retained) = config.split(request);
        match config.cache.lease() {
            Some(lease) => {
                // The readied service sends; its clone is for the replay and not ready yet.
                let spare = retained.map(|original| Spare {
                    inner: self.inner.clone(),
                    original,
                });
                request
                    .headers_mut()
                    .insert(AUTHORIZATION, lease.header_value);
                let response = self.inner.call(request);
                ResponseFuture::calling(config, response, lease.generation, spare)
            }
            None => {
                // The readied service may hold the very permit that the token request needs, so it
                // goes. Its clones have to be polled ready, here and in the future.
                self.inner = self.inner.clone();
                let unsent = Unsent {
                    inner: self.inner.clone(),
                    request,
                    retained,
                    waits_left: 1,
                };
                ResponseFuture::awaiting_token(config, Box::new(unsent))
            }
        }
    }
}

impl<S: Clone, R> Clone for ClientCredentials<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            config: Arc::clone(&self.config),
        }
    }
}

impl<S: fmt::Debug, R: fmt::Debug> fmt::Debug for ClientCredentials<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("inner", &self.inner)
            .field("cache", &self.config.cache)
            .field("replay", &self.config.replay)
            .finish_non_exhaustive()
    }
}

impl<R> Config<R> {
    /// Makes the request to send, and what is kept of it for a second send.
    fn split<B>(&self, request: Request<B>) -> (Request<R::Body>, Retained<R::Kept>)
    where
        R: Replay<B>,
    {
        let may_replay = request.extensions().get::<NoReplay>().is_none();
        let (head, body) = request.into_parts();
        let (body, kept) = self.replay.split(body);
        let retained = match kept {
            Some(body) if may_replay => Ok(Original {
                head: head.clone(),
                body,
            }),
            Some(_) => Err(NotReplayed::OptedOut),
            None => Err(NotReplayed::BodyNotKept),
        };
        (Request::from_parts(head, body), retained)
    }

    pub(crate) fn judge<B>(&self, response: Response<B>) -> (Verdict, Response<B>) {
        let Some(reject_when) = &self.reject_when else {
            return (Verdict::of(&response), response);
        };
        let (head, body) = response.into_parts();
        let verdict = if reject_when(&head) {
            Verdict::Rejected
        } else {
            Verdict::Accepted
        };
        (verdict, Response::from_parts(head, body))
    }
}
