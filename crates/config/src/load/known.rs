//! The keys that exist, the variables that are not ours, and what an unknown key may have meant.

use super::{Origin, UnknownKey};
use crate::sections::Config;
use crate::setting::{Field, VARIABLE_PREFIX, variable_of};

/// Variables with the prefix that are no settings but options of commands, or for tests.
const OTHER_VARIABLES: [&str; 4] = [
    "POSTRIDER_CONFIG",
    "POSTRIDER_ROLE",
    "POSTRIDER_SINK_SECRET",
    "POSTRIDER_FAILPOINT",
];
const TEST_PREFIXES: [&str; 2] = ["POSTRIDER_TEST_", "POSTRIDER_TESTKIT_"];

/// Whether a variable is meant for this crate. Kubernetes adds variables for each service of a namespace, and one
/// named `postrider` gives them our prefix; none of ours has their form.
pub(super) fn is_setting(name: &str) -> bool {
    name.starts_with(VARIABLE_PREFIX)
        && !OTHER_VARIABLES.contains(&name)
        && !TEST_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        && !is_service_link(name)
}

/// `…_SERVICE_HOST`, `…_SERVICE_PORT[_NAME]`, `…_PORT` and `…_PORT_<number>_<protocol>[_…]`, with no `__`.
fn is_service_link(name: &str) -> bool {
    let name = name.strip_prefix("POSTRIDER").unwrap_or(name);
    let numbered = || {
        let (_, rest) = name.split_once("_PORT_")?;
        let (number, protocol) = rest.split_once('_')?;
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        Some(
            digits
                && ["TCP", "UDP", "SCTP"]
                    .iter()
                    .any(|known| protocol.starts_with(known)),
        )
    };
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.ends_with("_PORT")
            || numbered().unwrap_or(false))
}

/// The keys that exist.
pub(super) struct Known(Vec<Field>);

impl Known {
    pub(super) fn new() -> Self {
        Self(Config::default().fields())
    }

    pub(super) fn get(&self, key: &str) -> Option<&Field> {
        self.0.iter().find(|field| field.key() == key)
    }

    pub(super) fn by_variable(&self, name: &str) -> Option<&Field> {
        self.0.iter().find(|field| field.variable() == name)
    }

    pub(super) fn is_section(&self, name: &str) -> bool {
        self.0.iter().any(|field| field.section == name)
    }

    pub(super) fn unknown(&self, written: String, origin: Origin) -> UnknownKey {
        let nearest = nearest(&written, self.0.iter().map(Field::key));
        UnknownKey {
            written,
            origin,
            nearest,
        }
    }

    pub(super) fn unknown_variable(&self, name: String) -> UnknownKey {
        let key = name
            .strip_prefix(VARIABLE_PREFIX)
            .unwrap_or(&name)
            .to_ascii_lowercase()
            .replace("__", ".");
        let nearest = variable_of(&nearest(&key, self.0.iter().map(Field::key)));
        UnknownKey {
            written: name.clone(),
            origin: Origin::Variable(name),
            nearest,
        }
    }
}

/// The fewest letters apart; a key with the same last part in another section before that.
fn nearest(written: &str, keys: impl Iterator<Item = String>) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |key: &String| {
        let letters = strsim::damerau_levenshtein(written, key);
        if last(key) == last(written) {
            letters.min(2)
        } else {
            letters
        }
    };
    keys.min_by_key(|key| (distance(key), strsim::damerau_levenshtein(written, key)))
        .unwrap_or_default()
}
