//! Connections that are old: they end with a response, however busy they are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postrider_egress::{Client, Settings};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::support::{OK, PATIENCE, Receiver, Scripted, loopback_policy, read_request, request};

fn aged(connection_age_max: Duration) -> Settings {
    Settings {
        connection_age_max,
        ..Settings::default()
    }
}

/// Answers each request, on as few connections as the client wants.
async fn keeps_alive(mut stream: TcpStream, _: usize) {
    while read_request(&mut stream).await.is_some() {
        stream.write_all(OK).await.expect("the client reads");
    }
}

#[tokio::test]
async fn a_receiver_that_moves_is_followed_although_its_old_address_answers() {
    let old = Receiver::start(keeps_alive).await;
    let port = old.address.port();
    let new = Receiver::start_at(SocketAddr::from(([127, 0, 0, 2], port)), keeps_alive).await;
    let has_moved = Arc::new(AtomicBool::new(false));
    let moved = Arc::clone(&has_moved);
    let resolver = Scripted::new(move |_| {
        let last = if moved.load(Ordering::SeqCst) { 2 } else { 1 };
        Ok(vec![[127, 0, 0, last].into()])
    });
    let settings = aged(Duration::from_millis(300));
    let client = Client::with_resolver(settings, loopback_policy(), resolver).expect("valid settings");
    let sent = || request(&format!("http://moving.example.com:{port}/"));
    // While a response is on its way back to the pool another connection may be opened: all of them are to the old
    // address before it moves.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(100) {
        assert_eq!(client.send(sent()).await.expect("a response").body, "ok");
    }
    has_moved.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    while new.connections() == 0 {
        assert!(Instant::now() < deadline, "all goes to the old address");
        assert_eq!(client.send(sent()).await.expect("a response").body, "ok");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_response_over_an_old_connection_is_read_to_its_end() {
    let (head, body) = OK.split_at(OK.len() - 1);
    let receiver = Receiver::start(move |mut stream, _| async move {
        while read_request(&mut stream).await.is_some() {
            stream.write_all(head).await.expect("the client reads");
            sleep(Duration::from_millis(20)).await;
            stream.write_all(body).await.expect("the client reads");
        }
    })
    .await;
    let client = Client::new(aged(Duration::ZERO), loopback_policy()).expect("valid settings");
    for sent in 1..=5 {
        let response = client.send(request(&receiver.url())).await.expect("a response");
        assert_eq!(response.body, "ok");
        assert_eq!(receiver.connections(), sent, "one request each");
        // A connection that is kept would be free by now.
        sleep(Duration::from_millis(20)).await;
    }
}
