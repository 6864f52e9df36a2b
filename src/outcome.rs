use std::{fmt, time::Duration};

use http::Response;

use crate::{
    Error,
    error::{Kind, in_milliseconds},
};

/// A response extension that reports how a call got its token and whether its request was replayed.
///
/// Read it with `response.extensions().get::<TokenOutcome>()`. A response has no such extension if
/// the call didn't wait and the API accepted the token, or if the request already had an
/// `Authorization` header.
///
/// # Examples
///
/// ```
/// use tower_client_credentials::TokenOutcome;
///
/// # let response = http::Response::new(());
/// if let Some(outcome) = response.extensions().get::<TokenOutcome>() {
///     // Everything in one line:
///     eprintln!("{}: {outcome}", response.status());
///     // Or part by part:
///     if let Some(waited) = outcome.waited() {
///         eprintln!("waited {waited:?}");
///     }
///     if outcome.replayed() && !outcome.token_renewed() {
///         eprintln!("sent again with a newer token from the cache");
///     }
///     if let Some(reason) = outcome.not_replayed() {
///         eprintln!("this response is a rejection: {reason}");
///     }
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct TokenOutcome {
    waited: Option<Duration>,
    token_renewed: bool,
    replayed: bool,
    not_replayed: Option<NotReplayed>,
    omitted: Option<TokenOmitted>,
}

impl TokenOutcome {
    /// Returns how long the call waited for tokens, or `None` if it didn't wait.
    pub fn waited(&self) -> Option<Duration> {
        self.waited
    }

    /// Returns whether the call waited for a renewal after the API had rejected its token.
    ///
    /// If the request was [replayed](Self::replayed) without a renewal, the cache already held a
    /// newer token.
    pub fn token_renewed(&self) -> bool {
        self.token_renewed
    }

    /// Returns whether the request was sent again. If so, this is the response to the last send.
    pub fn replayed(&self) -> bool {
        self.replayed
    }

    /// Returns why this response is a rejection, or `None` if it isn't one.
    pub fn not_replayed(&self) -> Option<&NotReplayed> {
        self.not_replayed.as_ref()
    }

    /// Returns why the request was sent without a token, or `None` if it carried one.
    pub fn omitted(&self) -> Option<TokenOmitted> {
        self.omitted
    }

    pub(crate) fn note_wait(&mut self, waited: Option<Duration>) {
        self.waited = self
            .waited
            .into_iter()
            .chain(waited)
            .reduce(|all, more| all + more);
    }

    /// The request is sent again, after a renewal or with a token that was there.
    pub(crate) fn note_replay(&mut self, token_renewed: bool) {
        self.replayed = true;
        self.token_renewed |= token_renewed;
    }

    pub(crate) fn without_token(reason: TokenOmitted) -> Self {
        Self {
            omitted: Some(reason),
            ..Self::default()
        }
    }

    /// Attaches the outcome to a rejection that the caller gets, with the reason.
    pub(crate) fn explain<B>(mut self, reason: NotReplayed, response: Response<B>) -> Response<B> {
        self.not_replayed = Some(reason);
        self.attach_to(response)
    }

    /// Attaches the outcome to the response that the caller gets, if it has anything to report.
    pub(crate) fn attach_to<B>(self, mut response: Response<B>) -> Response<B> {
        if !self.is_plain() {
            response.extensions_mut().insert(self);
        }
        response
    }

    /// A token was there when it was looked for a second time.
    fn is_plain(&self) -> bool {
        self.waited.is_none()
            && !self.replayed
            && self.not_replayed.is_none()
            && self.omitted.is_none()
    }
}

impl fmt::Display for TokenOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waited = self
            .waited
            .map(|waited| format!("waited {} for a token", in_milliseconds(waited)));
        let renewed = self
            .token_renewed
            .then(|| "the token was renewed".to_owned());
        let replayed = self.replayed.then(|| "sent twice".to_owned());
        let not_replayed = self.not_replayed.as_ref().map(NotReplayed::to_string);
        let withheld = self.omitted.as_ref().map(TokenOmitted::to_string);
        let parts: Vec<_> = [waited, renewed, replayed, not_replayed, withheld]
            .into_iter()
            .flatten()
            .collect();
        f.write_str(&parts.join("; "))
    }
}

/// The reason why the caller gets a response that rejects the token.
///
/// Returned by [`TokenOutcome::not_replayed`].
///
/// # Examples
///
/// ```
/// use tower_client_credentials::NotReplayed;
///
/// /// Returns whether a larger limit of `Buffered` could have helped.
/// fn is_too_long(reason: &NotReplayed) -> bool {
///     matches!(reason, NotReplayed::BodyOverLimit)
/// }
/// # assert!(!is_too_long(&NotReplayed::OptedOut));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NotReplayed {
    /// The last renewal is too recent for another one: the token was revoked twice in a row, or the API
    /// rejects new tokens. See [`TokenCacheBuilder::cool_down`](crate::TokenCacheBuilder::cool_down).
    CoolingDown,
    /// The renewal returned the token that the API had rejected.
    SameToken,
    /// The renewal failed, or the cache is still returning the error of an earlier token request.
    ///
    /// If a renewal fails after more than one second, the call fails instead. See
    /// [`Error::rejected_status`].
    RenewalFailed(Error),
    /// The replay policy kept nothing of the body.
    BodyNotKept,
    /// The part of the body that was sent exceeds the limit of
    /// [`Buffered`](crate::replay::Buffered).
    BodyOverLimit,
    /// Reading the body failed while [`Buffered`](crate::replay::Buffered) sent it.
    BodyFailed,
    /// The body reports neither its exact size nor that it has ended, so
    /// [`CloneBody`](crate::replay::CloneBody) can't check whether a clone is complete.
    BodySizeUnknown,
    /// The clone of the body is shallow: it shares its data with the body that was sent.
    BodyShared,
    /// The replay policy couldn't restore the body.
    BodyNotRestored,
    /// The request carried the extension [`NoReplay`](crate::replay::NoReplay).
    OptedOut,
    /// The request was sent again, and the API rejected the second token as well.
    RejectedAgain,
}

