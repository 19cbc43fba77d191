//! Values that operators write with a unit or in a fixed form.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

/// Why a text is not a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a duration.
    #[error(
        "`{0}` is no duration: write whole numbers with a unit (ms, s, m, h, d), such as `250ms`, `15s` or `1h30m`"
    )]
    Period(String),
    /// Not a size.
    #[error("`{0}` is no size: write a whole number with a unit (B, KiB, MiB, GiB), such as `256KiB`")]
    ByteSize(String),
    /// Not a network.
    #[error("`{0}` is no network: write an address and a prefix length, such as `10.0.0.0/8` or `fd00::/8`")]
    Network(String),
    /// Not a part.
    #[error("`{0}` is no part of a whole: write a number from 0 to 1, such as `0.05`")]
    Ratio(String),
    /// Not a log format.
    #[error("`{0}` is no log format: write `text` or `json`")]
    LogFormat(String),
}

/// A duration in whole milliseconds, written as `250ms`, `15s`, `5m`, `2h`, `5d`, or several of these together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(u64);

const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl Period {
    /// So many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(millis)
    }

    /// So many seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000))
    }

    /// So many days.
    pub const fn days(days: u64) -> Self {
        Self(days.saturating_mul(86_400_000))
    }

    /// As the standard library has it.
    pub const fn get(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl From<Period> for Duration {
    fn from(period: Period) -> Self {
        period.get()
    }
}

impl FromStr for Period {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::Period(text.to_owned());
        let mut rest = text.trim();
        let mut total = 0_u64;
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let (number, after) = split_number(rest).ok_or_else(error)?;
            let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_end);
            let (_, millis) = UNITS
                .iter()
                .find(|(name, _)| *name == unit.trim())
                .ok_or_else(error)?;
            let part = number.checked_mul(*millis).ok_or_else(error)?;
            total = total.checked_add(part).ok_or_else(error)?;
            rest = after;
        }
        Ok(Self(total))
    }
}

impl TryFrom<String> for Period {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let (unit, millis) = UNITS
            .iter()
            .find(|(_, millis)| self.0.is_multiple_of(*millis))
            .unwrap_or(&("ms", 1));
        write!(f, "{}{unit}", self.0 / millis)
    }
}

impl fmt::Debug for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A number of bytes, written as `512B`, `256KiB`, `8MiB` or `1GiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct ByteSize(u64);

const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    /// So many KiB.
    pub const fn kib(kib: u64) -> Self {
        Self(kib << 10)
    }

    /// So many MiB.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// The bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The bytes, for sizes in memory; the largest there is where an address is shorter than the number.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::ByteSize(text.to_owned());
        let (number, unit) = split_number(text.trim()).ok_or_else(error)?;
        let (_, bytes) = SIZES
            .iter()
            .find(|(name, _)| *name == unit.trim())
            .ok_or_else(error)?;
        number.checked_mul(*bytes).map(Self).ok_or_else(error)
    }
}

impl TryFrom<String> for ByteSize {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |bytes: u64| self.0 != 0 && self.0.is_multiple_of(bytes);
        let (unit, bytes) = SIZES.iter().find(|(_, bytes)| whole(*bytes)).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Leading digits as a number, and what follows.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    Some((number.parse().ok()?, rest))
}

/// Networks in CIDR notation; a bare address stands for itself alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Networks(pub Vec<IpNet>);

impl TryFrom<Vec<String>> for Networks {
    type Error = ValueError;

    fn try_from(texts: Vec<String>) -> Result<Self, ValueError> {
        let parse = |text: &String| {
            let trimmed = text.trim();
            let network = trimmed
                .parse()
                .or_else(|_| trimmed.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| ValueError::Network(text.clone()))
        };
        texts.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }
}

/// A part of a whole, 0 to 1; a number or a text.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Deserialize)]
#[serde(try_from = "RatioText")]
pub struct Ratio(f64);

#[derive(Deserialize)]
#[serde(untagged)]
enum RatioText {
    Number(f64),
    Text(String),
}

impl Ratio {
    /// None of it.
    pub const NONE: Self = Self(0.0);
    /// The whole.
    pub const WHOLE: Self = Self(1.0);

    /// The ratio of `percent` to a hundred.
    pub(crate) const fn percent(percent: u8) -> Self {
        Self(percent as f64 / 100.0)
    }

    /// As a number.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<RatioText> for Ratio {
    type Error = ValueError;

    fn try_from(text: RatioText) -> Result<Self, ValueError> {
        match text {
            RatioText::Number(number) if number.is_finite() => Ok(Self(number)),
            RatioText::Number(number) => Err(ValueError::Ratio(number.to_string())),
            RatioText::Text(text) => match text.trim().parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Self(number)),
                _ => Err(ValueError::Ratio(text)),
            },
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl TryFrom<String> for LogFormat {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        match text.as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(ValueError::LogFormat(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read_and_shown() {
        for (text, millis, shown) in [
            ("250ms", 250, "250ms"),
            ("15s", 15_000, "15s"),
            ("60s", 60_000, "1m"),
            ("1h30m", 5_400_000, "90m"),
            (" 5 d ", 432_000_000, "5d"),
            ("0s", 0, "0s"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(
                (period, period.to_string().as_str()),
                (Period(millis), shown),
                "{text}"
            );
        }
        for text in [
            "",
            "15",
            "s",
            "1.5s",
            "-1s",
            "15 sec",
            "18446744073709551615d",
            "1s2",
        ] {
            assert_eq!(
                text.parse::<Period>(),
                Err(ValueError::Period(text.to_owned())),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("1MiB", 1 << 20, "1MiB"),
            ("1024 KiB", 1 << 20, "1MiB"),
            ("1500B", 1500, "1500B"),
            ("0B", 0, "0B"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.get(), size.to_string().as_str()), (bytes, shown), "{text}");
        }
        for text in ["", "1", "1MB", "1.5MiB", "18446744073709551615GiB"] {
            assert_eq!(
                text.parse::<ByteSize>(),
                Err(ValueError::ByteSize(text.to_owned())),
                "{text}"
            );
        }
    }

    #[test]
    fn ratios_are_numbers_or_texts() {
        let text = |text: &str| Ratio::try_from(RatioText::Text(text.to_owned()));
        assert_eq!(text(" 0.05 "), Ok(Ratio::percent(5)));
        assert_eq!(Ratio::try_from(RatioText::Number(1.0)), Ok(Ratio::WHOLE));
        assert_eq!(Ratio::percent(1).to_string(), "0.01");
        for bad in ["", "5%", "NaN", "inf"] {
            assert_eq!(text(bad), Err(ValueError::Ratio(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn networks_take_bare_addresses() {
        let networks = Networks::try_from(vec!["10.0.0.0/8".to_owned(), " ::1".to_owned()]).unwrap();
        let shown: Vec<String> = networks.0.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "::1/128"]);
        assert!(Networks::try_from(vec!["10.0.0.0/33".to_owned()]).is_err());
    }
}
