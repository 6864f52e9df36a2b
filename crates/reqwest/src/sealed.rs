//! Keeps others from implementing the extension traits, which may get more methods.
#![expect(unnameable_types, reason = "the purpose of this module")]

pub trait Sealed {}

impl Sealed for reqwest::Client {}
impl Sealed for reqwest::ClientBuilder {}
impl Sealed for reqwest::RequestBuilder {}
