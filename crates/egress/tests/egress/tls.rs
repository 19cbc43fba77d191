//! TLS: who is trusted, and what a failed or hanging handshake is called.

use std::sync::Arc;

use crate::support::{Receiver, closed, loopback_policy, read_request, request};
use postrider_egress::{Client, Failure, Phase, Request, Settings};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;

struct Authority {
    pem: String,
    acceptor: TlsAcceptor,
}

fn authority(name: &str) -> Authority {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the default versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("its own key");
    Authority {
        pem: made.cert.pem(),
        acceptor: TlsAcceptor::from(Arc::new(config)),
    }
}

async fn receiver(acceptor: TlsAcceptor) -> Receiver {
    Receiver::start(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            // A client that does not trust us hangs up here.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            while read_request(&mut stream).await.is_some() {
                stream
                    .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                    .await
                    .expect("the client reads");
            }
        }
    })
    .await
}

fn client(extra_roots_pem: &str) -> Client {
    let settings = Settings {
        extra_roots_pem: extra_roots_pem.as_bytes().to_vec(),
        ..Settings::default()
    };
    Client::new(settings, loopback_policy()).expect("valid settings")
}

fn over_tls(receiver: &Receiver) -> Request {
    request(&format!("https://localhost:{}/", receiver.address.port()))
}

#[tokio::test]
async fn an_extra_root_is_trusted() {
    let authority = authority("localhost");
    let receiver = receiver(authority.acceptor).await;
    let client = client(&authority.pem);
    for _ in 0..3 {
        assert_eq!(
            client.send(over_tls(&receiver)).await.expect("a response").status,
            204
        );
    }
}

#[tokio::test]
async fn a_stranger_is_not() {
    let known = authority("localhost");
    let receiver = receiver(authority("localhost").acceptor).await;
    let failure = client(&known.pem)
        .send(over_tls(&receiver))
        .await
        .expect_err("not trusted");
    assert!(matches!(failure, Failure::Tls(_)), "{failure}");
    assert_eq!((failure.class(), failure.is_ours()), ("tls", false));
}

#[tokio::test]
async fn the_name_must_match() {
    let other = authority("elsewhere.example.com");
    let receiver = receiver(other.acceptor).await;
    let failure = client(&other.pem)
        .send(over_tls(&receiver))
        .await
        .expect_err("another name");
    assert!(matches!(failure, Failure::Tls(_)), "{failure}");
}

#[tokio::test]
async fn a_receiver_without_tls() {
    let known = authority("localhost");
    let plain = Receiver::start(|mut stream, _| async move {
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .expect("the client reads");
        closed(&mut stream).await;
    })
    .await;
    let failure = client(&known.pem)
        .send(over_tls(&plain))
        .await
        .expect_err("no TLS");
    assert!(matches!(failure, Failure::Tls(_)), "{failure}");
}

#[tokio::test]
async fn a_handshake_that_hangs() {
    let known = authority("localhost");
    let silent = Receiver::start(|mut stream, _| async move { closed(&mut stream).await }).await;
    let failure = client(&known.pem)
        .send(over_tls(&silent))
        .await
        .expect_err("no handshake");
    assert_eq!(failure, Failure::Timeout { phase: Phase::Tls });
}
