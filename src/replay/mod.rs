//! What is kept of a request, so that it can be sent a second time.
//!
//! | policy | for | keeps |
//! |---|---|---|
//! | [`CloneBody`] (default) | bodies whose clone is a second body: `Full<Bytes>`, `Empty`, `String` | a clone |
//! | [`CloneWith`] | bodies with a copying function of their own, such as kube's `Body::try_clone` | what the function returns |
//! | [`Buffered`] | every streaming body | its frames, up to a limit |
//! | [`NoReplay`] | all | nothing: a rejected request is not sent again |

mod buffer;
mod buffered;
mod clone;
mod frame;
mod framing;
mod in_memory;
#[cfg(all(test, interleavings))]
mod interleavings;
mod no_replay;
mod replay_body;
mod source;

use http::Request;

use crate::NotReplayed;

pub use self::{
    buffered::{Buffered, KeptFrames, Map},
    clone::{CloneBody, CloneWith, Kept},
    no_replay::NoReplay,
    replay_body::ReplayBody,
};

/// Decides how the body of a request can be sent a second time.
///
/// Implement it for a body of your own that none of the policies fits.
///
/// # Examples
///
/// ```
/// use tower_client_credentials::replay::ReplayPolicy;
///
/// /// Bodies are read from a file: its name is all that has to be kept.
/// struct Upload {
///     path: std::path::PathBuf,
///     // ...
/// }
///
/// struct Reopen;
///
/// impl ReplayPolicy<Upload> for Reopen {
///     type Body = Upload;
///     type Kept = std::path::PathBuf;
///
///     fn split(&self, body: Upload) -> (Upload, Option<Self::Kept>) {
///         let path = body.path.clone();
///         (body, Some(path))
///     }
///
///     fn restore(&self, path: Self::Kept) -> Option<Upload> {
///         path.exists().then_some(Upload { path })
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot send a request body of type `{B}` a second time",
    note = "`CloneBody`, the default, needs a body that is `Clone`",
    note = "use `.replay(CloneWith(f))` if the body has a copying function of its own",
    note = "use `.replay(Buffered::new(limit))` to remember what is sent of any other body",
    note = "use `.no_replay()` to send every request once"
)]
pub trait ReplayPolicy<B> {
    /// What the inner service gets.
    type Body;
    /// What is kept until the response is there.
    type Kept;

    /// Called before the first send: returns the body to send, and what is kept of it.
    ///
    /// `None` means that this body cannot be sent again; the first send goes ahead all the same.
    fn split(&self, body: B) -> (Self::Body, Option<Self::Kept>);

    /// Called when the API rejected the token: makes the body of the second send.
    ///
    /// `None` means that it cannot be made; the caller then gets the response to the first send.
    fn restore(&self, kept: Self::Kept) -> Option<Self::Body>;

    /// What [`split`](Self::split) makes of a request of which nothing is kept. Not for others to
    /// implement: [`NoReplay`] does without taking the request apart, which copies it piece by piece.
    #[doc(hidden)]
    #[inline]
    fn sent_once(&self, request: Request<B>) -> Request<Self::Body> {
        let (head, body) = request.into_parts();
        let (body, _kept) = self.split(body);
        Request::from_parts(head, body)
    }

    /// Called when the API rejected the token and [`split`](Self::split) had kept nothing: the reason
    /// that the caller is given. By default [`NotReplayed::BodyNotKept`].
    fn not_kept(&self) -> NotReplayed {
        NotReplayed::BodyNotKept
    }

    /// Called when [`restore`](Self::restore) made no body: the reason that the caller is given. By
    /// default [`NotReplayed::BodyNotRestored`].
    fn not_restored(&self) -> NotReplayed {
        NotReplayed::BodyNotRestored
    }
}
