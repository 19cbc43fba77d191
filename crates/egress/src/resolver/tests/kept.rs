//! What the resolver keeps of answers, and what it knows without asking: neither shows that name servers work.

use super::server::{Says, Server};
use super::*;

/// About as many as one message over UDP takes.
const MANY: u8 = 60;

#[tokio::test]
async fn of_many_addresses_a_few_are_kept() {
    let server = Server::start(|_, kind| {
        let addresses: Vec<IpAddr> = match kind {
            RecordType::A => (0..MANY).map(|last| [192, 0, 2, last].into()).collect(),
            _ => vec![Ipv6Addr::LOCALHOST.into()],
        };
        Says::Addresses(addresses, 60)
    })
    .await;
    let resolver = SystemResolver::asking(&[server.address]);
    let found = resolver.resolve(NAME).await.expect("addresses");
    assert!(found.len() <= 16, "{}", found.len());
    let first: Vec<IpAddr> = vec![[192, 0, 2, 0].into(), [192, 0, 2, 1].into()];
    assert!(found.starts_with(&first), "{found:?}");
    assert!(found.contains(&Ipv6Addr::LOCALHOST.into()), "{found:?}");
    assert_eq!(resolver.resolve(NAME).await, Ok(found));
    assert_eq!(server.asked(), 2, "one question for each kind");
}

#[tokio::test]
async fn what_is_not_there_is_kept_and_what_failed_is_not() {
    for (code, asked) in [(ResponseCode::NXDomain, 2), (ResponseCode::ServFail, 8)] {
        let server = Server::start(move |_, _| Says::Code(code)).await;
        let resolver = SystemResolver::asking(&[server.address]);
        for _ in 0..2 {
            resolver.resolve(NAME).await.expect_err("no address");
        }
        assert_eq!(server.asked(), asked, "{code}");
    }
}

fn answered_at(resolver: &SystemResolver) -> Option<std::time::Instant> {
    resolver
        .upstream
        .as_ref()
        .expect("a name server")
        .names
        .answered_at()
}

#[tokio::test]
async fn names_that_are_never_asked_for_do_not_show_that_name_servers_work() {
    let server = Server::start(|_, _| Says::Nothing).await;
    let onion = format!("{}.onion", "a".repeat(56));
    let resolver = SystemResolver::asking(&[server.address]);
    for name in [
        "x.invalid.",
        "x.INVALID",
        "invalid",
        &onion,
        "1.0.0.127.in-addr.arpa",
    ] {
        assert_eq!(
            resolver.resolve(name).await,
            Err(ResolveError::NoAddress),
            "{name}"
        );
    }
    resolver.resolve("app.localhost").await.expect("loopback");
    assert_eq!(answered_at(&resolver), None);
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn what_was_kept_does_not_show_that_name_servers_work() {
    let server = Server::start(|_, _| Says::Code(ResponseCode::NXDomain)).await;
    let resolver = SystemResolver::asking(&[server.address]);
    resolver.resolve(NAME).await.expect_err("no address");
    let answered = answered_at(&resolver);
    assert!(answered.is_some());
    resolver.resolve(NAME).await.expect_err("no address");
    assert_eq!(answered_at(&resolver), answered);
}
