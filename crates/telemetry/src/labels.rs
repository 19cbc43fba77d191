//! The values that labels may have. Where callers pass a word, one that is not listed counts as `other`.

use std::fmt::Debug;
use std::hash::Hash;

use postrider_model::AttemptClass;

/// A label with a fixed set of values.
pub trait Label: Copy + Debug + Eq + Hash + Send + Sync + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// The value as it is exported.
    fn as_str(self) -> &'static str;

    /// The value's place in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$doc:meta])+ $name:ident($label:literal) { $($(#[$variant_doc:meta])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])+ $variant,)+
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

/// Words that are not listed become `Other`.
macro_rules! open {
    ($($name:ident),+) => {
        $(impl From<&str> for $name {
            fn from(word: &str) -> Self {
                Self::ALL.iter().copied().find(|value| value.as_str() == word).unwrap_or(Self::Other)
            }
        })+
    };
}

label! {
    /// What an attempt met.
    Outcome("outcome") {
        /// Delivered.
        Status2xx = "2xx",
        /// Any other status below 400: redirects are not followed.
        Status3xx = "3xx",
        /// The receiver refused.
        Status4xx = "4xx",
        /// The receiver failed, or answered with no known status.
        Status5xx = "5xx",
        /// The deadline passed.
        Timeout = "timeout",
        /// No connection.
        Connect = "connect",
        /// The TLS handshake failed.
        Tls = "tls",
        /// The name does not resolve.
        Dns = "dns",
        /// The address is not allowed.
        Blocked = "blocked",
        /// The peer broke the protocol or the connection.
        Http = "http",
    }
}

impl Outcome {
    /// From what is recorded of an attempt; `status` is 0 without a response.
    pub fn of(class: AttemptClass, status: u16) -> Self {
        match class {
            AttemptClass::Success => Self::Status2xx,
            AttemptClass::Status => match status / 100 {
                2 => Self::Status2xx,
                0 | 1 | 3 => Self::Status3xx,
                4 => Self::Status4xx,
                _ => Self::Status5xx,
            },
            AttemptClass::Timeout => Self::Timeout,
            AttemptClass::Connect => Self::Connect,
            AttemptClass::Tls => Self::Tls,
            AttemptClass::Dns => Self::Dns,
            AttemptClass::Blocked => Self::Blocked,
            AttemptClass::Http => Self::Http,
        }
    }
}

label! {
    /// Why a delivery waits in the store: the names of the model's `DeferReason`.
    WaitReason("reason") {
        /// Its last attempt failed.
        Retry = "retry",
        /// The endpoint's rate limit.
        Rate = "rate",
        /// The endpoint's breaker is open.
        Breaker = "breaker",
        /// The endpoint is paused.
        Paused = "paused",
        /// Too much was queued for the endpoint at the worker.
        Queue = "queue",
        /// Others waited for the endpoint already.
        Backlog = "backlog",
        /// The endpoint is `ordered`.
        Ordered = "ordered",
        /// A slow attempt is on its way.
        InFlight = "in_flight",
        /// A failure of ours.
        Ours = "ours",
        /// Taken back from the stray queue.
        Stray = "stray",
        /// A manual delivery.
        Manual = "manual",
        /// In the in-process broker.
        Leased = "leased",
        /// The worker shut down before trying it.
        Drain = "drain",
        /// None of these.
        Other = "other",
    }
}

label! {
    /// Where a failure of ours happened.
    Stage("stage") {
        /// Configuration is out of reach.
        Configuration = "configuration",
        /// An endpoint's configuration cannot be used: a secret that does not open, say.
        Prepare = "prepare",
        /// The attempt itself: resolver, sockets, certificates.
        Attempt = "attempt",
        /// A task of a worker panicked, a defect: what it held comes back, or is tried again.
        Panic = "panic",
        /// None of these.
        Other = "other",
    }
}

label! {
    /// What was set aside for the operator.
    Parked("kind") {
        /// A frame that cannot be read.
        Frame = "frame",
        /// A delivery that keeps coming back.
        Job = "job",
        /// A journal record that cannot be written.
        Record = "record",
        /// None of these.
        Other = "other",
    }
}

