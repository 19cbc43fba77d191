//! `postrider check-config`.

use postrider_config::{Loaded, Roles};

/// Prints each value with its source, then says whether it can work.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub(crate) fn run(loaded: &Loaded, roles: Roles) -> anyhow::Result<()> {
    let values = loaded.effective();
    let width = values
        .iter()
        .map(|value| value.key.len())
        .max()
        .unwrap_or_default();
    for value in &values {
        let shown = value.value.as_deref().unwrap_or("(not set)");
        println!("{:width$} = {shown}  # {}", value.key, value.origin);
    }
    loaded.config.validate(roles)?;
    println!("\n# This configuration can work.");
    Ok(())
}

/// Prints the reference of all keys.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub(crate) fn print_reference() {
    print!("{}", postrider_config::reference());
}
