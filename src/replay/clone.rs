use std::fmt;

use http_body::{Body, SizeHint};

use super::ReplayPolicy;
use crate::NotReplayed;

/// Keeps a clone of the body: for `Full<Bytes>`, `Empty`, `String` and every other body whose clone
/// is a second body.
///
/// Some bodies are `Clone` but share what they read from, so that the clone is empty once the first
/// was sent. A clone that no longer reports the size and the end that the body reported before the
/// first send is not sent; one that reports no size at all cannot be told from a second body, so use
/// another policy for it.
///
/// With a body that is not `Clone`, the service is none, and the compiler says so in the words "its
/// trait bounds were not satisfied" where a method is called, and names the alternatives where a
/// `Service` is asked for:
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
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneBody;

// Without this, a body that is not `Clone` is reported as just that, without the alternatives.
#[diagnostic::do_not_recommend]
impl<B: Body + Clone> ReplayPolicy<B> for CloneBody {
    type Body = B;
    type Kept = Kept<B>;

    fn split(&self, body: B) -> (B, Option<Kept<B>>) {
        let kept = Kept::new(body.clone());
        (body, Some(kept))
    }

    fn restore(&self, kept: &mut Kept<B>) -> Option<B> {
        kept.unchanged().cloned()
    }

    fn not_restored(&self) -> NotReplayed {
        NotReplayed::BodyShared
    }
}

/// Keeps what a function makes of the body: for bodies with a copying function of their own, such
/// as kube's `Body::try_clone`.
///
/// `None` means that this body cannot be copied: the request is sent once. As with [`CloneBody`], a
/// copy that no longer reports the size and the end that it reported at first is not sent.
///
/// # Examples
///
/// ```
/// # use http_body_util::{Either, Empty, Full};
/// # use bytes::Bytes;
/// use tower_client_credentials::replay::CloneWith;
///
/// /// A client's own body: either complete in memory, or a stream that cannot be copied.
/// # struct Stream;
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
        kept.unchanged().and_then(&self.0)
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

/// A copy of a body, with what it reported before the first send.
#[derive(Debug)]
pub struct Kept<B> {
    body: B,
    size: SizeHint,
    is_end_stream: bool,
}

impl<B: Body> Kept<B> {
    fn new(copy: B) -> Self {
        Self {
            size: copy.size_hint(),
            is_end_stream: copy.is_end_stream(),
            body: copy,
        }
    }

    fn unchanged(&self) -> Option<&B> {
        let size = self.body.size_hint();
        let is_unchanged = size.lower() == self.size.lower()
            && size.upper() == self.size.upper()
            && self.body.is_end_stream() == self.is_end_stream;
        // A copy that changed while the first body was sent shares its source with it.
        is_unchanged.then_some(&self.body)
    }
}
