//! Every range by its first and last address and its neighbours, the addresses that carry others, and URLs.

use super::*;

/// Range, and whether the address just below and just above it is public.
const RANGES: &[(&str, bool, bool)] = &[
    ("0.0.0.0/8", false, true),
    ("10.0.0.0/8", true, true),
    ("100.64.0.0/10", true, true),
    ("127.0.0.0/8", true, true),
    ("168.63.129.16/32", true, true),
    ("169.254.0.0/16", true, true),
    ("172.16.0.0/12", true, true),
    ("192.0.0.0/24", true, true),
    ("192.0.2.0/24", true, true),
    ("192.31.196.0/24", true, true),
    ("192.52.193.0/24", true, true),
    ("192.88.99.0/24", true, true),
    ("192.168.0.0/16", true, true),
    ("192.175.48.0/24", true, true),
    ("198.18.0.0/15", true, true),
    ("198.51.100.0/24", true, true),
    ("203.0.113.0/24", true, true),
    ("224.0.0.0/4", true, false),
    ("240.0.0.0/4", false, false),
    ("255.255.255.255/32", false, false),
    ("::/128", false, false),
    ("::1/128", false, false),
    ("::/96", false, false),
    ("64:ff9b:1::/48", false, false),
    ("100::/64", false, false),
    ("100:0:0:1::/64", false, false),
    ("2001::/32", true, false),
    ("2001:2::/48", false, false),
    ("2001:3::/32", false, false),
    ("2001:4:112::/48", false, false),
    ("2001:10::/28", false, false),
    ("2001:20::/28", false, false),
    ("2001:30::/28", false, false),
    ("2001::/23", true, true),
    ("2001:db8::/32", true, true),
    ("2620:4f:8000::/48", true, true),
    ("3fff::/20", true, true),
    ("4000::/2", true, false),
    ("5f00::/16", false, false),
    ("fc00::/7", false, false),
    ("fe80::/10", false, false),
    ("fec0::/10", false, false),
    ("ff00::/8", false, false),
];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn is_public(address: IpAddr) -> bool {
    Policy::default().check_address(address).is_ok()
}

