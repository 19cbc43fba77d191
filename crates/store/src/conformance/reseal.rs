//! A check of sealing anew, for adapters to call with views of one store through three rings of keys.

use bytes::Bytes;
use postrider_model::{EndpointSecret, UnixMillis};
use secrecy::ExposeSecret as _;

use super::fixture::{WAITING, World, must};
use crate::{EndpointRef, ResealCursor, ResealReport, SharedStore, StoreError};

/// Walks to the end in chunks of two rows; the sum.
async fn walk(store: &SharedStore) -> ResealReport {
    let mut sum = ResealReport::default();
    let mut cursor = Some(ResealCursor::default());
    for _ in 0..1_000 {
        let Some(at) = cursor else { return sum };
        let chunk = must(store.reseal(at, 2).await);
        assert!(chunk.seen <= 2, "a chunk of two looked at {}", chunk.seen);
        sum.seen += chunk.seen;
        sum.resealed += chunk.resealed;
        sum.unreadable.extend(chunk.unreadable);
        cursor = chunk.next;
    }
    panic!("the walk never ends");
}

/// The same store opened with the old key, with the new key before the old one, and with the new key alone.
pub async fn what_an_old_key_sealed_is_sealed_anew(old: SharedStore, both: SharedStore, new: SharedStore) {
    let world = World::new(old.clone()).await;
    let secret = |endpoint: &mut postrider_model::Endpoint| {
        endpoint.secrets = vec![EndpointSecret {
            text: "whsec_b2xk".into(),
            expires_at: None,
        }];
        endpoint.headers.insert("x-key".into(), "header".into());
    };
    let endpoint = world.endpoint(secret).await;
    let deleted = world.endpoint(secret).await;
    must(
        old.delete_endpoint(world.app, deleted.id, UnixMillis::now())
            .await,
    );
    let mut messages = Vec::new();
    for days in [None, None, None, Some(7)] {
        let message = world.message_aged(std::time::Duration::ZERO, |message| {
            message.payload_retention_days = days;
        });
        world
            .record(&[world.accepted(&message, &[endpoint.id], WAITING)])
            .await;
        messages.push(message);
    }
    must(
        old.park("frame", "not a frame", &Bytes::from_static(b"parked"))
            .await,
    );

    let locked = new.endpoint(world.app, &EndpointRef::Id(endpoint.id)).await;
    assert!(matches!(locked, Err(StoreError::Corrupt(_))), "{locked:?}");
    // Without the old key nothing is changed, and each value is named.
    let blind = walk(&new).await;
    assert_eq!((blind.resealed, blind.unreadable.len()), (0, 9), "{blind:?}");

    let first = walk(&both).await;
    assert_eq!((first.seen, first.resealed), (7, 9), "{first:?}");
    assert!(first.unreadable.is_empty(), "{first:?}");
    let second = walk(&both).await;
    assert_eq!((second.seen, second.resealed), (7, 0), "{second:?}");

    let found =
        must(new.endpoint(world.app, &EndpointRef::Id(endpoint.id)).await).expect("the endpoint is there");
    assert_eq!(found.secrets[0].text.expose_secret(), "whsec_b2xk");
    assert_eq!(found.headers["x-key"].expose_secret(), "header");
    assert_eq!(found.updated_at, endpoint.updated_at, "sealing anew is no change");
    for message in &messages {
        let (_, payload) = must(new.payload(message.id).await).expect("the payload is there");
        assert_eq!(payload, message.payload);
    }
    assert_eq!(must(new.parked(10, None).await).rows[0].bytes.as_ref(), b"parked");
}
