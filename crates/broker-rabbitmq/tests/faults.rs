//! What breaks heals by itself, and nothing confirmed is lost on the way. Each test has a RabbitMQ of its own to break.

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use common::{becomes, settings, up};
use postrider_broker::conformance::{PATIENCE, depth_becomes, frame_of, next, number, publish, subscribe};
use postrider_broker::{Broker, Health, Incoming, PublishError, Queue, Subscription};
use postrider_broker_rabbitmq::{Rabbit, Settings};
use postrider_testkit::services::{RabbitServer, free_port};
use tokio::time::{sleep, timeout};

async fn server() -> RabbitServer {
    RabbitServer::start().await.expect("a RabbitMQ for the test")
}

/// Publishes until it works: what a caller does after a 503.
async fn publish_at_last(broker: &Arc<dyn Broker>, queue: Queue, value: u32) {
    let published = timeout(PATIENCE, async {
        while broker.publish(queue, frame_of(value)).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(published.await.is_ok(), "frame {value} is published at last");
}

/// Publishes until a frame arrives: one that comes before its queue is back and bound goes to `stray`.
async fn publish_until_received(broker: &Arc<dyn Broker>, queue: Queue, consumer: &mut Subscription) {
    let received = timeout(PATIENCE, async {
        loop {
            publish(broker, queue, 1000..1001).await;
            if let Ok(incoming) = timeout(Duration::from_millis(200), consumer.next()).await {
                return incoming.expect("the subscription goes on");
            }
        }
    });
    let incoming = received.await.expect("the queue is declared again");
    assert_eq!(number(&incoming), 1000);
    assert!(incoming.receipt.acknowledge().await);
}

/// Consumes until this number comes; others are acknowledged.
async fn find(consumer: &mut Subscription, wanted: u32) -> Incoming {
    loop {
        let incoming = next(consumer).await;
        if number(&incoming) == wanted {
            return incoming;
        }
        incoming.receipt.acknowledge().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_at_start_is_met_later() {
    let port = free_port().unwrap();
    let absent = Settings {
        url: format!("amqp://guest:guest@127.0.0.1:{port}/%2f"),
        ..settings(String::new(), "absent")
    };
    let broker = Rabbit::connect(absent, None).unwrap();
    assert_eq!(*broker.health().borrow(), Health::Down);
    let refused = broker.publish(Queue::Journal, frame_of(1)).await;
    assert_eq!(refused, Err(PublishError::Down));
    let mut consumer = broker.subscribe(Queue::Journal, 1).await.unwrap();
    assert!(broker.depth(Queue::Journal).await.is_err());
    broker.close().await;
    assert!(timeout(PATIENCE, consumer.next()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_broker_heals_and_keeps_what_it_confirmed() {
    let mut server = server().await;
    let broker = up(settings(server.url(), "restart")).await;
    publish(&broker, Queue::Deliver(0), 0..20).await;
    let mut consumer = subscribe(&broker, Queue::Deliver(0), 5).await;
    let held = next(&mut consumer).await;
    assert_eq!(number(&held), 0);

    server.stop().await.unwrap();
    becomes(broker.as_ref(), Health::Down).await;
    let refused = broker.publish(Queue::Deliver(0), frame_of(99)).await;
    assert_eq!(refused, Err(PublishError::Down));
    // Several of the longest delays between two tries.
    sleep(Duration::from_secs(3)).await;
    server.start_again().await.unwrap();

    becomes(broker.as_ref(), Health::Up).await;
    publish(&broker, Queue::Deliver(0), 20..21).await;
    assert!(
        !held.receipt.acknowledge().await,
        "the receipt is of an old connection"
    );
    let mut seen = HashSet::new();
    while seen.len() < 21 {
        let incoming = next(&mut consumer).await;
        let number = number(&incoming);
        if incoming.receipt.acknowledge().await {
            assert!(seen.insert(number), "an acknowledged frame does not come back");
        }
    }
    depth_becomes(&broker, Queue::Deliver(0), 0).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_keeps_what_it_confirmed() {
    let mut server = server().await;
    let broker = up(settings(server.url(), "killed")).await;
    publish(&broker, Queue::Retry(0), 0..50).await;
    server.kill9();
    becomes(broker.as_ref(), Health::Down).await;
    server.start_again().await.unwrap();
    becomes(broker.as_ref(), Health::Up).await;
    let mut consumer = subscribe(&broker, Queue::Retry(0), 100).await;
    for expected in 0..50 {
        let incoming = next(&mut consumer).await;
        assert_eq!(number(&incoming), expected);
        assert!(incoming.receipt.acknowledge().await);
    }
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_closed_by_the_server_come_back() {
    let server = server().await;
    let broker = up(settings(server.url(), "closed")).await;
    let mut consumer = subscribe(&broker, Queue::Journal, 5).await;
    publish(&broker, Queue::Journal, 1..2).await;
    let held = next(&mut consumer).await;
    server.ctl(&["close_all_connections", "a test"]).await.unwrap();
    let again = find(&mut consumer, 1).await;
    assert_eq!(again.delivery_count, 1);
    assert!(!held.receipt.acknowledge().await);
    assert!(again.receipt.acknowledge().await);
    publish_at_last(&broker, Queue::Journal, 2).await;
    assert!(find(&mut consumer, 2).await.receipt.acknowledge().await);
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_for_a_deleted_queue_go_to_stray_until_it_is_back() {
    let server = server().await;
    let settings = settings(server.url(), "deleted");
    let queue = format!("{}.v1.deliver.1", settings.prefix);
    let broker = up(settings).await;
    publish(&broker, Queue::Deliver(1), 0..1).await;
    server.ctl(&["delete_queue", &queue]).await.unwrap();
    publish(&broker, Queue::Deliver(1), 1..2).await;
    let mut stray = subscribe(&broker, Queue::Stray, 5).await;
    let incoming = next(&mut stray).await;
    assert_eq!(
        number(&incoming),
        1,
        "a confirmed frame is not lost with its queue"
    );
    assert!(incoming.receipt.acknowledge().await);

    // Consuming what is not there declares it.
    let mut consumer = subscribe(&broker, Queue::Deliver(1), 5).await;
    publish_until_received(&broker, Queue::Deliver(1), &mut consumer).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_the_server_cancels_subscribes_again() {
    let server = server().await;
    let settings = settings(server.url(), "cancelled");
    let queue = format!("{}.v1.retry.0", settings.prefix);
    let broker = up(settings).await;
    let mut consumer = subscribe(&broker, Queue::Retry(0), 5).await;
    publish(&broker, Queue::Retry(0), 0..1).await;
    assert!(next(&mut consumer).await.receipt.acknowledge().await);
    server.ctl(&["delete_queue", &queue]).await.unwrap();
    publish_until_received(&broker, Queue::Retry(0), &mut consumer).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_alarm_blocks_publishers_and_not_acknowledgements() {
    let server = server().await;
    let broker = up(settings(server.url(), "alarm")).await;
    publish(&broker, Queue::Deliver(0), 0..1).await;
    let mut consumer = subscribe(&broker, Queue::Deliver(0), 5).await;
    let held = next(&mut consumer).await;

    server
        .ctl(&["set_vm_memory_high_watermark", "0.000001"])
        .await
        .unwrap();
    // RabbitMQ says so only to who publishes.
    let mut first = Ok(());
    let blocked = timeout(PATIENCE, async {
        while *broker.health().borrow() != Health::Blocked {
            first = broker.publish(Queue::Deliver(0), frame_of(1)).await;
        }
    });
    assert!(blocked.await.is_ok(), "the alarm is seen");
    // The frame is on its way, and RabbitMQ reads it once the alarm is over.
    assert_eq!(
        first,
        Err(PublishError::Lost),
        "who waited is told that nobody knows"
    );
    let refused = broker.publish(Queue::Deliver(0), frame_of(2)).await;
    assert_eq!(refused, Err(PublishError::Blocked));
    assert!(held.receipt.acknowledge().await, "consumers go on");

    server
        .ctl(&["set_vm_memory_high_watermark", "0.9"])
        .await
        .unwrap();
    becomes(broker.as_ref(), Health::Up).await;
    publish(&broker, Queue::Deliver(0), 3..4).await;
    assert!(find(&mut consumer, 3).await.receipt.acknowledge().await);
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_broker_times_publishes_out_and_is_left() {
    let server = server().await;
    let broker = up(Settings {
        publish_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_secs(2),
        ..settings(server.url(), "frozen")
    })
    .await;
    server.pause().unwrap();
    let late = broker.publish(Queue::Journal, frame_of(1)).await;
    assert_eq!(late, Err(PublishError::Timeout(Duration::from_millis(500))));
    becomes(broker.as_ref(), Health::Down).await;
    server.resume().unwrap();
    becomes(broker.as_ref(), Health::Up).await;
    publish_at_last(&broker, Queue::Journal, 2).await;
    let mut consumer = subscribe(&broker, Queue::Journal, 5).await;
    assert!(find(&mut consumer, 2).await.receipt.acknowledge().await);
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_returns_too_often_ends_in_stray() {
    let server = server().await;
    let broker = up(Settings {
        delivery_limit: 2,
        ..settings(server.url(), "returned")
    })
    .await;
    publish(&broker, Queue::Deliver(0), 5..6).await;
    let mut stray = subscribe(&broker, Queue::Stray, 5).await;
    let mut rounds = 0;
    let incoming = loop {
        let mut consumer = subscribe(&broker, Queue::Deliver(0), 5).await;
        tokio::select! {
            incoming = next(&mut stray) => break incoming,
            _ = next(&mut consumer) => rounds += 1,
        }
        assert!(rounds <= 3, "the limit is two returns");
    };
    assert_eq!(number(&incoming), 5);
    assert!(incoming.receipt.acknowledge().await);
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_above_the_limit_is_refused_and_harms_nobody() {
    let server = server().await;
    let broker = up(Settings {
        max_frame_bytes: 1000,
        ..settings(server.url(), "large")
    })
    .await;
    let refused = broker.publish(Queue::Journal, vec![0; 1001].into()).await;
    assert_eq!(refused, Err(PublishError::Refused));
    assert_eq!(broker.publish(Queue::Journal, vec![0; 1000].into()).await, Ok(()));
    broker.close().await;
}

/// A server with a certificate of an authority that only the settings know.
async fn tls_server() -> (RabbitServer, tempfile::TempDir, u16, String) {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let (cert, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("cert.pem"), &cert).expect("a file");
    std::fs::write(path("key.pem"), key).expect("a file");
    let port = free_port().expect("a port");
    let conf = format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {cert}\nssl_options.certfile = {cert}\n\
         ssl_options.keyfile = {key}\nssl_options.verify = verify_none\n",
        cert = path("cert.pem"),
        key = path("key.pem"),
    );
    let server = RabbitServer::start_with(&conf).await.expect("a server");
    (server, dir, port, cert)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_trusts_the_given_authority_and_no_stranger() {
    let (_server, _dir, port, authority) = tls_server().await;
    let url = format!("amqps://guest:guest@localhost:{port}/%2f");
    let broker = up(Settings {
        ca_pem: Some(authority),
        ..settings(url.clone(), "tls")
    })
    .await;
    publish(&broker, Queue::Journal, 1..2).await;
    broker.close().await;

    let stranger = Rabbit::connect(settings(url, "tls_stranger"), None).unwrap();
    let mut health = stranger.health();
    let up = timeout(
        Duration::from_secs(2),
        health.wait_for(|health| *health == Health::Up),
    )
    .await;
    assert!(up.is_err(), "a certificate of an unknown authority is not taken");
    stranger.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_frame_is_reported_and_publishing_recovers() {
    let server = server().await;
    let broker = up(settings(server.url(), "refused")).await;
    server
        .ctl(&[
            "set_policy",
            "tiny",
            "journal$",
            r#"{"max-length": 1}"#,
            "--apply-to",
            "queues",
        ])
        .await
        .unwrap();
    let refused = timeout(PATIENCE, async {
        loop {
            match broker.publish(Queue::Journal, frame_of(1)).await {
                Err(PublishError::Refused) => return,
                Ok(()) => {}
                Err(other) => panic!("the first failure is the refusal, not {other}"),
            }
        }
    });
    assert!(refused.await.is_ok(), "a full queue refuses");
    server.ctl(&["clear_policy", "tiny"]).await.unwrap();
    publish_at_last(&broker, Queue::Journal, 2).await;
    let mut consumer = subscribe(&broker, Queue::Journal, 5).await;
    assert!(find(&mut consumer, 2).await.receipt.acknowledge().await);
    broker.close().await;
}