fn neighbour(address: IpAddr, step: i8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) if step < 0 => address
            .to_bits()
            .checked_sub(1)
            .map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V4(address) => address
            .to_bits()
            .checked_add(1)
            .map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) if step < 0 => address
            .to_bits()
            .checked_sub(1)
            .map(|bits| Ipv6Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address
            .to_bits()
            .checked_add(1)
            .map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

#[test]
fn every_special_range_is_refused_from_end_to_end() {
    for &(range, below_is_public, above_is_public) in RANGES {
        let net: IpNet = range.parse().expect("a network");
        assert!(!is_public(net.network()), "first of {range}");
        assert!(!is_public(net.broadcast()), "last of {range}");
        let below = neighbour(net.network(), -1).is_some_and(is_public);
        let above = neighbour(net.broadcast(), 1).is_some_and(is_public);
        assert_eq!(
            (below, above),
            (below_is_public, above_is_public),
            "around {range}"
        );
    }
}

#[test]
fn every_range_of_the_table_is_tested() {
    for range in ranges::V4 {
        assert!(
            RANGES.iter().any(|(net, ..)| contains_v4(net, range)),
            "{}",
            range.name
        );
    }
    for range in ranges::V6 {
        assert!(
            RANGES.iter().any(|(net, ..)| contains_v6(net, range)),
            "{}",
            range.name
        );
    }
}

fn contains_v4(net: &str, range: &ranges::V4Range) -> bool {
    match net.parse::<IpNet>() {
        Ok(IpNet::V4(net)) => range.contains(net.network()) && range.contains(net.broadcast()),
        _ => false,
    }
}

fn contains_v6(net: &str, range: &ranges::V6Range) -> bool {
    match net.parse::<IpNet>() {
        Ok(IpNet::V6(net)) => range.contains(net.network()) && range.contains(net.broadcast()),
        _ => false,
    }
}

#[test]
fn public_addresses_pass() {
    for text in [
        "1.1.1.1",
        "8.8.8.8",
        "93.184.216.34",
        "172.32.0.1",
        "2606:4700:4700::1111",
        "2a00:1450::1",
        "2001:4860::8888",
    ] {
        assert!(is_public(address(text)), "{text}");
    }
}

#[test]
fn a_carried_address_is_judged() {
    let public = ["::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"];
    let refused = [
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::",
        "2002:c0a8:101:1::1",
    ];
    for text in public {
        assert!(is_public(address(text)), "{text}");
    }
    for text in refused {
        assert!(!is_public(address(text)), "{text}");
    }
}

#[test]
fn the_reason_names_address_and_range() {
    let metadata = address("169.254.169.254");
    assert_eq!(
        Policy::default().check_address(metadata),
        Err(BlockedReason::Address {
            address: metadata,
            range: "link local, RFC 3927"
        })
    );
    let teredo = Policy::default()
        .check_address(address("2001::1"))
        .expect_err("refused");
    assert_eq!(
        teredo.to_string(),
        "the address 2001::1 is not public (Teredo, RFC 4380)"
    );
}

#[test]
fn the_allow_list_exempts_its_networks_only() {
    let nets = ["127.0.0.0/8", "fd00::/8", "10.1.0.0/16"].map(|net| net.parse().expect("a network"));
    let policy = Policy::new(nets.to_vec(), false);
    for text in [
        "127.0.0.1",
        "127.255.0.1",
        "::ffff:127.0.0.1",
        "fd00::1",
        "10.1.2.3",
        "8.8.8.8",
    ] {
        assert_eq!(policy.check_address(address(text)), Ok(()), "{text}");
    }
    // NAT64 and 6to4 go through somebody else's translator, not to our own loopback.
    for text in ["10.2.0.1", "::1", "fc00::1", "64:ff9b::7f00:1", "2002:7f00:1::1"] {
        assert!(policy.check_address(address(text)).is_err(), "{text}");
    }
}

#[test]
fn urls() {
    let check = |text: &str| Policy::default().check_url(&Url::parse(text).expect("a URL"));
    let loopback = |text| {
        let reason = check(text).expect_err(text);
        assert!(
            matches!(reason, BlockedReason::Address { .. }),
            "{text}: {reason}"
        );
    };
    assert_eq!(check("https://example.com/hook?x=1"), Ok(()));
    assert_eq!(check("http://example.com:8080/"), Ok(()));
    assert_eq!(check("http://1.1.1.1/"), Ok(()));
    assert_eq!(check("http://[2606:4700:4700::1111]/"), Ok(()));
    // A name is judged by what it resolves to.
    assert_eq!(check("http://localhost/"), Ok(()));

    assert_eq!(check("ftp://example.com/"), Err(BlockedReason::Scheme));
    assert_eq!(check("file:///etc/passwd"), Err(BlockedReason::Scheme));
    assert_eq!(check("gopher://127.0.0.1/"), Err(BlockedReason::Scheme));
    assert_eq!(check("https://user@example.com/"), Err(BlockedReason::UserInfo));
    assert_eq!(
        check("https://:secret@example.com/"),
        Err(BlockedReason::UserInfo)
    );
    assert_eq!(check("https://example.com:0/"), Err(BlockedReason::PortZero));
    assert_eq!(
        check(&format!("https://example.com/{}", "x".repeat(2029))),
        Err(BlockedReason::TooLong)
    );
    assert_eq!(
        check(&format!("https://example.com/{}", "x".repeat(2028))),
        Ok(())
    );
    let https_only = Policy::new(Vec::new(), true);
    let http = Url::parse("http://example.com/").expect("a URL");
    assert_eq!(https_only.check_url(&http), Err(BlockedReason::HttpsOnly));

    for text in [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://\u{ff11}\u{ff12}\u{ff17}.0.0.1/",
    ] {
        loopback(text);
    }
}

#[test]
fn an_exempt_socket_exempts_its_port_alone() {
    let policy = Policy::default().with_socket("127.0.0.1:9595".parse().unwrap());
    let check = |url: &str| policy.check_url(&url.parse().unwrap());
    assert_eq!(check("http://127.0.0.1:9595/hook"), Ok(()));
    assert_eq!(check("http://[::ffff:127.0.0.1]:9595/hook"), Ok(()));
    for other in [
        "http://127.0.0.1/",
        "http://127.0.0.1:9596/",
        "http://127.0.0.2:9595/",
        "http://[::1]:9595/",
    ] {
        assert!(
            matches!(check(other), Err(BlockedReason::Address { .. })),
            "{other}"
        );
    }
}
