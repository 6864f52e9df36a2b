//! The steps of the example. Each has its own servers and token cache, so its tokens start with #1.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tower_client_credentials::{BoxError, Error, NotReplayed, TokenCache};
use tower_client_credentials_test::{ReceivedRequest, Reply};

use crate::{
    report::{check, check_that, gap, note},
    stack::{APPLICATION, Outcome, Stack, TOKEN_DELAY, UNPRIVILEGED},
};

/// LinkedIn's response to an invalid token.
const INVALID: &str = r#"{"serviceErrorCode":65600,"message":"Invalid access token","status":401}"#;

/// The lifetime of LinkedIn's tokens.
const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);

/// The interval between the calls of the steady traffic.
const INTERVAL: Duration = Duration::from_millis(10);

pub(crate) async fn first_call() -> Result<(), BoxError> {
    let stack = Stack::start(HALF_AN_HOUR).await?;
    note("authorization server", &stack.token_url);
    note("API", &stack.api_url);
    check("token requests so far", stack.auth.token_requests(), 0)?;

    let first = stack.get().await?;
    check("first call", summary(&first), "200 with token #1")?;
    check("waited for the token", first.waited, true)?;

    let second = stack.get().await?;
    check("second call", summary(&second), "200 with token #1")?;
    check("waited for the token", second.waited, false)?;
    check("token requests", stack.auth.token_requests(), 1)
}

pub(crate) async fn cold_cache() -> Result<(), BoxError> {
    const CALLS: usize = 1000;
    let stack = Stack::start(HALF_AN_HOUR).await?;

    let outcomes = all(stack.get_all(CALLS).await)?;

    check("calls with status 200", accepted(&outcomes), CALLS)?;
    note("calls that waited for the token", waiting(&outcomes));
    check("token requests", stack.auth.token_requests(), 1)
}

pub(crate) async fn steady_traffic() -> Result<(), BoxError> {
    const TOKEN_LIFETIME: Duration = Duration::from_secs(2);
    const EXPIRIES: usize = 3;
    // Jitter would shorten the time between a refresh and the expiry, and a busy machine may pause
    // this program for a while.
    let cache = TokenCache::builder().jitter(0.0);
    let stack = Stack::start_with(TOKEN_LIFETIME, APPLICATION, cache).await?;
    note("token lifetime", format!("{TOKEN_LIFETIME:?}"));
    note("duration of a token request", format!("{TOKEN_DELAY:?}"));

    let first = stack.get().await?;
    check("first call waited", first.waited, true)?;

    let outcomes = call_until_expired(&stack, EXPIRIES).await?;

    let calls = outcomes.len();
    note("interval between calls", format!("{INTERVAL:?}"));
    check("further calls with status 200", accepted(&outcomes), calls)?;
    let expired = stack.expired_tokens();
    check_that(
        "tokens that expired",
        expired,
        expired >= EXPIRIES,
        EXPIRIES,
    )?;
    check("calls that waited for a token", waiting(&outcomes), 0)?;
    // The outcomes don't show rejected tokens, because those calls are replayed.
    let rejected = rejected_sends(&stack.api.requests());
    check("tokens that the API rejected", rejected, 0)?;
    // The first request, and a refresh before each expiry.
    let token_requests = stack.auth.token_requests();
    check("token requests", token_requests, EXPIRIES + 1)?;
    let slowest = outcomes.iter().map(|outcome| outcome.elapsed).max();
    let slowest = slowest.unwrap_or_default();
    note("slowest of these calls", format!("{slowest:.1?}"));
    Ok(())
}

/// Makes calls at fixed intervals, however long each takes.
async fn call_until_expired(stack: &Stack, tokens: usize) -> Result<Vec<Outcome>, BoxError> {
    // Ten seconds of calls: twice the time of three expiries.
    const MAX_CALLS: usize = 1000;
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut calls = JoinSet::new();
    while stack.expired_tokens() < tokens && calls.len() < MAX_CALLS {
        ticks.tick().await;
        let stack = stack.clone();
        calls.spawn(async move { stack.get().await });
    }
    all(calls.join_all().await)
}

pub(crate) async fn revoked_token() -> Result<(), BoxError> {
    let stack = Stack::start(HALF_AN_HOUR).await?;
    let first = stack.get().await?;
    check("first call", summary(&first), "200 with token #1")?;
    stack.auth.revoke_all();
    note("token #1", "revoked");

    let document = document();
    let outcome = stack.post(document.clone()).await?;

    let received = stack.api.requests().split_off(1);
    check("sends of the POST", received.len(), 2)?;
    let sends = received.iter().map(|request| describe(request, &document));
    let expected = [
        "401 with token #1, body complete",
        "200 with token #2, body complete",
    ];
    for (send, expected) in sends.zip(expected) {
        check("sent", send, expected)?;
    }
    let renewals = stack.auth.token_requests() - 1;
    check("renewals", renewals, 1)?;
    let expected = "200 with token #2";
    check("response to the caller", summary(&outcome), expected)?;
    let echoed = format!("{} bytes", outcome.body.len());
    let is_complete = outcome.body == document;
    check_that("echoed by the API", echoed, is_complete, "the posted body")
}

