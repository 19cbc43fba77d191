//! Claims the keys of a request: its `Idempotency-Key` and its messages' event ids.
//!
//! All claims of a request are made in one trip, all or none. A held key decides: the same request finished is
//! answered again; the same request in progress is waited for; a message whose event id is another's is left out and the
//! rest is claimed again. In the embedded set-up finished claims are also in the store, and are looked for there until
//! all that were made before this process started have ended.

use std::time::Duration;

use postrider_limits::{Admission, AdmitRequest, ClaimAnswer, ClaimRequest, Rate, Settlement};
use postrider_model::{AppId, Claim, MessageId, UnixMillis};
use postrider_store::StoreError;
use tokio::time::Instant;

use super::{Draft, Request};
use crate::error::Error;
use crate::idempotency::{PENDING_TTL, POLL, TTL, WAIT, digest, event_id_hash, in_progress, reused};
use crate::state::Api;

/// What is to become of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It becomes this message.
    Id(MessageId),
    /// Its event id is another message's.
    Taken,
}

/// The claims of a request.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// One for each draft.
    pub(crate) fates: Vec<Fate>,
    /// The newest version of the application's configuration, when known.
    pub(crate) version: Option<u64>,
    /// There is nothing left to do: an earlier request with the same key was finished, or every draft's event id is
    /// another's.
    pub(crate) settled: bool,
    app: AppId,
    /// What was claimed and for which draft.
    made: Vec<Made>,
}

#[derive(Clone, Debug)]
struct Made {
    request: ClaimRequest,
    /// Index into the drafts; `None` for the idempotency key.
    draft: Option<usize>,
}

impl Claimed {
    /// After the confirm.
    pub(crate) fn finish(&self, api: &Api) {
        api.admitter
            .settle(self.settlements(|made| Some(made.request.ttl)));
    }

    /// After a refusal; waited for, since the next claim of the same keys may come at once.
    pub(crate) async fn give_up(&self, api: &Api) {
        api.admitter.settle_now(self.settlements(|_| None)).await;
    }

    fn settlements(&self, finish: impl Fn(&Made) -> Option<Duration>) -> Vec<Settlement> {
        let settle = |made: &Made| Settlement {
            app: self.app,
            key: made.request.key,
            resource: made.request.resource,
            finish: finish(made),
        };
        self.made.iter().map(settle).collect()
    }

    /// Claims that become durable with the message of this id; the idempotency key goes with the first one.
    pub(crate) fn durable(&self, id: MessageId, now: UnixMillis) -> Vec<Claim> {
        let first = self.fates.iter().find(|fate| **fate != Fate::Taken);
        let is_first = first == Some(&Fate::Id(id));
        let of_message = |made: &&Made| match made.draft {
            None => is_first,
            Some(draft) => self.fates[draft] == Fate::Id(id),
        };
        let claim = |made: &Made| Claim {
            key: made.request.key,
            resource: made.request.resource,
            fingerprint: made.request.fingerprint,
            expires_at: now.plus(made.request.ttl),
        };
        self.made.iter().filter(of_message).map(claim).collect()
    }
}

/// Claims the request's keys for `base` and what derives from it.
pub(crate) async fn claim(
    api: &Api,
    app: AppId,
    quota: Option<Rate>,
    request: &Request,
    base: MessageId,
) -> Result<Claimed, Error> {
    let mut claimer = Claimer::new(app, quota, request, base);
    let deadline = Instant::now() + WAIT;
    loop {
        let wanted = claimer.wanted();
        let admission = api.admitter.admit(claimer.admit_request(&wanted)).await;
        if let Some(wait) = admission.quota_wait {
            return Err(Error::too_many_requests(wait));
        }
        match claimer.read(&wanted, &admission, Instant::now() >= deadline)? {
            // A request that is refused leaves no claim behind: its key may be used again.
            Step::Again if claimer.is_refused() => return Ok(claimer.claimed(Vec::new(), None, true)),
            Step::Again => {}
            Step::GiveUpKeyAndAgain => {
                // Not the event id: that is claimed again under the same id.
                let key = wanted.into_iter().filter(|made| made.draft.is_none()).collect();
                claimer.claimed(key, None, false).give_up(api).await;
            }
            Step::Wait => tokio::time::sleep(POLL).await,
            Step::Repeated => {
                claimer.recall(api).await?;
                return Ok(claimer.claimed(Vec::new(), None, true));
            }
            Step::Made => {
                let claimed = claimer.claimed(wanted, admission.version, false);
                if api.broker.is_durable() {
                    return Ok(claimed);
                }
                return persisted(api, claimed, &mut claimer).await;
            }
        }
    }
}

