//! The client against receivers, resolvers and networks that misbehave.

mod age;
mod destinations;
mod responses;
mod reuse;
mod support;
mod tls;
