use std::sync::Arc;

use tokio::time::Instant;

use super::{CachedToken, TokenCache};
use crate::clock::Clock;

/// What a service last saw of the current token.
///
/// Most calls find the same edition, and by the clock nothing to do: that takes two comparisons, where
/// a look at the cache counts references and reads both clocks.
///
/// A view keeps the token that it saw until it looks again or is dropped.
pub(crate) struct LastSeen {
    held: Option<(Arc<CachedToken>, Text)>,
    edition: u64,
    /// Until then, by the monotonic clock, the token needs no other look while the edition stays.
    quiet_until: Instant,
}

/// Where a view has the text of its token from.
#[derive(Clone, Copy)]
enum Text {
    /// From the view that it was cloned from; it has not looked itself.
    Inherited,
    /// From the cache; other views have the same.
    Shared,
    /// It is a copy.
    Own,
}

/// How a view came by what it knows.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It knew already.
    Before,
    /// It looked.
    Now,
    /// It looked and found what it had found before: it lasts, and took a text of its own.
    Twice,
}

impl LastSeen {
    /// A view that has seen nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            held: None,
            edition: 0,
            quiet_until: Clock::monotonic(),
        }
    }

    /// Looks at the cache if it is time to.
    #[inline]
    pub(crate) fn see(&mut self, cache: &TokenCache) -> Seen {
        if self.edition == cache.edition() && Clock::monotonic() < self.quiet_until {
            return Seen::Before;
        }
        self.look(cache)
    }

    /// The token that may be used, if the view has just seen the cache.
    #[inline]
    pub(crate) fn token(&self) -> Option<&CachedToken> {
        let (held, _) = self.held.as_ref()?;
        Some(held)
    }

    #[cold]
    fn look(&mut self, cache: &TokenCache) -> Seen {
        // Read before the token: one that is published in between is looked at again.
        self.edition = cache.edition();
        let (current, quiet_until) = cache.look();
        self.quiet_until = quiet_until;
        let is_seen = |current: &CachedToken| {
            self.token()
                .is_some_and(|seen| seen.generation() == current.generation())
        };
        let text = self.held.as_ref().map(|(_, text)| *text);
        match (text, current) {
            (Some(Text::Own), Some(current)) if is_seen(&current) => Seen::Now,
            // Threads that count references to the same text slow each other down.
            (Some(Text::Shared), Some(current)) if is_seen(&current) => {
                self.held = Some((Arc::new(current.copied()), Text::Own));
                Seen::Twice
            }
            (_, current) => {
                self.held = current.map(|current| (current, Text::Shared));
                Seen::Now
            }
        }
    }
}

