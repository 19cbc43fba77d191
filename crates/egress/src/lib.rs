//! The guarded HTTP client: the only way by which Postrider reaches an address that a tenant chose.
//!
//! # Motivation
//!
//! Whoever may create an endpoint makes this process open connections. Without a guard they could reach what only
//! this machine can reach: the cloud's metadata service, the broker, a neighbour's admin page (server-side request
//! forgery). A slow or hostile receiver could also hold connections, memory and time for ever.
//!
//! # Theory of operation
//!
//! [`Policy`] says which addresses may be reached: public ones, and what the operator's allow-list names. It is
//! asked three times:
//!
//! 1. when an endpoint is written ([`Policy::check_url`]), so that a tenant hears of a bad URL at once;
//! 2. when a request is sent, because an endpoint may have been written under another policy;
//! 3. **after** the name is resolved, on the very addresses that are connected to. This is the check that counts:
//!    what is checked is what is used, so an answer that changes between two lookups gains nothing. Literal
//!    addresses pass through the same place.
//!
//! Nothing goes around it: redirects are not followed, no proxy is used, and a pooled connection was checked when
//! it was opened. [`Client`] holds one deadline over name lookup, connect, TLS, headers and body, reads at most
//! [`Settings::response_read_max`] bytes of a response, and sends a request a second time in one case only: a
//! kept-alive connection that the receiver closed before it answered a byte.
//!
//! # Blame
//!
//! [`Failure`] says whose fault it was. [`Failure::is_ours`] is true for what this machine, its resolver or its
//! limits did; such a failure must not count as an attempt against the endpoint.
//!
//! # Limits
//!
//! All of them are in [`Settings`], each with its default. Memory for idle connections is bounded per host and by
//! the idle time, not over all hosts.

mod body;
mod client;
mod connections;
mod connector;
mod failure;
mod phase;
mod policy;
mod request;
mod resolver;
mod settings;
mod stream;
mod tls;

pub use client::Client;
pub use connections::Connections;
pub use failure::{ConnectError, Failure, Phase};
pub use policy::{BlockedReason, Policy, URL_CHARS_MAX};
pub use request::{Request, Response, Target};
pub use resolver::{Resolve, ResolveError, ResolveFuture, SystemResolver};
pub use settings::{Settings, SettingsError};
