//! The rules that values must keep: each by itself, together, and for the roles of the process.

use std::net::SocketAddr;

use postrider_secrets::{Keyring, RedactedUrl};
use secrecy::ExposeSecret as _;

use crate::load::ConfigError;
use crate::roles::Roles;
use crate::sections::{Config, StoreTarget};

/// Below this a key that an operator chose could be guessed.
const ADMIN_KEY_BYTES_MIN: usize = 16;
/// Longest key that a request may bring.
const ADMIN_KEY_BYTES_MAX: usize = 512;

impl Config {
    /// Checks everything that can be known before a service is reached.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with one sentence for every rule that is broken.
    pub fn validate(&self, roles: Roles) -> Result<(), ConfigError> {
        let mut broken = self.broken_values();
        self.check_set_up(roles, &mut broken);
        valid(broken)
    }

    /// Checks the values, and not whether they are enough to serve: a command that needs the store alone gets no more than
    /// what it takes to reach that.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn validate_values(&self) -> Result<(), ConfigError> {
        valid(self.broken_values())
    }

    fn broken_values(&self) -> Vec<String> {
        let mut broken = Vec::new();
        self.check_limits(&mut broken);
        self.check_texts(&mut broken);
        self.check_relations(&mut broken);
        broken
    }

    fn check_limits(&self, broken: &mut Vec<String>) {
        for field in self.fields().into_iter().filter(|field| !field.in_limit) {
            let value = field.value.as_deref().unwrap_or("empty");
            broken.push(format!(
                "`{}` is {value}; it must be {}",
                field.key(),
                field.limit
            ));
        }
    }

    fn check_texts(&self, broken: &mut Vec<String>) {
        check_scheme("broker.url", self.broker.url.as_ref(), &["amqp", "amqps"], broken);
        let redis = ["redis", "rediss", "redis+cluster", "rediss+cluster"];
        check_scheme("redis.url", self.redis.url.as_ref(), &redis, broken);
        check_scheme(
            "store.url",
            self.store.url.as_ref(),
            &["postgres", "postgresql", "sqlite"],
            broken,
        );
        check_scheme(
            "traces.endpoint",
            self.traces.endpoint.as_ref(),
            &["http", "https"],
            broken,
        );
        if self
            .traces
            .endpoint
            .as_ref()
            .is_some_and(|url| url.expose().contains(['?', '#']))
        {
            broken.push("`traces.endpoint` must be a base URL, without a query".to_owned());
        }
        if self.store_target() == StoreTarget::Sqlite("".into()) {
            broken.push("`store.url` names no file; write `sqlite:///path/to/file`".to_owned());
        }
        if let Some(word) = self.log.level.split(',').find(|part| !names_level(part)) {
            broken.push(format!(
                "`log.level` has `{word}`; give `error`, `warn`, `info`, `debug`, `trace` or `off`, or a list such as \
                 `info,lapin=warn`"
            ));
        }
        if let Some(key) = &self.auth.admin_key {
            let key = key.expose_secret();
            // What else a header carries, no request can bring.
            let fits = (ADMIN_KEY_BYTES_MIN..=ADMIN_KEY_BYTES_MAX).contains(&key.len());
            if !fits || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                broken.push(format!(
                    "`auth.admin_key` must have {ADMIN_KEY_BYTES_MIN} to {ADMIN_KEY_BYTES_MAX} ASCII characters and no white space; \
                     `openssl rand -hex 32` makes a good one"
                ));
            }
        }
        if let Some(key) = &self.secrets.key
            && let Err(error) = Keyring::parse(key.expose_secret())
        {
            broken.push(format!("`secrets.key` cannot be used: {error}"));
        }
        if self.server.tls_cert.is_some() != self.server.tls_key.is_some() {
            broken.push("`server.tls_cert` and `server.tls_key` must be set together".to_owned());
        }
        if self
            .metrics
            .listen
            .is_some_and(|metrics| clash(metrics, self.listen))
        {
            broken.push("`metrics.listen` and `listen` must be different ports".to_owned());
        }
    }

    /// Caps that a wider cap makes meaningless are left alone: the wider one simply binds first.
    fn check_relations(&self, broken: &mut Vec<String>) {
        let Self {
            server,
            ingest,
            delivery,
            retention,
            broker,
            ..
        } = self;
        let mut at_most = |small: &str, large: &str, holds: bool| {
            if !holds {
                broken.push(format!("`{small}` must not be more than `{large}`"));
            }
        };
        at_most(
            "ingest.message_max_bytes",
            "ingest.batch_max_bytes",
            ingest.message_max_bytes <= ingest.batch_max_bytes,
        );
        at_most(
            "ingest.batch_max_bytes",
            "server.body_memory_max",
            ingest.batch_max_bytes <= server.body_memory_max,
        );
        at_most(
            "delivery.breaker_open",
            "delivery.breaker_open_max",
            delivery.breaker_open <= delivery.breaker_open_max,
        );
        at_most(
            "retention.payload_days",
            "retention.log_days",
            retention.payload_days <= retention.log_days,
        );
        at_most(
            "delivery.max_in_flight",
            "delivery.max_held",
            delivery.max_in_flight <= delivery.max_held,
        );
        at_most(
            "broker.envelope_max_bytes",
            "delivery.max_held_bytes",
            broker.envelope_max_bytes <= delivery.max_held_bytes,
        );
    }

    /// Mixes that cannot work, or would lose what was promised.
    fn check_set_up(&self, roles: Roles, broken: &mut Vec<String>) {
        let scaled_out = self.is_scaled_out();
        let sqlite = matches!(self.store_target(), StoreTarget::Sqlite(_));
        let mut refuse = |condition: bool, sentence: String| {
            if condition {
                broken.push(sentence);
            }
        };
        let part = !roles.is_all();
        refuse(
            part && !scaled_out,
            format!(
                "a process that runs only {roles} needs `broker.url` (POSTRIDER_BROKER__URL): the in-process broker \
                 reaches no other process"
            ),
        );
        refuse(
            !part && !scaled_out && !sqlite,
            "`store.url` is a postgres:// URL, so `broker.url` (POSTRIDER_BROKER__URL) is required: what is in the \
             in-process broker is taken up again at a restart on the embedded store alone"
                .to_owned(),
        );
        refuse(
            part && sqlite,
            format!(
                "a process that runs only {roles} needs a postgres:// URL as `store.url` (POSTRIDER_STORE__URL): SQLite \
                 serves one process that runs all roles"
            ),
        );
        refuse(
            part && self.redis.url.is_none(),
            format!(
                "a process that runs only {roles} needs `redis.url` (POSTRIDER_REDIS__URL): rate limits, idempotency and \
                 breakers must be shared with the other processes"
            ),
        );
        refuse(
            !part && scaled_out && self.redis.url.is_none(),
            "`broker.url` is set, so `redis.url` (POSTRIDER_REDIS__URL) is required: idempotency keys must outlast the \
             process, and limits and breakers be shared"
                .to_owned(),
        );
        refuse(
            !part && scaled_out && sqlite,
            "`broker.url` is set, so `store.url` (POSTRIDER_STORE__URL) must be a postgres:// URL: SQLite serves one \
             process, and RabbitMQ is for several"
                .to_owned(),
        );
        refuse(
            scaled_out && self.auth.admin_key.is_none(),
            "`broker.url` is set, so `auth.admin_key` (POSTRIDER_AUTH__ADMIN_KEY) is required: processes cannot each \
             make their own"
                .to_owned(),
        );
        refuse(
            scaled_out && self.secrets.key.is_none(),
            "`broker.url` is set, so `secrets.key` (POSTRIDER_SECRETS__KEY) is required: every process must read what \
             another encrypted"
                .to_owned(),
        );
    }
}

