//! W3C Trace Context (Recommendation, level 1): the `traceparent` header.

use std::fmt;

use rand::RngExt as _;

const SAMPLED: u8 = 1;

/// Which span of which trace, and whether the trace is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
    /// Whether the caller records the trace.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent`. Later versions than 00 may have more at the end, which is not looked at (section 4.3).
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let version: [u8; 1] = hex(bytes.get(..2)?)?;
        let whole = match version[0] {
            0 => bytes.len() == 55,
            0xff => false,
            _ => bytes.len() == 55 || bytes.get(55) == Some(&b'-'),
        };
        let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
        if !whole || !dashes {
            return None;
        }
        let (trace, span): ([u8; 16], [u8; 8]) = (hex(&bytes[3..35])?, hex(&bytes[36..52])?);
        let flags: [u8; 1] = hex(&bytes[53..55])?;
        (trace != [0; 16] && span != [0; 8]).then_some(Self {
            trace,
            span,
            sampled: flags[0] & SAMPLED != 0,
        })
    }

    /// The first span of a new trace, which is recorded.
    pub(super) fn root() -> Self {
        let mut rng = rand::rng();
        Self {
            trace: rng.random::<u128>().max(1).to_be_bytes(),
            span: rng.random::<u64>().max(1).to_be_bytes(),
            sampled: true,
        }
    }

    /// Another span of the same trace.
    pub(super) fn child(&self) -> Self {
        Self {
            span: rand::rng().random::<u64>().max(1).to_be_bytes(),
            ..*self
        }
    }

    /// Whether the trace is among `ratio` of all: decided by its id, so that services with the same ratio agree.
    pub(super) fn is_chosen(&self, ratio: f64) -> bool {
        let [.., a, b, c, d, e, f, g, h] = self.trace;
        // 53 bits are what a float holds exactly.
        let low = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 11;
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let place = low as f64 / (1_u64 << 53) as f64;
        place < ratio
    }

    /// For OTLP's `flags`.
    pub(super) fn flags(&self) -> u32 {
        u32::from(self.sampled)
    }
}

/// As the header has it.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", u8::from(self.sampled))
    }
}

/// Lower case alone (section 3.2.2.2).
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_and_written() {
        let context = TraceContext::parse(TEXT).unwrap();
        assert!(context.sampled);
        assert_eq!(context.to_string(), TEXT);
        assert!(!TraceContext::parse(&TEXT.replace("-01", "-00")).unwrap().sampled);
        let later =
            TraceContext::parse(&TEXT.replace("00-0a", "cc-0a").replace("-01", "-09-what-comes")).unwrap();
        assert_eq!(later, context);
        let child = context.child();
        assert!(child.trace == context.trace && child.span != context.span);
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            "",
            "00",
            &TEXT[..54],
            &format!("{TEXT}-"),
            &TEXT.to_uppercase(),
            &TEXT.replace("00-0a", "ff-0a"),
            &TEXT.replace("b7ad6b7169203331", "0000000000000000"),
            &TEXT.replace(
                "0af7651916cd43dd8448eb211c80319c",
                "00000000000000000000000000000000",
            ),
            &TEXT.replace('-', "_"),
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00-äf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_ratio_is_kept() {
        assert!(
            (0..100).all(|_| TraceContext::root().is_chosen(1.0) && !TraceContext::root().is_chosen(0.0))
        );
        let chosen = (0..20_000)
            .filter(|_| TraceContext::root().is_chosen(0.25))
            .count();
        // Twenty standard deviations.
        assert!((3_800..6_200).contains(&chosen), "{chosen}");
    }
}
