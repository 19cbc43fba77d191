//! The client against receivers, resolvers and networks that misbehave.

mod destinations;
mod responses;
mod reuse;
mod support;
mod tls;
