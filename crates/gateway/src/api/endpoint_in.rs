//! What callers say of an endpoint: its rules, and what a change does to one.

use std::collections::BTreeMap;
use std::time::Duration;

use postrider_egress::{BlockedReason, URL_CHARS_MAX};
use postrider_model::{Endpoint, EndpointId, ExhaustedPolicy, HeaderNames, RetrySchedule};
use serde::Deserialize;
use url::Url;
use utoipa::ToSchema;

use super::endpoint_out::{HeaderStyle, OnExhausted};
use crate::body::{nullable, present};
use crate::page::sentence;
use crate::state::Api;
use crate::validate::Problems;

/// Most channels of an endpoint.
const CHANNELS_MAX: usize = 10;

/// An endpoint to make, or to replace: then `secret` and `headers` are left as they are, and so are those of our own
/// fields that are absent (`paused` to `retrySchedule`).
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointIn {
    /// Where to POST.
    #[schema(format = "uri", min_length = 1)]
    url: String,
    /// Your own name for it, unique within the application. Where the path names an endpoint by it, it stays as it is
    /// when absent.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 256, pattern = r"^[a-zA-Z0-9\-_.]+$")]
    pub(super) uid: Option<Option<String>>,
    /// For people.
    description: Option<String>,
    /// Takes no messages.
    disabled: Option<bool>,
    /// Event types that it wants; all when absent.
    #[schema(min_items = 1)]
    event_types: Option<Vec<String>>,
    /// Channels that it listens to; all when absent.
    #[schema(min_items = 1, max_items = 10)]
    channels: Option<Vec<String>>,
    /// Deliveries a second at most.
    #[schema(minimum = 1, maximum = 65535)]
    throttle_rate: Option<u32>,
    /// Notes of yours.
    metadata: Option<BTreeMap<String, String>>,
    /// Signing secret, `whsec_` or `whsk_`; made up when absent.
    pub(super) secret: Option<String>,
    /// Extra headers of its deliveries.
    pub(super) headers: Option<BTreeMap<String, String>>,
    /// Takes messages, which wait until it is resumed.
    paused: Option<bool>,
    /// First in, first out.
    ordered: Option<bool>,
    /// For `ordered` endpoints.
    on_exhausted: Option<OnExhausted>,
    /// Header names of its deliveries.
    header_names: Option<HeaderStyle>,
    /// Deadline of one attempt.
    #[schema(minimum = 1, maximum = 30)]
    timeout_seconds: Option<u64>,
    /// Seconds to wait after the first, second, … failed attempt.
    #[schema(max_items = 20)]
    retry_schedule: Option<Vec<u64>>,
}

/// What to change of an endpoint.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointPatch {
    #[serde(default, deserialize_with = "present")]
    url: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    uid: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    description: Option<String>,
    #[serde(default, deserialize_with = "present")]
    disabled: Option<bool>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<String>>)]
    event_types: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<String>>)]
    channels: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    throttle_rate: Option<Option<u32>>,
    #[serde(default, deserialize_with = "present")]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "present")]
    paused: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    ordered: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    on_exhausted: Option<OnExhausted>,
    #[serde(default, deserialize_with = "present")]
    header_names: Option<HeaderStyle>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>)]
    timeout_seconds: Option<Option<u64>>,
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<u64>>)]
    retry_schedule: Option<Option<Vec<u64>>>,
}

impl EndpointIn {
    /// Replacing is patching every field of the open API; absent ones get their defaults.
    pub(super) fn into_patch(self) -> EndpointPatch {
        EndpointPatch {
            url: Some(self.url),
            uid: Some(self.uid.flatten()),
            description: Some(self.description.unwrap_or_default()),
            disabled: Some(self.disabled.unwrap_or(false)),
            event_types: Some(self.event_types),
            channels: Some(self.channels),
            throttle_rate: Some(self.throttle_rate),
            metadata: Some(self.metadata.unwrap_or_default()),
            paused: self.paused,
            ordered: self.ordered,
            on_exhausted: self.on_exhausted,
            header_names: self.header_names,
            timeout_seconds: self.timeout_seconds.map(Some),
            retry_schedule: self.retry_schedule.map(Some),
        }
    }

