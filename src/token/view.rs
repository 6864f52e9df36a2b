use std::sync::Arc;

use tokio::time::Instant;

use super::{Held, TokenCache};
use crate::clock::Clock;

/// What a service last saw of the current token.
///
/// Most calls find the same edition, and by the clock nothing to do: that takes two comparisons, where
/// a look at the cache counts references and reads both clocks.
///
/// A view keeps the token that it saw until it looks again or is dropped.
#[derive(Clone)]
pub(crate) struct View {
    held: Option<Arc<Held>>,
    edition: u64,
    /// Until then, by the monotonic clock, the token needs no other look while the edition stays.
    quiet_until: Instant,
}

impl View {
    /// A view that has seen nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            held: None,
            edition: 0,
            quiet_until: Clock::monotonic(),
        }
    }

    /// The current token, if it may be used.
    #[inline]
    pub(crate) fn token(&mut self, cache: &TokenCache) -> Option<&Held> {
        if self.edition != cache.edition() || Clock::monotonic() >= self.quiet_until {
            self.look(cache);
        }
        self.held.as_deref()
    }

    #[cold]
    fn look(&mut self, cache: &TokenCache) {
        // Read before the token: one that is published in between is looked at again.
        self.edition = cache.edition();
        let (current, quiet_until) = cache.look();
        self.quiet_until = quiet_until;
        match (&mut self.held, current) {
            (Some(seen), Some(current)) if seen.generation() == current.generation() => {
                // A view that lasts takes a text of its own: threads that count references to the same
                // one slow each other down.
                if Arc::ptr_eq(seen, &current) {
                    *seen = Arc::new(current.copied());
                }
            }
            (held, current) => *held = current,
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
                Ok::<_, BoxError>(AccessToken::new("token-1")?.expires_in(LIFETIME))
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
        let (cache, mut view) = (wall.cache().await, View::new());
        wall.times_asked();

        for _ in 0..1000 {
            assert!(view.token(&cache).is_some());
        }
        assert_eq!(wall.times_asked(), 1);

        advance(Duration::from_millis(1)).await;
        assert!(view.token(&cache).is_some());
        assert_eq!(wall.times_asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn view_that_lasts_has_a_text_of_its_own() {
        let (cache, mut view) = (Wall::default().cache().await, View::new());
        let shared = cache.token().await.unwrap();
        let text = |token: &AccessToken| token.expose().as_ptr();
        let seen = view.token(&cache).unwrap().token();
        assert_eq!(text(seen), text(&shared));

        advance(Duration::from_millis(1)).await;
        let own = view.token(&cache).unwrap().token().clone();
        assert_ne!(text(&own), text(&shared));
        assert_eq!(own.header_value(), shared.header_value());
        assert!(own.header_value().is_sensitive());

        advance(Duration::from_millis(1)).await;
        let kept = view.token(&cache).unwrap().token();
        assert_eq!(text(kept), text(&own));
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_token_is_never_sent_a_millisecond_after_the_wall_clock_said_so() {
        let wall = Wall::default();
        let (cache, mut view) = (wall.cache().await, View::new());
        assert!(view.token(&cache).is_some());

        wall.0.0.store(LIFETIME.as_secs(), Ordering::Relaxed);
        advance(Duration::from_millis(1)).await;

        assert!(view.token(&cache).is_none());
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
            Ok::<_, BoxError>(AccessToken::new("token-1")?.expires_in(LIFETIME))
        });
        let cache = TokenCache::with_settings(token_service, settings);
        let mut view = View::new();
        cache.token().await.unwrap();
        assert!(view.token(&cache).is_some());

        advance(LIFETIME).await;

        assert!(view.token(&cache).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn view_and_its_clones_see_at_once_that_a_token_was_rejected() {
        let (cache, mut view) = (Wall::default().cache().await, View::new());
        let token = view.token(&cache).unwrap().token().clone();
        let mut clone = view.clone();

        cache.reject(&token);

        assert!(view.token(&cache).is_none() && clone.token(&cache).is_none());
    }
}
