//! Migrations, and a server that goes away and comes back.

use std::net::SocketAddr;
use std::time::Duration;

use postrider_model::{Disposition, UnixMillis};
use postrider_store::{AppRef, ConfigStore, LogStore, ParkedRow, RecordStore, StoreError, UpkeepStore};
use postrider_store_postgres::{PostgresStore, Settings};
use postrider_testkit::proxy::Proxy;
use postrider_testkit::services::{PostgresDatabase, PostgresServer};
use postrider_testkit::wait::{Poll, wait_for};
use sqlx::postgres::PgConnectOptions;

use crate::world::{World, keyring, open};

#[tokio::test]
async fn migrating_twice_or_by_several_at_once_is_safe() {
    let database = PostgresDatabase::create().await.unwrap();
    let keyring = keyring();
    let stores: Vec<_> = (0..4).map(|_| open(database.url(), &keyring)).collect();
    let before = stores[0].check_schema().await;
    let Err(StoreError::Schema { found: 0, wanted }) = before else {
        panic!("{before:?}")
    };
    let (a, b, c, d) = tokio::join!(
        stores[0].migrate(),
        stores[1].migrate(),
        stores[2].migrate(),
        stores[3].migrate()
    );
    let mut from: Vec<u32> = [a, b, c, d].map(|done| done.unwrap().0).to_vec();
    from.sort_unstable();
    assert_eq!(from, [0, wanted, wanted, wanted]);
    stores[0].check_schema().await.unwrap();
    assert_eq!(stores[0].migrate().await.unwrap(), (wanted, wanted));
}

#[tokio::test]
async fn a_newer_schema_serves_and_stays() {
    let world = World::new().await;
    assert_eq!(
        world
            .number("WITH new AS (INSERT INTO schema_version (version) VALUES (99) RETURNING version) SELECT version::bigint FROM new")
            .await,
        99
    );
    world.store.check_schema().await.unwrap();
    assert_eq!(world.store.migrate().await.unwrap(), (99, 99));
    assert_eq!(
        world
            .number("SELECT max(version)::bigint FROM schema_version")
            .await,
        99
    );
}

#[tokio::test]
async fn while_a_migration_waits_for_a_table_others_pass() {
    let world = World::new().await;
    let pool = sqlx::PgPool::connect(world.database.url()).await.unwrap();
    let before_the_eighth = "DELETE FROM schema_version WHERE version >= 8; \
        ALTER TABLE backlog DROP COLUMN not_before; \
        ALTER TABLE endpoints DROP COLUMN memory_bytes; \
        DROP INDEX applications_deleted, endpoints_deleted, api_keys_revoked";
    sqlx::raw_sql(before_the_eighth).execute(&pool).await.unwrap();
    let writes = "LOCK TABLE backlog IN ROW EXCLUSIVE MODE";
    let mut long = pool.begin().await.unwrap();
    sqlx::raw_sql(writes).execute(&mut *long).await.unwrap();
    let store = world.again();
    let migrating = tokio::spawn(async move { store.migrate().await });
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'backlog'::regclass AND NOT granted";
    wait_for("the migration to wait", Duration::from_secs(20), async || {
        Ok(match world.number(waits).await {
            0 => Poll::NotYet("it does not".to_owned()),
            _ => Poll::Ready(()),
        })
    })
    .await
    .unwrap();
    let mut other = pool.begin().await.unwrap();
    let passed = tokio::time::timeout(
        Duration::from_secs(30),
        sqlx::raw_sql(writes).execute(&mut *other),
    );
    passed
        .await
        .expect("a writer stands behind the migration")
        .unwrap();
    assert!(!migrating.is_finished());
    other.commit().await.unwrap();
    long.commit().await.unwrap();
    assert_eq!(migrating.await.unwrap().unwrap(), (7, 10));
}

