//! Named places at which a test makes a process die, as if by `kill -9`.
//!
//! With the feature `enabled`, the environment names one place and which passage through it is meant:
//! `POSTRIDER_FAILPOINT=worker.after_post:3` aborts the process at the third one,
//! `POSTRIDER_FAILPOINT=worker.before_post@/poison` at each one whose detail (see [`hit_for`]) contains `/poison`.
//! Without the feature, which is how releases are built, both functions are empty and the names are not even in the
//! binary.

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
    enabled::hit(_name, || "");
}

/// As [`hit`], in a place that is passed by many things: `detail` tells which one it is.
#[inline(always)]
pub fn hit_for<'a>(_name: &'static str, _detail: impl FnOnce() -> &'a str) {
    #[cfg(feature = "enabled")]
    enabled::hit(_name, _detail);
}

#[cfg(feature = "enabled")]
mod enabled {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Armed {
        name: String,
        when: When,
    }

    enum When {
        /// So many passages from the start.
        Passage(AtomicU32),
        /// Each time that the detail contains this.
        Detail(String),
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn parse(text: &str) -> Armed {
        if let Some((name, part)) = text.split_once('@') {
            return Armed {
                name: name.to_owned(),
                when: When::Detail(part.to_owned()),
            };
        }
        let (name, passage) = text.split_once(':').unwrap_or((text, "1"));
        let passage = AtomicU32::new(passage.parse().unwrap_or(1));
        Armed {
            name: name.to_owned(),
            when: When::Passage(passage),
        }
    }

    impl Armed {
        fn is_met<'a>(&self, name: &str, detail: impl FnOnce() -> &'a str) -> bool {
            self.name == name
                && match &self.when {
                    When::Passage(left) => left.fetch_sub(1, Ordering::SeqCst) == 1,
                    When::Detail(part) => detail().contains(part),
                }
        }
    }

    pub(super) fn hit<'a>(name: &'static str, detail: impl FnOnce() -> &'a str) {
        let armed = ARMED.get_or_init(|| std::env::var("POSTRIDER_FAILPOINT").ok().map(|text| parse(&text)));
        if armed.as_ref().is_some_and(|armed| armed.is_met(name, detail)) {
            std::process::abort();
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_passage_is_counted_and_met_once() {
            let armed = parse("worker.after_post:2");
            let met = || armed.is_met("worker.after_post", || "");
            assert!(!armed.is_met("worker.before_post", || ""));
            assert_eq!([met(), met(), met()], [false, true, false]);
            assert!(parse("gateway.before_publish").is_met("gateway.before_publish", || ""));
        }

        #[test]
        fn a_detail_is_met_each_time() {
            let armed = parse("worker.before_post@:80/poison");
            for _ in 0..2 {
                assert!(armed.is_met("worker.before_post", || "http://127.0.0.1:80/poison"));
                assert!(!armed.is_met("worker.before_post", || "http://127.0.0.1:80/fine"));
                assert!(!armed.is_met("worker.after_post", || "http://127.0.0.1:80/poison"));
            }
        }
    }
}
