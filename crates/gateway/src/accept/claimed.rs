//! The claims that a request made, and their end: finished, given up, or made durable with its messages.

use postrider_limits::{ClaimEnd, ClaimRequest, Settlement};
use postrider_model::{AppId, Claim, MessageId, UnixMillis};
use tokio::time::Instant;

use crate::admit::CALL_TIMEOUT;
use crate::idempotency::PENDING_TTL;
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
    pub(super) app: AppId,
    /// Just before it was claimed.
    pub(super) asked_at: Instant,
    /// What was claimed and for which draft.
    pub(super) made: Vec<Made>,
}

#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) request: ClaimRequest,
    /// Index into the drafts; `None` for the idempotency key.
    pub(super) draft: Option<usize>,
    /// It was taken over from an earlier request, whose message may be out.
    pub(super) inherited: bool,
}

impl Claimed {
    /// After the confirm.
    pub(crate) fn finish(&self, api: &Api) {
        // The key last: once it is finished, so is the rest.
        let finished = self.made.iter().rev();
        api.admitter
            .settle(finished.map(|made| made.settlement(self.app, ClaimEnd::Finished)));
    }

    /// After a refusal; waited for, since the next claim of the same keys may come at once. What another request may
    /// have left a message under stays claimed, so that the next repeat makes the same one: what was taken over, and what a
    /// repeat may have taken over by now.
    pub(crate) async fn give_up(&self, api: &Api) {
        if self.asked_at.elapsed() + CALL_TIMEOUT >= PENDING_TTL {
            return;
        }
        give_up(api, self.app, self.made.iter().filter(|made| !made.inherited)).await;
    }

    /// As [`Self::give_up`], and what was taken over as well: it is known otherwise under which ids to go on.
    pub(super) async fn give_up_all(&self, api: &Api) {
        give_up(api, self.app, &self.made).await;
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

impl Made {
    fn settlement(&self, app: AppId, end: ClaimEnd) -> Settlement {
        Settlement {
            app,
            key: self.request.key,
            resource: self.request.resource,
            end,
        }
    }
}

/// Gives claims up, for the ids that they were made for; returns when that is done.
pub(super) async fn give_up(api: &Api, app: AppId, made: impl IntoIterator<Item = &Made>) {
    let settlements = made
        .into_iter()
        .map(|made| made.settlement(app, ClaimEnd::GivenUp));
    api.admitter.settle_now(settlements.collect()).await;
}
