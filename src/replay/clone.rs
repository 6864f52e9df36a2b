use std::fmt;

use http_body::{Body, SizeHint};

use super::ReplayPolicy;
use crate::NotReplayed;

/// Keeps a clone of the body: for `Full<Bytes>`, `Empty`, `String` and every other body whose clone
/// is an independent copy.
///
/// The clones of some bodies share the source that they read from, so that one is empty once the
/// other has been sent. The replay is given up if the clone no longer reports the size and the end
/// that it reported before the first send. A clone that never reports a size can't be checked this
/// way: use another policy for such bodies.
///
/// If the body isn't `Clone`, the layer's service doesn't implement `Service`. The compiler names
/// the alternatives where a `Service` is required. Where a method is called, it only says that the
/// method's "trait bounds were not satisfied".
///
/// ```compile_fail,E0277
/// use http::{Request, Response};
/// use tower::{BoxError, Layer, Service, service_fn};
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
/// fn is_service<S: Service<Request<NotClone>>>(_: S) {}
///
/// let tokens = service_fn(|_: TokenRequest| async { AccessToken::new("token-1") });
/// let http = service_fn(|_: Request<NotClone>| async {
///     Ok::<_, BoxError>(Response::new(String::new()))
/// });
/// is_service(ClientCredentialsLayer::new(tokens).layer(http));
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
        let kept = Kept::new(body.clone());
        (body, Some(kept))
    }

    fn restore(&self, kept: &mut Kept<B>) -> Option<B> {
        kept.unchanged_copy().cloned()
    }

    fn not_restored(&self) -> NotReplayed {
        NotReplayed::BodyShared
    }
}

/// Keeps a copy that a function makes: for bodies with their own copying function, such as kube's
/// `Body::try_clone`.
///
/// The function is called before the first send, and again before each replay with the copy that
/// it made. If it returns `None`, the body can't be copied, and the request isn't sent again. As
/// with [`CloneBody`], the replay is given up if the copy no longer reports the size and the end
/// that it reported before the first send.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use tower_client_credentials::replay::CloneWith;
///
/// struct Stream;
///
/// /// A client's own body: either complete in memory, or a stream that can't be copied.
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

    fn not_restored(&self) -> NotReplayed {
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

/// What [`CloneBody`] and [`CloneWith`] keep: a copy of the body, and the size and the end that it
/// reported before the first send.
///
/// The copy itself is never sent; each replay gets a copy of it. `Debug` doesn't show it.
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
