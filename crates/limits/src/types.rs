//! What is asked of the shared state, and what it answers.

use std::time::Duration;

use bytes::Bytes;
use postrider_model::{AppId, DeliveryId, EndpointId};

/// A rate: permits a second, and how many may pass at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Permits a second, at least 1.
    pub per_second: u32,
    /// Permits at once, at least 1.
    pub burst: u32,
}

impl Rate {
    /// `per_second` with a burst of a tenth of a second's worth, at least 1.
    pub fn smooth(per_second: u32) -> Self {
        let per_second = per_second.max(1);
        Self {
            per_second,
            burst: (per_second / 10).max(1),
        }
    }

    /// `per_second` with a burst of a whole second's worth: an application's ingest quota.
    pub fn bursty(per_second: u32) -> Self {
        let per_second = per_second.max(1);
        Self {
            per_second,
            burst: per_second,
        }
    }
}

/// What the gateway asks before it accepts one request.
#[derive(Clone, Debug)]
pub struct AdmitRequest {
    /// The application.
    pub app: AppId,
    /// Messages in the request, taken from the quota all or none, and only when the claims are made; not when an earlier
    /// request had begun to make one of them, which took them. More than the burst pass when nothing else was taken lately,
    /// and are paid back before the next.
    pub messages: u32,
    /// The application's quota.
    pub quota: Option<Rate>,
    /// Keys to claim: an `Idempotency-Key`, an `eventId`, or both (and one `eventId` for each message of a batch).
    pub claims: Vec<ClaimRequest>,
}

/// A key to claim. A key that is claimed twice in one request is held by the first claim; one that names the
/// resource that holds it unfinished (a repeat after a timeout) is claimed again.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// SHA-256 of kind, application and key.
    pub key: [u8; 32],
    /// Id of the resource that this request would make.
    pub resource: [u8; 16],
    /// SHA-256 of the request.
    pub fingerprint: [u8; 32],
    /// How long the claim holds once it is finished, from now.
    pub ttl: Duration,
    /// How long an unfinished claim keeps others waiting; then the next one with the same fingerprint takes over,
    /// with the same id. One with another fingerprint never does: the first may have been published after all,
    /// and two bodies under one id would lose one of them.
    pub pending_ttl: Duration,
}

/// The answer to an [`AdmitRequest`].
#[derive(Clone, Debug)]
pub struct Admission {
    /// Version of the application's configuration; `None` means unknown: reload.
    pub version: Option<u64>,
    /// Set when no claim is held and the quota is used up: try again after this long. No claim was made.
    pub quota_wait: Option<Duration>,
    /// One answer a claim, in order. All or none are made: when one is held, the others are not.
    pub claims: Vec<ClaimAnswer>,
    /// One of the keys may have been forgotten here, since there were too many, or since others answer for it just now: if it
    /// is answered [`ClaimAnswer::Claimed`], it may be an earlier request's.
    pub has_forgotten: bool,
}

/// The answer to a [`ClaimRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimAnswer {
    /// The key is this request's now.
    Claimed,
    /// The key was left unfinished for longer than its pending time: go on, with this older id.
    TakenOver {
        /// Id of the resource of the first request.
        resource: [u8; 16],
    },
    /// Another request holds the key.
    Held {
        /// Id of the resource that it made or is making.
        resource: [u8; 16],
        /// What it asked for.
        fingerprint: [u8; 32],
        /// Whether it was finished.
        finished: bool,
    },
    /// Not claimed, because another claim of the same request was held or the quota was used up.
    Skipped,
}

/// What becomes of a claim.
#[derive(Clone, Copy, Debug)]
pub struct Settlement {
    /// The application that the key was claimed for (it places the key on a cluster's node).
    pub app: AppId,
    /// The claimed key.
    pub key: [u8; 32],
    /// The resource that it was claimed for; a claim that names another one is left alone.
    pub resource: [u8; 16],
    /// How it ends.
    pub end: ClaimEnd,
}

/// How a claim ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimEnd {
    /// The resource was made: the claim holds until its time is over.
    Finished,
    /// It was not: the key is free.
    GivenUp,
}

