//! Why there is no response, and whose fault that is.
//!
//! Guarantees: the text of a failure is short and safe to store and to show to the endpoint's owner. It never holds
//! a URL, a header or a body; addresses appear only where the owner's own DNS gave them.

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;

use crate::policy::BlockedReason;

/// The longest text that another library contributes to a failure, in bytes.
const DETAIL_BYTES_MAX: usize = 256;

/// `EMFILE` and `ENFILE`, the same numbers on every Unix: no more sockets for this process, or this machine.
const OUT_OF_FILES: [i32; 2] = [24, 23];

/// Why a request got no response. A response with an error status is no failure, but a [`crate::Response`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The policy forbids the destination, or every address that its name has.
    #[error(transparent)]
    Blocked(#[from] BlockedReason),
    /// The name does not exist or has no addresses.
    #[error("the host name does not exist or has no address")]
    NoAddress,
    /// The name's own servers give no answer, and have not for long, while other names' do.
    #[error("the name servers of the host give no answer: {0}")]
    NoAnswer(String),
    /// Our resolver gave no answer. Ours.
    #[error("the name could not be resolved: {0}")]
    ResolverDown(String),
    /// No TCP connection; the last of the addresses that were tried.
    #[error("no connection to {address}: {error}")]
    Connect {
        /// Where the connection should have gone.
        address: SocketAddr,
        /// What happened there.
        error: ConnectError,
    },
    /// The TLS handshake failed: certificate, protocol version, or the receiver hung up during it.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The deadline of the request, or the connect timeout, passed.
    #[error("no response in time, {phase}")]
    Timeout {
        /// What was being waited for. [`Phase::Dns`] makes it ours.
        phase: Phase,
    },
    /// The receiver closed the connection before its response was complete.
    #[error("the receiver closed the connection before its response was complete")]
    Closed,
    /// The connection was reset before the response was complete.
    #[error("the connection was reset before the response was complete")]
    Reset,
    /// What came back is no HTTP response, or its head is over the limit.
    #[error("no valid HTTP response: {0}")]
    Protocol(String),
    /// This machine has no socket, port or memory left. Ours.
    #[error("this machine is out of {0}")]
    Resources(&'static str),
    /// There are no root certificates to check the receiver's with. Ours.
    #[error("this machine has no root certificates (install ca-certificates, or set extra ones)")]
    NoRoots,
    /// A defect in this client, or the process is shutting down. Ours.
    #[error("the request could not be carried out: {0}")]
    Internal(String),
}

/// How a connection attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// There is no way there.
    #[error("unreachable")]
    Unreachable,
    /// Hung up while connecting.
    #[error("connection reset")]
    Reset,
    /// Something else; the kind that the system gave.
    #[error("{0}")]
    Other(io::ErrorKind),
}

/// What a request was waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Phase {
    /// An answer of the resolver.
    #[error("waiting for the resolver")]
    Dns,
    /// A TCP connection.
    #[error("waiting for the connection")]
    Connect,
    /// The TLS handshake.
    #[error("waiting for the TLS handshake")]
    Tls,
    /// The head of the response, the time for sending the request included.
    #[error("waiting for the response's status and headers")]
    Headers,
    /// The rest of the response's body.
    #[error("waiting for the response's body")]
    Body,
}

impl Failure {
    /// Whether this machine, its resolver or its limits are to blame, so that it must not count against the
    /// endpoint.
    pub fn is_ours(&self) -> bool {
        match self {
            Self::ResolverDown(_)
            | Self::Resources(_)
            | Self::NoRoots
            | Self::Internal(_)
            | Self::Timeout { phase: Phase::Dns } => true,
            Self::Blocked(_)
            | Self::NoAddress
            | Self::NoAnswer(_)
            | Self::Connect { .. }
            | Self::Tls(_)
            | Self::Timeout { .. }
            | Self::Closed
            | Self::Reset
            | Self::Protocol(_) => false,
        }
    }

