//! The client against receivers, resolvers and networks that misbehave.

mod support;

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postrider_egress::{BlockedReason, ConnectError, Failure, Phase, Policy, ResolveError, Settings, Target};
use support::{
    DEADLINE, PATIENCE, Receiver, Scripted, Silent, client, client_with, closed, loopback_policy,
    read_request, request,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use url::Url;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A receiver that answers every first request of a connection with these bytes, then waits for the close.
async fn answering(answer: impl Into<Vec<u8>>) -> Receiver {
    let answer = answer.into();
    Receiver::start(move |mut stream, _| {
        let answer = answer.clone();
        async move {
            if read_request(&mut stream).await.is_some() {
                // The client may hang up on a long answer.
                let _ = stream.write_all(&answer).await;
                closed(&mut stream).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_request_goes_out_as_documented() {
    let (seen, mut requests) = mpsc::channel(1);
    let receiver = Receiver::start(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            let request = read_request(&mut stream).await.expect("a request");
            seen.send(request).await.expect("the test waits");
            stream
                .write_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nlater")
                .await
                .expect("the client reads");
            closed(&mut stream).await;
        }
    })
    .await;
    let mut sent = request(&receiver.url());
    for name in [
        "host",
        "connection",
        "transfer-encoding",
        "content-length",
        "expect",
    ] {
        sent.headers.insert(name, "forged".parse().expect("a value"));
    }
    let response = client().send(sent).await.expect("a response");
    assert_eq!(response.status, 503);
    assert_eq!(response.retry_after.expect("it was sent"), "7");
    assert_eq!(response.body, "later");
    assert!(!response.truncated);

    let expected = format!(
        "POST /hook?x=1 HTTP/1.1\r\nhost: {}\r\naccept: */*\r\nuser-agent: Postrider/{}\r\n\
         content-type: application/json\r\nwebhook-id: msg_1\r\ncontent-length: 7\r\n\r\n{{\"a\":1}}",
        receiver.address,
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(requests.recv().await.expect("one request"), expected);
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let receiver = answering(
        "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/meta-data\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let response = client().send(request(&receiver.url())).await.expect("a response");
    assert_eq!(response.status, 302);
    assert!(!response.is_success());
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn drips_end_at_the_deadline_and_the_connection_is_closed() {
    for (start, phase) in [
        ("HTTP/1.1 200 OK\r\nx: ", Phase::Headers),
        ("HTTP/1.1 200 OK\r\n\r\n", Phase::Body),
    ] {
        let (hung_up, mut hang_ups) = mpsc::channel(1);
        let receiver = Receiver::start(move |mut stream, _| {
            let hung_up = hung_up.clone();
            async move {
                read_request(&mut stream).await.expect("a request");
                stream
                    .write_all(start.as_bytes())
                    .await
                    .expect("the client reads");
                while stream.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                hung_up.send(()).await.expect("the test waits");
            }
        })
        .await;
        let started = Instant::now();
        let failure = client()
            .send(request(&receiver.url()))
            .await
            .expect_err("no end of the response");
        assert_eq!(failure, Failure::Timeout { phase });
        assert_eq!(failure.class(), "timeout");
        assert!(!failure.is_ours());
        assert!(started.elapsed() >= DEADLINE);
        timeout(PATIENCE, hang_ups.recv())
            .await
            .expect("the client hangs up")
            .expect("once");
    }
}

#[tokio::test]
async fn of_a_huge_response_only_the_beginning_is_read() {
    const GIB: usize = 1 << 30;
    let (written, mut totals) = mpsc::channel(1);
    let receiver = Receiver::start(move |mut stream, _| {
        let written = written.clone();
        async move {
            read_request(&mut stream).await.expect("a request");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("the client reads");
            let chunk = vec![b'x'; 64 * 1024];
            let mut total = 0;
            while total < GIB && stream.write_all(&chunk).await.is_ok() {
                total += chunk.len();
            }
            written.send(total).await.expect("the test waits");
        }
    })
    .await;
    let mut sent = request(&receiver.url());
    sent.deadline = PATIENCE;
    let response = client().send(sent).await.expect("a response");
    assert_eq!(response.status, 200);
    assert_eq!(response.body, vec![b'x'; 4096]);
    assert!(response.truncated);
    // What the sockets' buffers took was written, no more.
    let total = timeout(PATIENCE, totals.recv())
        .await
        .expect("the client hangs up")
        .expect("once");
    assert!(total < GIB / 8, "{total} bytes went out");
}

#[tokio::test]
async fn what_is_kept_has_its_own_limit() {
    for (length, kept, truncated) in [
        (0, 0, false),
        (4096, 4096, false),
        (4097, 4096, true),
        (16_384, 4096, true),
    ] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}",
            "y".repeat(length)
        );
        let receiver = answering(answer).await;
        let response = client().send(request(&receiver.url())).await.expect("a response");
        assert_eq!(
            (response.body.len(), response.truncated),
            (kept, truncated),
            "{length} bytes"
        );
    }
}

#[tokio::test]
async fn too_long_a_head_is_no_response() {
    let receiver = answering(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(100_000))).await;
    let failure = client()
        .send(request(&receiver.url()))
        .await
        .expect_err("over the limit");
    assert!(matches!(failure, Failure::Protocol(_)), "{failure}");
    let receiver = answering("SSH-2.0-OpenSSH_9.6\r\n").await;
    let failure = client()
        .send(request(&receiver.url()))
        .await
        .expect_err("another protocol");
    assert!(matches!(failure, Failure::Protocol(_)), "{failure}");
    assert_eq!(failure.class(), "http");
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
    let strict =
        postrider_egress::Client::new(Settings::default(), Policy::default()).expect("default settings");
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
    let client = client_with(std::sync::Arc::new(Silent));
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
async fn a_response_that_never_begins() {
    let receiver = Receiver::start(|mut stream, _| async move { closed(&mut stream).await }).await;
    let failure = client()
        .send(request(&receiver.url()))
        .await
        .expect_err("no answer");
    assert_eq!(
        failure,
        Failure::Timeout {
            phase: Phase::Headers
        }
    );
}

#[tokio::test]
async fn a_response_that_ends_early() {
    let receiver = Receiver::start(|mut stream, _| async move {
        read_request(&mut stream).await.expect("a request");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
            .await
            .expect("the client reads");
    })
    .await;
    let failure = client()
        .send(request(&receiver.url()))
        .await
        .expect_err("the body is cut");
    assert!(
        matches!(failure, Failure::Closed | Failure::Protocol(_)),
        "{failure}"
    );
    assert_eq!(failure.class(), "http");
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
            postrider_egress::Client::new(settings.clone(), Policy::default()).is_err(),
            "{settings:?}"
        );
    }
    let url = Url::parse("http://10.0.0.1/").expect("a URL");
    assert!(Target::new(&url, &loopback_policy()).is_err());
}
