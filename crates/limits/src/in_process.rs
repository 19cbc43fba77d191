//! The state of one process: the whole of it in the embedded set-up, the fall-back when the shared one is away.
//!
//! Every map is bounded and swept a little with each write. Time is Tokio's, so tests can pause it. Locks are held
//! for microseconds and never across an await; an application's lock is taken before its claims' lock.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use postrider_model::{AppId, EndpointId};
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::expiring::{Expiring, Shard};
use crate::gcra::{Gcra, micros};
use crate::marks::Marks;
use crate::{
    Admission, AdmitRequest, BreakerChange, BreakerSettings, ClaimAnswer, ClaimEnd, ClaimRequest,
    FinishReport, Gate, GateRequest, Limits, LimitsError, Release, ReleaseRequest, Settlement, Verdict,
};

const SHARDS: usize = 16;
/// Endpoints of which something is known: 262,144 in all.
const ENDPOINTS_PER_SHARD: usize = 1 << 14;
/// Applications: 65,536 in all.
const APPS_PER_SHARD: usize = 1 << 12;
/// Claims are sharded by application, so that a request's claims are in one shard: a million in all, and those of requests
/// in progress, which nobody else knows.
const CLAIM_SHARDS: usize = 4;
const CLAIMS_PER_SHARD: usize = 1 << 18;
/// Done marks: 64 MiB in all.
const MARK_BYTES: usize = 64 << 20;
/// Invalidations that a receiver may be behind before it must assume that all applications changed.
const INVALIDATIONS: usize = 1024;

/// [`Limits`] of one process.
pub struct InProcess {
    settings: BreakerSettings,
    start: Instant,
    apps: Expiring<AppId, App>,
    claims: Expiring<[u8; 32], Claim>,
    endpoints: Expiring<EndpointId, Endpoint>,
    marks: Box<[Mutex<Marks>]>,
    invalidations: broadcast::Sender<AppId>,
}

#[derive(Clone, Copy, Default)]
struct App {
    version: Option<u64>,
    tat: u64,
}

impl App {
    fn expires(&self) -> u64 {
        if self.version.is_some() {
            u64::MAX
        } else {
            self.tat
        }
    }
}

#[derive(Clone, Copy)]
struct Claim {
    resource: [u8; 16],
    fingerprint: [u8; 32],
    /// `None` once it is finished.
    pending_until: Option<u64>,
}

impl Claim {
    /// Whether its request is in progress.
    fn is_pending(&self, now: u64) -> bool {
        self.pending_until.is_some_and(|until| until > now)
    }
}

impl InProcess {
    /// With nothing known.
    pub fn new(settings: BreakerSettings) -> Self {
        Self {
            settings,
            start: Instant::now(),
            apps: Expiring::new(SHARDS, APPS_PER_SHARD),
            claims: Expiring::remembering(CLAIM_SHARDS, CLAIMS_PER_SHARD, Claim::is_pending),
            endpoints: Expiring::new(SHARDS, ENDPOINTS_PER_SHARD),
            marks: (0..SHARDS)
                .map(|_| Mutex::new(Marks::new(MARK_BYTES / SHARDS)))
                .collect(),
            invalidations: broadcast::channel(INVALIDATIONS).0,
        }
    }

    fn now(&self) -> u64 {
        micros(self.start.elapsed())
    }

    fn version(&self, app: AppId, now: u64) -> Option<u64> {
        self.apps.lock(&app).get(&app, now).and_then(|app| app.version)
    }

    fn marks(&self, request: &crate::marks::Key) -> &Mutex<Marks> {
        // The id's last byte is random or hashed.
        let index = usize::from(request.0.as_bytes()[15]) % self.marks.len();
        &self.marks[index]
    }

    fn with_endpoint<T>(&self, id: EndpointId, now: u64, act: impl FnOnce(&mut Endpoint) -> T) -> T {
        let mut shard = self.endpoints.lock(&id);
        let before = shard.get(&id, now).copied().unwrap_or_default();
        let mut after = before;
        let answer = act(&mut after);
        if after != before {
            shard.put(id, after, after.expires(now), now);
        }
        answer
    }

    fn admit_one(&self, request: &AdmitRequest, now: u64) -> Admission {
        let mut apps = self.apps.lock(&request.app);
        let mut app = apps.get(&request.app, now).copied().unwrap_or_default();
        let version = app.version;
        let mut shard = self.claims.lock(&request.app);
        let mut keys = request.claims.iter().map(|claim| &claim.key);
        let has_forgotten = keys.any(|key| shard.may_have_forgotten(key, now));
        let (mut claims, paid) = look_all(&shard, &request.claims, now);
        let is_held = claims
            .iter()
            .any(|answer| matches!(answer, ClaimAnswer::Held { .. }));
        // What is held takes nothing; what an earlier request began was taken by that one.
        let quota = request
            .quota
            .filter(|_| request.messages > 0 && !is_held && !paid);
        let taken = quota
            .map(|rate| Gcra::new(rate).take(app.tat, now, request.messages))
            .transpose();
        let quota_wait = taken.err().map(Duration::from_micros);
        if is_held || quota_wait.is_some() {
            skip(&mut claims);
        } else {
            make_all(&mut shard, &request.claims, &claims, now);
        }
        drop(shard);
        if let Ok(Some(tat)) = taken {
            app.tat = tat;
            apps.put(request.app, app, app.expires(), now);
        }
        Admission {
            version,
            quota_wait,
            claims,
            has_forgotten,
        }
    }
}

