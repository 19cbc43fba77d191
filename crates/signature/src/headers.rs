//! The names of the three headers, in either of the two sets that receivers know.

/// Which set of header names a request carries. A request carries one set, never both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum HeaderStyle {
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature`: the Standard Webhooks names.
    #[default]
    Standard,
    /// `svix-id`, `svix-timestamp`, `svix-signature`: what receivers written for that API expect.
    Svix,
}

impl HeaderStyle {
    /// Both sets, the standard one first.
    pub const ALL: [Self; 2] = [Self::Standard, Self::Svix];

    /// The header with the message id, in lower case.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Standard => "webhook-id",
            Self::Svix => "svix-id",
        }
    }

    /// The header with the time of the attempt, in Unix seconds.
    pub const fn timestamp(self) -> &'static str {
        match self {
            Self::Standard => "webhook-timestamp",
            Self::Svix => "svix-timestamp",
        }
    }

    /// The header with the space-separated signatures.
    pub const fn signature(self) -> &'static str {
        match self {
            Self::Standard => "webhook-signature",
            Self::Svix => "svix-signature",
        }
    }
}