enum Step {
    /// Every wanted claim is made.
    Made,
    /// Fewer or other claims are wanted.
    Again,
    /// As before, and the idempotency key must name another id.
    GiveUpKeyAndAgain,
    /// Another request is in progress.
    Wait,
    /// An earlier one was finished.
    Repeated,
}

struct Claimer<'a> {
    app: AppId,
    quota: Option<Rate>,
    request: &'a Request,
    base: MessageId,
    fates: Vec<Fate>,
    /// The quota was taken in an earlier round.
    paid: bool,
}

impl<'a> Claimer<'a> {
    fn new(app: AppId, quota: Option<Rate>, request: &'a Request, base: MessageId) -> Self {
        let mut claimer = Self {
            app,
            quota,
            request,
            base,
            fates: Vec::new(),
            paid: false,
        };
        claimer.rebase(base);
        claimer
    }

    fn rebase(&mut self, base: MessageId) {
        self.base = base;
        let drafts = self.request.drafts.iter();
        self.fates = drafts
            .map(|draft| Fate::Id(MessageId::of_batch(base, draft.index)))
            .collect();
    }

    /// Whether nothing of the request can be accepted.
    fn is_refused(&self) -> bool {
        self.fates.iter().all(|fate| *fate == Fate::Taken)
    }

    fn wanted(&self) -> Vec<Made> {
        let key = self.request.key.as_ref().map(|key| Made {
            request: ClaimRequest {
                key: key.hash(self.app),
                resource: *self.base.as_bytes(),
                fingerprint: self.request.fingerprint,
                ttl: key.ttl,
                pending_ttl: PENDING_TTL,
            },
            draft: None,
        });
        let drafts = self.request.drafts.iter().zip(&self.fates).enumerate();
        let event_ids = drafts.filter_map(|(index, (draft, fate))| match (fate, &draft.event_id) {
            (Fate::Id(id), Some(event_id)) => Some(Made {
                request: ClaimRequest {
                    key: event_id_hash(self.app, event_id),
                    resource: *id.as_bytes(),
                    fingerprint: fingerprint(draft),
                    ttl: TTL,
                    pending_ttl: PENDING_TTL,
                },
                draft: Some(index),
            }),
            _ => None,
        });
        key.into_iter().chain(event_ids).collect()
    }

    fn admit_request(&self, wanted: &[Made]) -> AdmitRequest {
        let live = self.fates.iter().filter(|fate| **fate != Fate::Taken).count();
        AdmitRequest {
            app: self.app,
            messages: if self.paid {
                0
            } else {
                u32::try_from(live).unwrap_or(u32::MAX)
            },
            quota: self.quota,
            claims: wanted.iter().map(|made| made.request.clone()).collect(),
        }
    }

    fn read(&mut self, wanted: &[Made], admission: &Admission, late: bool) -> Result<Step, Error> {
        let answers = || wanted.iter().zip(admission.claims.iter().copied());
        let is_held = |(_, answer): &(&Made, ClaimAnswer)| matches!(answer, ClaimAnswer::Held { .. });
        if answers().any(|answer| is_held(&answer)) {
            let mut wait = false;
            let mut changed = false;
            for (made, answer) in answers() {
                let ClaimAnswer::Held {
                    resource,
                    fingerprint,
                    finished,
                } = answer
                else {
                    continue;
                };
                match made.draft {
                    None if fingerprint != made.request.fingerprint => return Err(reused()),
                    None if finished => {
                        self.rebase(from_claim(resource));
                        return Ok(Step::Repeated);
                    }
                    None if late => return Err(in_progress()),
                    None => wait = true,
                    Some(draft) if finished || late || self.is_own(draft, resource) => {
                        self.fates[draft] = Fate::Taken;
                        changed = true;
                    }
                    Some(_) => wait = true,
                }
            }
            return Ok(if wait && !changed { Step::Wait } else { Step::Again });
        }
        self.paid = true;
        self.take_over(answers())
    }

    /// Whether an earlier message of this request holds the event id of the draft.
    fn is_own(&self, draft: usize, resource: [u8; 16]) -> bool {
        self.fates[..draft].contains(&Fate::Id(from_claim(resource)))
    }

    fn take_over<'b>(
        &mut self,
        answers: impl Iterator<Item = (&'b Made, ClaimAnswer)>,
    ) -> Result<Step, Error> {
        for (made, answer) in answers {
            let ClaimAnswer::TakenOver { resource } = answer else {
                continue;
            };
            let id = from_claim(resource);
            match made.draft {
                // Everything derives from the first request's id: claim again under that.
                None if id != self.base => {
                    self.rebase(id);
                    return Ok(Step::Again);
                }
                // The key must name what the event id names.
                Some(_) if self.fates.len() == 1 && id != self.base => {
                    self.rebase(id);
                    return Ok(Step::GiveUpKeyAndAgain);
                }
                Some(draft) => self.fates[draft] = Fate::Id(id),
                None => {}
            }
        }
        Ok(Step::Made)
    }

