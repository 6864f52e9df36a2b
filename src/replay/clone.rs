use std::fmt;

use http_body::{Body, SizeHint};

use super::ReplayPolicy;
use crate::NotReplayed;

/// Keeps a clone of each body whose exact size is known.
///
/// Use it for `Full<Bytes>`, `Empty`, `String` and all other bodies whose clones are independent
/// copies and that report their exact size.
///
/// The clones of some bodies read from the same source: after one of them has been sent, the others
/// are empty or incomplete. Such a clone isn't sent as if it were complete:
///
/// * Before the first send, the body must report its exact size ([`SizeHint::exact`]) or that it has
///   ended. Otherwise no clone is kept, and the reason is [`NotReplayed::BodySizeUnknown`]. For
///   streams, use [`Buffered`](super::Buffered); for copies that you know to be independent, use
///   [`CloneWith`].
/// * Before the replay, the clone must still report the same size and end. Otherwise the reason is
///   [`NotReplayed::BodyShared`].
///
/// If the body isn't `Clone`, the stack doesn't implement `Service`. For
/// [`ClientCredentials::send`](crate::ClientCredentials::send), and where a `Service` is required,
/// the compiler error lists the alternatives. Where a method of `Service` or `ServiceExt` is called,
/// it only says that the method's "trait bounds were not satisfied".
///
/// ```compile_fail,E0277
/// use http::{Request, Response};
/// use tower::{BoxError, Layer, service_fn};
/// use tower_client_credentials::{AccessToken, ClientCredentialsLayer, TokenRequest};
///
/// struct NotClone(String);
/// # impl http_body::Body for NotClone {
/// #     type Data = bytes::Bytes;
/// #     type Error = BoxError;
/// #     fn poll_frame(
/// #         self: std::pin::Pin<&mut Self>,
/// #         _: &mut std::task::Context<'_>,
/// #     ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, BoxError>>> {
/// #         std::task::Poll::Ready(None)
/// #     }
/// # }
///
/// let tokens = service_fn(|_: TokenRequest| async { AccessToken::new("token-1") });
/// let http = service_fn(|_: Request<NotClone>| async {
///     Ok::<_, BoxError>(Response::new(String::new()))
/// });
/// let api = ClientCredentialsLayer::new(tokens).layer(http);
/// let response = api.send(Request::new(NotClone("name=Ada".to_owned())));
/// ```
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use tower_client_credentials::replay::{CloneBody, ReplayPolicy};
///
/// let (_body, kept) = CloneBody.split(Full::new(Bytes::from("name=Ada")));
/// assert!(kept.is_some());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CloneBody;

// Without this, the compiler reports only that the body isn't `Clone`, and no alternatives.
#[diagnostic::do_not_recommend]
impl<B: Body + Clone> ReplayPolicy<B> for CloneBody {
    type Body = B;
    type Kept = Kept<B>;

    fn split(&self, body: B) -> (B, Option<Kept<B>>) {
        let kept = has_known_size(&body).then(|| Kept::new(body.clone()));
        (body, kept)
    }

    fn restore(&self, kept: &mut Kept<B>) -> Option<B> {
        kept.unchanged_copy().cloned()
    }

    fn is_unchanged(&self, kept: &Kept<B>) -> bool {
        kept.unchanged_copy().is_some()
    }

    fn not_kept(&self) -> NotReplayed {
        NotReplayed::BodySizeUnknown
    }

    fn not_restored(&self, _: &Kept<B>) -> NotReplayed {
        NotReplayed::BodyShared
    }
}

/// Whether the body reports how much data it has, so that a clone that lacks some of it reports
/// another size.
fn has_known_size(body: &impl Body) -> bool {
    body.is_end_stream() || body.size_hint().exact().is_some()
}

/// Keeps a copy of each body, made by a function.
///
/// Use it for bodies with their own copy function, such as kube's `Body::try_clone`.
///
/// The function copies the body before the first send. Before each replay, it copies that copy. If
/// it returns `None`, the request isn't sent again. Unlike [`CloneBody`], this policy also replays
/// copies of unknown size, so the function must only return independent copies. A copy that no
/// longer reports the size and end that it reported before the first send isn't replayed.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use tower_client_credentials::replay::CloneWith;
///
/// struct Stream;
///
/// /// The body type of an HTTP client: either complete in memory, or a stream that can't be copied.
/// enum Body {
///     Complete(Bytes),
///     Streaming(Stream),
/// }
///
/// impl Body {
///     fn try_clone(&self) -> Option<Body> {
///         match self {
///             Body::Complete(bytes) => Some(Body::Complete(bytes.clone())),
///             Body::Streaming(_) => None,
///         }
///     }
/// }
///
/// let policy = CloneWith(Body::try_clone);
/// ```
#[derive(Clone, Copy)]
pub struct CloneWith<F>(pub F);

impl<B, F> ReplayPolicy<B> for CloneWith<F>
where
    B: Body,
    F: Fn(&B) -> Option<B>,
{
    type Body = B;
    type Kept = Kept<B>;

    fn split(&self, body: B) -> (B, Option<Kept<B>>) {
        let kept = (self.0)(&body).map(Kept::new);
        (body, kept)
    }

    fn restore(&self, kept: &mut Kept<B>) -> Option<B> {
        kept.unchanged_copy().and_then(&self.0)
    }

    fn is_unchanged(&self, kept: &Kept<B>) -> bool {
        kept.unchanged_copy().is_some()
    }

    fn not_restored(&self, _: &Kept<B>) -> NotReplayed {
        NotReplayed::BodyShared
    }
}

impl<F> fmt::Debug for CloneWith<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CloneWith")
            .field(&std::any::type_name::<F>())
            .finish()
    }
}

/// A copy of a body, kept by [`CloneBody`] and [`CloneWith`].
///
/// Also contains the `size_hint` and `is_end_stream` of the copy before the first send. The copy
/// itself is never sent: each replay sends a copy of it. `Debug` doesn't show the copy.
pub struct Kept<B> {
    copy: B,
    size: SizeHint,
    is_end_stream: bool,
}

impl<B: Body> Kept<B> {
    fn new(copy: B) -> Self {
        Self {
            size: copy.size_hint(),
            is_end_stream: copy.is_end_stream(),
            copy,
        }
    }

    /// A copy that has changed shares its source with a body that was sent.
    fn unchanged_copy(&self) -> Option<&B> {
        let size = self.copy.size_hint();
        let is_unchanged = size.lower() == self.size.lower()
            && size.upper() == self.size.upper()
            && self.copy.is_end_stream() == self.is_end_stream;
        is_unchanged.then_some(&self.copy)
    }
}

impl<B> fmt::Debug for Kept<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("size", &self.size)
            .field("is_end_stream", &self.is_end_stream)
            .finish_non_exhaustive()
    }
}
