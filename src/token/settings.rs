//! The options of a cache with their defaults. The builder documents each of them.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{
    TokenParameters,
    flight::Limits,
    schedule::{Backoff, Timing},
};
use crate::clock::Clock;

#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// What errors, events and spans call the cache.
    pub(super) name: Option<Arc<str>>,
    pub(super) parameters: TokenParameters,
    /// Where token requests run; `None` for the caller's runtime.
    pub(super) runtime: Option<Handle>,
    pub(super) max_tokens: NonZeroUsize,
    pub(super) max_token_requests: NonZeroUsize,
    pub(super) idle_timeout: Duration,
    pub(super) timing: Timing,
    pub(super) limits: Limits,
    pub(super) backoff: Backoff,
    pub(super) cool_down: Duration,
    pub(super) refresh_mode: RefreshMode,
    pub(super) clock: Clock,
}

/// Whether a token is refreshed while no call uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefreshMode {
    OnUse,
    KeepWarm,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: None,
            parameters: TokenParameters::default(),
            runtime: None,
            max_tokens: const { NonZeroUsize::new(10_000).unwrap() },
            max_token_requests: const { NonZeroUsize::new(64).unwrap() },
            idle_timeout: Duration::from_secs(60 * 60),
            timing: Timing {
                refresh_window: Duration::from_secs(5 * 60),
                expiry_margin: Duration::from_secs(10),
                jitter: 0.5,
                default_lifetime: Duration::from_secs(5 * 60),
            },
            limits: Limits {
                deadline: Duration::from_secs(30),
                attempt_timeout: Duration::from_secs(10),
                max_attempts: 3,
                retry_backoff: Duration::from_millis(200),
                max_retry_after: Duration::from_secs(5 * 60),
            },
            backoff: Backoff {
                first: Duration::from_secs(1),
                longest: Duration::from_secs(60),
            },
            cool_down: Duration::from_secs(30),
            refresh_mode: RefreshMode::OnUse,
            clock: Clock::default(),
        }
    }
}
