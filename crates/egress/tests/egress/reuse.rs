//! Kept-alive connections: they are reused, and a request that met a closing one is sent again, once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{OK, PATIENCE, Receiver, client, closed, read_request, request};
use postrider_egress::{Connections, Failure};
use tokio::io::AsyncWriteExt as _;

/// Sends that are made until a connection has been reused. The pool takes one back a moment after its response.
const TRIES: usize = 200;

/// What a receiver saw.
#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    /// Requests read before the first that was closed upon.
    before_close: AtomicUsize,
    closes: AtomicUsize,
}

impl Seen {
    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn closes(&self) -> usize {
        self.closes.load(Ordering::SeqCst)
    }

    fn close(&self) {
        self.before_close.store(self.requests() - 1, Ordering::SeqCst);
        self.closes.fetch_add(1, Ordering::SeqCst);
    }
}

/// Answers the first request of each connection; reads the second whole, writes `last_words` and closes. With
/// `sulks`, everything after the first close is closed upon too.
async fn closing_on_reuse(last_words: &'static [u8], sulks: bool) -> (Receiver, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let shared = Arc::clone(&seen);
    let receiver = Receiver::start(move |mut stream, _| {
        let seen = Arc::clone(&shared);
        async move {
            if read_request(&mut stream).await.is_none() {
                return;
            }
            seen.requests.fetch_add(1, Ordering::SeqCst);
            if sulks && seen.closes() > 0 {
                return;
            }
            stream.write_all(OK).await.expect("the client reads");
            if read_request(&mut stream).await.is_none() {
                return;
            }
            seen.requests.fetch_add(1, Ordering::SeqCst);
            seen.close();
            stream.write_all(last_words).await.expect("the client reads");
        }
    })
    .await;
    (receiver, seen)
}

#[tokio::test]
async fn connections_are_reused() {
    let receiver = Receiver::start(|mut stream, _| async move {
        while read_request(&mut stream).await.is_some() {
            stream.write_all(OK).await.expect("the client reads");
        }
    })
    .await;
    let client = client();
    for _ in 0..100 {
        assert_eq!(
            client
                .send(request(&receiver.url()))
                .await
                .expect("a response")
                .body,
            "ok"
        );
    }
    assert!(
        receiver.connections() < 50,
        "{} connections for 100 requests",
        receiver.connections()
    );
    assert_eq!(client.connections().opened, receiver.connections() as u64);
}

#[tokio::test]
async fn a_request_on_a_closing_connection_is_sent_again() {
    let (receiver, seen) = closing_on_reuse(b"", false).await;
    let client = client();
    let mut sends = 0;
    while seen.closes() == 0 {
        sends += 1;
        assert!(sends < TRIES, "no connection was reused");
        assert_eq!(
            client
                .send(request(&receiver.url()))
                .await
                .expect("sent again")
                .body,
            "ok"
        );
    }
    assert_eq!(seen.requests(), sends + 1, "one request more than sends");
}

#[tokio::test]
async fn it_is_sent_again_only_once() {
    let (receiver, seen) = closing_on_reuse(b"", true).await;
    let client = client();
    let mut sends = 0;
    let failure = loop {
        sends += 1;
        assert!(sends < TRIES, "no connection was reused");
        if let Err(failure) = client.send(request(&receiver.url())).await {
            break failure;
        }
    };
    assert!(matches!(failure, Failure::Closed | Failure::Reset), "{failure}");
    assert_eq!(
        seen.requests(),
        sends + 1,
        "the failed send went out twice, the others once"
    );
}

#[tokio::test]
async fn a_request_that_got_a_byte_back_is_not_sent_again() {
    let (receiver, seen) = closing_on_reuse(b"H", false).await;
    let client = client();
    let mut sends = 0;
    let failure = loop {
        sends += 1;
        assert!(sends < TRIES, "no connection was reused");
        if let Err(failure) = client.send(request(&receiver.url())).await {
            break failure;
        }
    };
    assert_eq!(failure.class(), "http", "{failure}");
    assert_eq!(seen.requests(), sends, "every send went out once");
}

#[tokio::test]
async fn a_request_on_a_new_connection_is_not_sent_again() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let receiver = Receiver::start(move |mut stream, _| {
        let requests = Arc::clone(&counter);
        async move {
            if read_request(&mut stream).await.is_some() {
                requests.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let failure = client().send(request(&receiver.url())).await.expect_err("closed");
    assert_eq!(failure, Failure::Closed);
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    assert_eq!(receiver.connections(), 1);
}

/// A receiver that answers and closes at once, without saying so: the client notices, or sends again.
#[tokio::test]
async fn a_receiver_that_never_keeps_connections_loses_nothing() {
    let receiver = Receiver::start(|mut stream, _| async move {
        if read_request(&mut stream).await.is_some() {
            stream.write_all(OK).await.expect("the client reads");
            stream.shutdown().await.expect("still open");
            closed(&mut stream).await;
        }
    })
    .await;
    let client = client();
    for _ in 0..100 {
        assert_eq!(
            client
                .send(request(&receiver.url()))
                .await
                .expect("a response")
                .body,
            "ok"
        );
    }
}

#[tokio::test]
async fn connections_are_counted_while_they_are_open() {
    let receiver = Receiver::start(|mut stream, _| async move {
        if read_request(&mut stream).await.is_some() {
            stream.write_all(OK).await.expect("the client reads");
        }
    })
    .await;
    let client = client();
    client.send(request(&receiver.url())).await.expect("a response");
    // The receiver closes after its answer, and the pool lets go a moment later.
    let gone = Connections { opened: 1, open: 0 };
    let deadline = Instant::now() + PATIENCE;
    while client.connections() != gone {
        assert!(Instant::now() < deadline, "{:?}", client.connections());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
