//! How an access token is presented to an API.
//!
//! A scheme is a value that an access token carries. It writes the token's headers, knows which
//! headers are its own, and reads what a response says about the token. A scheme neither sends nor
//! waits.

mod challenge;
mod header;

use http::{HeaderMap, HeaderName, Request, Response, response};

pub(crate) use self::header::TokenHeader;
use crate::Error;

/// A response extension that says that the response isn't an answer to the token.
///
/// An HTTP client that follows redirects removes the token when a redirect leads to another origin.
/// A 401 from there says nothing about the token. If the response has this extension, it never
/// counts as a rejection, and [`rejected_when`] isn't asked.
///
/// Set it in an adapter for such a client, or in a layer below the `ClientCredentialsLayer` that
/// removes the token. `tower-client-credentials-reqwest` sets it.
///
/// [`rejected_when`]: crate::ClientCredentialsLayer::rejected_when
///
/// # Examples
///
/// ```
/// use http::Response;
/// use tower_client_credentials::TokenRemoved;
///
/// fn mark<B>(mut response: Response<B>, is_from_requested_origin: bool) -> Response<B> {
///     if !is_from_requested_origin {
///         response.extensions_mut().insert(TokenRemoved);
///     }
///     response
/// }
/// # assert!(mark(Response::new(()), true).extensions().is_empty());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TokenRemoved;

impl TokenRemoved {
    /// Whether the token had been removed from the request that this response answers.
    pub(crate) fn is_on(response: &response::Parts) -> bool {
        response.extensions.get::<Self>().is_some()
    }
}

/// How a token is presented. One variant per way of writing it and of reading a response.
#[derive(Clone)]
pub(crate) enum Scheme {
    /// The token is the value of one header.
    Header(TokenHeader),
    /// A stand-in for schemes whose API asks for a proof first.
    #[cfg(test)]
    Challenged(tests::Challenged),
}

/// What a response says about the token that its request carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The token was accepted, or another token would not help.
    Accepted,
    /// The token was rejected. Another one may be accepted.
    Rejected,
    /// The token is good, but the request has to be sent again with what the response brought.
    SendAgain,
}

/// What became of a token that was to be put on a request.
#[must_use]
pub(crate) enum Put {
    /// The request carries the token.
    Done(Presented),
    /// The request already has a header of the scheme, set by the caller. It is unchanged.
    CallersOwn,
    Failed(Error),
}

/// What a scheme remembers of a request that carries its token, to read the response with.
#[derive(Clone, Debug)]
pub(crate) enum Presented {
    Header,
    #[cfg(test)]
    Challenged {
        host: Option<String>,
    },
}

impl Scheme {
    /// The header that carries the token.
    pub(crate) fn token_header(&self) -> &TokenHeader {
        match self {
            Self::Header(header) => header,
            #[cfg(test)]
            Self::Challenged(challenged) => &challenged.header,
        }
    }

    /// Whether the request already has a header that this scheme would write.
    pub(crate) fn is_on(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Header(header) => header.is_on(headers),
            #[cfg(test)]
            Self::Challenged(challenged) => challenged.is_on(headers),
        }
    }

    /// Puts the token on a request, unless that has a header of the scheme already.
    #[inline]
    pub(crate) fn put_on<B>(&self, request: &mut Request<B>) -> Put {
        match self {
            Self::Header(header) => header.put_on(request.headers_mut()),
            #[cfg(test)]
            Self::Challenged(challenged) => challenged.put_on(request),
        }
    }

    /// Whether the scheme writes this header.
    #[inline]
    pub(crate) fn owns(&self, name: &HeaderName) -> bool {
        match self {
            Self::Header(header) => header.name == name,
            #[cfg(test)]
            Self::Challenged(challenged) => challenged.header.name == name || name == tests::PROOF,
        }
    }

    /// Whether the API may ask for the request again with the same token.
    pub(crate) fn may_challenge(&self) -> bool {
        match self {
            Self::Header(_) => false,
            #[cfg(test)]
            Self::Challenged(_) => true,
        }
    }

    /// Whether a response may say something about the token. Decides at a glance for most responses.
    #[inline]
    pub(crate) fn must_read<B>(&self, response: &Response<B>) -> bool {
        match self {
            Self::Header(_) => challenge::must_read(response.status()),
            #[cfg(test)]
            Self::Challenged(_) => true,
        }
    }

    /// Reads what the response to a request says about the token.
    pub(crate) fn verdict(&self, presented: &Presented, response: &response::Parts) -> Verdict {
        if TokenRemoved::is_on(response) {
            return Verdict::Accepted;
        }
        match (self, presented) {
            (Self::Header(header), _) => header.verdict(response),
            #[cfg(test)]
            (Self::Challenged(challenged), presented) => challenged.verdict(presented, response),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::HashMap,
        sync::{Arc, Mutex},
    };

    use http::{HeaderValue, StatusCode};

    use super::*;

    pub(super) const PROOF: HeaderName = HeaderName::from_static("proof");
    const NONCE: HeaderName = HeaderName::from_static("nonce");

    /// A Bearer token that goes with a proof, which has to contain the latest nonce of the API's host.
    #[derive(Clone)]
    pub(crate) struct Challenged {
        pub(super) header: TokenHeader,
        nonces: Arc<Mutex<HashMap<Option<String>, HeaderValue>>>,
    }

    impl Challenged {
        pub(crate) fn new(header: TokenHeader) -> Self {
            let nonces = Arc::default();
            Self { header, nonces }
        }

        pub(super) fn is_on(&self, headers: &HeaderMap) -> bool {
            self.header.is_on(headers) || headers.contains_key(PROOF)
        }

        pub(super) fn put_on<B>(&self, request: &mut Request<B>) -> Put {
            if self.is_on(request.headers()) {
                return Put::CallersOwn;
            }
            let host = request.uri().host().map(str::to_owned);
            let nonce = self.nonces.lock().unwrap().get(&host).cloned();
            let proof = nonce.unwrap_or(HeaderValue::from_static("none"));
            request.headers_mut().insert(PROOF, proof);
            match self.header.put_on(request.headers_mut()) {
                Put::Done(_) => Put::Done(Presented::Challenged { host }),
                other => other,
            }
        }

        pub(super) fn verdict(&self, presented: &Presented, response: &response::Parts) -> Verdict {
            let Presented::Challenged { host } = presented else {
                unreachable!("every challenged token is presented like that")
            };
            let Some(nonce) = response.headers.get(NONCE) else {
                return self.header.verdict(response);
            };
            self.nonces
                .lock()
                .unwrap()
                .insert(host.clone(), nonce.clone());
            match response.status {
                StatusCode::UNAUTHORIZED => Verdict::SendAgain,
                _ => self.header.verdict(response),
            }
        }
    }
}