/// Returns a body larger than the buffer of a socket.
fn document() -> Bytes {
    let text: String = (0..1_000_000).map(|_| fastrand::alphanumeric()).collect();
    text.into()
}

fn describe(request: &ReceivedRequest, document: &Bytes) -> String {
    let token = request.token_number().unwrap_or_default();
    let is_complete = request.body() == Some(document);
    let body = if is_complete { "complete" } else { "damaged" };
    format!("{} with token #{token}, body {body}", request.outcome())
}

pub(crate) async fn refused_credentials() -> Result<(), BoxError> {
    let (id, secret) = APPLICATION;
    let wrong_secret = (id, "not/the+secret==");
    let unknown_id = ("abcdefghijk", secret);

    refused("wrong secret", wrong_secret, "401 invalid_client_id").await?;
    gap();
    refused("unknown client id", unknown_id, "400 invalid_client_id").await?;
    gap();
    refused("no permission", UNPRIVILEGED, "401 access_denied").await
}

async fn refused(mistake: &str, credentials: (&str, &str), expected: &str) -> Result<(), BoxError> {
    const CALLS: usize = 10;
    let stack = Stack::start_with(HALF_AN_HOUR, credentials, TokenCache::builder()).await?;

    let mut errors = Vec::new();
    for result in stack.get_all(CALLS).await {
        let error = result.err().ok_or("the call succeeded")?;
        // Errors of the HTTP client have another type.
        errors.push(*error.downcast::<Error>()?);
    }

    let is_expected = |error: &&Error| code(error) == expected && error.hint().is_some();
    let last = errors.last().ok_or("no call was made")?;
    check(mistake, code(last), expected)?;
    note("description", last.description().unwrap_or_default());
    let hint = last.hint();
    check_that("hint", hint.unwrap_or("none"), hint.is_some(), "a hint")?;
    check(
        "concurrent calls with this error",
        errors.iter().filter(is_expected).count(),
        CALLS,
    )?;
    check("token requests", stack.auth.token_requests(), 1)?;
    check("requests to the API", stack.api.sends(), 0)?;
    let leaks = format!("{last} {last:?}").contains(credentials.1);
    check("the error contains the secret", leaks, false)
}

pub(crate) async fn rejected_tokens() -> Result<(), BoxError> {
    const CALLS: usize = 100;
    let stack = Stack::start(HALF_AN_HOUR).await?;
    let first = stack.get().await?;
    check("first call", summary(&first), "200 with token #1")?;
    stack.api.always(Reply::status(401).with_body(INVALID));

    let outcomes = all(stack.get_all(CALLS).await)?;
    let sends = rejected_sends(&stack.api.requests());
    note("concurrent calls", CALLS);
    check("original 401 responses", rejections(&outcomes), CALLS)?;
    check("renewals", stack.auth.token_requests() - 1, 1)?;
    check_that("sends", sends, sends <= 2 * CALLS, "at most two per call")?;

    let outcomes = all(stack.get_all(CALLS).await)?;
    let further_sends = rejected_sends(&stack.api.requests()) - sends;
    note("further calls within the cool-down", CALLS);
    check("original 401 responses", rejections(&outcomes), CALLS)?;
    check("renewals", stack.auth.token_requests() - 2, 0)?;
    check("sends", further_sends, CALLS)?;

    let reason = outcomes
        .into_iter()
        .find_map(|outcome| outcome.not_replayed);
    let reason = reason.ok_or("no response says why it was not replayed")?;
    let holds = matches!(reason, NotReplayed::CoolingDown);
    check_that("why it was not replayed", reason, holds, "the cool-down")
}

fn all(results: Vec<Result<Outcome, BoxError>>) -> Result<Vec<Outcome>, BoxError> {
    results.into_iter().collect()
}

fn accepted(outcomes: &[Outcome]) -> usize {
    let is_accepted = |outcome: &&Outcome| outcome.status == StatusCode::OK;
    outcomes.iter().filter(is_accepted).count()
}

fn rejected_sends(received: &[ReceivedRequest]) -> usize {
    let is_rejected = |request: &&ReceivedRequest| request.is_refused();
    received.iter().filter(is_rejected).count()
}

fn waiting(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.waited).count()
}

/// Counts the 401 responses that are as the API sent them and say why they were not replayed.
fn rejections(outcomes: &[Outcome]) -> usize {
    let is_original = |outcome: &&Outcome| {
        outcome.status == StatusCode::UNAUTHORIZED
            && outcome.body == INVALID
            && outcome.not_replayed.is_some()
    };
    outcomes.iter().filter(is_original).count()
}

fn summary(outcome: &Outcome) -> String {
    format!("{} with token #{}", outcome.status.as_u16(), outcome.token)
}

/// The status and the error code of LinkedIn's reply.
fn code(error: &Error) -> String {
    let status = error.status().map_or(0, |status| status.as_u16());
    format!("{status} {}", error.code().unwrap_or("without a code"))
}
