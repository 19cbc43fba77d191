//! What tenants configure: applications, endpoints, event types; and the snapshot of one application's
//! configuration that gateways and workers cache.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

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

    /// Bytes of its texts, lists, maps and secrets.
    pub fn text_bytes(&self) -> usize {
        self.texts().map(str::len).sum()
    }

    /// Bytes that it takes in memory, roughly: each text has a price besides its own length.
    pub fn memory_bytes(&self) -> usize {
        const EACH: usize = 48;
        size_of::<Self>() + self.texts().map(|text| text.len() + EACH).sum::<usize>()
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let lists = self.event_types.iter().chain(&self.channels);
        let metadata = self.metadata.iter().flat_map(|(key, value)| [key, value]);
        let headers = self.headers.iter();
        let secrets = self.secrets.iter().map(|secret| secret.text.expose_secret());
        [&self.url, &self.description]
            .into_iter()
            .chain(&self.uid)
            .chain(lists)
            .chain(metadata)
            .map(String::as_str)
            .chain(headers.flat_map(|(name, value)| [name.as_str(), value.expose_secret()]))
            .chain(secrets)
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
    /// Bytes that it takes in memory, roughly.
    pub fn memory_bytes(&self) -> usize {
        let endpoints = self.endpoints.iter().map(|endpoint| endpoint.memory_bytes());
        size_of::<Self>() + endpoints.sum::<usize>()
    }

    /// The endpoint of this id.
    pub fn endpoint(&self, id: EndpointId) -> Option<&Arc<Endpoint>> {
        self.endpoints
            .binary_search_by(|endpoint| endpoint.id.cmp(&id))
            .ok()
            .map(|index| &self.endpoints[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_texts_of_an_endpoint_count() {
        let endpoint = Endpoint {
            id: EndpointId::from_uuid(uuid::Uuid::nil()),
            app: AppId::from_uuid(uuid::Uuid::nil()),
            uid: Some("u".repeat(10)),
            url: "u".repeat(100),
            description: "d".repeat(1_000),
            event_types: vec!["e".repeat(10_000)],
            channels: vec!["c".repeat(20_000)],
            disabled: false,
            paused: false,
            throttle_rate: None,
            ordered: false,
            on_exhausted: ExhaustedPolicy::Skip,
            header_names: HeaderNames::Standard,
            timeout: None,
            retry_schedule: None,
            headers: BTreeMap::from([("h".repeat(3), SecretString::from("v".repeat(100_000)))]),
            secrets: vec![EndpointSecret {
                text: SecretString::from("s".repeat(200_000)),
                expires_at: None,
            }],
            metadata: BTreeMap::from([("k".to_owned(), "m".repeat(1_000_000))]),
            created_at: UnixMillis(0),
            updated_at: UnixMillis(0),
        };
        assert_eq!(endpoint.text_bytes(), 1_331_114);
        assert!(endpoint.memory_bytes() > endpoint.text_bytes());
    }
}
