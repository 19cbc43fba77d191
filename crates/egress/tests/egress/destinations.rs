//! Where requests may go: policy, resolver and connect, through the whole client.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postrider_egress::{
    BlockedReason, Client, ConnectError, Failure, Phase, Policy, ResolveError, Settings, Target,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use url::Url;

use crate::support::{OK, Scripted, Silent, answering, client, client_with, loopback_policy, request};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[tokio::test]
async fn a_name_with_a_private_address_is_blocked() {
    for text in [
        "169.254.169.254",
        "10.0.0.1",
        "::1",
        "::ffff:192.168.0.1",
        "fd00::1",
    ] {
        let client = client_with(Scripted::new(move |_| Ok(vec![ip(text)])));
        let failure = client
            .send(request("http://rebind.example.com/"))
            .await
            .expect_err("blocked");
        assert!(
            matches!(failure, Failure::Blocked(BlockedReason::Address { address, .. }) if address == ip(text)),
            "{failure}"
        );
        assert_eq!(failure.class(), "blocked");
        assert!(!failure.is_ours());
    }
}

#[tokio::test]
async fn an_address_that_the_sending_policy_forbids_is_blocked_although_the_target_was_made_under_another() {
    let receiver = answering(OK).await;
    let strict = Client::new(Settings::default(), Policy::default()).expect("default settings");
    let failure = strict.send(request(&receiver.url())).await.expect_err("blocked");
    assert!(matches!(failure, Failure::Blocked(_)), "{failure}");
    let by_name = request(&format!("http://localhost:{}/", receiver.address.port()));
    let failure = strict.send(by_name).await.expect_err("blocked");
    assert!(matches!(failure, Failure::Blocked(_)), "{failure}");
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn localhost_resolves_without_a_name_server() {
    let receiver = answering(OK).await;
    let by_name = request(&format!("http://localhost:{}/", receiver.address.port()));
    assert_eq!(client().send(by_name).await.expect("a response").body, "ok");
}

/// What was judged is what is connected to: one lookup per connection, and no second one to flip.
#[tokio::test]
async fn a_name_that_flips_gets_through_only_while_it_is_public() {
    let receiver = answering("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
    let flipping = Scripted::new(|asked| Ok(vec![ip(if asked % 2 == 0 { "127.0.0.1" } else { "10.0.0.1" })]));
    let client = client_with(flipping.clone());
    for round in 0..6 {
        let sent = request(&format!("http://flip.example.com:{}/", receiver.address.port()));
        let result = client.send(sent).await;
        assert_eq!(
            flipping.asked.load(Ordering::SeqCst),
            round + 1,
            "one lookup a connection"
        );
        match result {
            Ok(response) => assert_eq!((response.status, round % 2), (200, 0)),
            Err(failure) => assert_eq!((failure.class(), round % 2), ("blocked", 1), "{failure}"),
        }
    }
    assert_eq!(receiver.connections(), 3);
}

#[tokio::test]
async fn of_mixed_addresses_only_the_permitted_are_used() {
    let receiver = answering(OK).await;
    let mut mixed: Vec<IpAddr> = (1..40).map(|last| IpAddr::from([10, 0, 0, last])).collect();
    mixed.push(ip("127.0.0.1"));
    let client = client_with(Scripted::new(move |_| Ok(mixed.clone())));
    let sent = request(&format!("http://mixed.example.com:{}/", receiver.address.port()));
    assert_eq!(client.send(sent).await.expect("a response").status, 200);
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_refuses() {
    let receiver = answering(OK).await;
    let client = client_with(Scripted::new(|_| Ok(vec![ip("127.0.0.9"), ip("127.0.0.1")])));
    let sent = request(&format!("http://two.example.com:{}/", receiver.address.port()));
    assert_eq!(client.send(sent).await.expect("a response").status, 200);
}

#[tokio::test]
async fn blame_for_a_failed_lookup() {
    let theirs = client_with(Scripted::new(|_| Err(ResolveError::NoAddress)));
    let failure = theirs
        .send(request("http://nowhere.example.com/"))
        .await
        .expect_err("no address");
    assert_eq!((failure.class(), failure.is_ours()), ("dns", false));

    let ours = client_with(Scripted::new(|_| {
        Err(ResolveError::Unavailable("timed out".to_owned()))
    }));
    let failure = ours
        .send(request("http://hooks.example.com/"))
        .await
        .expect_err("no resolver");
    assert_eq!((failure.class(), failure.is_ours()), ("ours", true));
}

#[tokio::test]
async fn the_deadline_covers_the_lookup() {
    let client = client_with(Arc::new(Silent));
    let failure = client
        .send(request("http://hooks.example.com/"))
        .await
        .expect_err("no answer");
    assert_eq!(failure, Failure::Timeout { phase: Phase::Dns });
    assert!(failure.is_ours());
}

#[tokio::test]
async fn a_refused_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let failure = client()
        .send(request(&format!("http://{address}/")))
        .await
        .expect_err("nobody listens");
    assert_eq!(
        failure,
        Failure::Connect {
            address,
            error: ConnectError::Refused
        }
    );
    assert_eq!(failure.class(), "connect");
}

#[tokio::test]
async fn a_connection_that_hangs() {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("a port");
    let listener = socket.listen(1).expect("a listener");
    let address = listener.local_addr().expect("bound");
    // Nobody accepts. Once the queue is full, the system ignores further attempts.
    let mut queued = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        queued.push(stream.expect("queued"));
        assert!(queued.len() < 4096, "the queue never fills");
    }
    let failure = client()
        .send(request(&format!("http://{address}/")))
        .await
        .expect_err("nobody accepts");
    assert_eq!(
        failure,
        Failure::Timeout {
            phase: Phase::Connect
        }
    );
    drop(listener);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let broken = [
        Settings {
            connect_timeout: Duration::ZERO,
            ..Settings::default()
        },
        Settings {
            pools: 0,
            ..Settings::default()
        },
        Settings {
            response_head_max: 100,
            ..Settings::default()
        },
        Settings {
            response_read_max: 10,
            ..Settings::default()
        },
        Settings {
            user_agent: "a\nb".to_owned(),
            ..Settings::default()
        },
        Settings {
            extra_roots_pem: b"no certificate".to_vec(),
            ..Settings::default()
        },
    ];
    for settings in broken {
        assert!(
            Client::new(settings.clone(), Policy::default()).is_err(),
            "{settings:?}"
        );
    }
    let url = Url::parse("http://10.0.0.1/").expect("a URL");
    assert!(Target::new(&url, &loopback_policy()).is_err());
}
