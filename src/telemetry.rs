//! What the crate tells of itself, with the features `tracing` and `metrics`; nothing without them.
//!
//! Everything here is called on cold paths: a call that finds its token tells nothing. What is told
//! names causes, outcomes and durations, and neither tokens nor secrets; no label of a metric holds
//! what a server sent.

#![cfg_attr(
    not(all(feature = "tracing", feature = "metrics")),
    allow(
        unused_variables,
        dead_code,
        reason = "each feature looks at what it tells, and at nothing else"
    )
)]

use std::time::Duration;

use tokio::time::Instant;

use crate::{AccessToken, Error, Rejection, TokenOmitted, clock::Moment};

/// Tells the recorder what each metric is; the recorder has to be there before the first cache.
pub(crate) fn describe() {
    #[cfg(feature = "metrics")]
    {
        use metrics::{
            Unit::{Count, Seconds},
            describe_counter, describe_gauge, describe_histogram,
        };

        describe_counter!(
            names::TOKEN_REQUESTS,
            Count,
            "Token requests, by cause and outcome."
        );
        describe_histogram!(
            names::TOKEN_REQUEST_DURATION,
            Seconds,
            "How long token requests took, by cause and outcome."
        );
        describe_gauge!(
            names::TOKEN_EXPIRY,
            Seconds,
            "Unix time from which the last token counts as expired."
        );
        describe_gauge!(names::WAITERS, Count, "Callers that wait for a token now.");
        describe_histogram!(
            names::WAIT_DURATION,
            Seconds,
            "How long callers waited for a token, by outcome."
        );
        describe_counter!(
            names::FAIL_FAST,
            Count,
            "Callers that were given the error of the last token request."
        );
        describe_counter!(
            names::REJECTIONS,
            Count,
            "Rejections of tokens by the API, by what becomes of the token."
        );
        describe_counter!(
            names::REPLAYS,
            Count,
            "Requests that were sent a second time."
        );
        describe_counter!(
            names::REJECTIONS_AFTER_REPLAY,
            Count,
            "Second sends that the API rejected, too."
        );
        describe_counter!(
            names::REQUESTS_WITHOUT_TOKEN,
            Count,
            "Requests that must not carry a token, by reason."
        );
    }
}

/// What the metrics are called.
#[cfg(feature = "metrics")]
mod names {
    pub(super) const TOKEN_REQUESTS: &str = "client_credentials_token_requests_total";
    pub(super) const TOKEN_REQUEST_DURATION: &str =
        "client_credentials_token_request_duration_seconds";
    pub(super) const TOKEN_EXPIRY: &str = "client_credentials_token_expiry_timestamp_seconds";
    pub(super) const WAITERS: &str = "client_credentials_waiters";
    pub(super) const WAIT_DURATION: &str = "client_credentials_wait_duration_seconds";
    pub(super) const FAIL_FAST: &str = "client_credentials_fail_fast_total";
    pub(super) const REJECTIONS: &str = "client_credentials_rejections_total";
    pub(super) const REPLAYS: &str = "client_credentials_replays_total";
    pub(super) const REJECTIONS_AFTER_REPLAY: &str =
        "client_credentials_rejections_after_replay_total";
    pub(super) const REQUESTS_WITHOUT_TOKEN: &str =
        "client_credentials_requests_without_token_total";
}

/// Why a token was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// There was none yet.
    First,
    /// The time had come to refresh it.
    DueForRefresh,
    /// Its time was over.
    Expired,
    /// The API had rejected it.
    Rejected,
    /// It is kept warm.
    KeepWarm,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::DueForRefresh => "due_for_refresh",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
            Self::KeepWarm => "keep_warm",
        }
    }
}

