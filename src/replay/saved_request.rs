//! What is saved of a request until its response is there.

use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request,
};

use super::{NoReplay, ReplayPolicy};
use crate::{NotReplayed, scheme::Scheme};

/// A request as it can be sent again: its head without the token, and what the policy kept of its
/// body.
///
/// Nothing is looked up in the headers, so a list holds them: one allocation, and less room in the
/// response future than a `HeaderMap`.
pub(crate) struct SavedRequest<K> {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Vec<Header>,
    extensions: Extensions,
    kept: K,
}

struct Header {
    name: HeaderName,
    value: HeaderValue,
}

/// What is saved for a replay, or why nothing is.
pub(crate) enum Saved<T> {
    Request(T),
    Nothing(NotSaved),
}

impl<T> Saved<T> {
    #[inline]
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Saved<U> {
        match self {
            Self::Request(request) => Saved::Request(f(request)),
            Self::Nothing(reason) => Saved::Nothing(reason),
        }
    }
}

/// Why a request can't be sent again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NotSaved {
    /// The policy kept nothing of the body.
    Body,
    /// The request carries [`NoReplay`].
    OptedOut,
    /// No other send may follow.
    LastSend,
}

impl NotSaved {
    pub(crate) fn reason<B>(self, policy: &impl ReplayPolicy<B>) -> NotReplayed {
        match self {
            Self::Body => policy.not_kept(),
            Self::OptedOut => NotReplayed::OptedOut,
            Self::LastSend => NotReplayed::RejectedAgain,
        }
    }
}

impl<K> SavedRequest<K> {
    /// Saves a request that carries a token of this scheme, or none yet.
    #[inline]
    pub(crate) fn new(
        head: &request::Parts,
        scheme: Option<&Scheme>,
        kept: Option<K>,
    ) -> Saved<Self> {
        match kept {
            None => Saved::Nothing(NotSaved::Body),
            Some(_) if head.extensions.get::<NoReplay>().is_some() => {
                Saved::Nothing(NotSaved::OptedOut)
            }
            Some(kept) => Saved::Request(Self {
                method: head.method.clone(),
                uri: head.uri.clone(),
                version: head.version,
                headers: without_token(&head.headers, scheme),
                extensions: head.extensions.clone(),
                kept,
            }),
        }
    }

    /// Makes the request again, or says why that is impossible.
    pub(crate) fn restore<B, R>(&mut self, policy: &R) -> Result<Request<R::Body>, NotReplayed>
    where
        R: ReplayPolicy<B, Kept = K>,
    {
        let Some(body) = policy.restore(&mut self.kept) else {
            return Err(policy.not_restored(&self.kept));
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = map(&self.headers);
        *request.extensions_mut() = self.extensions.clone();
        Ok(request)
    }

    /// Whether the body of the request that was made again is still complete.
    pub(crate) fn is_unchanged<B, R>(&self, policy: &R) -> bool
    where
        R: ReplayPolicy<B, Kept = K>,
    {
        policy.is_unchanged(&self.kept)
    }
}

fn without_token(headers: &HeaderMap, scheme: Option<&Scheme>) -> Vec<Header> {
    // A request with a token has one header or more that are not the caller's.
    let own = headers.len() - usize::from(scheme.is_some());
    if own == 0 {
        return Vec::new();
    }
    let mut list = Vec::with_capacity(own);
    for (name, value) in headers {
        if !scheme.is_some_and(|scheme| scheme.owns(name)) {
            let (name, value) = (name.clone(), value.clone());
            list.push(Header { name, value });
        }
    }
    list
}

fn map(list: &[Header]) -> HeaderMap {
    // Collected, a list with more values than a map may have names would panic in http before 1.5.
    let mut headers = HeaderMap::try_with_capacity(list.len()).unwrap_or_default();
    for Header { name, value } in list {
        headers.append(name.clone(), value.clone());
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AccessToken, scheme::Put};

    fn request(own: usize) -> Request<()> {
        let mut request = Request::new(());
        for number in 0..own {
            request.headers_mut().append("x-own", number.into());
        }
        request
    }

    #[test]
    fn token_is_not_saved() {
        let token = AccessToken::new("token-1").unwrap();
        for own in [0, 1, 4] {
            let mut sent = request(own);
            assert!(matches!(token.scheme().put_on(&mut sent), Put::Done(_)));

            let head = sent.into_parts().0;
            let saved = SavedRequest::new(&head, Some(token.scheme()), Some(()));

            let Saved::Request(SavedRequest { headers, .. }) = saved else {
                panic!("the body was kept")
            };
            assert_eq!(headers.len(), own);
            assert_eq!(map(&headers), *request(own).headers());
        }
    }

    #[test]
    fn saved_request_may_have_more_values_than_a_map_may_have_names() {
        let request = request(40_000);
        let list = without_token(request.headers(), None);
        assert_eq!(map(&list), *request.headers());
    }
}
