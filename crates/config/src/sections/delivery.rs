//! What a worker does with a delivery, and where it may go.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::setting::{Any, Between, Count, Items, settings};
use crate::values::{ByteSize, Networks, Period};

settings! {
    /// Connections to receivers.
    Egress in "egress" {
        /// Networks that deliveries may go to although they are not public: `10.0.0.0/8,fd00::/8` in the
        /// environment, an array in TOML. A bare address stands for itself.
        allow: Networks = Networks::default(), Count(1_000);
        /// Refuse endpoints with `http://` URLs.
        https_only: bool = false, Any;
        /// Time for lookup, TCP and TLS together, inside the attempt's deadline.
        connect_timeout: Period = Period::secs(3), Between(Period::millis(100), Period::secs(30));
        /// Idle connections kept for each host.
        pool_idle_per_host: usize = 256, Between(0, 10_000);
        /// How long an idle connection is kept.
        idle_timeout: Period = Period::secs(20), Between(Period::secs(1), Period::secs(600));
        /// File of root certificates (PEM) to trust beside the system's.
        extra_roots: Option<PathBuf> = None, Any;
        /// Name servers to ask instead of the system's, as `10.0.0.53:53`, comma-separated in the environment, an array
        /// in TOML. `localhost` and the hosts file are known without them.
        name_servers: Vec<SocketAddr> = Vec::new(), Count(8);
    }
}

settings! {
    /// Attempts, retries and the limits of a worker.
    Delivery in "delivery" {
        /// Deadline of an attempt, from the lookup of the name to the end of the response, where the endpoint sets
        /// none.
        timeout: Period = Period::secs(15), Between(Period::secs(1), Period::secs(30));
        /// Delays after the first, second, and so on failed attempt, 20 % more or less by chance, where the endpoint
        /// sets none. Empty (`[]` in a file; an empty variable counts as not set): one attempt only.
        retry_schedule: Vec<Period> = retry_schedule(),
            Items(20, Between(Period::secs(1), Period::days(7)));
        /// Attempts in flight, per worker.
        max_in_flight: usize = 4_096, Between(1, 100_000);
        /// Deliveries held, tried or waiting for their turn, per worker, of which three quarters may come back from the
        /// store; the others wait in the broker. With more than a worker starts within `queue_max_wait`, what is behind
        /// goes to the store, which is slower.
        max_held: usize = 5_000, Between(1, 1_000_000);
        /// Bytes of frames held, per worker, of which three quarters may come back from the store.
        max_held_bytes: ByteSize = ByteSize::mib(256), Between(ByteSize::mib(16), ByteSize::mib(65_536));
        /// Attempts in flight to one host, per worker; slow endpoints share a quarter of it.
        host_in_flight: usize = 256, Between(4, 100_000);
        /// Attempts in flight to one endpoint, per worker, at most; adapted to the endpoint below it.
        endpoint_in_flight_max: usize = 256, Between(1, 100_000);
        /// An attempt that takes longer is journaled as in flight and no longer holds up its envelope.
        slow_after: Period = Period::secs(1), Between(Period::millis(100), Period::secs(10));
        /// What would wait longer in the worker for its endpoint goes to the store.
        queue_max_wait: Period = Period::secs(1), Between(Period::millis(100), Period::secs(10));
        /// An endpoint that has done nothing but fail for so long is disabled.
        disable_after: Period = Period::days(5), Between(Period::secs(1), Period::days(365));
        /// Failures in a row that open an endpoint's breaker.
        breaker_failures: u32 = 10, Between(1, 1_000);
        /// How long a breaker stays open at first; each failed probe doubles it.
        breaker_open: Period = Period::secs(30), Between(Period::secs(1), Period::secs(3_600));
        /// Longest time between two probes.
        breaker_open_max: Period = Period::secs(600), Between(Period::secs(1), Period::secs(86_400));
        /// How long a worker that shuts down waits for attempts in flight.
        drain_timeout: Period = Period::secs(25), Between(Period::secs(0), Period::secs(600));
        /// Frames taken from each queue and not yet acknowledged, per worker.
        prefetch: u16 = 64, Between(1, 2_000);
    }
}

/// 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h: the schedule that the Standard Webhooks specification recommends.
fn retry_schedule() -> Vec<Period> {
    [5, 300, 1_800, 7_200, 18_000, 36_000, 36_000]
        .map(Period::secs)
        .to_vec()
}
