//! The receiver records and behaves as scripted; the proxy breaks and heals; the oracle judges.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use postrider_testkit::oracle::Oracle;
use postrider_testkit::proxy::Proxy;
use postrider_testkit::receiver::{Receiver, Reply, Script};
use postrider_testkit::services::RedisServer;
use postrider_testkit::wait::{Poll, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const LIMIT: Duration = Duration::from_secs(10);

type Body = Full<bytes::Bytes>;

fn client() -> Client<HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).build_http()
}

#[expect(clippy::unwrap_used, reason = "a test's helper")]
async fn post(url: &str, id: &str, body: &str) -> Result<http::Response<hyper::body::Incoming>, String> {
    let request = http::Request::post(url)
        .header("webhook-id", id)
        .body(Body::from(body.to_owned()))
        .unwrap();
    client().request(request).await.map_err(|error| error.to_string())
}

#[expect(clippy::unwrap_used, reason = "a test's helper")]
async fn status(url: &str) -> u16 {
    post(url, "msg", "{}").await.unwrap().status().as_u16()
}

#[tokio::test]
async fn it_records_requests_and_follows_a_sequence() {
    let receiver = Receiver::start().await.unwrap();
    let url = receiver.url("/a");
    assert_eq!(status(&url).await, 200);
    let replies = [
        Reply::Status(500),
        Reply::RetryAfter(429, 7),
        Reply::Text(410, "bye".into()),
    ];
    receiver.on("/a", Script::sequence(replies));
    assert_eq!(status(&url).await, 500);
    let limited = post(&url, "msg", "{}").await.unwrap();
    assert_eq!(
        (
            limited.status().as_u16(),
            limited.headers()["retry-after"].to_str().unwrap()
        ),
        (429, "7")
    );
    let gone = post(&url, "msg_4", "héllo").await.unwrap();
    assert_eq!(gone.status().as_u16(), 410);
    assert_eq!(gone.into_body().collect().await.unwrap().to_bytes(), "bye");
    assert_eq!(status(&format!("{url}?q=1")).await, 200);

    let requests = receiver
        .wait_for("/a", LIMIT, |requests| requests.len() == 5)
        .await
        .unwrap();
    assert_eq!(
        (requests[3].webhook_id(), &requests[3].body[..]),
        ("msg_4", "héllo".as_bytes())
    );
    assert_eq!(requests[4].query.as_deref(), Some("q=1"));
    assert_eq!(requests.iter().filter(|r| r.succeeded()).count(), 2);
    assert!(receiver.requests("/b").is_empty());
    receiver.clear();
    assert_eq!((receiver.count("/a"), receiver.total()), (0, 0));
}

#[tokio::test]
async fn it_can_be_another_host_and_redirect() {
    let receiver = Receiver::start_on([127, 0, 0, 2].into()).await.unwrap();
    receiver.on(
        "/r",
        Script::always(Reply::Redirect("http://elsewhere.test/".into())),
    );
    let answer = post(&receiver.url("/r"), "msg", "").await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["location"]),
        (302, &"http://elsewhere.test/".parse().unwrap())
    );
}

#[tokio::test]
async fn it_closes_hangs_and_counts_what_is_in_flight() {
    let receiver = Receiver::start().await.unwrap();
    receiver.on("/close", Script::always(Reply::Close));
    receiver.on("/hang", Script::always(Reply::Hang));
    post(&receiver.url("/close"), "msg", "").await.unwrap_err();
    assert_eq!(receiver.requests("/close")[0].answered, None);
    let url = receiver.url("/hang");
    let hanging: Vec<_> = (0..3)
        .map(|_| {
            tokio::spawn({
                let url = url.clone();
                async move { post(&url, "m", "").await }
            })
        })
        .collect();
    receiver
        .wait_for("/hang", LIMIT, |requests| requests.len() == 3)
        .await
        .unwrap();
    assert_eq!(receiver.peak_in_flight("/hang"), 3);
    assert!(hanging.iter().all(|task| !task.is_finished()));
    let error = receiver
        .wait_for("/hang", Duration::from_millis(50), |r| r.len() > 3)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("3 requests"), "{error}");
}

#[tokio::test]
async fn bodies_drip_and_flow() {
    let receiver = Receiver::start().await.unwrap();
    receiver.on("/drip", Script::always(Reply::Drip(Duration::from_millis(10))));
    receiver.on("/large", Script::always(Reply::Large(3_000_000)));
    let mut dripping = post(&receiver.url("/drip"), "msg", "").await.unwrap().into_body();
    for _ in 0..3 {
        let frame = timeout(LIMIT, dripping.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap().len(), 1);
    }
    let large = post(&receiver.url("/large"), "msg", "")
        .await
        .unwrap()
        .into_body();
    assert_eq!(large.collect().await.unwrap().to_bytes().len(), 3_000_000);
}

