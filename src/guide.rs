//! The guide: one chapter per topic.
//!
//! | chapter | questions it answers |
//! |---|---|
//! | [Getting started](getting_started) | How do I set up the crate? How do services share a token? How do I use tokens outside HTTP requests? |
//! | [Testing](testing) | How do I test my client, also with servers that fail? How do I control the time? |
//! | [HTTP clients](clients) | What does my HTTP client need? In which order do I add layers? |
//! | [Replay](replay) | How is a request sent a second time? How do I prevent that? |
//! | [Rejected tokens](rejections) | What happens when the API answers 401? Why does my caller still get a 401? |
//! | [Refresh and expiry](refresh) | When is a token refreshed? What happens after a suspended machine wakes up? |
//! | [Scopes, audiences and tenants](tenants) | How do requests get different tokens? How do threads and synchronous code get tokens? What do many tokens cost? |
//! | [Failures](failures) | What is retried? Which errors need action? What should I log? |
//! | [Observability](observability) | What do responses, traces and metrics show? |
//! | [Security](security) | What does the crate protect, and what are the limits? |
//! | [Migrating](migrating) | How do I replace my own cache, `oauth2`, or `AddAuthorizationLayer`? |

// The chapters are plain Markdown files whose links lead to files and to docs.rs. Rustdoc uses the
// first definition of a link, so it resolves and checks those in `links.md` instead. `tests/guide.rs`
// checks that both lead to the same place.

#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
#[doc = include_str!("../docs/guide/getting-started.md")]
pub mod getting_started {}

// `crates/test` compiles its examples, which need the test kit.
#[cfg(not(doctest))]
#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
#[doc = include_str!("../docs/guide/testing.md")]
pub mod testing {}

// `tests/clients` compiles its examples, which need the clients.
#[cfg(not(doctest))]
#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
#[doc = include_str!("../docs/guide/clients.md")]
pub mod clients {}

#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
#[doc = include_str!("../docs/guide/replay.md")]
pub mod replay {}

#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
#[doc = include_str!("../docs/guide/rejections.md")]
pub mod rejections {}

#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
#[doc = include_str!("../docs/guide/refresh.md")]
pub mod refresh {}

#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
#[doc = include_str!("../docs/guide/tenants.md")]
pub mod tenants {}

#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
#[doc = include_str!("../docs/guide/failures.md")]
pub mod failures {}

#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
#[doc = include_str!("../docs/guide/observability.md")]
pub mod observability {}

#[doc = include_str!("../SECURITY.md")]
pub mod security {}

// `tests/clients` compiles its examples, which need the crates that programs migrate from.
#[cfg(not(doctest))]
#[cfg_attr(not(doctest), doc = include_str!("guide/links.md"))]
#[doc = include_str!("../docs/guide/migrating.md")]
pub mod migrating {}
