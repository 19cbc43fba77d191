//! The system resolver against name servers that answer, refuse, or say nothing.

use std::net::SocketAddr;

use hickory_resolver::config::NameServerConfig;
use tokio::net::UdpSocket;

use super::*;

/// What a name server does with every question.
#[derive(Clone, Copy)]
enum Answer {
    /// Answers A questions with this address, and others with nothing.
    Address([u8; 4]),
    Code(u8),
    Silence,
}

/// Starts a name server on loopback; it ends with the test's runtime.
async fn name_server(answer: Answer) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a UDP port");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            if let Some(reply) = reply(&packet[..length], answer) {
                socket.send_to(&reply, from).await.expect("loopback");
            }
        }
    });
    address
}

fn reply(question: &[u8], answer: Answer) -> Option<Vec<u8>> {
    // The name ends with an empty label, then come type and class (RFC 1035, section 4.1).
    let end = 12 + question[12..].iter().position(|byte| *byte == 0)? + 5;
    let is_a = question[end - 4..end - 2] == [0, 1];
    let (code, address) = match answer {
        Answer::Silence => return None,
        Answer::Code(code) => (code, None),
        Answer::Address(address) => (0, is_a.then_some(address)),
    };
    let mut reply = question[..2].to_vec();
    reply.extend([
        0x81,
        0x80 | code,
        0,
        1,
        0,
        u8::from(address.is_some()),
        0,
        0,
        0,
        0,
    ]);
    reply.extend(&question[12..end]);
    if let Some(address) = address {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(address);
    }
    Some(reply)
}

async fn resolver(answer: Answer) -> SystemResolver {
    let address = name_server(answer).await;
    let mut server = NameServerConfig::udp(address.ip());
    server.connections[0].port = address.port();
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let upstream = upstream(config, ResolverOpts::default()).expect("a resolver");
    SystemResolver {
        hosts: Hosts::default(),
        upstream: Some(upstream),
    }
}

#[tokio::test]
async fn an_answer_is_given() {
    let resolver = resolver(Answer::Address([192, 0, 2, 7])).await;
    assert_eq!(
        resolver.resolve("hooks.example.com").await,
        Ok(vec![IpAddr::from([192, 0, 2, 7])])
    );
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_their_fault() {
    for answer in [Answer::Code(3), Answer::Code(0)] {
        let resolver = resolver(answer).await;
        assert_eq!(
            resolver.resolve("nowhere.example.com").await,
            Err(ResolveError::NoAddress)
        );
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
        let resolver = resolver(answer).await;
        let error = resolver
            .resolve("hooks.example.com")
            .await
            .expect_err("no address");
        assert!(matches!(error, ResolveError::Unavailable(_)), "{error}");
    }
    let resolver = SystemResolver {
        hosts: Hosts::default(),
        upstream: None,
    };
    let error = resolver
        .resolve("hooks.example.com")
        .await
        .expect_err("no address");
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
