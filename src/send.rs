//! The two sends of a request: what is sent, and what is kept for the second.

use http::{Request, request::Parts};

use crate::{Error, NotReplayed, Replay, error::Kind};

/// How often a request waits again because the token that it was granted expired, or was rejected for
/// another request, while the service became ready.
///
/// A service that takes longer to become ready than tokens live would else ask for ever.
pub(crate) const WAITS: u8 = 10;

/// A request that has not been sent, and the service to send it with, which is not ready.
///
/// Boxed, because only calls that wait have one: it does not make the future larger.
pub(crate) struct Unsent<S, R, B>
where
    R: Replay<B>,
{
    pub(crate) inner: S,
    pub(crate) request: Request<R::Body>,
    pub(crate) retained: Retained<R::Kept>,
    /// How often the request may still wait for another token.
    pub(crate) waits_left: u8,
}

/// What is kept for a second send, or why there will be none.
pub(crate) type Retained<K> = Result<Original<K>, NotReplayed>;

/// What is kept of a request until the verdict.
pub(crate) struct Original<K> {
    pub(crate) head: Parts,
    pub(crate) body: K,
}

/// What a replay is made of.
pub(crate) struct Spare<S, K> {
    pub(crate) inner: S,
    pub(crate) original: Original<K>,
}

impl<S, R, B> Unsent<S, R, B>
where
    S: Clone,
    R: Replay<B>,
{
    /// Gives up the readiness of the service, which may be what the next token request waits for.
    pub(crate) fn wait_again(mut self: Box<Self>) -> Result<Box<Self>, Error> {
        let waits_left = self.waits_left.checked_sub(1);
        self.waits_left = waits_left.ok_or_else(|| Error::new(Kind::Expired))?;
        self.inner = self.inner.clone();
        Ok(self)
    }
}
