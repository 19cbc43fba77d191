//! Enums between the model and the wire. Zero on the wire means "unspecified" and is refused, as is any value that
//! this release does not know.

use postrider_model::{AttemptClass, CancelReason, DeferReason, Trigger};

use crate::error::ItemError;
use crate::proto;

macro_rules! mapped {
    ($model:ident, $field:literal, $to:ident, $from:ident: $($variant:ident),+ $(,)?) => {
        pub(crate) fn $to(value: $model) -> i32 {
            match value {
                $($model::$variant => proto::$model::$variant as i32,)+
            }
        }

        pub(crate) fn $from(value: i32) -> Result<$model, ItemError> {
            match proto::$model::try_from(value) {
                $(Ok(proto::$model::$variant) => Ok($model::$variant),)+
                _ => Err(ItemError::UnknownValue { field: $field, value }),
            }
        }
    };
}

mapped!(Trigger, "trigger", trigger_to_wire, trigger_from_wire: Scheduled, Manual);
mapped!(
    AttemptClass, "attempt.class", class_to_wire, class_from_wire:
    Success, Status, Timeout, Connect, Tls, Dns, Blocked, Http
);
mapped!(
    CancelReason, "cancelled.reason", cancel_to_wire, cancel_from_wire:
    EndpointDisabled, EndpointDeleted, ApplicationDeleted, PayloadExpired, PayloadExpunged, Parked,
    MessageMissing
);
mapped!(
    DeferReason, "reason", defer_to_wire, defer_from_wire:
    Retry, Rate, Breaker, Paused, Queue, Backlog, Ordered, InFlight, Ours, Stray, Manual, Leased, Drain
);
