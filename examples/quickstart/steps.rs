//! The steps of the show. Each has servers and a token cache of its own, so that its tokens start
//! with #1, and checks what it shows.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tower_client_credentials::{BoxError, Error, NotReplayed, TokenCache};

use crate::{
    report::{check, check_that, gap, note},
    servers::{APPLICATION, Arrival, INVALID, TOKEN_DELAY, UNPRIVILEGED},
    stack::{Answer, Stack},
};

/// What LinkedIn's tokens live.
const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);

/// Of the steady traffic.
const PACE: Duration = Duration::from_millis(10);

pub(crate) async fn first_call() -> Result<(), BoxError> {
    let stack = Stack::start(HALF_AN_HOUR).await?;
    let servers = &stack.servers;
    note("authorization server", &servers.token_url);
    note("API", &servers.api_url);
    check("token requests before", servers.token_requests(), 0)?;

    let first = stack.get().await?;
    check("first call", shown(&first), "200 with token #1")?;
    check("it waited for the token", first.waited, true)?;

    let second = stack.get().await?;
    check("second call", shown(&second), "200 with token #1")?;
    check("it waited for the token", second.waited, false)?;
    check("token requests", servers.token_requests(), 1)
}

pub(crate) async fn cold_cache() -> Result<(), BoxError> {
    const CALLS: usize = 1000;
    let stack = Stack::start(HALF_AN_HOUR).await?;

    let answers = all(stack.get_all(CALLS).await)?;

    check("calls answered with 200", accepted(&answers), CALLS)?;
    note("calls that waited for the token", waiting(&answers));
    check("token requests", stack.servers.token_requests(), 1)
}

pub(crate) async fn steady_traffic() -> Result<(), BoxError> {
    const TOKEN_LIFE: Duration = Duration::from_secs(2);
    const EXPIRIES: usize = 3;
    // One client need not keep out of the way of others. A machine that is busy with other things
    // may stop this one for a while, and is allowed all of the window for that.
    let cache = TokenCache::builder().jitter(0.0);
    let stack = Stack::start_with(TOKEN_LIFE, APPLICATION, cache).await?;
    note("tokens live", format!("{TOKEN_LIFE:?}"));
    note("a token request takes", format!("{TOKEN_DELAY:?}"));

    let first = stack.get().await?;
    check("first call waited", first.waited, true)?;

    let answers = call_until_expired(&stack, EXPIRIES).await?;

    let calls = answers.len();
    note("a call every", format!("{PACE:?}"));
    check("further calls answered with 200", accepted(&answers), calls)?;
    let expired = stack.servers.expired_tokens();
    check_that(
        "tokens that expired",
        expired,
        expired >= EXPIRIES,
        EXPIRIES,
    )?;
    check("calls that waited for a token", waiting(&answers), 0)?;
    // A refused token does not show in the answers: the call is sent again.
    let refused = refused_sends(&stack.servers.arrivals());
    check("tokens that the API refused", refused, 0)?;
    // The first, and three refreshes ahead of three expiries.
    let token_requests = stack.servers.token_requests();
    check("token requests", token_requests, EXPIRIES + 1)?;
    let slowest = answers.iter().map(|answer| answer.took).max();
    let slowest = slowest.unwrap_or_default();
    note("slowest of these calls", format!("{slowest:.1?}"));
    Ok(())
}

/// Makes calls at a steady pace, however long each takes.
async fn call_until_expired(stack: &Stack, tokens: usize) -> Result<Vec<Answer>, BoxError> {
    // Ten seconds: twice as many as three expiries take.
    const MOST_CALLS: usize = 1000;
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut calls = JoinSet::new();
    while stack.servers.expired_tokens() < tokens && calls.len() < MOST_CALLS {
        pace.tick().await;
        let stack = stack.clone();
        calls.spawn(async move { stack.get().await });
    }
    all(calls.join_all().await)
}

pub(crate) async fn revoked_token() -> Result<(), BoxError> {
    let stack = Stack::start(HALF_AN_HOUR).await?;
    let first = stack.get().await?;
    check("first call", shown(&first), "200 with token #1")?;
    stack.servers.revoke_tokens();
    note("token #1", "revoked");

    let document = document();
    let answer = stack.post(document.clone()).await?;

    let arrivals = &stack.servers.arrivals()[1..];
    check("sends of the POST", arrivals.len(), 2)?;
    let sends = arrivals.iter().map(|arrival| arrived(arrival, &document));
    let promised = [
        "401 with token #1, body whole",
        "200 with token #2, body whole",
    ];
    for (send, promised) in sends.zip(promised) {
        check("sent", send, promised)?;
    }
    let renewals = stack.servers.token_requests() - 1;
    check("renewals", renewals, 1)?;
    check("answer to the caller", shown(&answer), "200 with token #2")?;
    let echoed = format!("{} bytes", answer.body.len());
    let is_whole = answer.body == document;
    check_that("the API echoed", echoed, is_whole, "what was posted")
}

