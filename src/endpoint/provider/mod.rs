//! Token endpoints of providers whose documentation this crate follows.

mod linkedin;

pub use self::linkedin::linkedin;