    /// A short word for metrics and records: `timeout`, `connect`, `tls`, `dns`, `blocked`, `http` or `ours`.
    pub fn class(&self) -> &'static str {
        match self {
            _ if self.is_ours() => "ours",
            Self::Timeout { .. } => "timeout",
            Self::Connect { .. } => "connect",
            Self::Tls(_) => "tls",
            Self::NoAddress | Self::NoAnswer(_) => "dns",
            Self::Blocked(_) => "blocked",
            _ => "http",
        }
    }

    /// What a failed request of the pooled client means.
    pub(crate) fn from_exchange(error: &(dyn StdError + 'static)) -> Self {
        if let Some(failure) = find::<Self>(error) {
            return failure.clone();
        }
        // Before hyper's own words: it wraps what the socket said.
        if let Some(error) = find::<io::Error>(error) {
            return Self::from_stream(error);
        }
        match find::<hyper::Error>(error) {
            Some(error) if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => {
                Self::Closed
            }
            Some(error) if error.is_timeout() => Self::Timeout {
                phase: Phase::Headers,
            },
            Some(error) if error.is_user() => Self::Internal(bounded(error)),
            Some(error) => Self::Protocol(bounded(error)),
            None => Self::Internal(bounded(error)),
        }
    }

    /// What an error on an open connection means.
    fn from_stream(error: &io::Error) -> Self {
        if let Some(tls) = tls_error(error) {
            return Self::Tls(bounded(tls));
        }
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                Self::Reset
            }
            io::ErrorKind::UnexpectedEof | io::ErrorKind::NotConnected => Self::Closed,
            io::ErrorKind::TimedOut => Self::Timeout {
                phase: Phase::Headers,
            },
            _ => resources(error).map_or_else(|| Self::Protocol(bounded(error)), Self::Resources),
        }
    }

    /// What a failed connect means.
    pub(crate) fn from_connect(address: SocketAddr, error: &io::Error) -> Self {
        // Where IPv6 is off, no address of this machine may go there.
        let is_v6_off = address.is_ipv6() && error.kind() == io::ErrorKind::AddrNotAvailable;
        if !is_v6_off && let Some(what) = resources(error) {
            return Self::Resources(what);
        }
        let error = match error.kind() {
            io::ErrorKind::AddrNotAvailable => ConnectError::Unreachable,
            io::ErrorKind::TimedOut => {
                return Self::Timeout {
                    phase: Phase::Connect,
                };
            }
            io::ErrorKind::ConnectionRefused => ConnectError::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ConnectError::Unreachable,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => ConnectError::Reset,
            other => ConnectError::Other(other),
        };
        Self::Connect { address, error }
    }

    /// Whether there was no way to the address.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Connect {
                error: ConnectError::Unreachable,
                ..
            }
        )
    }

    /// What a failed TLS handshake means.
    pub(crate) fn from_handshake(error: &io::Error) -> Self {
        match tls_error(error) {
            Some(tls) => Self::Tls(bounded(tls)),
            None => Self::Tls(bounded(&error.kind())),
        }
    }
}

/// What this machine lacks, if that is what the error says.
fn resources(error: &io::Error) -> Option<&'static str> {
    if error
        .raw_os_error()
        .is_some_and(|code| OUT_OF_FILES.contains(&code))
    {
        return Some("file descriptors");
    }
    match error.kind() {
        // A connect has used up the local ports towards this destination.
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Some("local ports"),
        io::ErrorKind::OutOfMemory => Some("memory"),
        _ => None,
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut current = error;
    loop {
        if let Some(found) = current.downcast_ref() {
            return Some(found);
        }
        current = current.source()?;
    }
}

/// The text of an error, cut to [`DETAIL_BYTES_MAX`].
pub(crate) fn bounded(error: &(impl std::fmt::Display + ?Sized)) -> String {
    let mut text = error.to_string();
    text.truncate(text.floor_char_boundary(DETAIL_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_sockets_is_ours() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        for code in OUT_OF_FILES {
            let failure = Failure::from_connect(address, &io::Error::from_raw_os_error(code));
            assert_eq!(failure, Failure::Resources("file descriptors"));
            assert!(failure.is_ours());
            assert_eq!(failure.class(), "ours");
        }
        let failure = Failure::from_connect(address, &io::ErrorKind::AddrNotAvailable.into());
        assert!(failure.is_ours());
        let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 1));
        let failure = Failure::from_connect(v6, &io::ErrorKind::AddrNotAvailable.into());
        assert!(!failure.is_ours(), "IPv6 may be off here");
        let failure = Failure::from_connect(address, &io::ErrorKind::ConnectionRefused.into());
        assert!(!failure.is_ours());
    }

    #[test]
    fn foreign_text_is_cut_at_a_character() {
        let text = bounded(&"é".repeat(1000));
        assert_eq!(text.len(), DETAIL_BYTES_MAX);
        assert_eq!(
            bounded(&format!("x{}", "é".repeat(1000))).len(),
            DETAIL_BYTES_MAX - 1
        );
    }
}
