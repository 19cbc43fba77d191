//! IPv4 and IPv6 addresses of one name, when the name server does not answer alike for both.

use std::time::Instant;

use super::server::{Says, Server};
use super::*;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7));
/// Below the time that all tries of a silent question take.
const SOON: Duration = Duration::from_millis(1_500);

/// What a server that answers so for A and for AAAA makes of a name, and after which time.
async fn resolved(v4: fn() -> Says, v6: fn() -> Says) -> (Result<Vec<IpAddr>, ResolveError>, Duration) {
    let server = Server::start(move |_, kind| if kind == RecordType::A { v4() } else { v6() }).await;
    let resolver = SystemResolver::asking(&[server.address]);
    let began = Instant::now();
    (resolver.resolve(NAME).await, began.elapsed())
}

fn v4() -> Says {
    Says::Addresses(vec![V4], 60)
}

fn v6() -> Says {
    Says::Addresses(vec![V6], 60)
}

fn no_data() -> Says {
    Says::Code(ResponseCode::NoError)
}

fn no_name() -> Says {
    Says::Code(ResponseCode::NXDomain)
}

fn failure() -> Says {
    Says::Code(ResponseCode::ServFail)
}

fn silence() -> Says {
    Says::Nothing
}

#[tokio::test]
async fn addresses_of_one_kind_do_not_wait_for_the_others() {
    let (found, took) = resolved(v4, silence).await;
    assert_eq!(found, Ok(vec![V4]));
    assert!(took < SOON, "{took:?}");
    let (found, took) = resolved(silence, v6).await;
    assert_eq!(found, Ok(vec![V6]));
    assert!(took < SOON, "{took:?}");
}

#[tokio::test]
async fn addresses_of_one_kind_are_enough() {
    for other in [no_data, no_name, failure] {
        assert_eq!(resolved(v4, other).await.0, Ok(vec![V4]));
        assert_eq!(resolved(other, v6).await.0, Ok(vec![V6]));
    }
    assert_eq!(resolved(v4, v6).await.0, Ok(vec![V4, V6]));
}

#[tokio::test]
async fn there_is_no_address_only_when_that_was_said_of_both_kinds() {
    for (v4, v6) in [
        (no_data as fn() -> Says, no_name as fn() -> Says),
        (no_data, no_data),
    ] {
        assert_eq!(resolved(v4, v6).await.0, Err(ResolveError::NoAddress));
    }
    for (none, fails) in [
        (no_data as fn() -> Says, failure as fn() -> Says),
        (no_name, failure),
        (no_data, silence),
    ] {
        for (v4, v6) in [(none, fails), (fails, none)] {
            let error = resolved(v4, v6).await.0.expect_err("no address");
            assert!(matches!(error, ResolveError::Unavailable(_)), "{error}");
        }
    }
}

#[tokio::test]
async fn a_question_that_fails_is_asked_once_more() {
    let server = Server::start(|_, _| failure()).await;
    let resolver = SystemResolver::asking(&[server.address]);
    resolver.resolve(NAME).await.expect_err("no address");
    assert_eq!(server.asked(), 4, "two tries for each kind");
}
