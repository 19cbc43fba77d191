//! The Lua scripts. They use what Redis 7.0 and Valkey have, take their clock from the server, and declare all keys.

use std::time::Duration;

use postrider_limits::gcra::micros;
use postrider_limits::{BACKLOG_TTL, BreakerSettings, RESTART, RESTART_REST, breaker};

/// How long a version is kept after it was published or last told to a gateway.
pub(crate) const VERSION_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// One script: its source, for the server that does not know it yet, and its name on those that do.
pub(crate) struct Script {
    pub(crate) source: String,
    pub(crate) sha1: String,
}

/// All of them.
pub(crate) struct Scripts {
    pub(crate) admit: Script,
    pub(crate) settle: Script,
    pub(crate) publish: Script,
    pub(crate) gate: Script,
    pub(crate) finish: Script,
    pub(crate) release: Script,
}

impl Scripts {
    pub(crate) fn new(settings: &BreakerSettings) -> Self {
        let constants = constants(settings);
        let endpoint = format!("{constants}{}", include_str!("lua/endpoint.lua"));
        Self {
            admit: script(&constants, include_str!("lua/admit.lua")),
            settle: script("", include_str!("lua/settle.lua")),
            publish: script(&constants, include_str!("lua/publish.lua")),
            gate: script(&endpoint, include_str!("lua/gate.lua")),
            finish: script(&endpoint, include_str!("lua/finish.lua")),
            release: script(&endpoint, include_str!("lua/release.lua")),
        }
    }
}

/// The numbers that the scripts share with the in-process implementation, so that they are written once.
fn constants(settings: &BreakerSettings) -> String {
    let numbers = [
        ("FAILURES", u64::from(settings.failures)),
        ("OPEN", micros(settings.open_for)),
        ("OPEN_MAX", micros(settings.open_for_max)),
        ("MEMORY", micros(breaker::MEMORY)),
        ("LEASE", micros(breaker::PROBE_LEASE)),
        ("POLL", micros(breaker::PROBE_POLL)),
        ("WAIT_MIN", micros(breaker::WAIT_MIN)),
        ("BACKLOG", micros(BACKLOG_TTL)),
        ("RESTART", u64::from(RESTART)),
        ("RESTART_REST", micros(RESTART_REST)),
        ("VERSION_MS", micros(VERSION_TTL) / 1000),
    ];
    numbers
        .iter()
        .map(|(name, number)| format!("local {name} = {number}\n"))
        .collect()
}

fn script(head: &str, body: &str) -> Script {
    let source = format!("{head}{body}");
    let sha1 = redis::Script::new(&source).get_hash().to_owned();
    Script { source, sha1 }
}
