//! A walk over everything that is sealed, to seal it anew under the keyring's first key.
//!
//! The walk goes part by part and in the order of rows, in chunks. Rows that appear behind it are sealed by processes
//! that have the new key first already, so one walk is enough, and a walk that was cut short is begun again: what is
//! under the first key costs a look.

/// The kinds of sealed values, in the order of the walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SealedPart {
    /// Headers and secrets of endpoints, deleted ones too.
    #[default]
    Endpoints,
    /// What was parked.
    Parked,
    /// Payloads.
    Payloads,
    /// Payloads of messages with a retention of their own, where they are kept apart.
    OwnPayloads,
}

impl SealedPart {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints",
            Self::Parked => "parked",
            Self::Payloads => "payloads",
            Self::OwnPayloads => "payloads with a retention of their own",
        }
    }

    /// The part after this one.
    pub const fn next(self) -> Option<Self> {
        match self {
            Self::Endpoints => Some(Self::Parked),
            Self::Parked => Some(Self::Payloads),
            Self::Payloads => Some(Self::OwnPayloads),
            Self::OwnPayloads => None,
        }
    }
}

/// How far the walk is. The default is its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResealCursor {
    /// The part that it is in.
    pub part: SealedPart,
    /// The last row seen: its id or number; 0 before the first.
    pub after: u128,
}

impl ResealCursor {
    /// Where it goes on after a chunk: behind `last`, or with the next part when that was the part's end.
    pub fn advance(self, last: Option<u128>) -> Option<Self> {
        match last {
            Some(after) => Some(Self { after, ..self }),
            None => self.part.next().map(|part| Self { part, after: 0 }),
        }
    }
}

/// What one chunk of the walk did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResealReport {
    /// Rows looked at.
    pub seen: u64,
    /// Values sealed anew. One that changed at the same moment is not among them.
    pub resealed: u64,
    /// Values that no key of the ring opens, and why.
    pub unreadable: Vec<String>,
    /// Where to go on; `None` at the end.
    pub next: Option<ResealCursor>,
}
