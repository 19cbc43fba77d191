//! What tenants configure: applications, endpoints, event types; and the snapshot of one application's
//! configuration that gateways and workers cache.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use crate::ids::{AppId, EndpointId, EventTypeId};
use crate::retry::RetrySchedule;
use crate::time::UnixMillis;

/// A tenant.
#[derive(Clone, Debug)]
pub struct Application {
    /// Its id.
    pub id: AppId,
    /// The caller's own name for it, unique among applications.
    pub uid: Option<String>,
    /// What people call it.
    pub name: String,
    /// Messages a second that it may send; above it the gateway answers 429.
    pub throttle_rate: Option<u32>,
    /// Whether its receivers get a `traceparent` header.
    pub propagate_traceparent: bool,
    /// The caller's notes.
    pub metadata: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it last changed.
    pub updated_at: UnixMillis,
}

/// Which header names a delivery carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderNames {
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature` (Standard Webhooks).
    #[default]
    Standard,
    /// `svix-id`, `svix-timestamp`, `svix-signature`.
    Svix,
}

/// What happens to an `ordered` endpoint when the delivery at its head is exhausted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExhaustedPolicy {
    /// The next delivery goes on.
    #[default]
    Skip,
    /// The endpoint is paused until somebody resumes it.
    Pause,
}

/// A signing secret; all unexpired ones sign.
#[derive(Clone, Debug)]
pub struct EndpointSecret {
    /// `whsec_…` or `whsk_…`.
    pub text: SecretString,
    /// When it stops signing; the current secret has none.
    pub expires_at: Option<UnixMillis>,
}

/// Where an application's messages go.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// The application that owns it.
    pub app: AppId,
    /// The caller's own name for it, unique within the application.
    pub uid: Option<String>,
    /// Where deliveries are POSTed to.
    pub url: String,
    /// For people.
    pub description: String,
    /// Event types that it subscribes to; empty means all.
    pub event_types: Vec<String>,
    /// Channels that it listens to; empty means all.
    pub channels: Vec<String>,
    /// Takes no messages; what waits is cancelled.
    pub disabled: bool,
    /// Takes messages, which wait until it is resumed.
    pub paused: bool,
    /// Deliveries a second at most.
    pub throttle_rate: Option<u32>,
    /// First in, first out.
    pub ordered: bool,
    /// For `ordered` endpoints.
    pub on_exhausted: ExhaustedPolicy,
    /// Header names of its deliveries.
    pub header_names: HeaderNames,
    /// Deadline of one attempt; the setting's default when absent.
    pub timeout: Option<Duration>,
    /// Its own retry schedule.
    pub retry_schedule: Option<RetrySchedule>,
    /// Extra request headers; values may be credentials.
    pub headers: BTreeMap<String, SecretString>,
    /// Current secret first.
    pub secrets: Vec<EndpointSecret>,
    /// The caller's notes.
    pub metadata: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it last changed.
    pub updated_at: UnixMillis,
}

impl Endpoint {
    /// Whether a message of this type and these channels goes to this endpoint. A message without channels
    /// reaches only endpoints without channels, and those that name none reach all.
    pub fn subscribes_to(&self, event_type: &str, channels: &[String]) -> bool {
        !self.disabled && is_subscribed((&self.event_types, &self.channels), event_type, channels)
    }
}

/// Whether a message of this type and these channels goes to an endpoint that subscribed to these event types and channels,
/// unless it is disabled.
pub fn is_subscribed(
    (event_types, wanted_channels): (&[String], &[String]),
    event_type: &str,
    channels: &[String],
) -> bool {
    (event_types.is_empty() || event_types.iter().any(|wanted| wanted == event_type))
        && (wanted_channels.is_empty() || wanted_channels.iter().any(|wanted| channels.contains(wanted)))
}

/// A kind of event that applications publish.
#[derive(Clone, Debug)]
pub struct EventType {
    /// Its id.
    pub id: EventTypeId,
    /// Unique.
    pub name: String,
    /// For people.
    pub description: String,
    /// Hidden from lists.
    pub archived: bool,
    /// No longer to be used by new endpoints.
    pub deprecated: bool,
    /// Opaque to us.
    pub feature_flag: Option<String>,
    /// JSON schemas by version, as JSON text, at most 256 KiB.
    pub schemas: Option<String>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it last changed.
    pub updated_at: UnixMillis,
}

/// One application's configuration, read in one snapshot of the store together with its version.
#[derive(Clone, Debug)]
pub struct AppSnapshot {
    /// Grows with every change of the application or one of its endpoints.
    pub version: u64,
    /// The application.
    pub application: Application,
    /// Its endpoints, disabled and paused ones included, by id.
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl AppSnapshot {
    /// The endpoint of this id.
    pub fn endpoint(&self, id: EndpointId) -> Option<&Arc<Endpoint>> {
        self.endpoints
            .binary_search_by(|endpoint| endpoint.id.cmp(&id))
            .ok()
            .map(|index| &self.endpoints[index])
    }
}