/// One flight, from its new_flight to its landing.
///
/// Dropped before it has landed, it was lost with its runtime.
pub(crate) struct Flight {
    cause: Cause,
    attempts: u32,
    has_landed: bool,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl Flight {
    pub(crate) fn start(cause: Cause) -> Self {
        Self {
            cause,
            attempts: 0,
            has_landed: false,
            #[cfg(feature = "tracing")]
            span: Self::new_span(cause),
        }
    }

    /// A root span, as the flight may outlive the caller that started it; it follows from that one.
    #[cfg(feature = "tracing")]
    fn new_span(cause: Cause) -> tracing::Span {
        let span = tracing::debug_span!(
            parent: None,
            "token_request",
            otel.kind = "internal",
            cause = cause.name(),
            attempts = tracing::field::Empty,
            waiters = tracing::field::Empty,
            outcome = tracing::field::Empty,
            error.type = tracing::field::Empty,
        );
        span.follows_from(tracing::Span::current());
        span
    }

    /// What the token service does for the flight is part of its span.
    #[cfg(feature = "tracing")]
    pub(crate) fn span(&self) -> tracing::Span {
        self.span.clone()
    }

    /// The token service has answered one token request, or has not in time.
    pub(crate) fn attempted(&mut self, asked_at: Instant, answer: Result<&AccessToken, &Error>) {
        self.attempts += 1;
        #[cfg(feature = "metrics")]
        {
            let labels = [("cause", self.cause.name()), ("outcome", outcome(answer))];
            let duration = crate::clock::Clock::monotonic().duration_since(asked_at);
            metrics::counter!(names::TOKEN_REQUESTS, &labels).increment(1);
            metrics::histogram!(names::TOKEN_REQUEST_DURATION, &labels).record(duration);
        }
        #[cfg(feature = "tracing")]
        if let Err(error) = answer {
            tracing::debug!(
                parent: &self.span,
                attempt = self.attempts,
                error.type = error.type_name(),
                error = %error,
                "token request failed",
            );
        }
    }

    /// The flight brought a token, which expires at that moment, or an error.
    pub(crate) fn landed(mut self, landed: Result<&Moment, &Error>, waiters: usize) {
        self.has_landed = true;
        #[cfg(feature = "metrics")]
        if let Ok(expires_at) = landed {
            let since_epoch = expires_at.wall.duration_since(std::time::UNIX_EPOCH);
            metrics::gauge!(names::TOKEN_EXPIRY).set(since_epoch.unwrap_or_default().as_secs_f64());
        }
        #[cfg(feature = "tracing")]
        {
            self.span.record("attempts", self.attempts);
            self.span.record("waiters", waiters);
            self.span.record("outcome", outcome(landed));
            match landed {
                Ok(_) => tracing::debug!(parent: &self.span, "token received"),
                Err(error) => {
                    self.span.record("error.type", error.type_name());
                    tracing::warn!(
                        parent: &self.span,
                        cause = self.cause.name(),
                        error.type = error.type_name(),
                        error = %error,
                        retry_after = ?error.retry_after(),
                        "no token could be had",
                    );
                }
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        #[cfg(feature = "tracing")]
        if !self.has_landed {
            self.span.record("attempts", self.attempts);
            self.span.record("outcome", "lost");
            tracing::debug!(
                parent: &self.span,
                "token request ended with its runtime, or as nobody needs its token",
            );
        }
    }
}

/// A caller that waits for a token; dropped when it is given up.
pub(crate) struct Waiter(());

impl Waiter {
    pub(crate) fn begin() -> Self {
        #[cfg(feature = "metrics")]
        metrics::gauge!(names::WAITERS).increment(1.0);
        Self(())
    }

    pub(crate) fn end<T>(self, waited: Duration, landed: Result<&T, &Error>) {
        #[cfg(feature = "metrics")]
        metrics::histogram!(
            names::WAIT_DURATION,
            "outcome" => outcome(landed),
        )
        .record(waited);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        #[cfg(feature = "metrics")]
        metrics::gauge!(names::WAITERS).decrement(1.0);
    }
}

/// A caller was given the error of the last flight, without another.
pub(crate) fn failed_fast(error: &Error) {
    #[cfg(feature = "metrics")]
    metrics::counter!(names::FAIL_FAST).increment(1);
    #[cfg(feature = "tracing")]
    tracing::debug!(
        error.type = error.type_name(),
        retry_after = ?error.retry_after(),
        "token service is not asked again yet",
    );
}

/// The API rejected a token; it is news if the token is withheld now, which only the first of many calls
/// brings about.
pub(crate) fn rejected(rejection: &Rejection, is_news: bool) {
    let action = match rejection {
        Rejection::Withheld => "withheld",
        Rejection::Replaced => "replaced",
        Rejection::CoolingDown => "cooling_down",
        Rejection::Failing(_) => "failing",
    };
    #[cfg(feature = "metrics")]
    metrics::counter!(names::REJECTIONS, "action" => action).increment(1);
    #[cfg(feature = "tracing")]
    if is_news {
        token_withheld();
    } else {
        tracing::debug!(action, "API rejected the token");
    }
}

/// The token is withheld: by a rejection that has just been counted, or by one that came to nothing when
/// it was.
pub(crate) fn token_withheld() {
    #[cfg(feature = "tracing")]
    tracing::info!(action = "withheld", "API rejected the token");
}

/// A request is sent a second time.
pub(crate) fn replayed(is_renewed: bool) {
    #[cfg(feature = "metrics")]
    metrics::counter!(names::REPLAYS).increment(1);
    #[cfg(feature = "tracing")]
    tracing::debug!(is_renewed, "request is sent again with another token");
}

/// The second send was rejected, too.
pub(crate) fn rejected_again() {
    #[cfg(feature = "metrics")]
    metrics::counter!(names::REJECTIONS_AFTER_REPLAY).increment(1);
    #[cfg(feature = "tracing")]
    tracing::debug!("API rejected another token, too");
}

/// A request was sent without a token.
pub(crate) fn withheld(reason: TokenOmitted) {
    #[cfg(feature = "metrics")]
    {
        let reason = match reason {
            TokenOmitted::OtherOrigin => "other_origin",
            TokenOmitted::PlainHttp => "plain_http",
        };
        metrics::counter!(names::REQUESTS_WITHOUT_TOKEN, "reason" => reason).increment(1);
    }
    #[cfg(feature = "tracing")]
    tracing::debug!(%reason, "request carries no token");
}

fn outcome<T>(result: Result<&T, &Error>) -> &'static str {
    result.map_or_else(Error::type_name, |_| "token")
}
