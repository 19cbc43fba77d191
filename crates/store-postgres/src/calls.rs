//! Counts the calls under way, so that those without a connection can be told.

use std::sync::atomic::{AtomicUsize, Ordering};

use postrider_store::{PoolKind, PoolUse};
use sqlx::PgPool;

/// Calls under way on one pool.
#[derive(Debug, Default)]
pub(crate) struct Calls(AtomicUsize);

/// A call; it counts until it is dropped.
pub(crate) struct Call<'a>(&'a Calls);

impl Calls {
    pub(crate) fn enter(&self) -> Call<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Call(self)
    }

    /// A call takes one connection of its pool at a time.
    pub(crate) fn usage(&self, kind: PoolKind, pool: &PgPool) -> PoolUse {
        let idle = pool.num_idle();
        let in_use = usize::try_from(pool.size())
            .unwrap_or(usize::MAX)
            .saturating_sub(idle);
        PoolUse {
            kind,
            in_use,
            idle,
            waiting: self.0.load(Ordering::Relaxed).saturating_sub(in_use),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
