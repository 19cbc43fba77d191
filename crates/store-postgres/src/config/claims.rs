//! Claims of requests that change configuration. Those of messages come with their records.

use postrider_model::Claim;

use crate::PostgresStore;
use crate::error::Work;
use crate::{log, record};

pub(super) async fn keep(store: &PostgresStore, claim: &Claim) -> Work<Claim> {
    let mut tx = store.write.begin().await?;
    let now = sqlx::query_scalar("SELECT now_ms()").fetch_one(&mut *tx).await?;
    record::write::claims(
        &mut tx,
        std::slice::from_ref(claim),
        postrider_model::UnixMillis(now),
    )
    .await?;
    let mut standing = log::find_claims(&mut tx, &[claim.key]).await?;
    tx.commit().await?;
    // One that ends in this very millisecond stands no more, and nor does the one that it kept out.
    Ok(standing.pop().flatten().unwrap_or_else(|| claim.clone()))
}

pub(super) async fn remove(store: &PostgresStore, key: &[u8; 32], resource: &[u8; 16]) -> Work<()> {
    sqlx::query("DELETE FROM claims WHERE key = $1 AND resource = $2")
        .bind(key.as_slice())
        .bind(resource.as_slice())
        .execute(&store.write)
        .await?;
    Ok(())
}
