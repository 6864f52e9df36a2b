//! Token endpoints of specific providers, set up as their documentation asks for.

mod linkedin;

pub use self::linkedin::linkedin;
