use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postrider_model::{Claim, UnixMillis};
use rusqlite::Connection;

use super::recent::RecentClaims;
use super::{find, keep};
use crate::connection::{open_reader, open_writer};
use crate::schema;
use crate::writer::Writer;

/// Claims that are merged together here.
const TOGETHER: usize = 200;
/// Rows on disk at most: those that gather, and as many that are merged.
const ROWS_MAX: i64 = 2 * 200;
const HOUR: Duration = Duration::from_secs(3600);

/// A file with a writer.
struct World {
    recent: Arc<RecentClaims>,
    writer: Writer,
    reader: Connection,
}

impl World {
    fn open(path: &Path) -> Self {
        let mut connection = open_writer(path).expect("a file");
        schema::migrate(&mut connection).expect("a schema");
        let recent = RecentClaims::with(&connection, TOGETHER).unwrap_or_else(|fail| panic!("{fail:?}"));
        let recent = Arc::new(recent);
        Self {
            writer: Writer::start(connection, path.to_owned(), Arc::clone(&recent), true).expect("a thread"),
            recent,
            reader: open_reader(path).unwrap_or_else(|fail| panic!("{fail:?}")),
        }
    }

    async fn append(&self, claims: Vec<Claim>) {
        let recent = Arc::clone(&self.recent);
        let appended = self
            .writer
            .write(move |connection| recent.append(connection, claims));
        appended.await.expect("a commit");
    }

    /// A commit that brings no claims.
    async fn commit(&self) {
        let work = |connection: &Connection| Ok(connection.execute("UPDATE progress SET body_mark = 0", [])?);
        self.writer.write(work).await.expect("a commit");
    }

    /// Keeps a claim of a change to the configuration; returns whose it is.
    async fn keep(&self, claim: Claim) -> u8 {
        let recent = Arc::clone(&self.recent);
        let kept = self
            .writer
            .write(move |connection| keep(connection, &recent, &claim));
        kept.await.expect("a commit").resource[0]
    }

    fn holder(&self, number: u64) -> Option<u8> {
        let found =
            find(&self.reader, &self.recent, &[key(number)]).unwrap_or_else(|fail| panic!("{fail:?}"));
        found[0].as_ref().map(|claim| claim.resource[0])
    }

    fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        self.reader
            .query_row(&sql, [], |row| row.get(0))
            .expect("a count")
    }
}

/// Keys in no order, as hashes are.
fn key(number: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    key[8..16].copy_from_slice(&number.to_be_bytes());
    key
}

fn claim(number: u64, resource: u8, expires_at: UnixMillis) -> Claim {
    Claim {
        key: key(number),
        resource: [resource; 16],
        fingerprint: [0; 32],
        expires_at,
    }
}

fn lasting(numbers: std::ops::Range<u64>) -> Vec<Claim> {
    let end = UnixMillis::now().plus(HOUR);
    numbers.map(|number| claim(number, 1, end)).collect()
}

#[tokio::test]
async fn claims_are_found_at_every_step_and_after_every_crash() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("postrider.db");
    let mut world = World::open(&path);
    for batch in 0..120 {
        world.append(lasting(batch * 10..(batch + 1) * 10)).await;
        let known = (batch + 1) * 10;
        assert!(
            (0..known).all(|number| world.holder(number) == Some(1)),
            "{known}"
        );
        assert_eq!(world.holder(known), None);
        // Those that gather, and those that are merged.
        assert!(world.count("recent_claims") <= ROWS_MAX, "{known}");
        if batch % 17 == 5 {
            // What was in memory is gone, as after a crash.
            world = World::open(&path);
        }
    }
    assert!(world.count("claims") >= 1_200 - ROWS_MAX);
}

#[tokio::test]
async fn what_gathers_is_bounded_however_much_comes() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("postrider.db");
    let mut world = World::open(&path);
    for batch in 0..40 {
        world.append(lasting(batch * 1_000..(batch + 1) * 1_000)).await;
        assert!(world.count("recent_claims") <= 4_000, "{batch}");
        if batch % 3 == 0 {
            // Loaded again are also those that were merged already.
            world = World::open(&path);
        }
    }
}

#[tokio::test]
async fn what_comes_right_after_a_merge_is_not_removed_with_it() {
    // A merge of as many as its steps take together, which end at one of these commits.
    for commits in 0..12 {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("postrider.db");
        let world = World::open(&path);
        world.append(lasting(0..256)).await;
        for _ in 0..commits {
            world.commit().await;
        }
        world.append(lasting(1_000..1_003)).await;
        world.commit().await;
        let world = World::open(&path);
        let all = (0..256).chain(1_000..1_003);
        assert!(
            all.into_iter().all(|number| world.holder(number) == Some(1)),
            "{commits}"
        );
    }
}

#[tokio::test]
async fn what_was_rolled_back_claims_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let world = World::open(&directory.path().join("postrider.db"));
    world.append(lasting(0..199)).await;
    // A transaction that SQLite ends by itself, as on a full disk, takes along what was appended in it.
    let recent = Arc::clone(&world.recent);
    let lost = world.writer.write(move |connection| {
        recent.append(connection, lasting(500..600))?;
        connection.execute_batch("ROLLBACK")?;
        Ok(())
    });
    lost.await.expect_err("the transaction is gone");
    assert_eq!((world.holder(500), world.count("recent_claims")), (None, 199));
    // Rows of the next ones have the numbers that were given back, and are merged with the others, not lost.
    world.append(lasting(199..205)).await;
    for _ in 0..10 {
        world.commit().await;
    }
    assert_eq!((world.count("claims"), world.count("recent_claims")), (205, 0));
    assert!((0..205).all(|number| world.holder(number) == Some(1)));
}

#[tokio::test]
async fn the_first_claim_keeps_its_key_wherever_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let world = World::open(&directory.path().join("postrider.db"));
    let end = UnixMillis::now().plus(HOUR);
    let soon = UnixMillis::now().plus(Duration::from_millis(100));
    world.append(vec![claim(1, 1, end), claim(2, 1, soon)]).await;
    world.append(vec![claim(1, 2, end)]).await;
    assert_eq!((world.holder(1), world.holder(2)), (Some(1), Some(1)));
    assert_eq!(world.keep(claim(1, 2, end)).await, 1);
    world.append(lasting(1_000..1_400)).await;
    for second in 0..20 {
        world.append(vec![claim(1, 3, end)]).await;
        assert_eq!(world.holder(1), Some(1), "{second}");
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(world.holder(2), None, "it ended");
    world.append(vec![claim(2, 2, end)]).await;
    assert_eq!(world.holder(2), Some(2));
    for batch in 0..40 {
        world
            .append(lasting(2_000 + batch * 20..2_020 + batch * 20))
            .await;
        assert_eq!((world.holder(1), world.holder(2)), (Some(1), Some(2)), "{batch}");
    }
}