/// Longer than what a socket takes at once.
fn document() -> Bytes {
    let text: String = (0..1_000_000).map(|_| fastrand::alphanumeric()).collect();
    text.into()
}

fn arrived(arrival: &Arrival, document: &Bytes) -> String {
    let status = arrival.status.as_u16();
    let token = arrival.token.unwrap_or_default();
    let is_whole = arrival.body == document;
    let body = if is_whole { "whole" } else { "damaged" };
    format!("{status} with token #{token}, body {body}")
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

async fn refused(mistake: &str, credentials: (&str, &str), promised: &str) -> Result<(), BoxError> {
    const CALLS: usize = 10;
    let stack = Stack::start_with(HALF_AN_HOUR, credentials, TokenCache::builder()).await?;

    let mut errors = Vec::new();
    for outcome in stack.get_all(CALLS).await {
        let error = outcome.err().ok_or("the call succeeded")?;
        // An error of the HTTP client would not be one of this crate's.
        errors.push(*error.downcast::<Error>()?);
    }

    let same = |error: &&Error| named(error) == promised && error.hint().is_some();
    let last = errors.last().ok_or("no call was made")?;
    check(mistake, named(last), promised)?;
    note("LinkedIn says", last.description().unwrap_or_default());
    let advice = last.hint();
    check_that(
        "what to do",
        advice.unwrap_or("?"),
        advice.is_some(),
        "known",
    )?;
    check(
        "calls at once with this error",
        errors.iter().filter(same).count(),
        CALLS,
    )?;
    check("token requests", stack.servers.token_requests(), 1)?;
    check(
        "requests sent to the API",
        stack.servers.arrivals().len(),
        0,
    )?;
    let leaks = format!("{last} {last:?}").contains(credentials.1);
    check("the error shows the secret", leaks, false)
}

pub(crate) async fn refused_tokens() -> Result<(), BoxError> {
    const CALLS: usize = 100;
    let stack = Stack::start(HALF_AN_HOUR).await?;
    let servers = &stack.servers;
    let first = stack.get().await?;
    check("first call", shown(&first), "200 with token #1")?;
    servers.refuse_every_token();

    let answers = all(stack.get_all(CALLS).await)?;
    let sends = refused_sends(&servers.arrivals());
    note("calls at once", CALLS);
    check("401s that came back whole", whole_refusals(&answers), CALLS)?;
    check("renewals", servers.token_requests() - 1, 1)?;
    check_that(
        "sends",
        sends,
        sends <= 2 * CALLS,
        "two for each call at most",
    )?;

    let answers = all(stack.get_all(CALLS).await)?;
    let further_sends = refused_sends(&servers.arrivals()) - sends;
    note("calls more, within the cool-down", CALLS);
    check("401s that came back whole", whole_refusals(&answers), CALLS)?;
    check("renewals", servers.token_requests() - 2, 0)?;
    check("sends", further_sends, CALLS)?;

    let reason = answers.into_iter().find_map(|answer| answer.not_replayed);
    let reason = reason.ok_or("no answer says why there was no replay")?;
    let holds = matches!(reason, NotReplayed::CoolingDown);
    check_that("why not sent again", reason, holds, "the cool-down")
}

fn all(outcomes: Vec<Result<Answer, BoxError>>) -> Result<Vec<Answer>, BoxError> {
    outcomes.into_iter().collect()
}

fn accepted(answers: &[Answer]) -> usize {
    let is_accepted = |answer: &&Answer| answer.status == StatusCode::OK;
    answers.iter().filter(is_accepted).count()
}

fn refused_sends(arrivals: &[Arrival]) -> usize {
    let is_refused = |arrival: &&Arrival| arrival.status != StatusCode::OK;
    arrivals.iter().filter(is_refused).count()
}

fn waiting(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.waited).count()
}

/// Answers as the API gave them, with the reason why there was no other send.
fn whole_refusals(answers: &[Answer]) -> usize {
    let is_whole = |answer: &&Answer| {
        answer.status == StatusCode::UNAUTHORIZED
            && answer.body == INVALID
            && answer.not_replayed.is_some()
    };
    answers.iter().filter(is_whole).count()
}

fn shown(answer: &Answer) -> String {
    format!("{} with token #{}", answer.status.as_u16(), answer.token)
}

fn named(error: &Error) -> String {
    let status = error.status().map_or(0, |status| status.as_u16());
    format!("{status} {}", error.code().unwrap_or("without a code"))
}
