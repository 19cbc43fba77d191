use std::io::Write as _;

use secrecy::ExposeSecret as _;

use super::*;
use crate::values::{LogFormat, Period};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn from_env(pairs: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    Config::load_from(None, variables(pairs), Overrides::default())
}

fn from_file(text: &str) -> Result<Loaded, ConfigError> {
    Config::load_from(Some(file(text).path()), [], Overrides::default())
}

fn effective(loaded: &Loaded, key: &str) -> Effective {
    loaded
        .effective()
        .into_iter()
        .find(|line| line.key == key)
        .unwrap()
}

/// A value that a key of this name takes.
fn sample(field: &Field) -> String {
    match (&field.default, field.key().as_str()) {
        (Some(default), _) => default.clone(),
        (None, "metrics.listen") => "127.0.0.1:9464".to_owned(),
        (None, "ingest.app_rate") => "50".to_owned(),
        (None, "egress.allow") => "10.0.0.0/8,::1".to_owned(),
        (None, "egress.name_servers") => "127.0.0.1:53,[::1]:53".to_owned(),
        (None, _) => "scheme://value".to_owned(),
    }
}

#[test]
fn later_sources_win_and_are_named() {
    let file = file("listen = '127.0.0.1:1'\n[delivery]\ntimeout = '10s'\nmax_in_flight = 7\nprefetch = 9\n");
    let variables = variables(&[
        ("POSTRIDER_LISTEN", "127.0.0.1:2"),
        ("POSTRIDER_DELIVERY__TIMEOUT", "11s"),
    ]);
    let overrides = Overrides::default().set("listen", "127.0.0.1:3", "--listen");
    let loaded = Config::load_from(Some(file.path()), variables, overrides).unwrap();
    assert_eq!(loaded.config.listen.port(), 3);
    assert_eq!(loaded.config.delivery.timeout, Period::secs(11));
    assert_eq!(
        (
            loaded.config.delivery.max_in_flight,
            loaded.config.delivery.prefetch
        ),
        (7, 9)
    );
    assert_eq!(loaded.config.delivery.host_in_flight, 256);
    let origin = |key| effective(&loaded, key).origin;
    assert_eq!(origin("listen"), Origin::Option("--listen".to_owned()));
    assert_eq!(
        origin("delivery.timeout"),
        Origin::Variable("POSTRIDER_DELIVERY__TIMEOUT".to_owned())
    );
    assert_eq!(
        origin("delivery.max_in_flight"),
        Origin::File(file.path().to_owned())
    );
    assert_eq!(origin("delivery.host_in_flight"), Origin::Default);
}

/// The list of fields and what serde reads agree: each key is taken from the environment and from the file.
#[test]
fn every_key_can_be_set_in_both_ways() {
    for field in Config::default().fields() {
        let sample = sample(&field);
        let loaded = from_env(&[(&field.variable(), &sample)]);
        let loaded = loaded.unwrap_or_else(|error| panic!("{}: {error}", field.key()));
        assert_eq!(
            effective(&loaded, &field.key()).origin,
            Origin::Variable(field.variable())
        );
        let literal = match field.form {
            Form::Text => format!("{sample:?}"),
            Form::Number | Form::Bool => sample.clone(),
            Form::List => format!("{:?}", sample.split(',').collect::<Vec<_>>()),
        };
        let section = if field.section.is_empty() {
            String::new()
        } else {
            format!("[{}]\n", field.section)
        };
        let in_file = from_file(&format!("{section}{} = {literal}\n", field.name));
        let in_file = in_file.unwrap_or_else(|error| panic!("{}: {error}", field.key()));
        assert_eq!(
            effective(&in_file, &field.key()).value,
            effective(&loaded, &field.key()).value
        );
    }
}

