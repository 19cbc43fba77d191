//! What commands print on standard output.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _, stdout};

use anyhow::Context as _;

/// Exit status of a command whose output nobody reads any more (`postrider status | head -3`): as a shell tells it of a program that
/// SIGPIPE ended.
pub(crate) const UNREAD_STATUS: u8 = 128 + 13;

/// Nobody reads the output any more. It ends the command, without a word.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output")]
pub(crate) struct Unread;

/// Prints a line.
pub(crate) fn say(line: impl Display) -> anyhow::Result<()> {
    let written = writeln!(stdout().lock(), "{line}");
    if written
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)
    {
        return Err(Unread.into());
    }
    written.context("the output cannot be written")
}
