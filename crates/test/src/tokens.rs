use std::{
    collections::{HashMap, VecDeque},
    fmt,
    time::Duration,
};

use crate::reply::Lifetime;

/// A server forgets its oldest tokens beyond this number of tokens or bytes, so that a test that runs
/// for days needs bounded memory.
const MAX_TOKENS: usize = 100_000;
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// An access token that an [`AuthServer`](crate::AuthServer) issued.
///
/// `Debug` shows the number of the token, but neither its text nor what the client sent.
#[derive(Clone)]
pub struct IssuedToken {
    pub(crate) number: usize,
    pub(crate) text: String,
    pub(crate) client_id: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) lifetime: Lifetime,
    /// Since the server was created, as are all times here.
    pub(crate) issued_at: Duration,
    pub(crate) revoked: bool,
}

impl IssuedToken {
    /// Returns the number of the token. The first token of a server is number 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Returns the text of the token.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Returns the id of the client that got the token.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// Returns the scopes that were granted.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// Returns the lifetime, or `None` if the token doesn't expire.
    pub fn lifetime(&self) -> Option<Duration> {
        match self.lifetime {
            Lifetime::Of(lifetime) => Some(lifetime),
            Lifetime::Unstated => None,
        }
    }

    /// The memory that the token needs, at least. Its text is kept twice.
    fn bytes(&self) -> usize {
        let scopes = self.scopes.iter().map(|it| size_of_val(it) + it.len());
        size_of_val(self) + 2 * self.text.len() + self.client_id.len() + scopes.sum::<usize>()
    }

    fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.issued_at)
    }

    /// Returns how much of the lifetime is left.
    pub(crate) fn remaining(&self, now: Duration) -> Lifetime {
        match self.lifetime {
            Lifetime::Of(lifetime) => Lifetime::Of(lifetime.saturating_sub(self.age(now))),
            Lifetime::Unstated => Lifetime::Unstated,
        }
    }
}

impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken")
            .field("number", &self.number)
            .field("lifetime", &self.lifetime)
            .field("revoked", &self.revoked)
            .finish_non_exhaustive()
    }
}

/// What a server thinks of a token. Only [`Live`](Self::Live) tokens are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenState {
    /// The request carries no token.
    Missing,
    /// The server didn't issue this token.
    Unknown,
    /// The token is younger than [`AuthServer::accept_from`](crate::AuthServer::accept_from) asks
    /// for.
    TooYoung,
    /// The API accepts the token.
    Live,
    /// The token has reached the end of its lifetime.
    Expired,
    /// The token was revoked.
    Revoked,
}

impl fmt::Display for TokenState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no token",
            Self::Unknown => "unknown",
            Self::TooYoung => "too young",
            Self::Live => "live",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        })
    }
}

/// The tokens that a server has issued.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    issued: VecDeque<IssuedToken>,
    /// The number of the newest token with this text.
    numbers: HashMap<String, usize>,
    forgotten: usize,
    bytes: usize,
    pub(crate) accept_from: Duration,
}

impl Tokens {
    pub(crate) fn len(&self) -> usize {
        self.forgotten + self.issued.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &IssuedToken> {
        self.issued.iter()
    }

    /// Adds a token and sets its number.
    pub(crate) fn add(&mut self, mut token: IssuedToken) -> IssuedToken {
        token.number = self.len() + 1;
        self.numbers.insert(token.text.clone(), token.number);
        self.bytes += token.bytes();
        self.issued.push_back(token.clone());
        // The new token stays, however large it is.
        while self.issued.len() > 1 && (self.issued.len() > MAX_TOKENS || self.bytes > MAX_BYTES) {
            self.forget_oldest();
        }
        token
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.issued.pop_front() else {
            return;
        };
        self.forgotten += 1;
        self.bytes -= oldest.bytes();
        // A later token can have the same text.
        if self.numbers.get(&oldest.text) == Some(&oldest.number) {
            self.numbers.remove(&oldest.text);
        }
    }

    pub(crate) fn last_of(&self, client_id: &str) -> Option<&IssuedToken> {
        let is_of = |token: &&IssuedToken| token.client_id == client_id;
        self.issued.iter().rev().find(is_of)
    }

    pub(crate) fn by_text(&self, text: &str) -> Option<&IssuedToken> {
        self.by_number(*self.numbers.get(text)?)
    }

    pub(crate) fn by_number(&self, number: usize) -> Option<&IssuedToken> {
        self.issued.get(self.index(number)?)
    }

    fn index(&self, number: usize) -> Option<usize> {
        number.checked_sub(self.forgotten + 1)
    }

    /// Lets a token live for this long from now on.
    pub(crate) fn renew(&mut self, number: usize, lifetime: Lifetime, now: Duration) {
        let index = self.index(number);
        if let Some(token) = index.and_then(|index| self.issued.get_mut(index)) {
            token.lifetime = match lifetime {
                Lifetime::Of(rest) => Lifetime::Of(token.age(now).saturating_add(rest)),
                Lifetime::Unstated => Lifetime::Unstated,
            };
        }
    }

    pub(crate) fn revoke(&mut self, number: usize) -> bool {
        let index = self.index(number);
        let Some(token) = index.and_then(|index| self.issued.get_mut(index)) else {
            return false;
        };
        token.revoked = true;
        true
    }

    pub(crate) fn revoke_all(&mut self) {
        for token in &mut self.issued {
            token.revoked = true;
        }
    }

    pub(crate) fn state(&self, token: &IssuedToken, now: Duration) -> TokenState {
        if token.revoked {
            TokenState::Revoked
        } else if token.remaining(now) == Lifetime::Of(Duration::ZERO) {
            TokenState::Expired
        } else if token.age(now) < self.accept_from {
            TokenState::TooYoung
        } else {
            TokenState::Live
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> IssuedToken {
        IssuedToken {
            number: 0,
            text: text.to_owned(),
            client_id: String::new(),
            scopes: Vec::new(),
            lifetime: Lifetime::Unstated,
            issued_at: Duration::ZERO,
            revoked: false,
        }
    }

    #[test]
    fn tokens_that_need_too_much_memory_are_forgotten() {
        let mut tokens = Tokens::default();
        for text in ["a", "b", "c"] {
            let mut large = token(text);
            large.scopes = vec!["s".repeat(MAX_BYTES / 2 - 4096)];
            tokens.add(large);
        }
        assert_eq!((tokens.len(), tokens.iter().count()), (3, 2));

        // The latest token stays valid.
        tokens.add(token(&"t".repeat(MAX_BYTES)));
        assert_eq!((tokens.len(), tokens.iter().count()), (4, 1));
    }

    #[test]
    fn the_oldest_tokens_are_forgotten_but_counted() {
        let mut tokens = Tokens::default();
        tokens.add(token("twice"));
        tokens.add(token("first"));
        for number in 2..MAX_TOKENS {
            tokens.add(token(&number.to_string()));
        }
        assert_eq!(tokens.by_text("first").map(IssuedToken::number), Some(2));

        // Forgets the older one of the tokens with the same text, and then the first one.
        tokens.add(token("twice"));
        let last = tokens.add(token("last"));

        assert_eq!(last.number(), MAX_TOKENS + 2);
        assert_eq!(tokens.len(), MAX_TOKENS + 2);
        assert_eq!(tokens.iter().count(), MAX_TOKENS);
        assert!(tokens.by_text("first").is_none() && !tokens.revoke(2));
        let twice = tokens.by_text("twice").map(IssuedToken::number);
        assert_eq!(twice, Some(MAX_TOKENS + 1));
    }
}