impl NotReplayed {
    /// There is no other token to send the request with.
    pub(crate) fn without_token(error: Error) -> Self {
        match error.kind() {
            Kind::CoolingDown => Self::CoolingDown,
            Kind::SameToken => Self::SameToken,
            _ => Self::RenewalFailed(error),
        }
    }
}

impl fmt::Display for NotReplayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self {
            Self::RenewalFailed(error) => {
                return write!(f, "not sent again, as no other token is available: {error}");
            }
            Self::RejectedAgain => {
                return f.write_str("a second send with another token was rejected, too");
            }
            Self::CoolingDown => "the last renewal is too recent for another one",
            Self::SameToken => "the renewal returned the same token",
            Self::BodyNotKept => "nothing was kept of the request's body",
            Self::BodyOverLimit => "more of the request's body was sent than may be kept",
            Self::BodyFailed => "reading the request's body failed",
            Self::BodySizeUnknown => "the request's body reported no exact size",
            Self::BodyShared => "the clone of the request's body shares its data with the body",
            Self::BodyNotRestored => "the request's body could not be made a second time",
            Self::OptedOut => "the request carried `NoReplay`",
        };
        write!(f, "not sent again, as {reason}")
    }
}

/// The reason why a request was sent without a token.
///
/// Returned by [`TokenOutcome::omitted`].
///
/// # Examples
///
/// ```
/// use http::Response;
/// use tower_client_credentials::{TokenOutcome, TokenOmitted};
///
/// /// Returns whether the request was sent without a token because it used plain HTTP.
/// fn is_plain<B>(response: &Response<B>) -> bool {
///     let outcome = response.extensions().get::<TokenOutcome>();
///     outcome.and_then(TokenOutcome::omitted) == Some(TokenOmitted::PlainHttp)
/// }
/// # assert!(!is_plain(&Response::new(())));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenOmitted {
    /// [`allowed_origins`](crate::ClientCredentialsLayer::allowed_origins) doesn't list the
    /// request's origin, or the request is a `CONNECT` request.
    OtherOrigin,
    /// The request goes to another machine over plain HTTP, or has a scheme other than `https`. See
    /// [`allow_http`](crate::ClientCredentialsLayer::allow_http).
    PlainHttp,
}

impl TokenOmitted {
    /// The reason in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::OtherOrigin => "other_origin",
            Self::PlainHttp => "plain_http",
        }
    }
}

impl fmt::Display for TokenOmitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let destination = match self {
            Self::OtherOrigin => "another origin than those that the token is for",
            Self::PlainHttp => "another host over plain http or an unknown scheme",
        };
        write!(
            f,
            "sent without a token, as the request goes to {destination}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited(waited: Duration) -> TokenOutcome {
        let mut outcome = TokenOutcome::default();
        outcome.note_wait(Some(waited));
        outcome
    }

    #[test]
    fn wait_is_shown_in_ascii_and_rounded_down_to_milliseconds() {
        for (nanos, shown) in [
            (0, "less than 1ms"),
            (1, "less than 1ms"),
            (999_999, "less than 1ms"),
            (1_000_000, "1ms"),
            (1_999_999, "1ms"),
            (80_000_000, "80ms"),
            (1_234_567_890, "1.234s"),
            (30_000_000_000, "30s"),
        ] {
            let text = waited(Duration::from_nanos(nanos)).to_string();

            assert_eq!(text, format!("waited {shown} for a token"));
        }
    }

    #[test]
    fn every_text_is_ascii() {
        let reasons = [
            NotReplayed::CoolingDown,
            NotReplayed::SameToken,
            NotReplayed::RenewalFailed(Error::new(Kind::TimedOut(Duration::from_micros(7)))),
            NotReplayed::BodyNotKept,
            NotReplayed::BodyOverLimit,
            NotReplayed::BodyFailed,
            NotReplayed::BodySizeUnknown,
            NotReplayed::BodyShared,
            NotReplayed::BodyNotRestored,
            NotReplayed::OptedOut,
            NotReplayed::RejectedAgain,
        ];
        let mut texts = Vec::new();
        for reason in reasons {
            for omitted in [TokenOmitted::OtherOrigin, TokenOmitted::PlainHttp] {
                let outcome = TokenOutcome {
                    token_renewed: true,
                    replayed: true,
                    not_replayed: Some(reason.clone()),
                    omitted: Some(omitted),
                    ..waited(Duration::from_micros(7))
                };
                texts.push(outcome.to_string());
            }
        }

        for text in texts {
            assert!(text.is_ascii(), "{text}");
        }
    }
}
