//! Accepting messages: from a parsed request to a 202 that is true.
//!
//! The steps, none of which touches SQL for an application that is cached (in the embedded set-up a key may be looked
//! up among the persisted ones for a while after a start, when there are too many for memory, and for a repeated batch):
//!
//! 1. the broker and the journal must take messages now ([`crate::health::may_accept`]);
//! 2. one batched trip (a second one for keys that are held) claims the keys, takes from the quota and tells the
//!    configuration's version ([`claim`]);
//! 3. the endpoints are matched ([`fan_out`]);
//! 4. the journal record and the jobs are published, and all of it must be confirmed ([`publish`]).
//!
//! Guarantee: 202 only after every confirm. When something of it failed and some of it may be out all the same, the
//! claims stay open, so that a repeat takes over with the same ids and makes the same deliveries. A client that hangs up
//! after step 2 changes nothing of this.

mod claim;
mod claimed;
mod earlier;
mod fan_out;
mod publish;

use std::sync::Arc;

use bytes::Bytes;
use postrider_limits::Rate;
use postrider_model::{AppSnapshot, EndpointId, Message, MessageId, UnixMillis};
use postrider_store::{AppRef, StoreError};
use postrider_telemetry::labels::Duplicate;
use postrider_telemetry::trace::{Published, Span};

use crate::cache::Entry;
use crate::error::Error;
use crate::goes_on::GoesOn;
use crate::health::may_accept;
use crate::idempotency::IdempotencyKey;
use crate::state::Api;

use claimed::{Claimed, Fate};

pub(crate) use publish::{Load, publish};

/// A valid message that has no id yet.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    /// Its place in the request, which its id is made from.
    pub(crate) index: u32,
    pub(crate) event_type: String,
    pub(crate) event_id: Option<String>,
    pub(crate) channels: Vec<String>,
    pub(crate) content_type: String,
    pub(crate) payload: Bytes,
    pub(crate) retention_days: Option<u16>,
}

/// Who gets the messages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// Every endpoint that subscribes to them.
    Subscribers,
    /// This endpoint, whatever it subscribes to.
    Endpoint(EndpointId),
}

/// A request to accept messages.
pub(crate) struct Request {
    pub(crate) app: AppRef,
    pub(crate) drafts: Vec<Draft>,
    pub(crate) key: Option<IdempotencyKey>,
    /// SHA-256 of the request.
    pub(crate) fingerprint: [u8; 32],
    pub(crate) traceparent: Option<String>,
    pub(crate) target: Target,
}

/// What became of one draft.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Accepted, now or by an earlier request with the same key.
    Accepted(Arc<Message>),
    /// Another message has its event id.
    EventIdTaken,
}

/// Refuses a request to accept a message before its body is read, and counts it, when it could not be published.
pub(crate) fn may_begin(api: &Api) -> Result<(), Error> {
    may_accept(api).inspect_err(|error| api.metrics.refused(error.code()))
}

/// Accepts messages: one verdict a draft, or nothing at all.
pub(crate) async fn accept(api: &Api, request: Request) -> Result<Vec<Verdict>, Error> {
    let result = accept_all(api, request).await;
    if let Err(error) = &result {
        api.metrics.refused(error.code());
    }
    result
}

async fn accept_all(api: &Api, request: Request) -> Result<Vec<Verdict>, Error> {
    may_accept(api)?;
    let cached = api.cache.get(&request.app).await?.ok_or_else(Error::not_found)?;
    let app = &cached.snapshot.application;
    let base = MessageId::generate(UnixMillis::now(), &mut rand::rng());
    let quota = app.throttle_rate.or(api.settings.throttle_rate).map(Rate::bursty);
    let claimed = claim::claim(api, app.id, quota, &request, base).await?;
    count_repeats(api, &claimed);
    if claimed.settled {
        return Ok(verdicts(&cached.snapshot, request, &claimed));
    }
    // A client that hangs up drops its request: what was claimed for it is made all the same, or its claims given back.
    let owner = api.clone();
    GoesOn::new(&api.tasks, async move {
        fulfil(&owner, cached, request, claimed).await
    })
    .await
}

