//! The roles that a process runs.

use std::fmt;
use std::str::FromStr;

/// One of the three parts of Postrider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Accepts messages and serves the API.
    Gateway,
    /// Delivers.
    Worker,
    /// Records outcomes and schedules what waits.
    Ledger,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Worker, Self::Ledger];

    /// The name on the command line and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Worker => "worker",
            Self::Ledger => "ledger",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of roles, at least one. Its text form is their names separated by commas; several such texts join with
/// `collect`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Roles(u8);

/// Why a text names no roles.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RolesError {
    /// A name that is no role.
    #[error("unknown role `{0}`: expected `gateway`, `worker` or `ledger`, separated by commas")]
    Unknown(String),
    /// No name at all.
    #[error("no role given: expected `gateway`, `worker` or `ledger`, separated by commas")]
    Empty,
}

impl Roles {
    /// Gateway, worker and ledger.
    pub const ALL: Self = Self(0b111);

    /// Whether the process runs `role`.
    pub const fn contains(self, role: Role) -> bool {
        self.0 & bit(role) != 0
    }

    /// Whether the process runs everything.
    pub const fn is_all(self) -> bool {
        self.0 == Self::ALL.0
    }

    /// The roles, in the order of the pipeline.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.contains(*role))
    }

    /// What all of `sets` name together; everything when there are none, as without `--role`.
    pub fn union(sets: impl IntoIterator<Item = Self>) -> Self {
        sets.into_iter()
            .reduce(|all, set| Self(all.0 | set.0))
            .unwrap_or(Self::ALL)
    }
}

const fn bit(role: Role) -> u8 {
    1 << role as u8
}

impl From<Role> for Roles {
    fn from(role: Role) -> Self {
        Self(bit(role))
    }
}

impl FromStr for Roles {
    type Err = RolesError;

    fn from_str(text: &str) -> Result<Self, RolesError> {
        let mut bits = 0;
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let role = Role::ALL.into_iter().find(|role| role.as_str() == name);
            bits |= bit(role.ok_or_else(|| RolesError::Unknown(name.to_owned()))?);
        }
        if bits == 0 {
            Err(RolesError::Empty)
        } else {
            Ok(Self(bits))
        }
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Role::as_str).collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roles({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_and_join() {
        let some: Roles = "worker, gateway".parse().unwrap();
        assert_eq!(some.to_string(), "gateway,worker");
        assert!(some.contains(Role::Worker) && !some.contains(Role::Ledger) && !some.is_all());
        assert!(Roles::union([some, Roles::from(Role::Ledger)]).is_all());
        assert!(Roles::union([]).is_all());
        assert_eq!("".parse::<Roles>(), Err(RolesError::Empty));
        assert_eq!(
            "worker,boss".parse::<Roles>(),
            Err(RolesError::Unknown("boss".to_owned()))
        );
    }
}
