//! Replay policies: how a request body is sent again after the API has rejected the token.
//!
//! | policy | for | what is kept |
//! |---|---|---|
//! | [`CloneBody`] (default) | bodies of known size whose clone is an independent copy: `Full<Bytes>`, `Empty`, `String` | a clone |
//! | [`CloneWith`] | bodies with their own copy function, such as kube's `Body::try_clone` | the copy that the function returns |
//! | [`Buffered`] | all other bodies, such as streams | the frames, up to a limit |
//! | [`NoReplay`] | requests that must not be sent twice | nothing |
//!
//! Implement [`ReplayPolicy`] for bodies that can be created again in another way, such as from a
//! file.

mod buffer;
mod buffered;
mod clone;
mod frame;
mod frames;
mod framing;
mod in_memory;
#[cfg(all(test, interleavings))]
mod interleavings;
mod no_replay;
mod replay_body;
mod saved_request;
mod source;

use crate::NotReplayed;

pub(crate) use self::saved_request::{NotSaved, Saved, SavedRequest};
pub use self::{
    buffered::{Buffered, KeptFrames, Map},
    clone::{CloneBody, CloneWith, Kept},
    no_replay::NoReplay,
    replay_body::ReplayBody,
};

/// Decides what to keep of each request body, and creates the body of a replay from it.
///
/// Set a policy with [`ClientCredentialsLayer::replay`]. The policy must be [`Clone`].
///
/// The methods run in the task of the call: [`split`](Self::split) before the request is sent, and
/// [`restore`](Self::restore) before each replay. They must not block. If a method panics, only
/// that call panics. The kept value is dropped when the call ends or its future is dropped.
///
/// [`ClientCredentialsLayer::replay`]: crate::ClientCredentialsLayer::replay
///
/// # Examples
///
/// A body that reads a file can be created again from the path of the file:
///
/// ```
/// use std::{fs::File, path::PathBuf};
///
/// use tower_client_credentials::{ClientCredentialsLayer, TokenEndpoint, replay::ReplayPolicy};
///
/// struct FileBody {
///     path: PathBuf,
///     file: File,
/// }
///
/// /// Opens the file once more for the second send.
/// #[derive(Clone)]
/// struct Reopen;
///
/// impl ReplayPolicy<FileBody> for Reopen {
///     type Body = FileBody;
///     type Kept = PathBuf;
///
///     fn split(&self, body: FileBody) -> (FileBody, Option<PathBuf>) {
///         let path = body.path.clone();
///         (body, Some(path))
///     }
///
///     fn restore(&self, path: &mut PathBuf) -> Option<FileBody> {
///         let file = File::open(&path).ok()?;
///         let path = path.clone();
///         Some(FileBody { path, file })
///     }
/// }
///
/// fn layer(tokens: TokenEndpoint) -> ClientCredentialsLayer<Reopen> {
///     ClientCredentialsLayer::new(tokens).replay(Reopen)
/// }
/// # fn is_service<S: tower::Service<http::Request<FileBody>>>(_: S) {}
/// # fn stack(tokens: TokenEndpoint) {
/// #     let http = tower::service_fn(|_: http::Request<FileBody>| async {
/// #         Ok::<_, tower::BoxError>(http::Response::new(String::new()))
/// #     });
/// #     is_service(tower::Layer::layer(&layer(tokens), http));
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot send a request body of type `{B}` a second time",
    note = "`CloneBody`, the default, requires a body that implements `Clone`",
    note = "use `.replay(CloneWith(f))` if the body has its own copying function",
    note = "use `.replay(Buffered::new(limit))` for any other body, such as a stream",
    note = "use `.no_replay()` to send each request only once"
)]
pub trait ReplayPolicy<B> {
    /// The request body that the inner service receives.
    type Body;
    /// The value that is kept until the call ends, to create the body of a replay.
    type Kept;

    /// Splits a body into the body to send and the value to keep for a replay.
    ///
    /// Called once for each request, before the first send. Return `None` if this body can't be
    /// sent again. The request is then sent only once, and a rejected token is still renewed for
    /// later requests.
    fn split(&self, body: B) -> (Self::Body, Option<Self::Kept>);

    /// Creates the body of a replay.
    ///
    /// Called before a request is sent again. With Bearer tokens, that happens once at most. A scheme
    /// whose API can ask for the request again with the same token may call this method a second time,
    /// so `kept` must remain usable. Return `None` if the body can't be sent again. The caller then
    /// gets the API's rejection.
    fn restore(&self, kept: &mut Self::Kept) -> Option<Self::Body>;

    /// Returns whether the body that [`restore`](Self::restore) created is still complete.
    ///
    /// Called right before each replay is sent. Since `restore`, the call may have waited for
    /// another token while the HTTP client read more of the first body. Override this method if
    /// bodies can share their data. If it returns `false`, the request isn't sent again, and the
    /// call fails with an [`Error`](crate::Error) whose
    /// [`is_body_changed`](crate::Error::is_body_changed) is `true`.
    ///
    /// Returns `true` by default.
    fn is_unchanged(&self, kept: &Self::Kept) -> bool {
        let _ = kept;
        true
    }

    /// Returns the reason to report if [`split`](Self::split) kept nothing.
    ///
    /// Called if the API rejects the token of such a request. Returns
    /// [`NotReplayed::BodyNotKept`] by default.
    fn not_kept(&self) -> NotReplayed {
        NotReplayed::BodyNotKept
    }

    /// Returns the reason to report if [`restore`](Self::restore) created no body.
    ///
    /// Returns [`NotReplayed::BodyNotRestored`] by default.
    fn not_restored(&self, kept: &Self::Kept) -> NotReplayed {
        let _ = kept;
        NotReplayed::BodyNotRestored
    }
}