#[tokio::test]
async fn the_store_heals_after_its_server_restarts() {
    let mut server = PostgresServer::start().await.unwrap();
    let database = PostgresDatabase::create_in(&server.url()).await.unwrap();
    let mut settings = Settings::new(database.url().into(), keyring());
    settings.acquire_timeout = Duration::from_millis(500);
    let store = PostgresStore::connect(settings).unwrap();
    store.migrate().await.unwrap();
    let (app, _) = crate::world::configure(&store).await;

    server.kill9();
    let away = store.ping().await;
    assert!(matches!(&away, Err(error) if error.is_transient()), "{away:?}");
    let away = store.snapshot(&AppRef::Id(app)).await;
    assert!(matches!(&away, Err(error) if error.is_transient()), "{away:?}");

    server.start_again().await.unwrap();
    wait_for(
        "the store to answer again",
        Duration::from_secs(30),
        async || match store.snapshot(&AppRef::Id(app)).await {
            Ok(Some(_)) => Ok(Poll::Ready(())),
            other => Ok(Poll::NotYet(format!("{other:?}"))),
        },
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn the_store_heals_after_its_server_vanished_amid_statements() {
    let database = PostgresDatabase::create().await.unwrap();
    let server: SocketAddr = {
        let options: PgConnectOptions = database.url().parse().unwrap();
        format!("{}:{}", options.get_host(), options.get_port())
            .parse()
            .unwrap()
    };
    // What goes by `old` can vanish while the front's new connections go to the server.
    let old = Proxy::start(server).await.unwrap();
    let front = Proxy::start(old.address()).await.unwrap();
    let url = database
        .url()
        .replace(&server.to_string(), &front.address().to_string());
    let mut settings = Settings::new(url.into(), keyring());
    settings.write_connections = 2;
    settings.acquire_timeout = Duration::from_millis(500);
    settings.write_timeout = Duration::from_secs(2);
    let store = PostgresStore::connect(settings).unwrap();
    store.migrate().await.unwrap();

    let pool = sqlx::PgPool::connect(database.url()).await.unwrap();
    let mut lock = pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE parked")
        .execute(&mut *lock)
        .await
        .unwrap();
    let park = async |bytes: &'static [u8]| store.park("frame", "unreadable", &bytes.into()).await;
    let vanish = async {
        wait_for("both statements", Duration::from_secs(20), async || {
            let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'parked'::regclass AND NOT granted";
            let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&pool).await?;
            Ok(match waiting {
                2 => Poll::Ready(()),
                _ => Poll::NotYet(format!("{waiting} wait")),
            })
        })
        .await
        .unwrap();
        old.pause();
    };
    let (one, two, ()) = tokio::join!(park(b"1"), park(b"2"), vanish);
    for away in [one, two] {
        assert!(matches!(&away, Err(error) if error.is_transient()), "{away:?}");
    }
    front.retarget(server);
    lock.commit().await.unwrap();
    wait_for("the store", Duration::from_secs(30), async || {
        Ok(match park(b"3").await {
            Ok(_) => Poll::Ready(()),
            Err(error) => Poll::NotYet(error.to_string()),
        })
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_store_can_be_made_while_the_server_is_away() {
    let mut settings = Settings::new("postgres://nobody@127.0.0.1:1/none".into(), keyring());
    settings.acquire_timeout = Duration::from_millis(200);
    let store = PostgresStore::connect(settings).unwrap();
    let away = store.ping().await;
    assert!(matches!(&away, Err(error) if error.is_transient()), "{away:?}");
}

#[tokio::test]
async fn text_with_nul_is_stored_and_bytes_are_kept() {
    let world = World::new().await;
    let mut message = (*world.message(UnixMillis::now())).clone();
    message.event_type = "a\0b".into();
    message.event_id = Some("\0".into());
    message.payload = bytes::Bytes::from_static(b"\0\xff\xfe");
    let message = std::sync::Arc::new(message);
    let report = world
        .store
        .record(&[world.accepted(&message, Disposition::Queued)])
        .await
        .unwrap();
    assert_eq!(report.messages, 1);
    let found = world
        .store
        .message(world.app, message.id, true)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.message.event_type, "a\u{fffd}b");
    assert_eq!(found.message.payload, message.payload);
    let same = world
        .store
        .message_by_event_id(world.app, "\0", false)
        .await
        .unwrap();
    assert_eq!(same.map(|found| found.message.id), Some(message.id));
}

#[tokio::test]
async fn secrets_and_payloads_are_sealed_at_rest() {
    let world = World::new().await;
    let message = world.message(UnixMillis::now());
    world
        .store
        .record(&[world.accepted(&message, Disposition::Queued)])
        .await
        .unwrap();
    let plain = world
        .number(
            "SELECT (SELECT count(*) FROM bodies WHERE position('amount'::bytea IN sealed) > 0) \
             + (SELECT count(*) FROM endpoints WHERE position('hunter2'::bytea IN headers) > 0 \
             OR position('whsec'::bytea IN secrets) > 0)",
        )
        .await;
    assert_eq!(plain, 0);
    let snapshot = world.snapshot().await;
    assert_eq!(snapshot.endpoints[0].secrets.len(), 1);
    let other = open(world.database.url(), &keyring());
    let unreadable = other.message(world.app, message.id, true).await;
    assert!(
        matches!(unreadable, Err(StoreError::Corrupt(_))),
        "{unreadable:?}"
    );
}

#[tokio::test]
async fn what_is_parked_and_cannot_be_opened_is_told_and_can_be_removed() {
    let world = World::new().await;
    let store = &world.store;
    assert!(
        store
            .park("frame", "unreadable", &b"bytes".as_slice().into())
            .await
            .unwrap()
    );
    let other = open(world.database.url(), &keyring());
    other
        .park("job", "readable", &b"other".as_slice().into())
        .await
        .unwrap();
    let told = |rows: &[ParkedRow]| -> Vec<bool> { rows.iter().map(|row| row.sealed_away).collect() };
    let rows = other.parked(10, None).await.unwrap().rows;
    assert_eq!(told(&rows), [false, true], "newest first");
    assert_eq!(told(&store.parked(10, None).await.unwrap().rows), [true, false]);
    let taken = other.unpark(rows[1].id).await.unwrap().unwrap();
    assert!(taken.sealed_away && taken.bytes.is_empty() && taken.reason == "unreadable");
    assert!(store.unpark(rows[1].id).await.unwrap().is_none());
}
