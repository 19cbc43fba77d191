//! Named places at which a test makes a process die, as if by `kill -9`.
//!
//! With the feature `enabled`, the environment names one place and optionally the hit that is meant:
//! `POSTRIDER_FAILPOINT=worker.after_post:3` aborts the process at its third passage. Without the feature, which is
//! how releases are built, [`hit`] is empty and the names are not even in the binary.

/// Every place, in the order of a delivery's way. A test walks this list.
pub const ALL: [&str; 8] = [
    "gateway.before_publish",
    "gateway.after_publish",
    "worker.before_post",
    "worker.after_post",
    "worker.after_outcome",
    "recorder.after_store",
    "scheduler.after_lease",
    "scheduler.after_publish",
];

/// Dies here if the environment says so.
#[inline(always)]
pub fn hit(_name: &'static str) {
    #[cfg(feature = "enabled")]
    enabled::hit(_name);
}

#[cfg(feature = "enabled")]
mod enabled {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Armed {
        name: String,
        hits_left: AtomicU32,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn armed() -> Option<&'static Armed> {
        ARMED
            .get_or_init(|| {
                let text = std::env::var("POSTRIDER_FAILPOINT").ok()?;
                let (name, hits) = text.rsplit_once(':').unwrap_or((text.as_str(), "1"));
                Some(Armed { name: name.to_owned(), hits_left: AtomicU32::new(hits.parse().unwrap_or(1)) })
            })
            .as_ref()
    }

    pub(super) fn hit(name: &'static str) {
        let Some(armed) = armed().filter(|armed| armed.name == name) else { return };
        if armed.hits_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
    }
}