impl Clone for LastSeen {
    fn clone(&self) -> Self {
        let held = self.held.as_ref();
        Self {
            held: held.map(|(held, _)| (Arc::clone(held), Text::Inherited)),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        time::{Duration, SystemTime},
    };

    use tokio::time::advance;
    use tower::{BoxError, service_fn};

    use super::*;
    use crate::{AccessToken, TokenRequest, token::settings::Settings};

    const LIFETIME: Duration = Duration::from_secs(1800);

    impl LastSeen {
        /// The token that a call would be sent with.
        fn now(&mut self, cache: &TokenCache) -> Option<&CachedToken> {
            let _ = self.see(cache);
            self.token()
        }

        fn text(&mut self, cache: &TokenCache) -> *const u8 {
            self.now(cache).unwrap().token().expose().as_ptr()
        }
    }

    /// The seconds that a wall clock shows, and how often it was asked.
    #[derive(Clone, Default)]
    struct Wall(Arc<(AtomicU64, AtomicU64)>);

    impl Wall {
        /// A cache that holds a token, and asks this wall clock as seldom as it would the system's.
        async fn cache(&self) -> TokenCache {
            let wall = self.clone();
            let clock = Clock::with_wall(move || {
                wall.0.1.fetch_add(1, Ordering::Relaxed);
                SystemTime::UNIX_EPOCH + Duration::from_secs(wall.0.0.load(Ordering::Relaxed))
            });
            let settings = Settings {
                clock: clock.asked_seldom(),
                ..Settings::default()
            };
            let token_service = service_fn(|_: TokenRequest| async {
                Ok::<_, BoxError>(AccessToken::new("token-1")?.with_lifetime(LIFETIME))
            });
            let cache = TokenCache::with_settings(token_service, settings);
            cache.token().await.unwrap();
            cache
        }

        fn times_asked(&self) -> u64 {
            self.0.1.swap(0, Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wall_clock_is_asked_once_in_a_millisecond() {
        let wall = Wall::default();
        let (cache, mut view) = (wall.cache().await, LastSeen::new());
        wall.times_asked();

        for _ in 0..1000 {
            assert!(view.now(&cache).is_some());
        }
        assert_eq!(wall.times_asked(), 1);

        advance(Duration::from_millis(1)).await;
        assert!(view.now(&cache).is_some());
        assert_eq!(wall.times_asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn view_that_lasts_has_a_text_of_its_own() {
        let (cache, mut view) = (Wall::default().cache().await, LastSeen::new());
        let shared = cache.token().await.unwrap();
        let text = |token: &AccessToken| token.expose().as_ptr();
        let seen = view.now(&cache).unwrap().token();
        assert_eq!(text(seen), text(&shared));

        advance(Duration::from_millis(1)).await;
        let own = view.now(&cache).unwrap().token().clone();
        assert_ne!(text(&own), text(&shared));
        assert_eq!(own.header_value(), shared.header_value());
        assert!(own.header_value().is_sensitive());

        advance(Duration::from_millis(1)).await;
        let kept = view.now(&cache).unwrap().token();
        assert_eq!(text(kept), text(&own));
    }

    #[tokio::test(start_paused = true)]
    async fn view_with_a_text_of_its_own_goes_over_to_the_next_token() {
        let (cache, mut view) = (Wall::default().cache().await, LastSeen::new());
        for seen in [Seen::Now, Seen::Twice, Seen::Now] {
            assert_eq!(view.see(&cache), seen);
            advance(Duration::from_millis(1)).await;
        }
        let first = view.now(&cache).unwrap().token().clone();

        cache.reject(&first);
        cache.token().await.unwrap();

        let generation = view.now(&cache).map(CachedToken::generation);
        assert_eq!(
            generation,
            cache.look().0.as_deref().map(CachedToken::generation)
        );
        assert_eq!(view.see(&cache), Seen::Before);
        advance(Duration::from_millis(1)).await;
        assert_eq!(view.see(&cache), Seen::Twice);
        advance(Duration::from_secs(60)).await;
        cache.reject(&cache.token().await.unwrap());
        assert!(view.now(&cache).is_none());
    }

    /// However many calls are made with a clone for each.
    #[tokio::test(start_paused = true)]
    async fn view_of_one_call_copies_no_text() {
        let (cache, mut view) = (Wall::default().cache().await, LastSeen::new());
        let text = view.text(&cache);

        for _ in 0..3 {
            advance(Duration::from_millis(1)).await;
            assert_eq!(view.clone().text(&cache), text);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clone_that_lasts_shares_its_text_with_no_other_view() {
        let (cache, mut view) = (Wall::default().cache().await, LastSeen::new());
        view.text(&cache);
        advance(Duration::from_millis(1)).await;
        let own = view.text(&cache);
        let mut clone = view.clone();
        assert_eq!(clone.text(&cache), own, "as long as it has not looked");

        for lasts in [false, true] {
            advance(Duration::from_millis(1)).await;
            let shared = cache.token().await.unwrap().expose().as_ptr();
            assert_eq!(clone.text(&cache) != shared, lasts);
        }
        assert_ne!(clone.text(&cache), view.text(&cache));
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_token_is_never_sent_a_millisecond_after_the_wall_clock_said_so() {
        let wall = Wall::default();
        let (cache, mut view) = (wall.cache().await, LastSeen::new());
        assert!(view.now(&cache).is_some());

        wall.0.0.store(LIFETIME.as_secs(), Ordering::Relaxed);
        advance(Duration::from_millis(1)).await;

        assert!(view.now(&cache).is_none());
    }

    /// However lately the view looked.
    #[tokio::test(start_paused = true)]
    async fn an_expired_token_is_never_sent_by_a_view_that_has_just_looked() {
        const LIFETIME: Duration = Duration::from_micros(600);
        let settings = Settings {
            clock: Clock::with_wall(|| SystemTime::UNIX_EPOCH).asked_seldom(),
            ..Settings::default()
        };
        let token_service = service_fn(|_: TokenRequest| async {
            Ok::<_, BoxError>(AccessToken::new("token-1")?.with_lifetime(LIFETIME))
        });
        let cache = TokenCache::with_settings(token_service, settings);
        let mut view = LastSeen::new();
        cache.token().await.unwrap();
        assert!(view.now(&cache).is_some());

        advance(LIFETIME).await;

        assert!(view.now(&cache).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn view_and_its_clones_see_at_once_that_a_token_was_rejected() {
        let (cache, mut view) = (Wall::default().cache().await, LastSeen::new());
        let token = view.now(&cache).unwrap().token().clone();
        let mut clone = view.clone();

        cache.reject(&token);

        assert!(view.now(&cache).is_none() && clone.now(&cache).is_none());
    }
}
