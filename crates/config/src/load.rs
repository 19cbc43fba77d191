//! Reading the settings: defaults, file, environment, command line, later ones winning.

mod known;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use figment2::value::{Dict, Map, Value};
use figment2::{Figment, Metadata, Profile, Provider};

use crate::sections::Config;
use crate::setting::{Field, Form, VARIABLE_PREFIX};
use known::{Known, is_setting};

/// A configuration file is at most so large.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// An option of the command line.
    Option(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Option(name) => write!(f, "option {name}"),
        }
    }
}

/// What the command line sets, with the option's name for error messages.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Vec<(&'static str, String, &'static str)>);

impl Overrides {
    /// Adds `value` for `key`, in the text form of the environment; `option` is what the operator typed.
    #[must_use]
    pub fn set(mut self, key: &'static str, value: impl Into<String>, option: &'static str) -> Self {
        self.0.push((key, value.into(), option));
        self
    }
}

/// A key that does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// As it was written.
    pub written: String,
    /// Where.
    pub origin: Origin,
    /// The known key that looks most like it, written in the same way.
    pub nearest: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML. Its lines are not quoted: one may hold a secret.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// Keys that do not exist, at least one.
    #[error("{}", lines(.0, unknown_line))]
    Unknown(Vec<UnknownKey>),
    /// A value that its key cannot have.
    #[error("`{key}` from {origin}: {message}")]
    Value {
        /// The key.
        key: String,
        /// Where the value comes from.
        origin: Origin,
        /// What is wrong with it.
        message: String,
    },
    /// Rules that are broken, a sentence each, at least one.
    #[error("{}", lines(.0, Clone::clone))]
    Invalid(Vec<String>),
}

fn lines<T>(items: &[T], line: impl Fn(&T) -> String) -> String {
    items.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn unknown_line(key: &UnknownKey) -> String {
    match &key.origin {
        // The variable is the key: naming it twice would not help.
        Origin::Variable(_) => {
            format!(
                "unknown environment variable {}; the nearest known one is {}",
                key.written, key.nearest
            )
        }
        origin => format!(
            "unknown key `{}` in {origin}; the nearest known one is `{}`",
            key.written, key.nearest
        ),
    }
}

/// A configuration and where each of its values comes from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    origins: BTreeMap<String, Origin>,
}

/// One line of `postrider check-config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The key.
    pub key: String,
    /// Its value without secrets; `None` when there is none.
    pub value: Option<String>,
    /// Where the value comes from.
    pub origin: Origin,
}

impl Loaded {
    /// Every key with its value, secrets hidden, and where it comes from.
    pub fn effective(&self) -> Vec<Effective> {
        let line = |field: Field| {
            let key = field.key();
            let origin = self.origins.get(&key).cloned().unwrap_or(Origin::Default);
            Effective {
                key,
                value: field.value,
                origin,
            }
        };
        self.config.fields().into_iter().map(line).collect()
    }
}

impl Config {
    /// Reads `file` if one is given, the environment of the process, and `overrides`. An empty variable counts as
    /// not set.
    ///
    /// # Errors
    /// When the file cannot be read, a key does not exist, or a value does not fit its key. The values' limits are
    /// the business of [`Config::validate`].
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Loaded, ConfigError> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            name.starts_with(VARIABLE_PREFIX)
                .then(|| (name, value.to_string_lossy().into_owned()))
        });
        Self::load_from(file, variables, overrides)
    }

    /// As [`Config::load`], with the environment as given.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        overrides: Overrides,
    ) -> Result<Loaded, ConfigError> {
        let known = Known::new();
        let mut layers = Vec::new();
        let mut unknown = Vec::new();
        if let Some(path) = file {
            let origin = Origin::File(path.to_owned());
            for (key, value) in flatten(read_file(path)?, &known) {
                match known.get(&key) {
                    Some(_) => layers.push((key, value, origin.clone())),
                    None => unknown.push(known.unknown(key, origin.clone())),
                }
            }
        }
        let mut variables: Vec<_> = variables
            .into_iter()
            .filter(|(name, _)| is_setting(name))
            .collect();
        variables.sort();
        for (name, text) in variables {
            match known.by_variable(&name) {
                Some(_) if text.trim().is_empty() => {}
                Some(field) => layers.push((field.key(), value_of(field, &text), Origin::Variable(name))),
                None => unknown.push(known.unknown_variable(name)),
            }
        }
        for (key, text, option) in overrides.0 {
            let origin = Origin::Option(option.to_owned());
            match known.get(key) {
                Some(field) => layers.push((key.to_owned(), value_of(field, &text), origin)),
                None => unknown.push(known.unknown(key.to_owned(), origin)),
            }
        }
        if unknown.is_empty() {
            extract(&known, layers)
        } else {
            Err(ConfigError::Unknown(unknown))
        }
    }
}

