//! `RecordStore`: loads what the fold needs to know, folds, applies, in one transaction.

mod endpoints;
mod load;
mod messages;
mod write;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use postrider_model::{Record, UnixMillis};
use postrider_secrets::Keyring;
use postrider_store::fold::{self, FoldSettings, Known};
use postrider_store::{RecordReport, RecordStore, StoreError};
use rusqlite::Connection;

use self::endpoints::put_endpoints;
use self::load::{known_deliveries, known_endpoints};
use self::messages::insert_messages;
use self::write::{insert_attempts, put_deliveries, put_waiting};
use crate::claims::recent::RecentClaims;
use crate::error::Fallible;
use crate::{SqliteStore, cancel};

pub(crate) use self::messages::body_aad;

#[async_trait]
impl RecordStore for SqliteStore {
    async fn record(&self, batch: &[Record]) -> Result<RecordReport, StoreError> {
        let (batch, keyring) = (batch.to_vec(), self.keyring.clone());
        let settings = FoldSettings {
            disable_after: self.disable_after,
        };
        let recent_claims = Arc::clone(&self.recent_claims);
        self.write(move |connection| record(connection, &batch, &keyring, settings, &recent_claims))
            .await
    }
}

fn record(
    connection: &Connection,
    batch: &[Record],
    keyring: &Keyring,
    settings: FoldSettings,
    recent_claims: &RecentClaims,
) -> Fallible<RecordReport> {
    let now = UnixMillis::now();
    let touched = fold::touched(batch);
    let mut before = HashMap::new();
    let known = Known {
        deliveries: known_deliveries(connection, batch, &mut before)?,
        endpoints: known_endpoints(connection, &touched.endpoints)?,
    };
    let (last_seq, last_body): (i64, i64) = connection
        .prepare_cached("SELECT last_seq, last_body FROM progress")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let changes = fold::fold(batch, &known, now, last_seq, settings);
    let mut report = RecordReport {
        stale: changes.stale,
        ..RecordReport::default()
    };
    let next_body = insert_messages(connection, &changes.messages, keyring, last_body, &mut report)?;
    if (next_body, changes.last_seq) != (last_body, last_seq) {
        connection
            .prepare_cached("UPDATE progress SET last_seq = ?1, last_body = ?2")?
            .execute([changes.last_seq, next_body])?;
    }
    put_deliveries(connection, &changes, &known)?;
    insert_attempts(connection, &changes.attempts, &mut report)?;
    put_waiting(connection, &changes, &known, &before, now)?;
    cancel::count(connection, &changes.counters)?;
    put_endpoints(connection, &changes, now, &mut report)?;
    recent_claims.append(connection, changes.claims)?;
    Ok(report)
}