/// Makes what was claimed, and settles the claims by what came of it.
async fn fulfil(
    api: &Api,
    cached: Arc<Entry>,
    request: Request,
    claimed: Claimed,
) -> Result<Vec<Verdict>, Error> {
    let result = match api.cache.fresh(&request.app, cached, claimed.version).await {
        // The uid has moved to another application, under which nothing was claimed.
        Ok(Some(entry)) if entry.snapshot.application.id != claimed.app => {
            Err((StoreError::Changed.into(), publish::Trace::None))
        }
        Ok(Some(entry)) => make(api, &entry.snapshot, request, &claimed).await,
        Ok(None) => Err((Error::not_found(), publish::Trace::None)),
        Err(error) => Err((error.into(), publish::Trace::None)),
    };
    match result {
        Ok(verdicts) => {
            claimed.finish(api);
            Ok(verdicts)
        }
        Err((error, trace)) => {
            if trace == publish::Trace::None {
                claimed.give_up(api).await;
            }
            Err(error)
        }
    }
}

fn count_repeats(api: &Api, claimed: &Claimed) {
    let taken = claimed.fates.iter().filter(|fate| **fate == Fate::Taken);
    let taken = taken.count();
    if claimed.settled && taken < claimed.fates.len() {
        api.telemetry.duplicate(Duplicate::IdempotencyKey);
        return;
    }
    for _ in 0..taken {
        api.telemetry.duplicate(Duplicate::EventId);
    }
}

/// Makes the messages and their deliveries.
async fn make(
    api: &Api,
    snapshot: &AppSnapshot,
    mut request: Request,
    claimed: &Claimed,
) -> Result<Vec<Verdict>, (Error, publish::Trace)> {
    let target = request.target;
    let tracer = api.tracer.as_ref();
    let mut span = tracer.and_then(|tracer| tracer.publish(request.traceparent.as_deref()));
    if let Some(span) = &span {
        // What the messages carry, for each attempt to link to.
        request.traceparent = Some(span.traceparent());
    }
    let verdicts = verdicts(snapshot, request, claimed);
    let accepted = || {
        verdicts.iter().filter_map(|verdict| match verdict {
            Verdict::Accepted(message) => Some(message),
            Verdict::EventIdTaken => None,
        })
    };
    let load = fan_out::fan_out(api, snapshot, target, accepted(), claimed)
        .inspect_err(|error| fail(&mut span, error))
        .map_err(|error| (error, publish::Trace::None))?;
    let deliveries = load.deliveries();
    if let Some(span) = &mut span {
        let messages = accepted().count();
        span.published(Published {
            app: snapshot.application.id,
            message: accepted()
                .next()
                .filter(|_| messages == 1)
                .map(|message| message.id),
            messages,
        });
    }
    publish(api, load)
        .await
        .inspect_err(|(error, _)| fail(&mut span, error))?;
    drop(span);
    api.metrics.accepted(accepted().count(), deliveries);
    Ok(verdicts)
}

fn fail(span: &mut Option<Span>, error: &Error) {
    if let Some(span) = span {
        span.fail(error.code());
    }
}

fn verdicts(snapshot: &AppSnapshot, request: Request, claimed: &Claimed) -> Vec<Verdict> {
    let app = snapshot.application.id;
    let traceparent = request.traceparent;
    let fates = claimed.fates.iter().copied();
    let drafts = request.drafts.into_iter().zip(fates);
    drafts
        .map(|(draft, fate)| match fate {
            Fate::Taken => Verdict::EventIdTaken,
            Fate::Id(id) => Verdict::Accepted(Arc::new(Message {
                id,
                app,
                event_type: draft.event_type,
                event_id: draft.event_id,
                channels: draft.channels,
                content_type: draft.content_type,
                payload: draft.payload,
                // A repeat must show the same time, so it is the id's.
                accepted_at: id.created_at(),
                payload_retention_days: draft.retention_days,
                traceparent: traceparent.clone(),
            })),
        })
        .collect()
}
