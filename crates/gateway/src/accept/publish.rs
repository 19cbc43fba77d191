//! Publishes what was accepted, and tells what is known when that fails.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use postrider_broker::{PublishError, Queue};
use postrider_model::{DeferReason, DeliveryId, Job, Next, Outcome, Record, UnixMillis};

use crate::error::Error;
use crate::state::Api;

/// What is published for one request.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) records: Vec<Record>,
    pub(crate) jobs: Vec<Job>,
}

/// What a failed publication may have left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    /// Nothing: nobody will ever see the message.
    None,
    /// The message or some of its deliveries may be out.
    Possible,
}

/// Publishes everything and waits until all of it is confirmed. To be run in a [`GoesOn`](crate::goes_on::GoesOn): where
/// the store keeps the record, one without its jobs would wait for the end of their lease.
pub(crate) async fn publish(api: &Api, load: Load) -> Result<(), (Error, Trace)> {
    postrider_failpoint::hit("gateway.before_publish");
    let result = if api.broker.is_durable() {
        publish_durable(api, load).await
    } else {
        publish_in_process(api, load).await
    };
    postrider_failpoint::hit("gateway.after_publish");
    result
}

/// The broker keeps both the record and the jobs: published side by side, since each of them alone would be completed
/// by a repeat of the request, which makes the same deliveries.
async fn publish_durable(api: &Api, load: Load) -> Result<(), (Error, Trace)> {
    if load.records.is_empty() {
        return Ok(());
    }
    let has_jobs = !load.jobs.is_empty();
    // Whole or not at all: on record, deliveries whose jobs found no room would wait for ever.
    let jobs = api.jobs.reserve(load.jobs);
    let reserved = jobs.and_then(|jobs| Ok((jobs, api.journal.reserve(load.records)?)));
    let (jobs, records) = reserved.map_err(|error| refused(&error, Trace::None))?;
    // What delivers goes ahead of what records: the broker's next write to disk takes the first that come.
    let queued = jobs.publish();
    let recorded = records.publish();
    // All of it is on its way. The journal went last: by its confirm the others are mostly there, and who waits for it first
    // is woken once.
    let recorded = recorded.await;
    let queued = queued.await;
    let Err(error) = queued.and(recorded) else {
        return Ok(());
    };
    let leaves_nothing = |result: Result<(), PublishError>| result.is_err_and(PublishError::leaves_nothing);
    let nothing_is_out = leaves_nothing(recorded) && (!has_jobs || leaves_nothing(queued));
    Err(refused(
        &error,
        if nothing_is_out {
            Trace::None
        } else {
            Trace::Possible
        },
    ))
}

/// The store keeps the record, in which a leased row stands for each job: once the record is committed the message is
/// accepted, whatever becomes of the jobs.
async fn publish_in_process(api: &Api, load: Load) -> Result<(), (Error, Trace)> {
    if load.records.is_empty() {
        return Ok(());
    }
    if let Err(error) = api.journal.publish(load.records).await {
        let trace = if error.leaves_nothing() {
            Trace::None
        } else {
            Trace::Possible
        };
        return Err(refused(&error, trace));
    }
    let jobs = queues(api, load.jobs).map(|(queue, jobs)| async move {
        let kept = jobs.clone();
        let failed: HashMap<DeliveryId, PublishError> =
            api.jobs.publish_each(queue, jobs).await.into_iter().collect();
        if let Some(error) = failed.values().find(|error| **error != PublishError::Full) {
            tracing::warn!(%error, "accepted deliveries wait for their lease to end");
        }
        // Part of a large request may be queued: a delivery that is must not be deferred too.
        let refused = |job: &&Job| failed.get(&job.delivery) == Some(&PublishError::Full);
        kept.iter().filter(refused).map(deferred).collect::<Vec<Record>>()
    });
    let deferred: Vec<Record> = join_all(jobs).await.into_iter().flatten().collect();
    if !deferred.is_empty()
        && let Err(error) = api.journal.publish(deferred).await
    {
        tracing::warn!(%error, "accepted deliveries wait for their lease to end");
    }
    Ok(())
}

/// Jobs by queue; nothing where there are none.
fn queues(api: &Api, jobs: Vec<Job>) -> impl Iterator<Item = (Queue, Vec<Job>)> {
    let has_jobs = !jobs.is_empty();
    let queues = has_jobs.then(|| api.jobs.deliver_queues(jobs));
    queues.into_iter().flatten()
}

/// A full queue: the delivery waits in the store, due now.
fn deferred(job: &Job) -> Record {
    Record::Outcome(Box::new(Outcome {
        delivery: job.delivery,
        message: job.message.id,
        endpoint: job.endpoint,
        app: job.message.app,
        run: job.run,
        attempts: job.attempts,
        trigger: job.trigger,
        at: UnixMillis::now(),
        attempt: None,
        next: Next::Deferred {
            reason: DeferReason::Queue,
            delay: Duration::ZERO,
        },
    }))
}

fn refused(error: &PublishError, trace: Trace) -> (Error, Trace) {
    tracing::warn!(%error, ?trace, "a message was not accepted");
    let (code, detail) = match error {
        PublishError::Full => ("overloaded", "Too many messages are on their way; try again."),
        PublishError::Blocked => ("broker_blocked", "The broker takes no messages now; try again."),
        PublishError::Down | PublishError::Timeout(_) | PublishError::Refused | PublishError::Lost => (
            "broker_unavailable",
            "The broker did not confirm the message, so it was not accepted; try again.",
        ),
    };
    (Error::unavailable(code, detail, Duration::from_secs(1)), trace)
}