fn valid(broken: Vec<String>) -> Result<(), ConfigError> {
    if broken.is_empty() {
        Ok(())
    } else {
        Err(ConfigError::Invalid(broken))
    }
}

/// Whether a part of `log.level` ends with a level. A word that is none would be read as a target, and all else be silent.
fn names_level(part: &str) -> bool {
    let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
    ["off", "error", "warn", "info", "debug", "trace"]
        .iter()
        .any(|known| level.eq_ignore_ascii_case(known))
}

fn check_scheme(key: &str, url: Option<&RedactedUrl>, schemes: &[&str], broken: &mut Vec<String>) {
    let Some(url) = url else { return };
    if !schemes.contains(&url.scheme().as_str()) {
        let known: Vec<String> = schemes.iter().map(|scheme| format!("`{scheme}://`")).collect();
        broken.push(format!("`{key}` must start with one of {}", known.join(", ")));
    }
}

/// Whether two listeners would meet on one port.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let same_address = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && same_address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Overrides;
    use crate::roles::Role;

    const BROKER: (&str, &str) = ("broker.url", "amqp://guest:pw@rabbit");
    const REDIS: (&str, &str) = ("redis.url", "redis://redis");
    const STORE: (&str, &str) = ("store.url", "postgres://pg/db");
    const ADMIN: (&str, &str) = ("auth.admin_key", "0123456789abcdef");
    const KEY: (&str, &str) = ("secrets.key", "psk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");

    fn broken(settings: &[(&'static str, &str)], roles: Roles) -> Vec<String> {
        let overrides = settings.iter().fold(Overrides::default(), |all, (key, value)| {
            all.set(key, *value, "--test")
        });
        match Config::load_from(None, [], overrides)
            .unwrap()
            .config
            .validate(roles)
        {
            Ok(()) => Vec::new(),
            Err(ConfigError::Invalid(sentences)) => sentences,
            Err(other) => panic!("{other}"),
        }
    }

    #[track_caller]
    fn refuses(settings: &[(&'static str, &str)], roles: Roles, expected: &str) {
        let sentences = broken(settings, roles);
        assert!(
            sentences.len() == 1 && sentences[0].contains(expected),
            "expected only `{expected}`, got {sentences:#?}"
        );
    }

    #[test]
    fn the_defaults_and_a_full_scaled_out_set_up_are_valid() {
        assert_eq!(broken(&[], Roles::ALL), Vec::<String>::new());
        assert_eq!(broken(&[REDIS], Roles::ALL), Vec::<String>::new());
        assert_eq!(
            broken(&[("store.url", "sqlite:///srv/p.db")], Roles::ALL),
            Vec::<String>::new()
        );
        let full = [BROKER, REDIS, STORE, ADMIN, KEY];
        for roles in Role::ALL.map(Roles::from).into_iter().chain([Roles::ALL]) {
            assert_eq!(broken(&full, roles), Vec::<String>::new(), "{roles}");
        }
    }

    #[test]
    fn a_mix_that_cannot_work_is_refused_with_the_reason() {
        let worker = Roles::from(Role::Worker);
        refuses(
            &[REDIS, STORE],
            worker,
            "in-process broker reaches no other process",
        );
        refuses(
            &[BROKER, REDIS, ADMIN, KEY],
            worker,
            "SQLite serves one process that runs all roles",
        );
        refuses(
            &[BROKER, STORE, ADMIN, KEY],
            worker,
            "must be shared with the other processes",
        );
        refuses(
            &[BROKER, REDIS, ADMIN, KEY],
            Roles::ALL,
            "must be a postgres:// URL",
        );
        refuses(
            &[BROKER, REDIS, STORE, KEY],
            Roles::ALL,
            "POSTRIDER_AUTH__ADMIN_KEY",
        );
        refuses(
            &[BROKER, REDIS, STORE, ADMIN],
            Roles::ALL,
            "POSTRIDER_SECRETS__KEY",
        );
        refuses(&[BROKER, STORE, ADMIN, KEY], Roles::ALL, "POSTRIDER_REDIS__URL");
        refuses(&[STORE, REDIS, ADMIN, KEY], Roles::ALL, "POSTRIDER_BROKER__URL");
        assert_eq!(broken(&[], worker).len(), 3, "every reason at once");
    }

    #[test]
    fn a_log_level_that_would_silence_everything_is_refused() {
        for level in ["warning", "info,lapin", "info,lapin=loud", ""] {
            refuses(&[("log.level", level)], Roles::ALL, "`log.level` has");
        }
        for level in [
            "INFO",
            "off",
            "info, lapin=warn",
            "postrider_worker[attempt]=debug,error",
        ] {
            assert_eq!(
                broken(&[("log.level", level)], Roles::ALL),
                Vec::<String>::new(),
                "{level}"
            );
        }
    }

    #[test]
    fn values_are_checked_without_the_set_up_too() {
        let overrides = Overrides::default().set("store.url", "postgress://u:hunter2@h/d", "--test");
        let config = Config::load_from(None, [], overrides).unwrap().config;
        let error = config.validate_values().unwrap_err().to_string();
        assert!(
            error.contains("store.url") && !error.contains("hunter2"),
            "{error}"
        );
        let store = Overrides::default().set(STORE.0, STORE.1, "--test");
        let config = Config::load_from(None, [], store).unwrap().config;
        config.validate_values().unwrap();
    }

    #[test]
    fn values_outside_their_limits_are_refused() {
        refuses(
            &[("delivery.timeout", "31s")],
            Roles::ALL,
            "`delivery.timeout` is 31s; it must be 1s to 30s",
        );
        refuses(
            &[("delivery.retry_schedule", "5s,8d")],
            Roles::ALL,
            "each 1s to 7d",
        );
        refuses(
            &[("delivery.max_in_flight", "5001")],
            Roles::ALL,
            "`delivery.max_in_flight` must not be more than `delivery.max_held`",
        );
        refuses(&[("broker.shards", "0")], Roles::ALL, "1 to 256");
        refuses(&[("broker.prefix", "a b")], Roles::ALL, "letters, digits");
        refuses(&[("ingest.app_rate", "0")], Roles::ALL, "`ingest.app_rate` is 0");
        refuses(
            &[("traces.sample_ratio", "1.5")],
            Roles::ALL,
            "`traces.sample_ratio` is 1.5; it must be 0 to 1",
        );
        refuses(
            &[("traces.endpoint", "grpc://collector:4317")],
            Roles::ALL,
            "`traces.endpoint` must start with",
        );
        refuses(
            &[("traces.endpoint", "http://collector:4318?key=1")],
            Roles::ALL,
            "without a query",
        );
        refuses(
            &[("retention.payload_days", "91")],
            Roles::ALL,
            "not be more than `retention.log_days`",
        );
        refuses(
            &[
                ("ingest.message_max_bytes", "8MiB"),
                ("ingest.batch_max_bytes", "1MiB"),
            ],
            Roles::ALL,
            "batch",
        );
    }

    #[test]
    fn texts_of_another_form_are_refused_without_showing_secrets() {
        refuses(
            &[("redis.url", "http://:pw@h")],
            Roles::ALL,
            "`redis.url` must start with one of `redis://`",
        );
        refuses(
            &[("store.url", "mysql://u:pw@h/d")],
            Roles::ALL,
            "`store.url` must start with",
        );
        refuses(&[("store.url", "sqlite://")], Roles::ALL, "names no file");
        // No header carries the second, no gateway looks at the third.
        let long = "k".repeat(513);
        for key in ["short", "schlüssel-schlüssel", &long] {
            refuses(
                &[("auth.admin_key", key)],
                Roles::ALL,
                "16 to 512 ASCII characters",
            );
        }
        refuses(
            &[("secrets.key", "psk_short")],
            Roles::ALL,
            "`secrets.key` cannot be used: key 1",
        );
        refuses(&[("server.tls_cert", "/c.pem")], Roles::ALL, "set together");
        refuses(
            &[("metrics.listen", "0.0.0.0:8080")],
            Roles::ALL,
            "different ports",
        );
        for settings in [[("store.url", "mysql://u:pw@h/d")], [("auth.admin_key", "pw pw")]] {
            assert!(!broken(&settings, Roles::ALL).concat().contains("pw"));
        }
    }

    #[test]
    fn the_store_is_found() {
        let target = |url: Option<&str>| {
            let mut config = Config::default();
            config.store.url = url.map(RedactedUrl::from);
            config.store_target()
        };
        assert_eq!(
            target(None),
            StoreTarget::Sqlite("./postrider-data/postrider.db".into())
        );
        assert_eq!(
            target(Some("sqlite:///srv/p.db")),
            StoreTarget::Sqlite("/srv/p.db".into())
        );
        assert_eq!(target(Some("sqlite://p.db")), StoreTarget::Sqlite("p.db".into()));
        assert_eq!(target(Some("sqlite:p.db")), StoreTarget::Sqlite("p.db".into()));
        assert_eq!(
            target(Some("postgresql://h/d")),
            StoreTarget::Postgres("postgresql://h/d".into())
        );
    }
}
