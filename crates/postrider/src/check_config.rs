//! `postrider check-config`.

use postrider_config::{Loaded, Roles};

use crate::out::say;

/// Prints each value with its source, then says whether it can work.
pub(crate) fn run(loaded: &Loaded, roles: Roles) -> anyhow::Result<()> {
    let values = loaded.effective();
    let width = values
        .iter()
        .map(|value| value.key.len())
        .max()
        .unwrap_or_default();
    for value in &values {
        let shown = value.value.as_deref().unwrap_or("(not set)");
        say(format_args!("{:width$} = {shown}  # {}", value.key, value.origin))?;
    }
    loaded.config.validate(roles)?;
    say("\n# This configuration can work.")
}

/// Prints the reference of all keys.
pub(crate) fn print_reference() -> anyhow::Result<()> {
    say(postrider_config::reference().trim_end())
}
