//! Metrics, spans and events, for the features `metrics` and `tracing`. Without them, nothing here
//! does anything.
//!
//! Only cold paths call these functions: a call that uses a fresh token emits nothing. Events and
//! labels name causes, outcomes and durations, never a token or a secret. Metric labels never
//! contain text from a server.

#![cfg_attr(
    not(all(feature = "tracing", feature = "metrics")),
    allow(
        unused_variables,
        dead_code,
        reason = "each feature uses only some of the arguments and functions"
    )
)]

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{Error, clock::Moment};

/// Describes each metric to the recorder, which has to be installed before the first cache is
/// created.
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
            "Attempts of token requests, by cause and outcome."
        );
        describe_histogram!(
            names::TOKEN_REQUEST_DURATION,
            Seconds,
            "Duration of the attempts of token requests, by cause and outcome."
        );
        describe_gauge!(
            names::TOKEN_EXPIRY,
            Seconds,
            "Unix time at which the newest token counts as expired."
        );
        describe_gauge!(
            names::WAITERS,
            Count,
            "Callers currently waiting for a token."
        );
        describe_histogram!(
            names::WAIT_DURATION,
            Seconds,
            "Time that callers waited for a token, by outcome."
        );
        describe_counter!(
            names::FAIL_FAST,
            Count,
            "Callers that got the error of the last token request without a new one."
        );
        describe_counter!(
            names::REJECTIONS,
            Count,
            "Tokens rejected by the API, by what happens to the token."
        );
        describe_counter!(names::REPLAYS, Count, "Requests sent a second time.");
        describe_counter!(
            names::REJECTIONS_AFTER_REPLAY,
            Count,
            "Replays that the API rejected as well."
        );
        describe_counter!(
            names::REQUESTS_WITHOUT_TOKEN,
            Count,
            "Requests sent without a token, by reason."
        );
    }
}

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

/// Why a token was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// There was no token yet.
    First,
    /// The token was due for refresh.
    DueForRefresh,
    /// The token had expired.
    Expired,
    /// The API had rejected the token.
    Rejected,
    /// The token is refreshed even while unused.
    KeepWarm,
    /// The program asked for it.
    Requested,
}

impl Cause {
    fn label(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::DueForRefresh => "due_for_refresh",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
            Self::KeepWarm => "keep_warm",
            Self::Requested => "requested",
        }
    }
}

/// One token request, from its start to its result. Counts as lost if dropped before that.
pub(crate) struct Flight {
    cause: Cause,
    /// The name of the cache.
    cache: Option<Arc<str>>,
    attempts: u32,
    is_complete: bool,
    span: Span,
}

impl Flight {
    pub(crate) fn start(cause: Cause, cache: Option<Arc<str>>) -> Self {
        let span = Span::token_request(cause, cache.as_deref());
        Self {
            cause,
            cache,
            attempts: 0,
            is_complete: false,
            span,
        }
    }

    /// The span that everything the token service does for this token request belongs to.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Records an attempt that started at `started_at` and failed with `error`, if any.
    pub(crate) fn attempted(&mut self, started_at: Instant, error: Option<&Error>) {
        self.attempts += 1;
        #[cfg(feature = "metrics")]
        {
            let labels = [("cause", self.cause.label()), ("outcome", outcome(error))];
            let duration = crate::clock::Clock::monotonic().duration_since(started_at);
            metrics::counter!(names::TOKEN_REQUESTS, &labels).increment(1);
            metrics::histogram!(names::TOKEN_REQUEST_DURATION, &labels).record(duration);
        }
        #[cfg(feature = "tracing")]
        if let Some(error) = error {
            tracing::debug!(
                parent: &self.span.0,
                cache = self.cache.as_deref(),
                attempt = self.attempts,
                error.type = error.type_name(),
                error = %error,
                "attempt of a token request failed",
            );
        }
    }

    /// Records the result: when the new token expires, or the error.
    pub(crate) fn completed(mut self, result: Result<&Moment, &Error>, waiters: usize) {
        self.is_complete = true;
        #[cfg(feature = "metrics")]
        if let Ok(expires_at) = result {
            let since_epoch = expires_at.wall.duration_since(std::time::UNIX_EPOCH);
            metrics::gauge!(names::TOKEN_EXPIRY).set(since_epoch.unwrap_or_default().as_secs_f64());
        }
        #[cfg(feature = "tracing")]
        self.trace_result(result.err(), waiters);
    }

    #[cfg(feature = "tracing")]
    fn trace_result(&self, error: Option<&Error>, waiters: usize) {
        let span = &self.span.0;
        span.record("attempts", self.attempts);
        span.record("waiters", waiters);
        span.record("outcome", outcome(error));
        let Some(error) = error else {
            tracing::debug!(parent: span, "token received");
            return;
        };
        span.record("error.type", error.type_name());
        tracing::warn!(
            parent: span,
            cache = self.cache.as_deref(),
            cause = self.cause.label(),
            error.type = error.type_name(),
            error = %error,
            retry_after = ?error.retry_after(),
            "token request failed",
        );
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        #[cfg(feature = "tracing")]
        if !self.is_complete {
            let span = &self.span.0;
            span.record("attempts", self.attempts);
            span.record("outcome", "lost");
            tracing::debug!(
                parent: span,
                "token request cancelled: its runtime shut down, or its token is no longer needed",
            );
        }
    }
}

