//! Sending one request under one deadline, and once more where that is safe.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout_at};

use crate::body;
use crate::connections::{Connections, Count};
use crate::connector::{Connector, Parts};
use crate::failure::{Failure, Phase};
use crate::phase::{ATTEMPT, Attempt, in_phase};
use crate::policy::Policy;
use crate::request::{Request, Response};
use crate::resolver::{Resolve, SystemResolver};
use crate::settings::{Settings, SettingsError};
use crate::stream::Exchanges;
use crate::tls;

type Pool = legacy::Client<Connector, Full<Bytes>>;

/// `Host`, `Accept` and `User-Agent`.
const OWN_HEADERS: usize = 3;

/// The guarded client. A clone shares the pools.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    /// Hosts are spread over these by hash; each has a lock of its own.
    pools: Box<[Pool]>,
    /// Keeps no connections, so that what is sent again goes over one that is surely new.
    fresh: Pool,
    count: Count,
    connection_age_max: Duration,
    user_agent: HeaderValue,
    response_read_max: usize,
    response_keep_max: usize,
}

impl Client {
    /// A client with the system's resolver, or with one that asks `settings.name_servers`.
    ///
    /// # Errors
    /// When the settings contradict each other or TLS cannot be set up.
    pub fn new(settings: Settings, policy: Policy) -> Result<Self, SettingsError> {
        let resolver = if settings.name_servers.is_empty() {
            SystemResolver::new()
        } else {
            SystemResolver::asking(&settings.name_servers)
        };
        Self::with_resolver(settings, policy, Arc::new(resolver))
    }

    /// A client with another resolver.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_resolver(
        settings: Settings,
        policy: Policy,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, SettingsError> {
        settings.validate()?;
        let user_agent = HeaderValue::try_from(settings.user_agent).map_err(|_| SettingsError::UserAgent)?;
        let tls = tls::connector(&settings.extra_roots_pem)?;
        let count = Count::default();
        let connector = Connector::new(Parts {
            policy,
            resolver,
            tls,
            timeout: settings.connect_timeout,
            count: count.clone(),
        });

        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(settings.idle_timeout)
            .pool_max_idle_per_host(settings.idle_per_host_max)
            .http1_max_buf_size(settings.response_head_max)
            // A request of which nothing was written, because its idle connection turned out to be closed, takes
            // the next connection: the receiver has seen nothing. That ends, for each such connection leaves the
            // pool and a new one is not retried.
            .retry_canceled_requests(true)
            .set_host(false);
        let pools = (0..settings.pools)
            .map(|_| builder.build(connector.clone()))
            .collect();
        let fresh = builder.pool_max_idle_per_host(0).build(connector);
        Ok(Self(Arc::new(Inner {
            pools,
            fresh,
            count,
            connection_age_max: settings.connection_age_max,
            user_agent,
            response_read_max: settings.response_read_max,
            response_keep_max: settings.response_keep_max,
        })))
    }

    /// How many connections are open now, and were opened.
    pub fn connections(&self) -> Connections {
        self.0.count.now()
    }

    /// POSTs the request and reads the response, all before `request.deadline` has passed.
    ///
    /// A response with any status is `Ok`, a redirect too. When the receiver closed a reused connection at once, before
    /// it answered a byte, the request is sent again, once, over a new connection: it had closed an idle connection
    /// while the request was on its way.
    ///
    /// # Errors
    /// See [`Failure`], which says whose fault it was.
    pub async fn send(&self, request: Request) -> Result<Response, Failure> {
        let started = Instant::now();
        let deadline = started + request.deadline;
        let mut exchange = pin!(ATTEMPT.scope(Attempt::new(deadline), self.0.exchange(&request, started)));
        if let Ok(result) = timeout_at(deadline, exchange.as_mut()).await {
            return result;
        }
        let phase = exchange
            .take_value()
            .map_or(Phase::Headers, |attempt| attempt.phase());
        Err(Failure::Timeout { phase })
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("pools", &self.0.pools.len())
            .finish_non_exhaustive()
    }
}

impl Inner {
    async fn exchange(&self, request: &Request, started: Instant) -> Result<Response, Failure> {
        let mut response = in_phase(Phase::Headers, self.head(request)).await?;
        let status = response.status().as_u16();
        let retry_after = response.headers_mut().remove(header::RETRY_AFTER);
        let body = body::read(
            response.into_body(),
            self.response_read_max,
            self.response_keep_max,
        );
        let body = in_phase(Phase::Body, body).await?;
        Ok(Response {
            status,
            retry_after,
            body: body.kept,
            truncated: body.truncated,
            duration: started.elapsed(),
        })
    }

    async fn head(&self, request: &Request) -> Result<http::Response<Incoming>, Failure> {
        let mut prepared = self.prepare(request);
        let connection = capture_connection(&mut prepared);
        let error = match self.pool(request).request(prepared).await {
            Ok(response) => {
                self.retire(&response, &connection);
                return Ok(response);
            }
            Err(error) => error,
        };
        if !was_closed_while_idle(&error) {
            return Err(Failure::from_exchange(&error));
        }
        self.fresh
            .request(self.prepare(request))
            .await
            .map_err(|error| Failure::from_exchange(&error))
    }

    /// Has a connection that is old end with this response: the pool itself keeps one for ever that is used often
    /// enough.
    fn retire(&self, response: &http::Response<Incoming>, connection: &CaptureConnection) {
        let exchanges = response.extensions().get::<Exchanges>();
        if exchanges.is_some_and(|exchanges| exchanges.open_for() >= self.connection_age_max)
            && let Some(connection) = connection.connection_metadata().as_ref()
        {
            // What is under way over it goes on.
            connection.poison();
        }
    }

    fn pool(&self, request: &Request) -> &Pool {
        let count = self.pools.len() as u64;
        // The remainder is below the number of pools, so nothing is cut off.
        let index = usize::try_from(request.target.pool_hash % count).unwrap_or_default();
        &self.pools[index]
    }

    fn prepare(&self, request: &Request) -> http::Request<Full<Bytes>> {
        let mut headers = HeaderMap::with_capacity(OWN_HEADERS + request.headers.len());
        headers.insert(header::HOST, request.target.host.clone());
        headers.insert(header::ACCEPT, const { HeaderValue::from_static("*/*") });
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        for (name, value) in &request.headers {
            if is_ours_to_set(name) {
                continue;
            }
            if *name == header::ACCEPT || *name == header::USER_AGENT {
                headers.insert(name, value.clone());
            } else {
                headers.append(name, value.clone());
            }
        }
        let mut prepared = http::Request::new(Full::new(request.body.clone()));
        *prepared.method_mut() = Method::POST;
        *prepared.uri_mut() = request.target.uri.clone();
        *prepared.version_mut() = Version::HTTP_11;
        *prepared.headers_mut() = headers;
        prepared
    }
}

/// Headers that frame the message, steer the connection or route it: from outside they would allow request
/// smuggling.
fn is_ours_to_set(name: &HeaderName) -> bool {
    static NAMES: [HeaderName; 10] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::EXPECT,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    NAMES.contains(name)
}

/// Whether a reused connection ended at once, before a byte of the response came.
fn was_closed_while_idle(error: &legacy::Error) -> bool {
    let Some(connection) = error.connect_info() else {
        return false;
    };
    let mut extensions = http::Extensions::new();
    connection.get_extras(&mut extensions);
    extensions
        .get::<Exchanges>()
        .is_some_and(Exchanges::crossed_a_close)
        && matches!(Failure::from_exchange(error), Failure::Closed | Failure::Reset)
}
