//! A service's URL that shows itself without its credentials.
//!
//! It is kept as text, not parsed: the services' own clients decide what they accept (several hosts, socket
//! paths), and a URL that does not parse must be hidden just as well. When in doubt more is hidden, not less.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use zeroize::Zeroizing;

/// A URL, or several separated by commas, whose `Debug` and `Display` mask the userinfo's password and the query
/// parameters that may hold one.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct RedactedUrl(Zeroizing<String>);

impl RedactedUrl {
    /// The URL with its credentials, for the client that connects.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What stands before the first `:`, in lower case; empty when there is none.
    pub fn scheme(&self) -> String {
        self.0
            .split_once(':')
            .map_or(String::new(), |(scheme, _)| scheme.to_ascii_lowercase())
    }
}

impl From<String> for RedactedUrl {
    fn from(url: String) -> Self {
        Self(Zeroizing::new(url))
    }
}

impl From<&str> for RedactedUrl {
    fn from(url: &str) -> Self {
        Self::from(url.to_owned())
    }
}

impl FromStr for RedactedUrl {
    type Err = std::convert::Infallible;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        Ok(Self::from(url))
    }
}

impl fmt::Display for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (base, query) = match self.0.split_once('?') {
            Some((base, query)) if !query.contains('@') => (base, Some(query)),
            // Whether the `@` ends a password or stands in the query's one, nobody knows.
            Some((base, query)) if names_secret(query) => {
                let scheme = base.split_once("://").map_or("", |(scheme, _)| scheme);
                return write!(f, "{scheme}://***");
            }
            // A `?` before the last `@` stands in a password that nobody encoded.
            _ => (self.0.as_str(), None),
        };
        let mut parts = base.split("://");
        f.write_str(parts.next().unwrap_or_default())?;
        for part in parts {
            f.write_str("://")?;
            write_authority(f, part)?;
        }
        match query {
            Some(query) => write_query(f, query),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedactedUrl({self})")
    }
}

/// Up to the last `@` everything may be the password: clients disagree about an unencoded `/` or `@` in it.
fn write_authority(f: &mut fmt::Formatter<'_>, part: &str) -> fmt::Result {
    match part.rsplit_once('@') {
        Some((userinfo, rest)) if !part.starts_with('/') => match userinfo.split_once(':') {
            Some((user, _)) => write!(f, "{user}:***@{rest}"),
            None => write!(f, "***@{rest}"),
        },
        _ => f.write_str(part),
    }
}

fn write_query(f: &mut fmt::Formatter<'_>, query: &str) -> fmt::Result {
    for (index, pair) in query.split('&').enumerate() {
        f.write_str(if index == 0 { "?" } else { "&" })?;
        match pair.split_once('=') {
            Some((name, _)) if holds_secret(name) => write!(f, "{name}=***")?,
            _ => f.write_str(pair)?,
        }
    }
    Ok(())
}

fn names_secret(query: &str) -> bool {
    query
        .split(['&', '?'])
        .any(|pair| pair.split_once('=').is_some_and(|(name, _)| holds_secret(name)))
}

fn holds_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "pwd", "secret", "token", "key", "auth"]
        .iter()
        .any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, shown: &str) {
        let redacted = RedactedUrl::from(url);
        assert_eq!(redacted.to_string(), shown);
        assert_eq!(format!("{redacted:?}"), format!("RedactedUrl({shown})"));
        assert_eq!(redacted.expose(), url);
    }

    #[test]
    fn masks_the_password_and_keeps_the_rest() {
        check(
            "amqp://user:pw@host:5672/vhost",
            "amqp://user:***@host:5672/vhost",
        );
        check("amqp://host", "amqp://host");
        check("redis://:pw@host/0", "redis://:***@host/0");
        check("redis://token@host", "redis://***@host");
        check("sqlite:///srv/a@b/postrider.db", "sqlite:///srv/a@b/postrider.db");
    }

    #[test]
    fn masks_a_password_with_unencoded_characters() {
        for password in ["p/w", "p@w", "p?w", "p#w", "p:w", "p,w", "p?x=1&y=2"] {
            check(
                &format!("amqp://user:{password}@host/v"),
                "amqp://user:***@host/v",
            );
        }
    }

    #[test]
    fn masks_each_of_several_urls_and_query_secrets() {
        check(
            "redis://:a@one,redis://u:b@two",
            "redis://:***@one,redis://u:***@two",
        );
        check(
            "postgres://host/db?user=u&password=p&sslmode=require",
            "postgres://host/db?user=u&password=***&sslmode=require",
        );
        for ambiguous in [
            "postgres:///db?host=/run/pg&user=u&password=p@ss",
            "postgres://host/db?password=p@ss&sslmode=require",
            "postgres://u:p?password=1@host/db",
        ] {
            check(ambiguous, "postgres://***");
        }
    }

    #[test]
    fn knows_its_scheme() {
        assert_eq!(RedactedUrl::from("AMQPS://h").scheme(), "amqps");
        assert_eq!(RedactedUrl::from("nothing").scheme(), "");
    }
}
