//! What one running process tells about itself: its readiness, and a few of its metrics.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use postrider_config::Config;
use serde::Serialize;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(2);
/// Longest answer that is read, in bytes.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

/// The process at the configured address.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    pub(crate) address: SocketAddr,
    pub(crate) ready: bool,
    /// The state of each dependency as that process sees it.
    pub(crate) dependencies: BTreeMap<String, String>,
    /// From here on from its metrics, absent when they are not served.
    pub(crate) attempts_in_flight: Option<f64>,
    pub(crate) deliveries_queued: Option<f64>,
    pub(crate) journal_lag_seconds: Option<f64>,
    pub(crate) messages_accepted_total: Option<f64>,
    pub(crate) attempts_total: Option<f64>,
    pub(crate) records_written_total: Option<f64>,
}

impl Process {
    /// A gateway's readiness names the journal.
    pub(crate) fn is_gateway(&self) -> bool {
        self.dependencies.contains_key("journal")
    }
}

/// Asks a process.
pub(crate) struct Probe {
    client: reqwest::Client,
    listen: SocketAddr,
    metrics: Option<SocketAddr>,
    scheme: &'static str,
}

impl Probe {
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let tls = config.server.tls_cert.is_some();
        let client = reqwest::Client::builder()
            .timeout(LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // A certificate names the public host, and this asks loopback; no secret is sent.
            .tls_danger_accept_invalid_certs(tls)
            .build()?;
        Ok(Self {
            client,
            listen: crate::healthcheck::reachable(config.listen),
            metrics: config.metrics.listen.map(crate::healthcheck::reachable),
            scheme: if tls { "https" } else { "http" },
        })
    }

    /// `None` when nothing of ours answers.
    pub(crate) async fn ask(&self) -> Option<Process> {
        let (body, metrics) = tokio::join!(self.get(self.listen, "/health/ready"), self.metrics());
        let Value::Object(health) = serde_json::from_str(&body?).ok()? else {
            return None;
        };
        let ready = health.get("ready")?.as_bool()?;
        let dependencies = health
            .into_iter()
            .filter_map(|(name, state)| Some((name, state.as_str()?.to_owned())))
            .collect();
        let metric = |name| metrics.as_deref().and_then(|text| sum(text, name));
        // Only what writes the journal knows its lag.
        let writes = metric("postrider_recorder_batch_records_count").is_some_and(|count| count > 0.0);
        Some(Process {
            address: self.listen,
            ready,
            dependencies,
            attempts_in_flight: metric("postrider_attempts_in_flight"),
            deliveries_queued: metric("postrider_deliveries_queued"),
            journal_lag_seconds: metric("postrider_journal_lag_seconds").filter(|_| writes),
            messages_accepted_total: metric("postrider_gateway_messages_accepted_total"),
            attempts_total: metric("postrider_attempts_total"),
            records_written_total: metric("postrider_recorder_batch_records_sum"),
        })
    }

    async fn metrics(&self) -> Option<String> {
        self.get(self.metrics?, "/metrics").await
    }

    async fn get(&self, address: SocketAddr, path: &str) -> Option<String> {
        let url = format!("{}://{address}{path}", self.scheme);
        let mut response = self.client.get(url).send().await.ok()?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.ok()? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_MAX {
                return None;
            }
        }
        String::from_utf8(body).ok()
    }
}

/// The sum of a metric's series in an exposition; `None` when it has none.
fn sum(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.as_bytes().first()? {
            b' ' => rest.trim(),
            b'{' => rest.rsplit_once("} ")?.1.trim(),
            _ => return None,
        };
        value.split(' ').next()?.parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or_default() + value))
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn series_of_one_metric_are_added() {
        let text = "# TYPE a counter\na_total{b=\"2xx\"} 3\na_total{b=\"} x\"} 4\na_total_more 9\ne 1.5\n";
        assert_eq!(sum(text, "a_total"), Some(7.0));
        assert_eq!(sum(text, "e"), Some(1.5));
        assert_eq!(sum(text, "f"), None);
    }
}