#[tokio::test]
async fn random_failures_repeat_with_their_seed() {
    let receiver = Receiver::start().await.unwrap();
    let mut runs = Vec::new();
    for _ in 0..2 {
        receiver.on("/f", Script::always(Reply::Status(200)).failing(0.5, 500, 7));
        let mut run = Vec::new();
        for _ in 0..40 {
            run.push(status(&receiver.url("/f")).await);
        }
        runs.push(run);
    }
    assert_eq!(runs[0], runs[1]);
    assert!(runs[0].contains(&200) && runs[0].contains(&500), "{runs:?}");
}

#[tokio::test]
async fn tls_verifies_against_its_certificate_only() {
    let receiver = Receiver::start_tls().await.unwrap();
    assert!(receiver.url("/").starts_with("https://"));
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(receiver.certificate().unwrap().as_bytes()).unwrap())
        .unwrap();
    let answer = over_tls(&receiver, roots).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let other = Receiver::start_tls().await.unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(other.certificate().unwrap().as_bytes()).unwrap())
        .unwrap();
    over_tls(&receiver, roots).await.unwrap_err();
}

#[expect(clippy::unwrap_used, reason = "a test's helper")]
async fn over_tls(receiver: &Receiver, roots: RootCertStore) -> std::io::Result<String> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(receiver.address()).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
        .await?;
    let mut answer = vec![0; 1_024];
    let read = stream.read(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
}

async fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"PING\r\n").await?;
    stream.read_exact(&mut [0; 7]).await.map(|_| ())
}

#[tokio::test]
async fn the_proxy_breaks_heals_pauses_resets_and_retargets() {
    let (first, second) = (
        RedisServer::start().await.unwrap(),
        RedisServer::start().await.unwrap(),
    );
    second.command(&["SET", "who", "second"]).await.unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], first.port()).into()).await.unwrap();
    let connect = || TcpStream::connect(proxy.address());

    let mut stream = connect().await.unwrap();
    ping(&mut stream).await.unwrap();
    assert_eq!(proxy.connections(), 1);
    proxy.break_networking();
    ping(&mut stream).await.unwrap_err();
    let mut refused = connect().await.unwrap();
    ping(&mut refused).await.unwrap_err();

    proxy.restore();
    let mut stream = connect().await.unwrap();
    ping(&mut stream).await.unwrap();
    proxy.pause();
    timeout(Duration::from_millis(100), ping(&mut stream))
        .await
        .unwrap_err();
    let mut waiting = connect().await.unwrap();
    waiting.write_all(b"PING\r\n").await.unwrap();
    proxy.restore();
    for held in [&mut stream, &mut waiting] {
        let mut answer = [0; 7];
        timeout(LIMIT, held.read_exact(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
    }

    proxy.reset_connections();
    ping(&mut stream).await.unwrap_err();
    wait_for("all connections to be gone", LIMIT, async || {
        let open = proxy.connections();
        Ok(if open == 0 {
            Poll::Ready(())
        } else {
            Poll::NotYet(format!("{open} open"))
        })
    })
    .await
    .unwrap();

    proxy.retarget(([127, 0, 0, 1], second.port()).into());
    let mut stream = connect().await.unwrap();
    stream.write_all(b"GET who\r\n").await.unwrap();
    let mut answer = [0; 12];
    timeout(LIMIT, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"$6\r\nsecond\r\n");
}

#[tokio::test]
async fn the_oracle_sees_what_is_missing_doubled_and_changed() {
    let receiver = Receiver::start().await.unwrap();
    let (a, b) = (receiver.url("/a"), receiver.url("/b"));
    receiver.on("/a", Script::sequence([Reply::Status(500)]));
    let oracle = Oracle::new();
    oracle.acknowledged("m1", b"one", [&a, &b]);
    post(&a, "m1", "one").await.unwrap();
    post(&b, "m1", "one").await.unwrap();
    let verdict = oracle.judge(&[&receiver]).unwrap();
    assert_eq!(
        (verdict.expected, verdict.missing, verdict.duplicates),
        (2, 1, 0),
        "a 500 is no delivery"
    );
    assert_eq!(verdict.missing_ids, [format!("{a} m1")]);
    let error = oracle
        .settle(&[&receiver], Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("1 missing"), "{error}");

    post(&a, "m1", "one").await.unwrap();
    post(&a, "m1", "one").await.unwrap();
    post(&a, "m0", "stranger").await.unwrap();
    let verdict = oracle.settle(&[&receiver], LIMIT).await.unwrap();
    assert_eq!(
        (verdict.missing, verdict.duplicates, verdict.unacknowledged),
        (0, 1, 1)
    );
    oracle.acknowledged("m2", b"two", [&b]);
    post(&b, "m2", "2").await.unwrap();
    let error = oracle.settle(&[&receiver], LIMIT).await.unwrap_err();
    assert!(format!("{error:#}").contains("changed on the way"), "{error:#}");
}
