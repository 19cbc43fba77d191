//! API keys, by the hash of their secret.

use postrider_model::{KeyId, UnixMillis};
use postrider_store::{NewKey, Page, StoredKey, TimeRange};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::PostgresStore;
use crate::error::{Work, corrupt};
use crate::row::{Window, clean, keyset};

pub(super) async fn create(store: &PostgresStore, key: &NewKey) -> Work<()> {
    sqlx::query("INSERT INTO api_keys (id, hash, scope, name, created_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(key.id.as_uuid())
        .bind(key.hash.as_slice())
        .bind(clean(&key.scope))
        .bind(clean(&key.name))
        .bind(key.created_at.0)
        .execute(&store.write)
        .await?;
    Ok(())
}

pub(super) async fn by_hash(store: &PostgresStore, hash: &[u8; 32]) -> Work<Option<StoredKey>> {
    let row = sqlx::query("SELECT id, hash, scope, name, created_at, revoked_at FROM api_keys WHERE hash = $1 AND revoked_at IS NULL")
        .bind(hash.as_slice())
        .fetch_optional(&store.write)
        .await?;
    row.as_ref().map(decode).transpose()
}

pub(super) async fn list(store: &PostgresStore, page: &Page<KeyId>) -> Work<Vec<StoredKey>> {
    const LIST: [&str; 2] = keyset!(
        "SELECT id, hash, scope, name, created_at, revoked_at FROM api_keys WHERE id >= $2 AND id < $3",
        "id"
    );
    let window = Window::new(page, TimeRange::default(), KeyId::as_uuid);
    let rows = sqlx::query(LIST[usize::from(window.descending)])
        .bind(window.limit)
        .bind(window.low)
        .bind(window.high)
        .fetch_all(&store.read)
        .await?;
    let keys = rows.iter().map(decode).collect::<Work<Vec<_>>>()?;
    Ok(window.arrange(keys))
}

pub(super) async fn revoke(store: &PostgresStore, id: KeyId, at: UnixMillis) -> Work<bool> {
    let done = sqlx::query("UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
        .bind(id.as_uuid())
        .bind(at.0)
        .execute(&store.write)
        .await?;
    Ok(done.rows_affected() > 0)
}

fn decode(row: &PgRow) -> Work<StoredKey> {
    let hash: Vec<u8> = row.try_get("hash")?;
    Ok(StoredKey {
        key: NewKey {
            id: KeyId::from_uuid(row.try_get("id")?),
            hash: hash
                .try_into()
                .map_err(|_| corrupt("a key's hash is not 32 bytes"))?,
            scope: row.try_get("scope")?,
            name: row.try_get("name")?,
            created_at: UnixMillis(row.try_get("created_at")?),
        },
        revoked_at: row.try_get::<Option<i64>, _>("revoked_at")?.map(UnixMillis),
    })
}
