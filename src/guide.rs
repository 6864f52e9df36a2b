//! The guide, in short chapters; documentation only.
//!
//! | chapter | what it answers |
//! |---|---|
//! | [Getting started](getting_started) | How do I set it up? Do my stacks share a token? What about websockets? |
//! | [Testing your own stack](testing) | How do I test my client, without sockets and without waiting? |
//! | [HTTP clients](clients) | What does my HTTP client need? Which layers go above, which below? |
//! | [ReplayPolicy](replay) | How is a request sent a second time? Must it be? |
//! | [When the API says 401](rejections) | What happens then? Why was it not mended? Why is there no storm? |
//! | [Refresh and time](refresh) | When is a token refreshed? What if the machine was suspended? |
//! | [Failures](failures) | What is retried? Who has to act? What do I log? |
//! | [Observability](observability) | What does it tell of itself, in responses, traces and metrics? |
//! | [Security](security) | Where can a secret get to, and where not? |
//! | [Migrating](migrating) | How do I come from a cache of my own, from `oauth2`, from `AddAuthorizationLayer`? |

#[allow(unused_imports, reason = "the chapters link to what they speak of")]
use crate::*;

#[doc = include_str!("../docs/guide/getting-started.md")]
pub mod getting_started {}

#[doc = include_str!("../docs/guide/testing.md")]
pub mod testing {}

// Its examples need the clients: `tests/clients` compiles them.
#[cfg(not(doctest))]
#[doc = include_str!("../docs/guide/clients.md")]
pub mod clients {}

#[doc = include_str!("../docs/guide/replay.md")]
pub mod replay {}

#[doc = include_str!("../docs/guide/rejections.md")]
pub mod rejections {}

#[doc = include_str!("../docs/guide/refresh.md")]
pub mod refresh {}

#[doc = include_str!("../docs/guide/failures.md")]
pub mod failures {}

#[doc = include_str!("../docs/guide/observability.md")]
pub mod observability {}

#[doc = include_str!("../SECURITY.md")]
pub mod security {}

// Its examples need the crates that it comes from: `tests/clients` compiles them, too.
#[cfg(not(doctest))]
#[doc = include_str!("../docs/guide/migrating.md")]
pub mod migrating {}
