//! Receivers whose responses are strange, endless, too long or cut.

use std::time::{Duration, Instant};

use postrider_egress::{Failure, Phase};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::{DEADLINE, PATIENCE, Receiver, answering, client, closed, read_request, request};

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
    let receiver = answering(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(300_000))).await;
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
