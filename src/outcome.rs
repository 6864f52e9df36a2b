use std::fmt;

use http::Response;

use crate::Error;

/// Why a response that rejected the token came back without another send.
///
/// An extension of the response: found with `response.extensions().get::<NotReplayed>()`.
///
/// # Examples
///
/// ```
/// use tower_client_credentials::NotReplayed;
///
/// # let response = http::Response::new(());
/// if let Some(reason) = response.extensions().get::<NotReplayed>() {
///     eprintln!("the API refused the token: {reason}");
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NotReplayed {
    /// A renewal was tried so lately that another would not help; see
    /// [`TokenCacheBuilder::cool_down`](crate::TokenCacheBuilder::cool_down).
    CoolingDown,
    /// No other token could be had.
    RenewalFailed(Error),
    /// The replay policy kept nothing of the body.
    BodyNotKept,
    /// What was kept of the body could not be made into one: a clone that shares its data with the
    /// body that was sent, for example.
    BodyNotRestored,
    /// The request carried [`NoReplay`](crate::NoReplay).
    OptedOut,
    /// This is the response to the second send: the API rejected the other token, too.
    RejectedAgain,
}

impl NotReplayed {
    /// Attaches the reason to the response that the caller gets.
    pub(crate) fn explain<B>(self, mut response: Response<B>) -> Response<B> {
        response.extensions_mut().insert(self);
        response
    }
}

impl fmt::Display for NotReplayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CoolingDown => f.write_str("not sent again, as a renewal was tried a moment ago"),
            Self::RenewalFailed(error) => {
                write!(f, "not sent again, as no other token could be had: {error}")
            }
            Self::BodyNotKept => {
                f.write_str("not sent again, as nothing was kept of the request's body")
            }
            Self::BodyNotRestored => {
                f.write_str("not sent again, as the request's body could not be made a second time")
            }
            Self::RejectedAgain => {
                f.write_str("a second send with another token was rejected, too")
            }
            Self::OptedOut => f.write_str("not sent again, as the request carried `NoReplay`"),
        }
    }
}
