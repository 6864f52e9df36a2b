use std::{fmt, time::Duration};

use http::Response;

use crate::Error;

/// What happened to a call beside a plain send with a token that was there.
///
/// An extension of the response: found with `response.extensions().get::<TokenOutcome>()`. A response
/// without it is that of a request that carried a token which was there already, or an
/// `Authorization` of its own.
///
/// # Examples
///
/// ```
/// use tower_client_credentials::TokenOutcome;
///
/// # let response = http::Response::new(());
/// if let Some(outcome) = response.extensions().get::<TokenOutcome>() {
///     // All of it in one line; or part by part.
///     eprintln!("{}: {outcome}", response.status());
///     if let Some(waited) = outcome.waited() {
///         eprintln!("waited {waited:?}");
///     }
///     if outcome.replayed() && !outcome.token_renewed() {
///         eprintln!("sent again with a token that was there");
///     }
///     if let Some(reason) = outcome.not_replayed() {
///         eprintln!("the API rejected the token, and that was not mended: {reason}");
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
    /// How long the call waited for tokens, if it did.
    pub fn waited(&self) -> Option<Duration> {
        self.waited
    }

    /// Whether the call waited for a renewal after the API had rejected its token.
    ///
    /// A [replay](Self::replayed) without one used a newer token that was there already.
    pub fn token_renewed(&self) -> bool {
        self.token_renewed
    }

    /// Whether the request was sent twice; this is the response to the second send.
    pub fn replayed(&self) -> bool {
        self.replayed
    }

    /// Why a response that rejects the token came back.
    pub fn not_replayed(&self) -> Option<&NotReplayed> {
        self.not_replayed.as_ref()
    }

    /// Why the request was sent without a token.
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
            .map(|waited| format!("waited {waited:?} for a token"));
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

/// Why a response that rejected the token came back without another send.
///
/// Found with [`TokenOutcome::not_replayed`].
///
/// # Examples
///
/// ```
/// use tower_client_credentials::NotReplayed;
///
/// /// Whether a larger limit of `Buffered` would have helped.
/// fn is_too_long(reason: &NotReplayed) -> bool {
///     matches!(reason, NotReplayed::BodyOverLimit)
/// }
/// # assert!(!is_too_long(&NotReplayed::OptedOut));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NotReplayed {
    /// A renewal was tried so lately that another would not help; see
    /// [`TokenCacheBuilder::cool_down`](crate::TokenCacheBuilder::cool_down).
    CoolingDown,
    /// No other token could be had.
    RenewalFailed(Error),
    /// The replay policy kept nothing of the body.
    BodyNotKept,
    /// More of the body was sent than [`Buffered`](crate::replay::Buffered) may keep, or reading it failed.
    BodyOverLimit,
    /// The clone of the body shares its data with the body that was sent: it is shallow.
    BodyShared,
    /// What was kept of the body could not be made into one.
    BodyNotRestored,
    /// The request carried [`NoReplay`](crate::replay::NoReplay).
    OptedOut,
    /// This is the response to the second send: the API rejected the other token, too.
    RejectedAgain,
}

impl NotReplayed {
    /// There is no other token to send the request with.
    pub(crate) fn without_token(error: Error) -> Self {
        if error.is_cooling_down() {
            Self::CoolingDown
        } else {
            Self::RenewalFailed(error)
        }
    }
}

impl fmt::Display for NotReplayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self {
            Self::RenewalFailed(error) => {
                return write!(f, "not sent again, as no other token could be had: {error}");
            }
            Self::RejectedAgain => {
                return f.write_str("a second send with another token was rejected, too");
            }
            Self::CoolingDown => "a renewal was tried a moment ago",
            Self::BodyNotKept => "nothing was kept of the request's body",
            Self::BodyOverLimit => {
                "more of the request's body was sent than may be kept, or reading it failed"
            }
            Self::BodyShared => "the clone of the request's body shares its data with the body",
            Self::BodyNotRestored => "the request's body could not be made a second time",
            Self::OptedOut => "the request carried `NoReplay`",
        };
        write!(f, "not sent again, as {reason}")
    }
}

/// Why a request was sent without a token.
///
/// Found with [`TokenOutcome::omitted`].
///
/// # Examples
///
/// ```
/// use http::Response;
/// use tower_client_credentials::{TokenOutcome, TokenOmitted};
///
/// /// Whether a request went without a token, as its URL begins with `http:`.
/// fn is_plain<B>(response: &Response<B>) -> bool {
///     let outcome = response.extensions().get::<TokenOutcome>();
///     outcome.and_then(TokenOutcome::omitted) == Some(TokenOmitted::PlainHttp)
/// }
/// # assert!(!is_plain(&Response::new(())));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenOmitted {
    /// It goes to another origin than those of
    /// [`allowed_origins`](crate::ClientCredentialsLayer::allowed_origins), or asks a proxy for a tunnel.
    OtherOrigin,
    /// It goes over plain http, or by another scheme than `https`, `wss` and `unix`, to another host
    /// than this one; see
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
            Self::PlainHttp => "another host over plain http, where it could be read on the way",
        };
        write!(
            f,
            "sent without a token, as the request goes to {destination}"
        )
    }
}
