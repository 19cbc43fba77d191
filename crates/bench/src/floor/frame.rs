//! A broker message of the floor: items one after the other, each an endpoint's number (2 bytes), a length (4 bytes) and
//! a body.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// One body for one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) endpoint: u16,
    pub(crate) body: Bytes,
}

pub(crate) fn encode(items: &[Item]) -> Bytes {
    let size = items.iter().map(|item| 6 + item.body.len()).sum();
    let mut out = BytesMut::with_capacity(size);
    for item in items {
        out.put_u16(item.endpoint);
        out.put_u32(u32::try_from(item.body.len()).unwrap_or(u32::MAX));
        out.put_slice(&item.body);
    }
    out.freeze()
}

/// The items, as views of the frame; what is cut off at the end is left out.
pub(crate) fn decode(mut frame: Bytes) -> Vec<Item> {
    let mut items = Vec::new();
    while frame.len() >= 6 {
        let endpoint = frame.get_u16();
        let Ok(length) = usize::try_from(frame.get_u32()) else {
            break;
        };
        if length > frame.len() {
            break;
        }
        items.push(Item {
            endpoint,
            body: frame.split_to(length),
        });
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let items: Vec<Item> = [(0, "a"), (999, ""), (7, "three")]
            .map(|(endpoint, body)| Item {
                endpoint,
                body: Bytes::from(body),
            })
            .into();
        let frame = encode(&items);
        assert_eq!(decode(frame.clone()), items);
        assert_eq!(decode(frame.slice(..frame.len() - 1)).len(), 2);
    }
}
