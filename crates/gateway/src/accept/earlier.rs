//! What an earlier request with the same keys had become, when the limits alone do not tell: of a repeated batch, and in
//! the embedded set-up of requests to a process before this one, and of those that the limits have forgotten.

use postrider_limits::ClaimAnswer;
use postrider_model::{Claim, UnixMillis};
use postrider_store::StoreError;

use super::claim::Claimer;
use super::claimed::{Claimed, Fate, Made};
use crate::error::Error;
use crate::idempotency::reused;
use crate::state::Api;

/// For a repeated batch: which of its event ids had been another message's.
pub(super) async fn recall(api: &Api, claimer: &mut Claimer<'_>) -> Result<(), Error> {
    if claimer.fates.len() == 1 {
        return Ok(());
    }
    let wanted: Vec<Made> = claimer
        .wanted()
        .into_iter()
        .filter(|made| made.draft.is_some())
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    // Asked first, so that whoever hangs up while the store is slow has claimed nothing.
    let stored = if api.broker.is_durable() {
        vec![None; wanted.len()]
    } else {
        let keys: Vec<[u8; 32]> = wanted.iter().map(|made| made.request.key).collect();
        api.stored_claims.find(&keys).await?
    };
    claimer.paid = true;
    let admission = claimer.ask(api, &wanted).await;
    // What was free is free again: the earlier request decided, not this one.
    let answers = wanted.iter().zip(&admission.claims);
    let free = answers.filter(|(_, answer)| **answer == ClaimAnswer::Claimed);
    let free = free.map(|(made, _)| made.clone()).collect();
    claimer.claimed(free, None, true).give_up(api).await;
    for ((made, answer), stored) in wanted.iter().zip(admission.claims).zip(stored) {
        let held = match answer {
            ClaimAnswer::Held { resource, .. } | ClaimAnswer::TakenOver { resource } => Some(resource),
            ClaimAnswer::Claimed | ClaimAnswer::Skipped => None,
        };
        // What the store keeps was accepted; what is held may be what a repeat tries.
        let holder = stored.map(|claim| claim.resource).or(held);
        if let (Some(draft), Some(holder)) = (made.draft, holder)
            && holder != made.request.resource
        {
            claimer.fates[draft] = Fate::Taken;
        }
    }
    Ok(())
}

/// Looks for the keys among those that were persisted before this process started; when the limits have forgotten some,
/// among all that were persisted.
pub(super) async fn persisted(
    api: &Api,
    mut claimed: Claimed,
    claimer: &mut Claimer<'_>,
    has_forgotten: bool,
) -> Result<Claimed, Error> {
    let made = claimed.made.iter();
    let old: Vec<Made> = made
        .filter(|made| may_be_stored(api, made, has_forgotten))
        .cloned()
        .collect();
    if old.is_empty() {
        return Ok(claimed);
    }
    let keys: Vec<[u8; 32]> = old.iter().map(|made| made.request.key).collect();
    let stored = match stored_claims(api, &keys, has_forgotten).await {
        Ok(stored) => stored,
        Err(error) => {
            claimed.give_up(api).await;
            return Err(error.into());
        }
    };
    let found = old.iter().zip(&stored);
    let found: Vec<(&Made, &Claim)> = found
        .filter_map(|(made, stored)| Some((made, stored.as_ref()?)))
        .collect();
    if let Some((key, stored)) = found.iter().find(|(made, _)| made.draft.is_none()) {
        if stored.fingerprint != key.request.fingerprint {
            claimed.give_up(api).await;
            return Err(reused());
        }
        let is_stored = |made: &Made| {
            let is = |(old, stored): &(&Made, &Claim)| {
                old.request.key == made.request.key && stored.resource == made.request.resource
            };
            found.iter().any(is)
        };
        // What was taken over from the very request that put it into the store holds on.
        let (stored_too, free): (Vec<Made>, Vec<Made>) = claimed.made.drain(..).partition(is_stored);
        claimed.made = free;
        claimed.give_up_all(api).await;
        claimed.made = stored_too;
        claimed.finish(api);
        claimer.repeat(stored.resource);
        recall(api, claimer).await?;
        return Ok(claimer.claimed(Vec::new(), None, true));
    }
    let taken = found
        .iter()
        .filter(|(made, stored)| stored.resource != made.request.resource);
    let taken: Vec<usize> = taken.filter_map(|(made, _)| made.draft).collect();
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

/// Of a request whose event ids all are other messages': if the store has its key, as [`persisted`] looks for it, these may
/// be the messages of the earlier request.
pub(super) async fn persisted_key(
    api: &Api,
    claimer: &mut Claimer<'_>,
    has_forgotten: bool,
) -> Result<(), Error> {
    let key = claimer.wanted().into_iter().find(|made| made.draft.is_none());
    let Some(key) = key.filter(|key| may_be_stored(api, key, has_forgotten)) else {
        return Ok(());
    };
    let stored = stored_claims(api, &[key.request.key], has_forgotten).await?;
    let Some(stored) = stored.into_iter().next().flatten() else {
        return Ok(());
    };
    if stored.fingerprint != key.request.fingerprint {
        return Err(reused());
    }
    claimer.repeat(stored.resource);
    recall(api, claimer).await
}

/// Whether the store may have a claim that the limits do not have.
fn may_be_stored(api: &Api, made: &Made, has_forgotten: bool) -> bool {
    has_forgotten || made.request.ttl > api.started_at.elapsed()
}

/// The claims of these keys that are in the store. While the limits have not forgotten any, that is asked until those have
/// ended that were there when this process started.
async fn stored_claims(
    api: &Api,
    keys: &[[u8; 32]],
    has_forgotten: bool,
) -> Result<Vec<Option<Claim>>, StoreError> {
    let last = async || Ok(api.store.last_claim_ends().await?.unwrap_or(UnixMillis(0)));
    if !has_forgotten && *api.old_claims_end.get_or_try_init(last).await? <= UnixMillis::now() {
        return Ok(vec![None; keys.len()]);
    }
    api.stored_claims.find(keys).await
}
