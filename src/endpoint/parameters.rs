//! The parameters of one token request: which are valid, and how they are sent.

use std::collections::HashSet;

use super::redaction::is_unsafe_to_print;
use crate::{Error, TokenParameters};

/// The parameters that an endpoint sends with each token request.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct OwnParameters {
    /// Scopes, resources and audiences.
    pub(super) standard: TokenParameters,
    /// Names and values in the order in which they are sent.
    pub(super) others: Vec<(String, String)>,
}

/// The endpoint's own parameters, followed by those of the token request. Each scope, resource and
/// audience once, so that the requests of equal [`TokenParameters`] differ only in their order.
pub(super) struct RequestParameters<'a> {
    scopes: Vec<&'a str>,
    resources: Vec<&'a str>,
    audiences: Vec<&'a str>,
    others: Vec<(&'a str, &'a str)>,
}

impl<'a> RequestParameters<'a> {
    /// Joins both, and checks them.
    pub(super) fn new(
        own: &'a OwnParameters,
        requested: &'a TokenParameters,
    ) -> Result<Self, Error> {
        let both = [&own.standard, requested];
        let others = own.others.iter().chain(requested.others());
        let parameters = Self {
            scopes: distinct(both.into_iter().flat_map(TokenParameters::scopes)),
            resources: distinct(both.into_iter().flat_map(TokenParameters::resources)),
            audiences: distinct(both.into_iter().flat_map(TokenParameters::audiences)),
            others: others.map(|(name, value)| (&**name, &**value)).collect(),
        };
        parameters
            .scopes
            .iter()
            .try_for_each(|scope| check_scope(scope))?;
        parameters
            .resources
            .iter()
            .try_for_each(|resource| check_resource(resource))?;
        parameters
            .audiences
            .iter()
            .try_for_each(|audience| check_audience(audience))?;
        parameters
            .others
            .iter()
            .try_for_each(|(name, _)| check_name(name))?;
        Ok(parameters)
    }

    pub(super) fn scopes(&self) -> &[&'a str] {
        &self.scopes
    }

    pub(super) fn resources(&self) -> &[&'a str] {
        &self.resources
    }

    pub(super) fn audiences(&self) -> &[&'a str] {
        &self.audiences
    }

    /// Returns the scopes separated by spaces (RFC 6749 §3.3).
    pub(super) fn scope(&self) -> String {
        self.scopes.join(" ")
    }

    /// Returns the scopes that were asked for and that a granted scope does not have.
    ///
    /// Some servers separate scopes with commas.
    pub(super) fn scopes_missing_in(&self, granted: &str) -> Vec<String> {
        let granted: HashSet<&str> = granted.split(is_separator).collect();
        let asked = self
            .scopes
            .iter()
            .flat_map(|scope| scope.split(is_separator));
        let missing = asked.filter(|scope| !scope.is_empty() && !granted.contains(scope));
        missing.map(str::to_owned).collect()
    }

    /// Adds the joined scopes, resources (RFC 8707 §2), audiences (RFC 8693 §2.1) and the user's
    /// other parameters.
    pub(super) fn add_to<'f>(
        &'f self,
        scope: &'f str,
        form: &mut Vec<(&'f str, &'f str)>,
    ) -> Result<(), Error> {
        if !scope.is_empty() {
            form.push(("scope", scope));
        }
        form.extend(
            self.resources
                .iter()
                .map(|resource| ("resource", *resource)),
        );
        form.extend(
            self.audiences
                .iter()
                .map(|audience| ("audience", *audience)),
        );
        for &(name, value) in &self.others {
            // RFC 6749 §3.2: parameters must not be sent more than once.
            let is_unique = matches!(name, "grant_type" | "scope") || name.starts_with("client_");
            if is_unique && form.iter().any(|(taken, _)| *taken == name) {
                return Err(Error::configuration(format!(
                    "token request already has a parameter {name:?}, from the grant, the client \
                     authentication, a scope or another parameter; remove one of them"
                )));
            }
            form.push((name, value));
        }
        Ok(())
    }
}