/// One value on its way into the configuration.
struct Layer {
    key: String,
    value: Value,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.key.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment2::Error> {
        let nested = match self.key.split_once('.') {
            Some((section, name)) => {
                let inner = Dict::from([(name.to_owned(), self.value.clone())]);
                Dict::from([(section.to_owned(), Value::from(inner))])
            }
            None => Dict::from([(self.key.clone(), self.value.clone())]),
        };
        Ok(Profile::Default.collect(nested))
    }
}

fn extract(known: &Known, layers: Vec<(String, Value, Origin)>) -> Result<Loaded, ConfigError> {
    let mut figment = Figment::new();
    let mut origins = BTreeMap::new();
    for (key, value, origin) in layers {
        figment = figment.merge(Layer {
            key: key.clone(),
            value,
        });
        origins.insert(key, origin);
    }
    match figment.extract::<Config>() {
        Ok(config) => Ok(Loaded { config, origins }),
        Err(error) => {
            let path: Vec<&str> = error.path.iter().map(String::as_str).collect();
            // A list's item has one more step in its path.
            let key = path.iter().take(2).copied().collect::<Vec<_>>().join(".");
            let field = known.get(&key);
            // The library quotes what it found.
            let message = match field {
                Some(field) if field.secret => "expected text".to_owned(),
                _ => error.kind.to_string(),
            };
            let origin = origins.remove(&key).unwrap_or(Origin::Default);
            Err(ConfigError::Value { key, origin, message })
        }
    }
}

fn read_file(path: &Path) -> Result<Dict, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other("it is larger than 1 MiB")));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    toml::from_str(&text).map_err(|error| {
        let before = error
            .span()
            .and_then(|span| text.get(..span.start))
            .unwrap_or_default();
        ConfigError::Syntax {
            path: path.to_owned(),
            line: 1 + before.matches('\n').count(),
            message: error.message().lines().next().unwrap_or("not TOML").to_owned(),
        }
    })
}

/// `section.key` for what is in a table; an unknown empty table stays as it is, so that it is refused too.
fn flatten(dict: Dict, known: &Known) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (name, value) in dict {
        match value {
            Value::Dict(_, inner) if !inner.is_empty() || known.is_section(&name) => {
                flat.extend(
                    inner
                        .into_iter()
                        .map(|(key, value)| (format!("{name}.{key}"), value)),
                );
            }
            value => flat.push((name, value)),
        }
    }
    flat
}

/// A text of the environment as the field wants it. What does not parse stays text and is refused with its key.
fn value_of(field: &Field, text: &str) -> Value {
    let text = text.trim();
    let parsed = match field.form {
        Form::Text => None,
        Form::Number => text.parse::<u64>().ok().map(Value::from),
        Form::Bool => text.parse::<bool>().ok().map(Value::from),
        Form::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::from(items.map(ToOwned::to_owned).collect::<Vec<String>>()))
        }
    };
    parsed.unwrap_or_else(|| Value::from(text))
}

#[cfg(test)]
mod tests;