    /// What PATCH does not have: lists that are there must not be empty.
    pub(super) fn check_lists(&self, problems: &mut Problems) {
        for (name, list) in [("eventTypes", &self.event_types), ("channels", &self.channels)] {
            let ok = list.as_ref().is_none_or(|list| !list.is_empty());
            problems.check(
                ok,
                &["body", name],
                "Must not be empty; leave it out to mean all.",
            );
        }
    }
}

impl EndpointPatch {
    pub(super) fn check(&self, api: &Api, problems: &mut Problems) {
        if let Some(url) = &self.url {
            check_url(api, url, problems);
        }
        problems.uid(
            &["body", "uid"],
            self.uid.as_ref().and_then(Option::as_deref),
            EndpointId::PREFIX,
        );
        if let Some(description) = &self.description {
            problems.text(&["body", "description"], description, 0);
        }
        let list = |list: &Option<Option<Vec<String>>>| list.clone().flatten();
        problems.event_types(&["body", "eventTypes"], list(&self.event_types).as_deref());
        problems.channels(
            &["body", "channels"],
            list(&self.channels).as_deref(),
            CHANNELS_MAX,
        );
        problems.rate(&["body", "throttleRate"], self.throttle_rate.flatten());
        if let Some(metadata) = &self.metadata {
            problems.metadata(&["body", "metadata"], metadata);
        }
        let timeout = self.timeout_seconds.flatten();
        let timeout_ok = timeout.is_none_or(|seconds| (1..=30).contains(&seconds));
        problems.check(
            timeout_ok,
            &["body", "timeoutSeconds"],
            "Must be 1 to 30 seconds.",
        );
        if let Some(Err(error)) = self.retry_schedule.clone().flatten().map(schedule) {
            problems.add(&["body", "retrySchedule"], sentence(&error));
        }
    }

    /// The endpoint with these changes, which were checked.
    pub(super) fn apply(self, endpoint: &mut Endpoint) {
        fn set<T>(target: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *target = value;
            }
        }
        let listed =
            |list: Option<Option<Vec<String>>>| list.map(|list| deduplicated(list.unwrap_or_default()));
        set(&mut endpoint.url, self.url);
        set(&mut endpoint.uid, self.uid);
        set(&mut endpoint.description, self.description);
        set(&mut endpoint.disabled, self.disabled);
        set(&mut endpoint.event_types, listed(self.event_types));
        set(&mut endpoint.channels, listed(self.channels));
        set(&mut endpoint.throttle_rate, self.throttle_rate);
        set(&mut endpoint.metadata, self.metadata);
        set(&mut endpoint.paused, self.paused);
        set(&mut endpoint.ordered, self.ordered);
        set(
            &mut endpoint.on_exhausted,
            self.on_exhausted.map(ExhaustedPolicy::from),
        );
        set(
            &mut endpoint.header_names,
            self.header_names.map(HeaderNames::from),
        );
        set(
            &mut endpoint.timeout,
            self.timeout_seconds
                .map(|seconds| seconds.map(Duration::from_secs)),
        );
        let schedule = self
            .retry_schedule
            .map(|delays| delays.and_then(|delays| schedule(delays).ok()));
        set(&mut endpoint.retry_schedule, schedule);
    }
}

fn schedule(seconds: Vec<u64>) -> Result<RetrySchedule, postrider_model::retry::ScheduleError> {
    RetrySchedule::try_new(seconds.into_iter().map(Duration::from_secs).collect())
}

fn deduplicated(mut list: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
    list
}

fn check_url(api: &Api, text: &str, problems: &mut Problems) {
    let loc = ["body", "url"];
    // The text is what is stored and recorded with each attempt; parsing would drop blanks at its ends, and line breaks.
    if text.len() > URL_CHARS_MAX {
        return problems.add(&loc, sentence(&BlockedReason::TooLong));
    }
    match Url::parse(text) {
        Err(error) => problems.add(&loc, format!("Not a URL: {error}.")),
        Ok(url) => {
            if let Err(reason) = api.policy.check_url(&url) {
                problems.add(&loc, sentence(&reason));
            }
        }
    }
}