/// What would become of the claims, and whether an earlier request began to make one of them.
fn look_all(shard: &Shard<[u8; 32], Claim>, requests: &[ClaimRequest], now: u64) -> (Vec<ClaimAnswer>, bool) {
    let mut answers: Vec<ClaimAnswer> = Vec::with_capacity(requests.len());
    let mut own = HashMap::with_capacity(requests.len());
    let mut paid = false;
    for request in requests {
        let answer = match own.entry(request.key) {
            Entry::Occupied(first) => {
                let (resource, fingerprint) = *first.get();
                ClaimAnswer::Held {
                    resource,
                    fingerprint,
                    finished: false,
                }
            }
            Entry::Vacant(slot) => {
                slot.insert((request.resource, request.fingerprint));
                let earlier = shard.get(&request.key, now);
                paid |= earlier.is_some();
                earlier.map_or(ClaimAnswer::Claimed, |claim| look(claim, request, now))
            }
        };
        answers.push(answer);
    }
    (answers, paid)
}

/// Makes none of the claims: those that are held say so.
fn skip(answers: &mut [ClaimAnswer]) {
    for answer in answers {
        if !matches!(answer, ClaimAnswer::Held { .. }) {
            *answer = ClaimAnswer::Skipped;
        }
    }
}

/// Makes all of the claims as they were answered.
fn make_all(
    shard: &mut Shard<[u8; 32], Claim>,
    requests: &[ClaimRequest],
    answers: &[ClaimAnswer],
    now: u64,
) {
    for (request, answer) in requests.iter().zip(answers) {
        let resource = if let ClaimAnswer::TakenOver { resource } = *answer {
            resource
        } else {
            request.resource
        };
        let pending_until = Some(now + micros(request.pending_ttl));
        let claim = Claim {
            resource,
            fingerprint: request.fingerprint,
            pending_until,
        };
        shard.put(request.key, claim, now + micros(request.ttl), now);
    }
}

fn look(claim: &Claim, request: &ClaimRequest, now: u64) -> ClaimAnswer {
    let same = claim.fingerprint == request.fingerprint;
    match claim.pending_until {
        Some(_) if same && claim.resource == request.resource => ClaimAnswer::Claimed,
        Some(until) if same && until <= now => ClaimAnswer::TakenOver {
            resource: claim.resource,
        },
        pending => ClaimAnswer::Held {
            resource: claim.resource,
            fingerprint: claim.fingerprint,
            finished: pending.is_none(),
        },
    }
}

#[async_trait]
impl Limits for InProcess {
    async fn admit(&self, batch: &[AdmitRequest]) -> Result<Vec<Admission>, LimitsError> {
        let now = self.now();
        Ok(batch.iter().map(|request| self.admit_one(request, now)).collect())
    }

    async fn settle(&self, batch: &[Settlement]) -> Result<(), LimitsError> {
        let now = self.now();
        for settlement in batch {
            let mut shard = self.claims.lock(&settlement.app);
            let Some(claim) = shard.get_mut(&settlement.key, now) else {
                continue;
            };
            if claim.resource != settlement.resource || claim.pending_until.is_none() {
                continue;
            }
            match settlement.end {
                ClaimEnd::Finished => claim.pending_until = None,
                ClaimEnd::GivenUp => shard.remove(&settlement.key),
            }
        }
        Ok(())
    }

    async fn publish_version(&self, app: AppId, version: u64) -> Result<(), LimitsError> {
        let now = self.now();
        let mut apps = self.apps.lock(&app);
        let mut state = apps.get(&app, now).copied().unwrap_or_default();
        if state.version.is_some_and(|known| known >= version) {
            return Ok(());
        }
        state.version = Some(version);
        apps.put(app, state, state.expires(), now);
        drop(apps);
        // Nobody listening is fine.
        let _ = self.invalidations.send(app);
        Ok(())
    }

    fn invalidations(&self) -> broadcast::Receiver<AppId> {
        self.invalidations.subscribe()
    }

    async fn gate(&self, batch: &[GateRequest]) -> Result<Vec<Gate>, LimitsError> {
        let now = self.now();
        let gate = |request: &GateRequest| {
            let key = (request.delivery, request.run);
            let mark = self.marks(&key).lock().get(&key, now);
            let verdict = match mark {
                Some(mark) => Verdict::Done(mark),
                None => self.with_endpoint(request.endpoint, now, |endpoint| endpoint.gate(request, now)),
            };
            Gate {
                version: self.version(request.app, now),
                verdict,
            }
        };
        Ok(batch.iter().map(gate).collect())
    }

    async fn finish(&self, batch: &[FinishReport]) -> Result<Vec<BreakerChange>, LimitsError> {
        let now = self.now();
        let finish = |report: &FinishReport| {
            if let Some(mark) = &report.mark {
                let key = (report.delivery, report.run);
                self.marks(&key).lock().set(key, mark, now);
            }
            let settings = &self.settings;
            self.with_endpoint(report.endpoint, now, |endpoint| {
                endpoint.finish(report, settings, now)
            })
        };
        Ok(batch.iter().map(finish).collect())
    }

    async fn release(&self, batch: &[ReleaseRequest]) -> Result<Vec<Release>, LimitsError> {
        let now = self.now();
        let release = |request: &ReleaseRequest| {
            self.with_endpoint(request.endpoint, now, |endpoint| endpoint.release(request, now))
        };
        Ok(batch.iter().map(release).collect())
    }

    async fn open_breakers(&self) -> Result<u64, LimitsError> {
        Ok(self.endpoints.count(self.now(), Endpoint::is_open))
    }

    async fn ping(&self) -> Result<(), LimitsError> {
        Ok(())
    }
}
