//! Which endpoints get a message, and what has to be published for that.

use std::sync::Arc;

use postrider_model::{
    Accepted, AppSnapshot, DeferReason, DeliveryId, Disposition, Endpoint, Job, Message, NewDelivery, Record,
    Trigger, UnixMillis,
};

use super::Target;
use super::claimed::Claimed;
use super::publish::Load;
use crate::error::Error;
use crate::state::Api;

/// Where a new delivery to this endpoint is at first.
pub(crate) fn disposition(endpoint: &Endpoint, durable: bool) -> Disposition {
    match (endpoint.ordered, endpoint.paused, durable) {
        (true, _, _) => Disposition::Ordered,
        (false, true, _) => Disposition::Waiting(DeferReason::Paused),
        (false, false, true) => Disposition::Queued,
        (false, false, false) => Disposition::Leased,
    }
}

/// Whether the store alone holds such a delivery, so that nothing is published for a worker.
pub(crate) fn is_in_store(disposition: Disposition) -> bool {
    matches!(disposition, Disposition::Waiting(_) | Disposition::Ordered)
}

/// Makes the deliveries of messages. More than the limit of them is an error with nothing done.
pub(super) fn fan_out<'a>(
    api: &Api,
    snapshot: &AppSnapshot,
    target: Target,
    messages: impl Iterator<Item = &'a Arc<Message>>,
    claimed: &Claimed,
) -> Result<Load, Error> {
    let durable = api.broker.is_durable();
    let now = UnixMillis::now();
    let mut load = Load {
        records: Vec::new(),
        jobs: Vec::new(),
    };
    let mut request_room = api.settings.request_fan_out_max;
    for message in messages {
        let most = api.settings.fan_out_max.min(request_room);
        let mut deliveries = Vec::new();
        for endpoint in &snapshot.endpoints {
            let wanted = match target {
                Target::Subscribers => endpoint.subscribes_to(&message.event_type, &message.channels),
                Target::Endpoint(id) => endpoint.id == id && !endpoint.disabled,
            };
            if !wanted {
                continue;
            }
            if deliveries.len() >= most {
                return Err(too_many(most));
            }
            let delivery = NewDelivery {
                id: DeliveryId::derive(message.id, endpoint.id),
                endpoint: endpoint.id,
                disposition: disposition(endpoint, durable),
            };
            deliveries.push(delivery);
            if !is_in_store(delivery.disposition) {
                load.jobs.push(job(&delivery, message, Trigger::Scheduled));
            }
        }
        request_room -= deliveries.len();
        let claims = if durable {
            Vec::new()
        } else {
            claimed.durable(message.id, now)
        };
        load.records.push(Record::Accepted(Accepted {
            message: Arc::clone(message),
            deliveries,
            trigger: Trigger::Scheduled,
            claims,
        }));
    }
    Ok(load)
}

impl Load {
    /// A delivery made by hand of a message that is on record.
    pub(crate) fn by_hand(api: &Api, message: Arc<Message>, endpoint: &Endpoint, id: DeliveryId) -> Self {
        let delivery = NewDelivery {
            id,
            endpoint: endpoint.id,
            disposition: disposition(endpoint, api.broker.is_durable()),
        };
        let is_queued = !is_in_store(delivery.disposition);
        let job = is_queued.then(|| job(&delivery, &message, Trigger::Manual));
        let record = Record::Accepted(Accepted {
            message,
            deliveries: vec![delivery],
            trigger: Trigger::Manual,
            claims: Vec::new(),
        });
        Self {
            records: vec![record],
            jobs: job.into_iter().collect(),
        }
    }

    /// Deliveries in it.
    pub(super) fn deliveries(&self) -> usize {
        let of_record = |record: &Record| match record {
            Record::Accepted(accepted) => accepted.deliveries.len(),
            Record::Outcome(_) => 0,
        };
        self.records.iter().map(of_record).sum()
    }
}

fn job(delivery: &NewDelivery, message: &Arc<Message>, trigger: Trigger) -> Job {
    Job {
        delivery: delivery.id,
        endpoint: delivery.endpoint,
        message: Arc::clone(message),
        run: 0,
        attempts: 0,
        trigger,
        probe: false,
        has_token: false,
        ordered: false,
        lease_until: None,
    }
}

fn too_many(limit: usize) -> Error {
    Error::unprocessable(
        "fan_out_too_large",
        &["body"],
        format!("More than {limit} endpoints would get it; use channels or event types, or a smaller batch."),
    )
}