fn distinct<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    texts
        .map(String::as_str)
        .filter(|text| seen.insert(*text))
        .collect()
}

fn is_separator(character: char) -> bool {
    character.is_whitespace() || character == ','
}

/// RFC 6749 §3.3: `scope-token = 1*( %x21 / %x23-5B / %x5D-7E )`.
fn check_scope(scope: &str) -> Result<(), Error> {
    let is_allowed = |character: char| matches!(character, '!' | '#'..='[' | ']'..='~');
    match scope.chars().find(|&character| !is_allowed(character)) {
        None => Ok(()),
        Some(character) => Err(Error::configuration(format!(
            "scope {} contains {character:?}, which RFC 6749 §3.3 does not allow",
            quoted(scope)
        ))),
    }
}

/// RFC 8707 §2: an absolute URI, and no fragment.
fn check_resource(resource: &str) -> Result<(), Error> {
    not_absolute_uri(resource).map_or(Ok(()), |fact| {
        Err(Error::configuration(format!(
            "resource {} {fact}; RFC 8707 §2 requires an absolute URI without a fragment; for \
             servers that expect something else, use parameter(\"resource\", ..)",
            quoted(resource)
        )))
    })
}

/// Returns what keeps a text from being an absolute URI (RFC 3986 §4.3).
fn not_absolute_uri(text: &str) -> Option<String> {
    let is_allowed = |character: char| {
        character.is_ascii_alphanumeric() || "-._~:/?[]@!$&'()*+,;=%".contains(character)
    };
    if text.contains('#') {
        return Some("has a fragment".to_owned());
    }
    if let Some(character) = text.chars().find(|&character| !is_allowed(character)) {
        return Some(format!("contains {character:?}"));
    }
    let is_incomplete = |after: &str| {
        let digits = after.bytes().take(2);
        digits.filter(u8::is_ascii_hexdigit).count() < 2
    };
    if text.split('%').skip(1).any(is_incomplete) {
        return Some("contains a % that begins no percent-encoding".to_owned());
    }
    let (scheme, rest) = text.split_once(':').unwrap_or_default();
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    if !is_scheme {
        return Some("has no scheme".to_owned());
    }
    let needs_host = ["http", "https"]
        .iter()
        .any(|name| scheme.eq_ignore_ascii_case(name));
    let host = rest.strip_prefix("//").unwrap_or_default();
    if needs_host && (host.is_empty() || host.starts_with(['/', '?', ':'])) {
        return Some("has no host".to_owned());
    }
    rest.is_empty()
        .then(|| "has nothing but a scheme".to_owned())
}

/// RFC 8693 §2.1 allows any text, such as a name that both sides know.
fn check_audience(audience: &str) -> Result<(), Error> {
    check_text("audience", audience, is_unsafe_to_print)
}

/// RFC 6749 §8.2 allows fewer characters, but servers have parameters of their own.
fn check_name(name: &str) -> Result<(), Error> {
    let is_unsafe = |character: char| character.is_whitespace() || is_unsafe_to_print(character);
    check_text("parameter name", name, is_unsafe)
}

fn check_text(what: &str, text: &str, is_unsafe: fn(char) -> bool) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::configuration(format!("{what} is empty")));
    }
    match text.chars().find(|&character| is_unsafe(character)) {
        None => Ok(()),
        Some(character) => Err(Error::configuration(format!(
            "{what} {} contains {character:?}",
            quoted(text)
        ))),
    }
}

/// Formats the user's own text for a message.
fn quoted(text: &str) -> String {
    let mut rest = text.chars();
    let shown: String = rest.by_ref().take(100).collect();
    let ellipsis = if rest.next().is_some() { "…" } else { "" };
    format!("{shown:?}{ellipsis}")
}
