//! How long the disk stands beside a measurement.
//!
//! The broker confirms and the stores commit when a sync is done. On a shared machine one may take a second, whatever the
//! subject does: so the report tells the longest. The probe writes one page in place, again and again, which leaves the file
//! system's own log alone.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often it looks.
const EVERY: Duration = Duration::from_millis(50);
const PAGE: [u8; 4096] = [0; 4096];

/// A file that is written to and synced until [`Probe::end`], or until it is dropped.
pub(crate) struct Probe {
    end: Sender<()>,
    thread: JoinHandle<std::io::Result<Duration>>,
}

impl Probe {
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        file.write_all_at(&PAGE, 0)?;
        file.sync_all()?;
        let (end, ended) = channel();
        let thread = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            loop {
                let began = Instant::now();
                file.write_all_at(&PAGE, 0)?;
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
    fn it_syncs_one_page_until_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probe");
        let probe = Probe::start(&path).unwrap();
        std::thread::sleep(EVERY * 3);
        assert!(probe.end().unwrap() > Duration::ZERO);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
    }
}
