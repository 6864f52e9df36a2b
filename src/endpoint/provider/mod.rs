//! Token endpoints of specific providers, with the settings that their documentation requires.

mod linkedin;

pub use self::linkedin::linkedin;
