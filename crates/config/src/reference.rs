//! The reference of all keys, for `docs/limits.md`.

use std::fmt::Write as _;

use crate::sections::Config;
use crate::setting::Field;

/// A Markdown table of every key: name, environment variable, default, limit and meaning.
pub fn reference() -> String {
    let mut text = String::from("| Key | Variable | Default | Limit | Meaning |\n|---|---|---|---|---|\n");
    for field in Config::default().fields() {
        let default = field
            .default
            .as_deref()
            .map_or("none".to_owned(), |default| format!("`{default}`"));
        let limit = if field.limit.is_empty() {
            "–"
        } else {
            &field.limit
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| `{}` | `{}` | {default} | {limit} | {} |",
            field.key(),
            field.variable(),
            meaning(&field)
        );
    }
    text
}

/// The documentation on one line; doc comments bring a space before each of theirs.
fn meaning(field: &Field) -> String {
    field.doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_every_key_with_its_meaning() {
        let text = reference();
        assert!(text.contains(
            "| `delivery.timeout` | `POSTRIDER_DELIVERY__TIMEOUT` | `15s` | 1s to 30s | Deadline of an attempt, from \
             the lookup of the name to the end of the response, where the endpoint sets none. |"
        ));
        assert!(text.contains("| `broker.url` | `POSTRIDER_BROKER__URL` | none | – |"));
        assert!(text.contains("| `5s,5m,30m,2h,5h,10h,10h` | at most 20 items, each 1s to 7d |"));
        for field in Config::default().fields() {
            let meaning = meaning(&field);
            assert!(
                meaning.ends_with('.') && meaning.len() > 15,
                "{}: {meaning}",
                field.key()
            );
            assert!(!meaning.contains('|'), "{} would break the table", field.key());
        }
    }
}
