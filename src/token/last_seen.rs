use std::sync::Arc;

use super::{CachedToken, TokenCache, cache::Look};
use crate::clock::Clock;

/// The token that a service last saw in the cache.
///
/// Most calls find that the cache has published nothing since and that the token is still fresh.
/// That takes two comparisons. A look at the cache counts a reference and reads both clocks.
#[derive(Clone)]
pub(crate) struct LastSeen {
    edition: u64,
    look: Look,
}

impl LastSeen {
    pub(crate) fn nothing() -> Self {
        let look = Look {
            token: None,
            valid_until: Clock::monotonic(),
        };
        Self { edition: 0, look }
    }

    /// The token that may be used now, if there is one.
    #[inline]
    pub(crate) fn token(&mut self, cache: &TokenCache) -> Option<&Arc<CachedToken>> {
        if self.edition != cache.edition() || Clock::monotonic() >= self.look.valid_until {
            self.look(cache);
        }
        self.look.token.as_ref()
    }

    #[cold]
    fn look(&mut self, cache: &TokenCache) {
        // Read before the token: one that is published in between is looked at again.
        self.edition = cache.edition();
        self.look = cache.look();
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

    /// The seconds that a wall clock shows, and how often it was read.
    #[derive(Clone, Default)]
    struct Wall(Arc<(AtomicU64, AtomicU64)>);

    impl Wall {
        /// A cache that holds a token, and reads this wall clock as rarely as the system's.
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

        fn times_read(&self) -> u64 {
            self.0.1.swap(0, Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wall_clock_is_read_once_per_millisecond() {
        let wall = Wall::default();
        let (cache, mut last_seen) = (wall.cache().await, LastSeen::nothing());
        wall.times_read();

        for _ in 0..1000 {
            assert!(last_seen.token(&cache).is_some());
        }
        assert_eq!(wall.times_read(), 1);

        advance(Duration::from_millis(1)).await;
        assert!(last_seen.token(&cache).is_some());
        assert_eq!(wall.times_read(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_token_is_never_sent_a_millisecond_after_the_wall_clock_says_so() {
        let wall = Wall::default();
        let (cache, mut last_seen) = (wall.cache().await, LastSeen::nothing());
        assert!(last_seen.token(&cache).is_some());

        wall.0.0.store(LIFETIME.as_secs(), Ordering::Relaxed);
        advance(Duration::from_millis(1)).await;

        assert!(last_seen.token(&cache).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_token_is_never_sent_by_a_service_that_has_just_looked() {
        const LIFETIME: Duration = Duration::from_micros(600);
        let settings = Settings {
            clock: Clock::with_wall(|| SystemTime::UNIX_EPOCH).asked_seldom(),
            ..Settings::default()
        };
        let token_service = service_fn(|_: TokenRequest| async {
            Ok::<_, BoxError>(AccessToken::new("token-1")?.with_lifetime(LIFETIME))
        });
        let cache = TokenCache::with_settings(token_service, settings);
        let mut last_seen = LastSeen::nothing();
        cache.token().await.unwrap();
        assert!(last_seen.token(&cache).is_some());

        advance(LIFETIME).await;

        assert!(last_seen.token(&cache).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn service_and_its_clones_see_a_rejection_at_once() {
        let (cache, mut last_seen) = (Wall::default().cache().await, LastSeen::nothing());
        let token = last_seen.token(&cache).unwrap().token().clone();
        let mut clone = last_seen.clone();

        cache.reject(&token);

        assert!(last_seen.token(&cache).is_none() && clone.token(&cache).is_none());
    }
}
