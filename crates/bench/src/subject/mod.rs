//! What is measured: the floors and Postrider in its two set-ups.

pub(crate) mod embedded;
pub(crate) mod floor;
pub(crate) mod postrider;
mod tenants;

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http::Method;
use serde_json::Value;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use crate::generate::plan::Route;
use crate::http_client::Http;

pub(crate) use tenants::Tenants;

/// Where load is put on.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// The names of its processes.
    pub(crate) processes: Vec<String>,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) route: Route,
    /// Endpoints that each message goes to.
    pub(crate) fan_out: u64,
    pub(crate) record: Record,
}

impl Target {
    /// The same, named after the load as well.
    pub(crate) fn under(&self, what: &str) -> Self {
        Self {
            name: format!("{}, {what}", self.name),
            ..self.clone()
        }
    }
}

/// Where it can be seen how many deliveries are on record.
#[derive(Clone)]
pub(crate) enum Record {
    /// Nothing is recorded.
    None,
    /// The tables of this database.
    Postgres { url: String },
    /// The statistics of these endpoints (application, endpoint).
    Api {
        http: Http,
        endpoints: Vec<(String, String)>,
    },
}

/// Deliveries that ended well, counted from one moment on.
pub(crate) enum Recorded {
    Postgres {
        connection: Box<PgConnection>,
        since: String,
        fan_out: u64,
    },
    Api {
        http: Http,
        endpoints: Vec<(String, String)>,
        before: u64,
    },
}

impl Record {
    /// Starts to count what is made from now on, with `fan_out` deliveries to a message; none if nothing is recorded.
    pub(crate) async fn watch(&self, fan_out: u64) -> Result<Option<Recorded>> {
        match self {
            Self::None => Ok(None),
            Self::Postgres { url } => {
                let connection = Box::new(crate::services::connect(url).await?);
                let since = first_id(jiff::Timestamp::now().as_millisecond());
                Ok(Some(Recorded::Postgres {
                    connection,
                    since,
                    fan_out,
                }))
            }
            Self::Api { http, endpoints } => {
                let before = by_api(http, endpoints).await?;
                Ok(Some(Recorded::Api {
                    http: http.clone(),
                    endpoints: endpoints.clone(),
                    before,
                }))
            }
        }
    }
}

impl Recorded {
    /// How many deliveries are recorded with message, delivery and attempt. The embedded store's statistics move in the
    /// commit that records them.
    pub(crate) async fn count(&mut self) -> Result<u64> {
        match self {
            Self::Postgres {
                connection,
                since,
                fan_out,
            } => {
                // Ids begin with their time, so that only the new part of an index is read.
                let sql = format!(
                    "SELECT least((SELECT count(*) FROM messages WHERE id >= '{since}') * {fan_out}, \
                     (SELECT count(*) FROM attempts WHERE id >= '{since}' AND class = 0), \
                     (SELECT count(*) FROM deliveries WHERE id >= '{since}' AND state = 0))"
                );
                let row = sqlx::query(AssertSqlSafe(sql))
                    .fetch_one(&mut **connection)
                    .await?;
                Ok(u64::try_from(row.try_get::<i64, _>(0)?)?)
            }
            Self::Api {
                http,
                endpoints,
                before,
            } => Ok(by_api(http, endpoints).await?.saturating_sub(*before)),
        }
    }
}

async fn by_api(http: &Http, endpoints: &[(String, String)]) -> Result<u64> {
    let mut sum = 0;
    for (app, endpoint) in endpoints {
        let path = format!("/api/v1/app/{app}/endpoint/{endpoint}/stats");
        let stats: Value = serde_json::from_slice(&http.ask(Method::GET, &path, None).await?)?;
        sum += stats
            .get("success")
            .and_then(Value::as_u64)
            .context("statistics without `success`")?;
    }
    Ok(sum)
}

/// The smallest id of a millisecond, as UUID text.
fn first_id(millis: i64) -> String {
    let hex = format!("{:012x}", millis.max(0));
    format!("{}-{}-0000-0000-000000000000", &hex[..8], &hex[8..12])
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_id_of_a_moment_begins_with_it() {
        assert_eq!(
            super::first_id(0x0123_4567_89ab),
            "01234567-89ab-0000-0000-000000000000"
        );
    }
}
