//! The special-purpose address ranges that are refused: the IANA registries of RFC 6890 and its successors,
//! multicast, and public addresses that mean something else inside of a cloud. A more specific range comes before the
//! one that contains it, so that the name fits best.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A refused IPv4 range.
pub(super) struct V4Range {
    network: Ipv4Addr,
    prefix: u32,
    pub(super) name: &'static str,
}

/// A refused IPv6 range.
pub(super) struct V6Range {
    network: Ipv6Addr,
    prefix: u32,
    pub(super) name: &'static str,
}

impl V4Range {
    pub(super) fn contains(&self, address: Ipv4Addr) -> bool {
        (self.network.to_bits() ^ address.to_bits()) >> (32 - self.prefix) == 0
    }
}

impl V6Range {
    pub(super) fn contains(&self, address: Ipv6Addr) -> bool {
        (self.network.to_bits() ^ address.to_bits()) >> (128 - self.prefix) == 0
    }
}

/// <https://www.iana.org/assignments/iana-ipv4-special-registry>
pub(super) const V4: &[V4Range] = &[
    v4([0, 0, 0, 0], 8, "this network, RFC 791"),
    v4([10, 0, 0, 0], 8, "private use, RFC 1918"),
    v4([100, 64, 0, 0], 10, "shared address space, RFC 6598"),
    v4([127, 0, 0, 0], 8, "loopback, RFC 1122"),
    v4([168, 63, 129, 16], 32, "Azure's platform, a public address"),
    v4([169, 254, 0, 0], 16, "link local, RFC 3927"),
    v4([172, 16, 0, 0], 12, "private use, RFC 1918"),
    v4([192, 0, 0, 0], 24, "IETF protocol assignments, RFC 6890"),
    v4([192, 0, 2, 0], 24, "documentation, RFC 5737"),
    v4([192, 31, 196, 0], 24, "AS112, RFC 7535"),
    v4([192, 52, 193, 0], 24, "AMT, RFC 7450"),
    v4([192, 88, 99, 0], 24, "6to4 relay anycast, RFC 7526"),
    v4([192, 168, 0, 0], 16, "private use, RFC 1918"),
    v4([192, 175, 48, 0], 24, "AS112, RFC 7534"),
    v4([198, 18, 0, 0], 15, "benchmarking, RFC 2544"),
    v4([198, 51, 100, 0], 24, "documentation, RFC 5737"),
    v4([203, 0, 113, 0], 24, "documentation, RFC 5737"),
    v4([224, 0, 0, 0], 4, "multicast, RFC 5771"),
    v4([255, 255, 255, 255], 32, "limited broadcast, RFC 8190"),
    v4([240, 0, 0, 0], 4, "reserved, RFC 1112"),
];

/// <https://www.iana.org/assignments/iana-ipv6-special-registry>
pub(super) const V6: &[V6Range] = &[
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, "unspecified, RFC 4291"),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback, RFC 4291"),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96, "IPv4-compatible, RFC 4291"),
    v6(
        [0x64, 0xff9b, 1, 0, 0, 0, 0, 0],
        48,
        "local-use translation, RFC 8215",
    ),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "discard only, RFC 6666"),
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64, "dummy prefix, RFC 9780"),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, "Teredo, RFC 4380"),
    v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, "benchmarking, RFC 5180"),
    v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32, "AMT, RFC 7450"),
    v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48, "AS112, RFC 7535"),
    v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, "ORCHID, RFC 4843"),
    v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, "ORCHIDv2, RFC 7343"),
    v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28, "drone remote ID, RFC 9374"),
    v6(
        [0x2001, 0, 0, 0, 0, 0, 0, 0],
        23,
        "IETF protocol assignments, RFC 2928",
    ),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "documentation, RFC 3849"),
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, "AS112, RFC 7534"),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "documentation, RFC 9637"),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, "segment routing, RFC 9602"),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "unique local, RFC 4193"),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link local, RFC 4291"),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "site local, RFC 3879"),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast, RFC 4291"),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u32, name: &'static str) -> V4Range {
    V4Range {
        network: Ipv4Addr::new(a, b, c, d),
        prefix,
        name,
    }
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix: u32, name: &'static str) -> V6Range {
    V6Range {
        network: Ipv6Addr::new(a, b, c, d, e, f, g, h),
        prefix,
        name,
    }
}