label! {
    /// How a repeat was recognised.
    Duplicate("kind") {
        /// By the done mark of a delivery.
        DoneMark = "done_mark",
        /// By the request's idempotency key.
        IdempotencyKey = "idempotency_key",
        /// By the message's event id.
        EventId = "event_id",
        /// The delivery was at work in the same worker.
        InFlight = "in_flight",
    }
}

label! {
    /// Which of the shared limits fell back to what this process knows.
    Fallback("what") {
        /// Idempotency keys, event ids and quotas of messages before they are accepted.
        Admit = "admit",
        /// The same afterwards.
        Settle = "settle",
        /// Rate, breaker and done marks before an attempt.
        Gate = "gate",
        /// Done marks and breaker signals after an attempt.
        Finish = "finish",
        /// What the scheduler may release.
        Release = "release",
        /// Versions of applications' configuration.
        PublishVersion = "publish_version",
        /// The number of open breakers.
        OpenBreakers = "open_breakers",
        /// None of these.
        Other = "other",
    }
}

label! {
    /// Why the broker did not take a frame.
    PublishFailure("reason") {
        /// No connection.
        Down = "down",
        /// The broker blocks publishers.
        Blocked = "blocked",
        /// No confirm in time.
        Timeout = "timeout",
        /// The broker refused.
        Refused = "refused",
        /// The queue's bound is reached.
        Full = "full",
        /// The connection broke before the confirm.
        Lost = "lost",
        /// None of these.
        Other = "other",
    }
}

label! {
    /// A connection that Postrider keeps.
    Service("service") {
        /// The broker, consuming.
        BrokerConsume = "broker_consume",
        /// The broker, publishing.
        BrokerPublish = "broker_publish",
        /// Redis, after questions to it went unanswered.
        Redis = "redis",
        /// The store, after it did not answer.
        Store = "store",
    }
}

label! {
    /// Connections to the store.
    Pool("pool") {
        /// For the API's reads.
        Read = "read",
        /// For everything else.
        Write = "write",
    }
}

label! {
    /// What connections do.
    PoolState("state") {
        /// A call has it.
        InUse = "in_use",
        /// It is open and no call has it.
        Idle = "idle",
        /// There is none: a call is without.
        Waiting = "waiting",
    }
}

label! {
    /// The queues of a kind, all shards together.
    QueueKind("queue") {
        /// First attempts.
        Deliver = "deliver",
        /// What the scheduler released.
        Retry = "retry",
        /// Facts for the recorder.
        Journal = "journal",
        /// What found no queue or came back too often.
        Stray = "stray",
    }
}

label! {
    /// A cache.
    Cache("name") {
        /// Applications' configuration, at a gateway.
        Gateway = "gateway_configuration",
        /// Applications' configuration, at a worker.
        Worker = "worker_configuration",
    }
}

label! {
    /// How a look into a cache went.
    CacheResult("result") {
        /// It was there.
        Hit = "hit",
        /// It was not, or was too old.
        Miss = "miss",
    }
}

label! {
    /// What became of a finished span.
    SpanFate("result") {
        /// The collector took it.
        Exported = "exported",
        /// The queue was full.
        Dropped = "dropped",
        /// The collector did not take it.
        Failed = "failed",
    }
}

open!(WaitReason, Stage, Parked, Fallback, PublishFailure);

#[cfg(test)]
mod tests {
    use postrider_model::DeferReason;

    use super::*;

    #[test]
    fn every_defer_reason_has_its_label() {
        for reason in DeferReason::ALL {
            assert_eq!(WaitReason::from(reason.as_str()).as_str(), reason.as_str());
        }
        assert_eq!(WaitReason::from("elsewhere"), WaitReason::Other);
    }

    #[test]
    fn statuses_fall_into_their_classes() {
        let of = |status| Outcome::of(AttemptClass::Status, status).as_str();
        assert_eq!(
            [301, 404, 429, 500, 503, 999].map(of),
            ["3xx", "4xx", "4xx", "5xx", "5xx", "5xx"]
        );
        assert_eq!(Outcome::of(AttemptClass::Success, 204).as_str(), "2xx");
        assert_eq!(Outcome::of(AttemptClass::Timeout, 0).as_str(), "timeout");
    }
}
