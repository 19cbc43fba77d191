//! The system resolver against name servers that answer, refuse, or say nothing.

use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use postrider_testkit::name_server::{Answer, NameServer};
use tokio::time::timeout;

use super::alone::{self, Names};
use super::*;

mod kept;
mod kinds;
mod server;

/// A name that every test asks about.
const NAME: &str = "hooks.example.com";

/// A resolver that asks a server of its own, which answers so about [`NAME`].
async fn resolver(answer: Answer) -> (NameServer, SystemResolver) {
    let server = NameServer::start().await.expect("a name server");
    server.on(NAME, answer);
    let resolver = SystemResolver::asking(&[server.address()]);
    (server, resolver)
}

#[tokio::test]
async fn an_answer_is_given() {
    let addresses: Vec<IpAddr> = vec![[192, 0, 2, 7].into(), Ipv6Addr::LOCALHOST.into()];
    let (_server, resolver) = resolver(Answer::Addresses(addresses.clone())).await;
    assert_eq!(resolver.resolve(NAME).await, Ok(addresses));
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_their_fault() {
    for answer in [Answer::Code(3), Answer::Code(0)] {
        let (_server, resolver) = resolver(answer).await;
        assert_eq!(resolver.resolve(NAME).await, Err(ResolveError::NoAddress));
    }
    let resolver = SystemResolver {
        hosts: Hosts::default(),
        upstream: None,
    };
    let impossible = "x".repeat(64);
    assert_eq!(resolver.resolve(&impossible).await, Err(ResolveError::NoAddress));
}

#[tokio::test]
async fn a_resolver_that_fails_is_our_fault() {
    for answer in [Answer::Code(2), Answer::Code(5), Answer::Silence] {
        let (_server, resolver) = resolver(answer).await;
        let error = resolver.resolve(NAME).await.expect_err("no address");
        assert!(matches!(error, ResolveError::Unavailable(_)), "{error}");
    }
    let resolver = SystemResolver {
        hosts: Hosts::default(),
        upstream: None,
    };
    let error = resolver.resolve(NAME).await.expect_err("no address");
    assert!(matches!(error, ResolveError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn localhost_and_the_hosts_file_need_no_name_server() {
    let mut hosts = Hosts::default();
    hosts
        .read_hosts_conf(&b"192.0.2.9 printer.lan printer\n2001:db8::9 printer.lan\n"[..])
        .expect("a hosts file");
    let resolver = SystemResolver {
        hosts,
        upstream: None,
    };
    let loopback: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for name in ["localhost", "LOCALHOST.", "app.localhost"] {
        assert_eq!(resolver.resolve(name).await.as_ref(), Ok(&loopback), "{name}");
    }
    let written: [IpAddr; 2] = ["192.0.2.9", "2001:db8::9"].map(|text| text.parse().expect("an address"));
    assert_eq!(resolver.resolve("printer.lan").await, Ok(written.to_vec()));
    assert_eq!(resolver.resolve("printer").await, Ok(written[..1].to_vec()));
    // Not below localhost, only ending alike.
    assert!(resolver.resolve("notlocalhost").await.is_err());
}

#[tokio::test]
async fn a_name_that_fails_alone_is_their_fault_in_the_end() {
    let server = NameServer::start().await.expect("a name server");
    server.on(NAME, Answer::Code(2));
    server.on("silent.example.com", Answer::Silence);
    server.on("good.example.com", Answer::Addresses(vec![[192, 0, 2, 7].into()]));
    let mut resolver = SystemResolver::asking(&[server.address()]);
    if let Some(upstream) = resolver.upstream.as_mut().and_then(Arc::get_mut) {
        upstream.names = Names::with_rule(alone::Rule {
            span: Duration::ZERO,
            count: 2,
            ..alone::Rule::default()
        });
    }
    let fails = async |name| resolver.resolve(name).await.expect_err("no address");
    for _ in 0..3 {
        assert!(
            matches!(fails(NAME).await, ResolveError::Unavailable(_)),
            "nothing is answered"
        );
    }
    resolver.resolve("good.example.com").await.expect("an answer");
    assert!(
        matches!(fails(NAME).await, ResolveError::Unavailable(_)),
        "the first"
    );
    assert!(
        matches!(fails(NAME).await, ResolveError::FailsAlone(_)),
        "the second"
    );
    // A lookup that the request's deadline ends counts too, and the next one ends before such a deadline.
    for _ in 0..2 {
        let cut = timeout(Duration::from_millis(50), resolver.resolve("silent.example.com")).await;
        assert!(cut.is_err(), "silence");
    }
    let error = timeout(Duration::from_millis(1_500), fails("silent.example.com")).await;
    assert!(matches!(error, Ok(ResolveError::FailsAlone(_))), "{error:?}");
    server.on(NAME, Answer::Addresses(vec![[192, 0, 2, 8].into()]));
    resolver.resolve(NAME).await.expect("it is back");
}

/// A resolver with a search domain, and a server that answers so about a name and about that name in the domain.
async fn searching(name: &str, itself: Answer, in_domain: Answer) -> (NameServer, SystemResolver) {
    let server = NameServer::start().await.expect("a name server");
    server.on(name, itself);
    server.on(&format!("{name}.search.example"), in_domain);
    let domain = Name::from_ascii("search.example.").expect("a name");
    let resolver = SystemResolver::searching(vec![domain], &[server.address()]);
    (server, resolver)
}

#[tokio::test]
async fn a_name_with_a_dot_is_not_looked_for_elsewhere() {
    let there = Answer::Addresses(vec![[192, 0, 2, 7].into()]);
    for elsewhere in [Answer::Code(3), there] {
        let (_server, resolver) = searching(NAME, Answer::Code(2), elsewhere.clone()).await;
        let error = resolver.resolve(NAME).await.expect_err("no address");
        assert!(matches!(error, ResolveError::Unavailable(_)), "{error}");
        let (_server, resolver) = searching(NAME, Answer::Code(3), elsewhere).await;
        assert_eq!(resolver.resolve(NAME).await, Err(ResolveError::NoAddress));
    }
}

#[tokio::test]
async fn a_name_without_a_dot_is_looked_for_in_the_search_domains() {
    let (here, there): (IpAddr, IpAddr) = ([192, 0, 2, 7].into(), [192, 0, 2, 8].into());
    let (here, there) = (Answer::Addresses(vec![here]), Answer::Addresses(vec![there]));
    let found = |last| Ok(vec![IpAddr::from([192, 0, 2, last])]);
    for (itself, in_domain, expected) in [
        (here.clone(), there, found(8)),
        (here.clone(), Answer::Code(3), found(7)),
        (here, Answer::Code(2), found(7)),
        (Answer::Code(3), Answer::Code(3), Err(ResolveError::NoAddress)),
    ] {
        let (_server, resolver) = searching("hooks", itself, in_domain).await;
        assert_eq!(resolver.resolve("hooks").await, expected);
    }
    // One that was not answered for may have been the right one.
    for (itself, in_domain) in [
        (Answer::Code(2), Answer::Code(3)),
        (Answer::Code(3), Answer::Code(2)),
        (Answer::Code(3), Answer::Code(5)),
    ] {
        let (_server, resolver) = searching("hooks", itself, in_domain).await;
        let error = resolver.resolve("hooks").await.expect_err("no address");
        assert!(matches!(error, ResolveError::Unavailable(_)), "{error}");
    }
}
