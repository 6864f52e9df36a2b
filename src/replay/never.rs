use std::convert::Infallible;

use super::Replay;

/// Keeps nothing and costs nothing: every request is sent once, with whatever body it has.
///
/// A rejected token is renewed all the same, for the requests that follow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl<B> Replay<B> for Never {
    type Body = B;
    type Kept = Infallible;

    fn split(&self, body: B) -> (B, Option<Infallible>) {
        (body, None)
    }

    fn restore(&self, kept: Infallible) -> Option<B> {
        match kept {}
    }
}
