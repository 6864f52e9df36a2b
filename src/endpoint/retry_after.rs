//! How long a reply asks its client to wait.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{DATE, RETRY_AFTER},
};

/// Returns how long a reply asks to wait before the next request, however long that is.
///
/// Takes the first of these that is valid:
///
/// * `Retry-After` (RFC 9110 §10.2.3);
/// * `x-ms-retry-after-ms` or `retry-after-ms`, which Microsoft's services send;
/// * for a 429, the time until the quota is reset: `RateLimit-Reset` or `RateLimit`
///   (draft-ietf-httpapi-ratelimit-headers), or `X-RateLimit-Reset`. Servers also send these in
///   replies that don't ask to wait.
///
/// A date is relative to the server's clock if the reply has a `Date`.
pub(super) fn retry_after(
    status: StatusCode,
    headers: &HeaderMap,
    now: SystemTime,
) -> Option<Duration> {
    let now = values(headers, [DATE]).find_map(date).unwrap_or(now);
    let delay = |text: &str| seconds(text).or_else(|| Some(until(date(text)?, now)));
    let milliseconds = |text: &str| Some(seconds(text)? / 1000);
    let has_quota = status == StatusCode::TOO_MANY_REQUESTS;
    let reset = |text: &str| reset(text, now).filter(|_| has_quota);

    values(headers, [RETRY_AFTER])
        .find_map(delay)
        .or_else(|| values(headers, MILLISECONDS).find_map(milliseconds))
        .or_else(|| values(headers, RESETS).find_map(reset))
}

const MILLISECONDS: [HeaderName; 2] = [
    HeaderName::from_static("x-ms-retry-after-ms"),
    HeaderName::from_static("retry-after-ms"),
];

const RESETS: [HeaderName; 4] = [
    HeaderName::from_static("ratelimit-reset"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("x-ratelimit-reset"),
    HeaderName::from_static("x-rate-limit-reset"),
];

/// Longer delays count as 136 years, so that no calculation overflows.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

/// Smaller numbers are seconds from now, larger ones Unix times: this one was in 2001.
const FIRST_UNIX_TIME: Duration = Duration::from_secs(1_000_000_000);

fn values<const N: usize>(
    headers: &HeaderMap,
    names: [HeaderName; N],
) -> impl Iterator<Item = &str> {
    let values = names.into_iter().flat_map(|name| headers.get_all(name));
    values.filter_map(|value| value.to_str().ok())
}

/// Parses digits, with a fraction if there is one.
fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim();
    // Rust would also parse signs, exponents, "inf" and "nan".
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return None;
    }
    let seconds: f64 = text.parse().ok()?;
    Some(Duration::from_secs_f64(seconds.min(LONGEST.as_secs_f64())))
}

fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

fn until(time: SystemTime, now: SystemTime) -> Duration {
    time.duration_since(now).unwrap_or_default().min(LONGEST)
}

/// Parses `30`, `"default";r=0;t=30` or `limit=10, remaining=0, reset=30`, as seconds or Unix time.
fn reset(text: &str, now: SystemTime) -> Option<Duration> {
    let parameter = |part: &str| {
        let part = part.trim();
        let value = part
            .strip_prefix("t=")
            .or_else(|| part.strip_prefix("reset="));
        seconds(value?)
    };
    let reset = seconds(text).or_else(|| text.split([';', ',']).find_map(parameter))?;
    if reset < FIRST_UNIX_TIME {
        return Some(reset);
    }
    // A reset in the past says nothing about the refusal.
    Some(until(UNIX_EPOCH + reset, now)).filter(|wait| !wait.is_zero())
}
