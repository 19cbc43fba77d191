//! How long the disk stands beside a measurement.
//!
//! The broker confirms and the stores commit when a sync is done. On a shared machine one may take a second, and then the
//! latencies of that round are the disk's and not the subject's: so the report tells the longest.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often it looks.
const EVERY: Duration = Duration::from_millis(50);
/// A page, appended as a log appends.
const PAGE: [u8; 4096] = [0; 4096];

/// A file that is written to and synced until [`Probe::end`], or until it is dropped.
pub(crate) struct Probe {
    end: Sender<()>,
    thread: JoinHandle<std::io::Result<Duration>>,
}

impl Probe {
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let mut file = File::create(path).with_context(|| path.display().to_string())?;
        let (end, ended) = channel();
        let thread = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            loop {
                let began = Instant::now();
                file.write_all(&PAGE)?;
                file.sync_data()?;
                longest = longest.max(began.elapsed());
                if ended.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return Ok(longest);
                }
            }
        });
        Ok(Self { end, thread })
    }

    /// The longest that a sync took.
    pub(crate) fn end(self) -> Result<Duration> {
        drop(self.end);
        let longest = self.thread.join();
        let longest = longest.map_err(|_| anyhow::anyhow!("the probe of the disk panicked"))?;
        longest.context("the probe of the disk cannot write")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_appends_and_syncs_until_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probe");
        let probe = Probe::start(&path).unwrap();
        let written = || std::fs::metadata(&path).unwrap().len();
        let started = Instant::now();
        while written() < 2 * 4096 && started.elapsed() < Duration::from_secs(20) {
            std::thread::yield_now();
        }
        assert!(probe.end().unwrap() > Duration::ZERO);
        assert!(written() >= 2 * 4096, "{}", written());
    }
}
