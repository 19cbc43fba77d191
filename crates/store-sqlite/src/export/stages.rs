//! The order in which kinds of rows are read: what refers to others comes after them.

use postrider_secrets::Keyring;
use postrider_store::transfer::Portion;
use rusqlite::Connection;
use rusqlite::types::Value;

use super::tables;
use crate::error::Fallible;

/// The rows after a place, and the place of the last one, unless they are the last ones.
pub(super) type Part = (Portion, Option<Vec<Value>>);

/// A kind of rows: where it starts, and how a portion of it is read.
pub(super) struct Stage {
    pub(super) start: fn() -> Vec<Value>,
    pub(super) read: fn(&Connection, &Keyring, &[Value]) -> Fallible<Part>,
}

pub(super) const STAGES: [Stage; 14] = [
    Stage {
        start: first_id,
        read: tables::applications,
    },
    Stage {
        start: first_id,
        read: tables::endpoints,
    },
    Stage {
        start: || vec![Value::Text(String::new())],
        read: tables::event_types,
    },
    Stage {
        start: first_id,
        read: tables::keys,
    },
    Stage {
        start: Vec::new,
        read: tables::sequence,
    },
    Stage {
        start: first_id,
        read: tables::messages,
    },
    Stage {
        start: || {
            vec![
                Value::Blob(Vec::new()),
                Value::Blob(Vec::new()),
                Value::Blob(Vec::new()),
            ]
        },
        read: tables::deliveries,
    },
    Stage {
        start: || vec![Value::Blob(Vec::new()), Value::Blob(Vec::new())],
        read: tables::attempts,
    },
    Stage {
        start: first_id,
        read: tables::waiting,
    },
    Stage {
        start: || vec![Value::Blob(Vec::new()), Value::Integer(i64::MIN)],
        read: tables::counters,
    },
    Stage {
        start: first_id,
        read: tables::claims,
    },
    Stage {
        start: || vec![Value::Integer(i64::MIN)],
        read: tables::recent_claims,
    },
    Stage {
        start: first_id,
        read: tables::tasks,
    },
    Stage {
        start: || vec![Value::Integer(i64::MIN)],
        read: tables::parked,
    },
];

fn first_id() -> Vec<Value> {
    vec![Value::Blob(Vec::new())]
}