    fn claimed(&self, mut made: Vec<Made>, version: Option<u64>, settled: bool) -> Claimed {
        for made in &mut made {
            // A claim that was taken over keeps its first resource.
            if let Some(Fate::Id(id)) = made.draft.map(|draft| self.fates[draft]) {
                made.request.resource = *id.as_bytes();
            }
        }
        Claimed {
            fates: self.fates.clone(),
            version,
            settled,
            app: self.app,
            made,
        }
    }

    /// For a repeated batch: which of its event ids had been another message's.
    async fn recall(&mut self, api: &Api) -> Result<(), Error> {
        if self.fates.len() == 1 {
            return Ok(());
        }
        let wanted: Vec<Made> = self
            .wanted()
            .into_iter()
            .filter(|made| made.draft.is_some())
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        self.paid = true;
        let admission = api.admitter.admit(self.admit_request(&wanted)).await;
        let stored = if api.broker.is_durable() {
            vec![None; wanted.len()]
        } else {
            let keys: Vec<[u8; 32]> = wanted.iter().map(|made| made.request.key).collect();
            api.store.claims(&keys).await?
        };
        // What was free is free again: the earlier request decided, not this one.
        self.claimed(wanted.clone(), None, true).give_up(api).await;
        for ((made, answer), stored) in wanted.iter().zip(admission.claims).zip(stored) {
            let holder = match answer {
                ClaimAnswer::Held { resource, .. } => Some(resource),
                _ => stored.map(|claim| claim.resource),
            };
            if let (Some(draft), Some(holder)) = (made.draft, holder)
                && holder != made.request.resource
            {
                self.fates[draft] = Fate::Taken;
            }
        }
        Ok(())
    }
}

/// Looks for the keys among those that were persisted before this process started.
async fn persisted(api: &Api, mut claimed: Claimed, claimer: &mut Claimer<'_>) -> Result<Claimed, Error> {
    let uptime = api.started_at.elapsed();
    let old: Vec<Made> = claimed
        .made
        .iter()
        .filter(|made| made.request.ttl > uptime)
        .cloned()
        .collect();
    if old.is_empty() {
        return Ok(claimed);
    }
    let keys: Vec<[u8; 32]> = old.iter().map(|made| made.request.key).collect();
    let stored = match stored_claims(api, &keys).await {
        Ok(stored) => stored,
        Err(error) => {
            claimed.give_up(api).await;
            return Err(error.into());
        }
    };
    let mut taken = Vec::new();
    for (made, stored) in old.iter().zip(stored) {
        let Some(stored) = stored else { continue };
        match made.draft {
            None if stored.fingerprint != made.request.fingerprint => {
                claimed.give_up(api).await;
                return Err(reused());
            }
            None => {
                claimed.give_up(api).await;
                claimer.rebase(from_claim(stored.resource));
                claimer.recall(api).await?;
                return Ok(claimer.claimed(Vec::new(), None, true));
            }
            Some(draft) if stored.resource != made.request.resource => taken.push(draft),
            Some(_) => {}
        }
    }
    let is_taken = |made: &Made| made.draft.is_some_and(|draft| taken.contains(&draft));
    let (gone, kept): (Vec<Made>, Vec<Made>) = claimed.made.drain(..).partition(is_taken);
    claimed.made = gone;
    claimed.give_up(api).await;
    claimed.made = kept;
    for draft in taken {
        claimed.fates[draft] = Fate::Taken;
    }
    if claimed.fates.iter().all(|fate| *fate == Fate::Taken) {
        claimed.give_up(api).await;
        claimed.settled = true;
    }
    Ok(claimed)
}

/// The claims of these keys that were in the store when this process started, unless all of those have ended.
async fn stored_claims(api: &Api, keys: &[[u8; 32]]) -> Result<Vec<Option<Claim>>, StoreError> {
    let last = async || Ok(api.store.last_claim_ends().await?.unwrap_or(UnixMillis(0)));
    if *api.old_claims_end.get_or_try_init(last).await? <= UnixMillis::now() {
        return Ok(vec![None; keys.len()]);
    }
    api.store.claims(keys).await
}

fn from_claim(resource: [u8; 16]) -> MessageId {
    // 16 bytes are always an id.
    MessageId::from_slice(&resource).unwrap_or_else(|| MessageId::floor(UnixMillis(0)))
}

fn fingerprint(draft: &Draft) -> [u8; 32] {
    let mut parts: Vec<&[u8]> = vec![
        draft.event_type.as_bytes(),
        draft.content_type.as_bytes(),
        &draft.payload,
    ];
    parts.extend(draft.channels.iter().map(String::as_bytes));
    digest(&parts)
}