/// The span of a token request.
#[derive(Clone)]
pub(crate) struct Span(#[cfg(feature = "tracing")] tracing::Span);

impl Span {
    /// Creates a root span, because a token request may outlive the caller that started it. The span
    /// follows from the caller's.
    fn token_request(cause: Cause, cache: Option<&str>) -> Self {
        #[cfg(not(feature = "tracing"))]
        return Self();
        #[cfg(feature = "tracing")]
        {
            let span = tracing::debug_span!(
                parent: None,
                "token_request",
                otel.kind = "internal",
                cache,
                cause = cause.label(),
                server.address = tracing::field::Empty,
                client_id = tracing::field::Empty,
                attempts = tracing::field::Empty,
                waiters = tracing::field::Empty,
                outcome = tracing::field::Empty,
                error.type = tracing::field::Empty,
            );
            span.follows_from(tracing::Span::current());
            Self(span)
        }
    }

    /// Runs `future` in this span.
    pub(crate) fn instrument<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        #[cfg(feature = "tracing")]
        let future = tracing::Instrument::instrument(future, self.0);
        future
    }
}

/// A token request is sent to the token endpoint at `host`, for a client.
///
/// Records both in the current span, which is that of the token request unless the token endpoint is
/// used without a cache.
pub(crate) fn token_request_sent(host: &str, client_id: &str) {
    #[cfg(feature = "tracing")]
    {
        let span = tracing::Span::current();
        span.record("server.address", host);
        span.record("client_id", client_id);
    }
}

/// A token has fewer scopes than requested. Their names are the user's own texts.
pub(crate) fn scopes_missing(missing: &str) {
    #[cfg(feature = "tracing")]
    tracing::info!(missing, "token has fewer scopes than requested");
}

/// A caller that waits for a token. Dropped when the wait ends, or the caller gives up.
pub(crate) struct Waiter(());

impl Waiter {
    pub(crate) fn start() -> Self {
        #[cfg(feature = "metrics")]
        metrics::gauge!(names::WAITERS).increment(1.0);
        Self(())
    }

    /// Records how long the caller waited, and for which error, if any.
    pub(crate) fn end(self, waited: Duration, error: Option<&Error>) {
        #[cfg(feature = "metrics")]
        metrics::histogram!(
            names::WAIT_DURATION,
            "outcome" => outcome(error),
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

/// A caller got the error of the last token request without a new one.
///
/// Here and below, `cache` is the name of the cache, if it has one.
pub(crate) fn failed_fast(cache: Option<&str>, error: &Error) {
    #[cfg(feature = "metrics")]
    metrics::counter!(names::FAIL_FAST).increment(1);
    #[cfg(feature = "tracing")]
    tracing::debug!(
        cache,
        error.type = error.type_name(),
        retry_after = ?error.retry_after(),
        "returning the error of the last token request without a new one",
    );
}

/// A call uses a token that has expired in the cache, because it gets no other one.
pub(crate) fn last_resort(cache: Option<&str>) {
    #[cfg(feature = "tracing")]
    tracing::debug!(cache, "using an expired token until its stated end");
}

/// The API rejected a token, and `action` is what happens to it.
///
/// Of the many calls that may get the same token rejected, only the first withholds the token.
pub(crate) fn rejected(cache: Option<&str>, action: &'static str, newly_withheld: bool) {
    #[cfg(feature = "metrics")]
    metrics::counter!(names::REJECTIONS, "action" => action).increment(1);
    #[cfg(feature = "tracing")]
    if newly_withheld {
        token_withheld(cache);
    } else {
        tracing::debug!(cache, action, "API rejected the token");
    }
}

/// A token is withheld from now on. The rejection that caused this has been counted, possibly earlier.
pub(crate) fn token_withheld(cache: Option<&str>) {
    #[cfg(feature = "tracing")]
    tracing::info!(cache, action = "withheld", "API rejected the token");
}

/// A request is sent a second time. Its token is new if the call waited for a renewal.
pub(crate) fn replayed(cache: Option<&str>, token_renewed: bool) {
    #[cfg(feature = "metrics")]
    metrics::counter!(names::REPLAYS).increment(1);
    #[cfg(feature = "tracing")]
    tracing::debug!(
        cache,
        token_renewed,
        "sending the request again with another token"
    );
}

/// The API rejected the token of a replay.
pub(crate) fn rejected_again(cache: Option<&str>) {
    #[cfg(feature = "metrics")]
    metrics::counter!(names::REJECTIONS_AFTER_REPLAY).increment(1);
    #[cfg(feature = "tracing")]
    tracing::debug!(cache, "API rejected the replay as well");
}

/// A request is sent without a token.
pub(crate) fn token_omitted(cache: Option<&str>, reason: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!(names::REQUESTS_WITHOUT_TOKEN, "reason" => reason).increment(1);
    #[cfg(feature = "tracing")]
    tracing::debug!(cache, reason, "sending the request without a token");
}

fn outcome(error: Option<&Error>) -> &'static str {
    error.map_or("token", Error::type_name)
}
