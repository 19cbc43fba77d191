//! Claims the keys of a request: its `Idempotency-Key` and its messages' event ids.
//!
//! All claims of a request are made in one trip, all or none. A held key decides: the same request finished is
//! answered again; the same request in progress is waited for; a message whose event id is another's is left out and the
//! rest is claimed again. In the embedded set-up finished claims are also in the store, and are looked for there until
//! all that were made before this process started have ended, and while the limits have forgotten some.

use std::collections::HashSet;

use postrider_limits::{Admission, AdmitRequest, ClaimAnswer, ClaimRequest, Rate};
use postrider_model::{AppId, MessageId, UnixMillis};
use tokio::time::Instant;

use super::claimed::{Claimed, Fate, Made, give_up};
use super::earlier::{persisted, persisted_key, recall};
use super::{Draft, Request};
use crate::error::Error;
use crate::idempotency::{PENDING_TTL, POLL, TTL, WAIT, digest, event_id_hash, in_progress, reused};
use crate::state::Api;

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
        let admission = claimer.ask(api, &wanted).await;
        if let Some(wait) = admission.quota_wait {
            return Err(Error::too_many_requests(wait));
        }
        match claimer.read(&wanted, &admission, Instant::now() >= deadline)? {
            // A request that is refused leaves no claim behind: its key may be used again.
            Step::Again if claimer.is_refused() => {
                if !api.broker.is_durable() {
                    Box::pin(persisted_key(api, &mut claimer, admission.has_forgotten)).await?;
                }
                return Ok(claimer.claimed(Vec::new(), None, true));
            }
            Step::Again => {}
            Step::GiveUpAndAgain(made) => give_up(api, app, &made).await,
            Step::Wait => tokio::time::sleep(POLL).await,
            Step::Repeated => {
                Box::pin(recall(api, &mut claimer)).await?;
                return Ok(claimer.claimed(Vec::new(), None, true));
            }
            Step::Made => {
                let claimed = claimer.claimed(wanted, admission.version, false);
                if api.broker.is_durable() {
                    return Ok(claimed);
                }
                // Boxed, here and above, since the future of a request should stay small.
                let forgotten = admission.has_forgotten;
                return Box::pin(persisted(api, claimed, &mut claimer, forgotten)).await;
            }
        }
    }
}

enum Step {
    /// Every wanted claim is made.
    Made,
    /// Fewer or other claims are wanted.
    Again,
    /// As before, and these, which this round made or took over, must name other ids.
    GiveUpAndAgain(Vec<Made>),
    /// Another request is in progress.
    Wait,
    /// An earlier one was finished.
    Repeated,
}

pub(super) struct Claimer<'a> {
    app: AppId,
    quota: Option<Rate>,
    request: &'a Request,
    base: MessageId,
    pub(super) fates: Vec<Fate>,
    /// The quota was taken in an earlier round.
    pub(super) paid: bool,
    /// Keys under which an earlier request may have left a message.
    inherited: HashSet<[u8; 32]>,
    /// When the limits were asked last.
    asked_at: Instant,
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
            inherited: HashSet::new(),
            asked_at: Instant::now(),
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

    /// Becomes a repeat of the finished request whose key names this resource: goes by its ids, and takes nothing over.
    pub(super) fn repeat(&mut self, resource: [u8; 16]) {
        self.inherited.clear();
        self.rebase(from_claim(resource));
    }

    /// Whether nothing of the request can be accepted.
    fn is_refused(&self) -> bool {
        self.fates.iter().all(|fate| *fate == Fate::Taken)
    }

    pub(super) fn wanted(&self) -> Vec<Made> {
        let key = self.request.key.as_ref().map(|key| Made {
            request: ClaimRequest {
                key: key.hash(self.app),
                resource: *self.base.as_bytes(),
                fingerprint: self.request.fingerprint,
                ttl: key.ttl,
                pending_ttl: PENDING_TTL,
            },
            draft: None,
            inherited: false,
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
                inherited: false,
            }),
            _ => None,
        });
        key.into_iter().chain(event_ids).collect()
    }

    /// Asks for these claims.
    pub(super) async fn ask(&mut self, api: &Api, wanted: &[Made]) -> Admission {
        self.asked_at = Instant::now();
        api.admitter.admit(self.admit_request(wanted)).await
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
                        self.repeat(resource);
                        return Ok(Step::Repeated);
                    }
                    None if late => return Err(in_progress()),
                    // It tells what its messages are when it is finished; what holds their event ids may be those.
                    None => return Ok(Step::Wait),
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
        Ok(self.take_over(wanted, &admission.claims))
    }

    /// Whether an earlier message of this request holds the event id of the draft.
    fn is_own(&self, draft: usize, resource: [u8; 16]) -> bool {
        self.fates[..draft].contains(&Fate::Id(from_claim(resource)))
    }

    /// Goes by the ids of what was taken over: earlier requests may have left messages under them.
    fn take_over(&mut self, wanted: &[Made], answers: &[ClaimAnswer]) -> Step {
        let taken_over = |made: &Made, answer: &ClaimAnswer| match answer {
            ClaimAnswer::TakenOver { resource } => {
                Some((made.draft, made.request.key, from_claim(*resource)))
            }
            // In a round before. What was to be given up then may stand in the way still.
            ClaimAnswer::Claimed if self.inherited.contains(&made.request.key) => {
                Some((made.draft, made.request.key, from_claim(made.request.resource)))
            }
            _ => None,
        };
        let taken_over: Vec<_> = wanted
            .iter()
            .zip(answers)
            .filter_map(|(made, answer)| taken_over(made, answer))
            .collect();
        let key = taken_over.iter().find(|(draft, ..)| draft.is_none());
        let base = key.map_or(self.base, |(_, _, id)| *id);
        let other = taken_over
            .iter()
            .find(|(draft, _, id)| draft.is_some() && self.fates.len() == 1 && *id != base);
        if let Some((_, event_id, id)) = other {
            // The key must name what the event id names, even a key that was taken over.
            let mut given_up = of_drafts(wanted, false);
            for made in &mut given_up {
                made.request.resource = *base.as_bytes();
            }
            self.inherited = HashSet::from([*event_id]);
            self.rebase(*id);
            return Step::GiveUpAndAgain(given_up);
        }
        let taken: HashSet<[u8; 32]> = taken_over.iter().map(|(_, key, _)| *key).collect();
        if key.is_some() {
            // All is made as the earlier request made it.
            self.inherited.extend(wanted.iter().map(|made| made.request.key));
        } else {
            self.inherited.extend(&taken);
        }
        let moves = base != self.base;
        if moves {
            // Everything derives from the first request's id: claim again under that.
            self.rebase(base);
        }
        for (draft, _, id) in &taken_over {
            if let Some(draft) = draft {
                self.fates[*draft] = Fate::Id(*id);
            }
        }
        if !moves {
            return Step::Made;
        }
        let mut free = of_drafts(wanted, true);
        free.retain(|made| !taken.contains(&made.request.key));
        Step::GiveUpAndAgain(free)
    }

    pub(super) fn claimed(&self, mut made: Vec<Made>, version: Option<u64>, settled: bool) -> Claimed {
        for made in &mut made {
            made.inherited = self.inherited.contains(&made.request.key);
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
            asked_at: self.asked_at,
            made,
        }
    }
}

/// The claims of event ids, or else of the idempotency key.
fn of_drafts(wanted: &[Made], drafts: bool) -> Vec<Made> {
    let chosen = wanted.iter().filter(|made| made.draft.is_some() == drafts);
    chosen.cloned().collect()
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

#[cfg(test)]
mod tests;
