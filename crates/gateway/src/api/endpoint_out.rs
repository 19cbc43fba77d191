//! Endpoints as the API shows them, and the words for their policies.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_model::{Endpoint, EndpointId, ExhaustedPolicy, HeaderNames, RetrySchedule};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::page::show_time;

/// What happens to an `ordered` endpoint when the delivery at its head is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnExhausted {
    /// The next delivery goes on.
    Skip,
    /// The endpoint is paused.
    Pause,
}

/// Which header names a delivery carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HeaderStyle {
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature`.
    Standard,
    /// `svix-id`, `svix-timestamp`, `svix-signature`.
    Svix,
}

impl From<OnExhausted> for ExhaustedPolicy {
    fn from(policy: OnExhausted) -> Self {
        match policy {
            OnExhausted::Skip => Self::Skip,
            OnExhausted::Pause => Self::Pause,
        }
    }
}

impl From<ExhaustedPolicy> for OnExhausted {
    fn from(policy: ExhaustedPolicy) -> Self {
        match policy {
            ExhaustedPolicy::Skip => Self::Skip,
            ExhaustedPolicy::Pause => Self::Pause,
        }
    }
}

impl From<HeaderStyle> for HeaderNames {
    fn from(style: HeaderStyle) -> Self {
        match style {
            HeaderStyle::Standard => Self::Standard,
            HeaderStyle::Svix => Self::Svix,
        }
    }
}

impl From<HeaderNames> for HeaderStyle {
    fn from(names: HeaderNames) -> Self {
        match names {
            HeaderNames::Standard => Self::Standard,
            HeaderNames::Svix => Self::Svix,
        }
    }
}

/// An endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointOut {
    #[schema(value_type = String)]
    id: EndpointId,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    url: String,
    description: String,
    disabled: bool,
    event_types: Option<Vec<String>>,
    channels: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    throttle_rate: Option<u32>,
    metadata: BTreeMap<String, String>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
    paused: bool,
    ordered: bool,
    on_exhausted: OnExhausted,
    header_names: HeaderStyle,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_schedule: Option<Vec<u64>>,
}

impl From<Endpoint> for EndpointOut {
    fn from(endpoint: Endpoint) -> Self {
        let seconds = |schedule: RetrySchedule| schedule.delays().iter().map(Duration::as_secs).collect();
        Self {
            id: endpoint.id,
            uid: endpoint.uid,
            url: endpoint.url,
            description: endpoint.description,
            disabled: endpoint.disabled,
            event_types: non_empty(endpoint.event_types),
            channels: non_empty(endpoint.channels),
            throttle_rate: endpoint.throttle_rate,
            metadata: endpoint.metadata,
            created_at: show_time(endpoint.created_at),
            updated_at: show_time(endpoint.updated_at),
            paused: endpoint.paused,
            ordered: endpoint.ordered,
            on_exhausted: endpoint.on_exhausted.into(),
            header_names: endpoint.header_names.into(),
            timeout_seconds: endpoint.timeout.map(|timeout| timeout.as_secs()),
            retry_schedule: endpoint.retry_schedule.map(seconds),
        }
    }
}

/// The wire has no empty lists here: absent means all.
pub(crate) fn non_empty(list: Vec<String>) -> Option<Vec<String>> {
    (!list.is_empty()).then_some(list)
}
