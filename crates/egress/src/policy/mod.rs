//! Which addresses and URLs may be reached.
//!
//! The rule for addresses is positive: global unicast only, minus the special-purpose ranges ([`ranges`]), plus the
//! operator's allow-list. An IPv6 address that carries an IPv4 one (mapped, NAT64, 6to4) is judged by what it
//! carries, since that is where the packets go.

mod ranges;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use url::{Host, Url};

/// The longest URL of an endpoint, in bytes as it is sent.
pub const URL_CHARS_MAX: usize = 2048;

/// Which destinations this process may reach. [`Policy::default`] allows public addresses only, over `http` and
/// `https`.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    allow: Vec<IpNet>,
    allow_sockets: Vec<SocketAddr>,
    https_only: bool,
}

/// Why a destination is refused. Safe to store and to show to the endpoint's owner: it never holds the URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockedReason {
    /// Neither `http` nor `https`.
    #[error("the URL's scheme must be http or https")]
    Scheme,
    /// `http` where the operator demands `https`.
    #[error("the URL must begin with https://")]
    HttpsOnly,
    /// A URL without a host.
    #[error("the URL has no host")]
    NoHost,
    /// A user name or password in the URL; use headers for credentials.
    #[error("the URL must not contain a user name or password")]
    UserInfo,
    /// Port 0 cannot be connected to.
    #[error("the URL's port must not be 0")]
    PortZero,
    /// A URL longer than [`URL_CHARS_MAX`].
    #[error("the URL is longer than {URL_CHARS_MAX} characters")]
    TooLong,
    /// A URL that cannot be written into a request.
    #[error("the URL holds characters that cannot be sent")]
    NotSendable,
    /// An address inside a range that is not public.
    #[error("the address {address} is not public ({range})")]
    Address {
        /// The address as it was resolved or written.
        address: IpAddr,
        /// The name of the range and the document that reserves it.
        range: &'static str,
    },
}

impl Policy {
    /// A policy that exempts these networks from the guard. `https_only` refuses `http` URLs, also for them.
    pub fn new(allow: Vec<IpNet>, https_only: bool) -> Self {
        Self {
            allow,
            allow_sockets: Vec::new(),
            https_only,
        }
    }

    /// Exempts one address with one port as well: the quick start's sink, and nothing else on that machine.
    #[must_use]
    pub fn with_socket(mut self, socket: SocketAddr) -> Self {
        self.allow_sockets.push(socket);
        self
    }

    /// The networks that are exempt.
    pub fn allow(&self) -> &[IpNet] {
        &self.allow
    }

    /// Whether plain `http` is refused.
    pub fn https_only(&self) -> bool {
        self.https_only
    }

    /// Checks what a URL alone tells: scheme, credentials, port, length, and the address when the host is a
    /// literal one. Names are judged when they are resolved, at each connect.
    ///
    /// # Errors
    /// The first rule that the URL breaks.
    pub fn check_url(&self, url: &Url) -> Result<(), BlockedReason> {
        if url.as_str().len() > URL_CHARS_MAX {
            return Err(BlockedReason::TooLong);
        }
        self.check_scheme(url.scheme())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BlockedReason::UserInfo);
        }
        if url.port() == Some(0) {
            return Err(BlockedReason::PortZero);
        }
        // The `url` crate turns every odd spelling (`0x7f.1`, `2130706433`, `[::ffff:7f00:1]`) into an address.
        match url.host() {
            None => Err(BlockedReason::NoHost),
            Some(Host::Domain("")) => Err(BlockedReason::NoHost),
            Some(Host::Domain(_)) => Ok(()),
            Some(Host::Ipv4(address)) => self.check_socket(address.into(), url.port_or_known_default()),
            Some(Host::Ipv6(address)) => self.check_socket(address.into(), url.port_or_known_default()),
        }
    }

    /// Checks the scheme only.
    pub(crate) fn check_scheme(&self, scheme: &str) -> Result<(), BlockedReason> {
        match scheme {
            "https" => Ok(()),
            "http" if self.https_only => Err(BlockedReason::HttpsOnly),
            "http" => Ok(()),
            _ => Err(BlockedReason::Scheme),
        }
    }

    /// Checks one address with the port that is to be connected to.
    ///
    /// # Errors
    /// As [`Policy::check_address`].
    pub fn check_socket(&self, address: IpAddr, port: Option<u16>) -> Result<(), BlockedReason> {
        let exempt = self
            .allow_sockets
            .iter()
            .any(|socket| socket.ip() == address.to_canonical() && Some(socket.port()) == port);
        if exempt {
            Ok(())
        } else {
            self.check_address(address)
        }
    }

    /// Checks one address.
    ///
    /// # Errors
    /// [`BlockedReason::Address`] when it is neither public nor exempt.
    pub fn check_address(&self, address: IpAddr) -> Result<(), BlockedReason> {
        // The system connects a mapped address over IPv4, so a network of the allow-list holds for it too.
        let canonical = address.to_canonical();
        if self
            .allow
            .iter()
            .any(|net| net.contains(&address) || net.contains(&canonical))
        {
            return Ok(());
        }
        let range = match canonical {
            IpAddr::V4(address) => refused_v4(address),
            IpAddr::V6(address) => refused_v6(address),
        };
        range.map_or(Ok(()), |range| Err(BlockedReason::Address { address, range }))
    }
}

fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    ranges::V4
        .iter()
        .find(|range| range.contains(address))
        .map(|range| range.name)
}

fn refused_v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(carried) = carried_v4(address) {
        return refused_v4(carried);
    }
    if let Some(range) = ranges::V6.iter().find(|range| range.contains(address)) {
        return Some(range.name);
    }
    // 2000::/3 is all that is assigned as global unicast (RFC 4291 and the IANA registry).
    (address.segments()[0] & 0xe000 != 0x2000).then_some("not global unicast, RFC 4291")
}

/// The IPv4 address to which a translator or relay forwards packets for this address.
fn carried_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    match [a, b, c, d, e, f] {
        // IPv4-mapped, RFC 4291. `to_canonical` has handled it before; kept so that this function is whole.
        [0, 0, 0, 0, 0, 0xffff] => Some(join(g, h)),
        // NAT64 with the well-known prefix, RFC 6052.
        [0x64, 0xff9b, 0, 0, 0, 0] => Some(join(g, h)),
        // 6to4, RFC 3056.
        [0x2002, high, low, ..] => Some(join(high, low)),
        _ => None,
    }
}

fn join(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

#[cfg(test)]
mod tests;