/// What a worker asks before it tries one delivery.
#[derive(Clone, Copy, Debug)]
pub struct GateRequest {
    /// The application.
    pub app: AppId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The delivery.
    pub delivery: DeliveryId,
    /// Its run; first attempts have done marks by delivery, later ones by delivery and run.
    pub run: u32,
    /// The endpoint's rate limit; `None` when there is none or the scheduler took the token.
    pub rate: Option<Rate>,
    /// Whether the scheduler released it: it neither joins the backlog nor asks the breaker. A pause that the
    /// endpoint asked for holds it all the same.
    pub released: bool,
}

/// The answer to a [`GateRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Version of the application's configuration, when known.
    pub version: Option<u64>,
    /// What to do.
    pub verdict: Verdict,
}

/// Whether a delivery may be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Now. Its rate token is taken.
    Go,
    /// It was done already; the mark holds the encoded outcome. Journal it instead of POSTing.
    Done(Bytes),
    /// The rate limit, or the pause that the endpoint asked for, allows it after this long. No token is taken.
    Rate(Duration),
    /// The breaker is open for this long (at least 100 ms: the probe is the scheduler's to release).
    Breaker(Duration),
    /// Others wait for this endpoint in the store: join them.
    Backlog,
}

/// What came of a delivery at the worker.
#[derive(Clone, Debug)]
pub struct FinishReport {
    /// The application.
    pub app: AppId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The delivery.
    pub delivery: DeliveryId,
    /// Its run.
    pub run: u32,
    /// Whether this was a breaker's probe.
    pub probe: bool,
    /// The encoded outcome, kept as the done mark for [`DONE_MARK_TTL`]; `None` when nothing was tried.
    pub mark: Option<Bytes>,
    /// What it says about the endpoint.
    pub signal: Signal,
}

/// How long a done mark stands.
pub const DONE_MARK_TTL: Duration = Duration::from_secs(15 * 60);

/// What a finished or deferred delivery says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It works: closes the breaker, resets its count.
    Success,
    /// It fails: counts towards opening the breaker; a failed probe opens it again for longer.
    Failure,
    /// It asked for a pause (429 or 503 with Retry-After): nothing passes for this long. No failure.
    PushBack(Duration),
    /// 503 with Retry-After: a failure and a pause.
    FailureWithPushBack(Duration),
    /// Deferred for rate or queue: a backlog begins, which later deliveries join (flag of [`BACKLOG_TTL`]).
    Backlogged,
    /// It has taken nothing for a while: nothing passes for this long, and a backlog begins. No failure.
    Stalled(Duration),
    /// Nothing (a failure of ours, a 429 without Retry-After, a drained job).
    Neutral,
}

/// Most of a backlog that is released at once after a pause, until a success: what asked for the pause may still stand.
pub const RESTART: u32 = 8;
/// The rest before the next so many, where no rate paces them.
pub const RESTART_REST: Duration = Duration::from_millis(250);

/// How long a backlog flag stands unless the scheduler renews it.
pub const BACKLOG_TTL: Duration = Duration::from_secs(10);

/// A breaker that moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerChange {
    /// It did not move.
    None,
    /// It opened for this long.
    Opened(Duration),
    /// It closed.
    Closed,
}

/// When breakers open and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Consecutive failures that open it.
    pub failures: u32,
    /// How long it stays open first; each failed probe doubles it.
    pub open_for: Duration,
    /// Longest time between probes.
    pub open_for_max: Duration,
}

impl Default for BreakerSettings {
    /// 10 failures, 30 s, 10 min.
    fn default() -> Self {
        Self {
            failures: 10,
            open_for: Duration::from_secs(30),
            open_for_max: Duration::from_secs(600),
        }
    }
}

/// What the scheduler asks for one endpoint that has due deliveries.
#[derive(Clone, Copy, Debug)]
pub struct ReleaseRequest {
    /// The application.
    pub app: AppId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its rate limit.
    pub rate: Option<Rate>,
    /// How many it would release, at least 1.
    pub wanted: u32,
    /// Whether more is due than `wanted`: renews the backlog flag; otherwise clears it, unless fewer than
    /// `wanted` are let go now.
    pub more: bool,
}

/// The answer to a [`ReleaseRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// So many, 1 to `wanted`, with their tokens taken; ask again after `next` when more are due.
    Granted {
        /// How many.
        count: u32,
        /// When the next token comes.
        next: Duration,
    },
    /// One, as the breaker's probe.
    Probe,
    /// None for this long: no token, breaker open, probe on its way, or pushed back.
    Wait(Duration),
}
