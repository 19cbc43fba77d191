//! The rules for names, lists and maps that callers choose, each with its limit and its sentence. Problems are
//! collected, so that a caller hears of all of them at once.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};

use crate::error::{Error, FieldError};

/// Longest uid, event id and event type name.
pub(crate) const NAME_CHARS_MAX: usize = 256;
/// Longest channel name.
const CHANNEL_CHARS_MAX: usize = 128;
/// Longest name of an application and description of anything.
const TEXT_CHARS_MAX: usize = 4096;
/// Most entries of a metadata map, and its size.
const METADATA_ENTRIES_MAX: usize = 100;
const METADATA_BYTES_MAX: usize = 16 * 1024;
/// Most event types that an endpoint names.
const EVENT_TYPES_MAX: usize = 1000;
/// Most extra headers of an endpoint, and the longest value.
const HEADERS_MAX: usize = 50;
const HEADER_VALUE_CHARS_MAX: usize = 4096;

/// Headers that belong to the delivery itself (or to the connection, RFC 9110 7.6.1).
const RESERVED_HEADERS: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Header names whose values are never shown again.
const SENSITIVE_HEADERS: &[&str] = &[
    "api-key",
    "apikey",
    "authorization",
    "cookie",
    "proxy-authorization",
    "x-access-token",
    "x-api-key",
    "x-auth",
    "x-auth-key",
    "x-auth-token",
    "x-token",
];

/// Problems found so far.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<FieldError>);

impl Problems {
    /// Notes a problem.
    pub(crate) fn add(&mut self, loc: &[&str], msg: impl Into<String>) {
        self.0.push(FieldError::new(loc, msg));
    }

    /// Notes a problem unless `ok`.
    pub(crate) fn check(&mut self, ok: bool, loc: &[&str], msg: &str) {
        if !ok {
            self.add(loc, msg);
        }
    }

    /// All is well, or a 422.
    pub(crate) fn done(self) -> Result<(), Error> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Error::fields(self.0))
        }
    }

    /// An event type, or whatever else follows its rule.
    pub(crate) fn name(&mut self, loc: &[&str], text: &str) {
        self.check(
            is_name(text, NAME_CHARS_MAX),
            loc,
            "Must be 1 to 256 letters, digits, `-`, `_` or `.`.",
        );
    }

    /// A uid or event id, which must not look like an id of ours.
    pub(crate) fn uid(&mut self, loc: &[&str], text: Option<&str>, prefix: &str) {
        let Some(text) = text else { return };
        self.name(loc, text);
        if text.starts_with(prefix) {
            self.add(loc, format!("Must not start with `{prefix}`: ids do."));
        }
    }

    /// Channels of a message or endpoint.
    pub(crate) fn channels(&mut self, loc: &[&str], channels: Option<&[String]>, most: usize) {
        let Some(channels) = channels else { return };
        if channels.len() > most {
            self.add(loc, format!("At most {most} channels."));
        }
        if channels
            .iter()
            .any(|channel| !is_name(channel, CHANNEL_CHARS_MAX))
        {
            self.add(loc, "A channel is 1 to 128 letters, digits, `-`, `_` or `.`.");
        }
    }

    /// Event types of an endpoint.
    pub(crate) fn event_types(&mut self, loc: &[&str], names: Option<&[String]>) {
        let Some(names) = names else { return };
        self.check(names.len() <= EVENT_TYPES_MAX, loc, "At most 1000 event types.");
        if names.iter().any(|name| !is_name(name, NAME_CHARS_MAX)) {
            self.add(loc, "An event type is 1 to 256 letters, digits, `-`, `_` or `.`.");
        }
    }

    /// A name or description for people.
    pub(crate) fn text(&mut self, loc: &[&str], text: &str, least: usize) {
        let chars = text.chars().count();
        if chars < least || chars > TEXT_CHARS_MAX {
            self.add(loc, format!("Must be {least} to {TEXT_CHARS_MAX} characters."));
        }
    }

    /// A rate limit.
    pub(crate) fn rate(&mut self, loc: &[&str], rate: Option<u32>) {
        self.check(
            rate.is_none_or(|rate| (1..=u32::from(u16::MAX)).contains(&rate)),
            loc,
            "Must be 1 to 65535 a second.",
        );
    }

    /// Notes of the caller's.
    pub(crate) fn metadata(&mut self, loc: &[&str], metadata: &BTreeMap<String, String>) {
        let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.check(
            metadata.len() <= METADATA_ENTRIES_MAX && bytes <= METADATA_BYTES_MAX,
            loc,
            "At most 100 entries of 16 KiB together.",
        );
    }

    /// Extra headers of an endpoint.
    pub(crate) fn headers<'a>(&mut self, headers: impl ExactSizeIterator<Item = (&'a str, Option<&'a str>)>) {
        let loc = ["body", "headers"];
        if headers.len() > HEADERS_MAX {
            return self.add(&loc, "At most 50 headers.");
        }
        for (name, value) in headers {
            let loc = ["body", "headers", name];
            let lower = name.to_ascii_lowercase();
            if HeaderName::try_from(name).is_err() || name.len() > NAME_CHARS_MAX {
                self.add(&loc, "Not a header name.");
            } else if RESERVED_HEADERS.contains(&lower.as_str())
                || lower.starts_with("webhook-")
                || lower.starts_with("svix-")
            {
                self.add(&loc, "This header is set by the delivery itself.");
            }
            let Some(value) = value else { continue };
            if HeaderValue::try_from(value).is_err() || value.len() > HEADER_VALUE_CHARS_MAX {
                self.add(&loc, "Not a header value of at most 4096 characters.");
            }
        }
    }
}

/// Whether a header's value must not be shown.
pub(crate) fn is_sensitive(header: &str) -> bool {
    SENSITIVE_HEADERS.contains(&header.to_ascii_lowercase().as_str())
}

/// The character set of names: `^[a-zA-Z0-9\-_.]+$`.
pub(crate) fn is_name(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}