#[test]
fn the_fixed_names_are_read() {
    let loaded = from_env(&[
        ("POSTRIDER_BROKER__URL", "amqp://user:pw@rabbit/v"),
        ("POSTRIDER_REDIS__URL", "redis://:pw@redis"),
        ("POSTRIDER_STORE__URL", "postgres://user:pw@pg/db"),
        ("POSTRIDER_AUTH__ADMIN_KEY", "1234567890123456"),
        ("POSTRIDER_SECRETS__KEY", "psk_pw"),
        ("POSTRIDER_EGRESS__ALLOW", "127.0.0.0/8, 10.0.0.1"),
        ("POSTRIDER_INGEST__APP_RATE", "50"),
        ("POSTRIDER_LOG__FORMAT", "json"),
    ])
    .unwrap();
    let config = &loaded.config;
    assert_eq!(
        config.broker.url.as_ref().unwrap().expose(),
        "amqp://user:pw@rabbit/v"
    );
    assert_eq!(
        config.auth.admin_key.as_ref().unwrap().expose_secret(),
        "1234567890123456"
    );
    assert_eq!(config.egress.allow.0.len(), 2);
    assert_eq!(config.ingest.app_rate, Some(50));
    assert_eq!(config.log.format, LogFormat::Json);
    let shown = format!("{:?} {:?}", loaded, loaded.effective());
    assert!(!shown.contains("pw") && !shown.contains("1234567890"), "{shown}");
    assert_eq!(
        effective(&loaded, "broker.url").value.as_deref(),
        Some("amqp://user:***@rabbit/v")
    );
    assert_eq!(effective(&loaded, "secrets.key").value.as_deref(), Some("***"));
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_and_its_place() {
    let says = |result: Result<Loaded, ConfigError>, expected: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    says(
        from_env(&[("POSTRIDER_BROKER_URL", "amqp://u:pw@h")]),
        "unknown environment variable POSTRIDER_BROKER_URL; the nearest known one is POSTRIDER_BROKER__URL",
    );
    says(
        from_env(&[("POSTRIDER_ADMIN_KEY", "x")]),
        "nearest known one is POSTRIDER_AUTH__ADMIN_KEY",
    );
    says(
        from_file("[delivery]\ntimeot = '1s'\n"),
        "unknown key `delivery.timeot` in file ",
    );
    says(
        from_file("[delivery]\ntimeot = '1s'\n"),
        "the nearest known one is `delivery.timeout`",
    );
    says(
        from_file("[delivery]\nadmin_key = 'x'\n"),
        "the nearest known one is `auth.admin_key`",
    );
    says(from_file("lisen = 'x'\n"), "the nearest known one is `listen`");
    says(from_file("[delivry]\n"), "unknown key `delivry` in file ");
    let both = from_env(&[("POSTRIDER_A", "1"), ("POSTRIDER_B", "1")]).unwrap_err();
    assert_eq!(
        both.to_string().lines().count(),
        2,
        "every unknown key is named at once"
    );
}

#[test]
fn variables_of_others_are_left_alone() {
    let loaded = from_env(&[
        ("POSTRIDER_SERVICE_HOST", "10.0.0.1"),
        ("POSTRIDER_SERVICE_PORT_HTTP", "80"),
        ("POSTRIDER_PORT", "tcp://10.0.0.1:80"),
        ("POSTRIDER_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("POSTRIDER_GATEWAY_PORT_8080_TCP", "tcp://10.0.0.1:80"),
        ("POSTRIDER_TEST_AMQP_URL", "amqp://h"),
        ("POSTRIDER_CONFIG", "x.toml"),
        ("POSTRIDER_REDIS__URL", ""),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert!(
        loaded
            .effective()
            .iter()
            .all(|line| line.origin == Origin::Default)
    );
}

#[test]
fn a_wrong_value_is_refused_with_its_key_and_place() {
    let error = from_env(&[("POSTRIDER_DELIVERY__TIMEOUT", "15")])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(
            "`delivery.timeout` from environment variable POSTRIDER_DELIVERY__TIMEOUT: `15` is no duration"
        ),
        "{error}"
    );
    let error = from_env(&[("POSTRIDER_DELIVERY__RETRY_SCHEDULE", "5s,soon")])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("`delivery.retry_schedule` from environment variable"),
        "{error}"
    );
    let error = from_env(&[("POSTRIDER_BROKER__SHARDS", "many")])
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("`broker.shards` from"), "{error}");
    let error = from_env(&[("POSTRIDER_EGRESS__ALLOW", "localhost")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("`localhost` is no network"), "{error}");
}

#[test]
fn no_error_shows_a_secret() {
    let wrong_type = from_file("[auth]\nadmin_key = 4711471147114711\n").unwrap_err();
    let broken_line = from_file("[auth]\nadmin_key = 4711471147114711 4711\n").unwrap_err();
    for error in [wrong_type, broken_line] {
        assert!(!format!("{error} {error:?}").contains("4711"), "{error:?}");
    }
}

#[test]
fn a_broken_file_is_refused_with_its_line() {
    let error = from_file("listen = '127.0.0.1:1'\n[delivery\n").unwrap_err();
    assert!(matches!(error, ConfigError::Syntax { line: 2, .. }), "{error:?}");
    let missing = Config::load_from(
        Some(Path::new("/nowhere/postrider.toml")),
        [],
        Overrides::default(),
    );
    assert!(matches!(missing, Err(ConfigError::Read { .. })));
}
