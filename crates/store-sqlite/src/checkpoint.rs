//! Checkpoints: what the WAL holds is copied into the file by a thread of its own, while the writer goes on.
//!
//! A checkpoint copies and syncs tens of megabytes. Made by the writer, as SQLite does by default, it holds up every
//! commit for as long; here the writer copies only what came meanwhile. Once all of it is copied the next commit begins
//! the WAL anew, unless a reader still looks at it; then the next round tries again. Where many short reads overlap there is
//! always one: a WAL that has outgrown its bound waits for them for a moment.

use std::cell::Cell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use postrider_store::StoreError;
use rusqlite::Connection;

use crate::connection::{BUSY_TIMEOUT, PAGE_BYTES, open_checkpointer};
use crate::error::Fail;

/// How long the writer waits for readers that keep the WAL from beginning anew. Those that come meanwhile do not.
const READERS_WAIT: Duration = Duration::from_millis(200);

/// In pages of the WAL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// From here on it is copied.
    begin: i32,
    /// One that could not begin anew is copied again after so many more.
    again: i32,
    /// Beyond this the writer waits for the copy.
    wait: i32,
}

/// Copied from 64 MiB on, so that a page that is changed often is copied once; 256 MiB at most, but for readers that hold it.
pub(crate) const BOUNDS: Bounds = {
    let begin = 64 * 1024 * 1024 / PAGE_BYTES;
    Bounds {
        begin,
        again: begin / 8,
        wait: 4 * begin,
    }
};

thread_local! {
    /// Pages in the WAL after the last commit of this thread. SQLite's hook is a plain function.
    static WAL_PAGES: Cell<i32> = const { Cell::new(0) };
}

/// The writer's side. Used on the thread that commits.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    bounds: Bounds,
    orders: SyncSender<()>,
    done: Receiver<()>,
    thread: JoinHandle<()>,
    copying: bool,
    /// Pages that were in the WAL when the writer copied the rest last.
    copied_at: i32,
    /// From so many pages on the writer waits for readers. Doubled by one that takes longer, as a backup does.
    restart_from: i32,
}

impl Checkpoints {
    /// Watches the commits of `writer`, whose file is `path`.
    pub(crate) fn start(writer: &Connection, path: PathBuf, bounds: Bounds) -> std::io::Result<Self> {
        let (orders, ordered) = sync_channel(1);
        let (copied, done) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("store-checkpointer".into())
            .spawn(move || copy_on_order(&path, &ordered, &copied))?;
        writer.wal_hook(Some(|_, pages| {
            WAL_PAGES.set(pages);
            Ok(())
        }));
        Ok(Self {
            bounds,
            orders,
            done,
            thread,
            copying: false,
            copied_at: 0,
            restart_from: bounds.wait,
        })
    }

    /// After each commit of the writer. Blocks only when the WAL has outgrown its bound.
    pub(crate) fn after_commit(&mut self, writer: &Connection) {
        let pages = WAL_PAGES.get();
        if pages < self.copied_at {
            self.restart_from = self.bounds.wait;
        }
        if self.copying {
            let copied = if pages < self.bounds.wait {
                self.done.try_recv() != Err(TryRecvError::Empty)
            } else {
                // An error says that the thread is gone. Then the writer copies all of it.
                let _ = self.done.recv();
                true
            };
            if copied {
                self.copying = false;
                self.copied_at = pages;
                copy(writer);
                if pages >= self.restart_from && !restart(writer) {
                    self.restart_from = pages.saturating_mul(2);
                }
            }
        } else if self.is_due(pages) {
            self.copying = true;
            let _ = self.orders.try_send(());
        }
    }

    fn is_due(&self, pages: i32) -> bool {
        let begun_anew = pages < self.copied_at;
        pages >= self.bounds.begin && (begun_anew || pages - self.copied_at >= self.bounds.again)
    }

    /// Ends the thread, and, where nobody else serves the file, empties the WAL.
    pub(crate) fn finish(self, writer: &Connection, serves: bool) {
        drop(self.orders);
        if self.thread.join().is_err() {
            tracing::error!("the store's checkpointer ended by a panic");
        }
        if !serves {
            return;
        }
        if let Err(error) = writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, "the store's WAL was not checkpointed; the next start does it");
        }
    }
}

/// What the thread copies with.
struct Copier {
    connection: Connection,
    /// Never closed: that would drop the locks that this process' connections hold on the file.
    file: &'static File,
}

impl Copier {
    fn open(path: &Path) -> Result<Self, Fail> {
        let connection = open_checkpointer(path)?;
        let file = File::open(path).map_err(|error| StoreError::Unavailable(Box::new(error)))?;
        Ok(Self {
            connection,
            file: Box::leak(Box::new(file)),
        })
    }

    fn copy(&self) {
        // What comes while the first one copies is left to the second, so that the writer has little to copy.
        copy(&self.connection);
        copy(&self.connection);
        // Whoever copies the last page syncs the file. Mostly that is the writer, which should have little to sync too.
        if let Err(error) = self.file.sync_data() {
            tracing::warn!(%error, "the store's file could not be synced; the writer does it");
        }
    }
}

fn copy_on_order(path: &Path, ordered: &Receiver<()>, copied: &SyncSender<()>) {
    let mut copier = None;
    while ordered.recv().is_ok() {
        if copier.is_none() {
            copier = match Copier::open(path) {
                Ok(opened) => Some(opened),
                Err(fail) => {
                    let error = StoreError::from(fail);
                    tracing::warn!(%error, "the store's file could not be opened for a checkpoint; the writer makes it");
                    None
                }
            };
        }
        if let Some(copier) = &copier {
            copier.copy();
        }
        if copied.send(()).is_err() {
            break;
        }
    }
}

/// Copies as far as readers allow, and waits for nobody.
fn copy(connection: &Connection) {
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        tracing::warn!(%error, "the store's WAL could not be copied into its file; it is tried again");
    }
}

/// Has the next commit begin the WAL anew, once all readers are done with it; false when one takes too long.
fn restart(writer: &Connection) -> bool {
    let restarted = || -> rusqlite::Result<bool> {
        writer.busy_timeout(READERS_WAIT)?;
        let busy: i64 = writer.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0))?;
        Ok(busy == 0)
    };
    let result = restarted();
    let patient = writer.busy_timeout(BUSY_TIMEOUT);
    match result.and_then(|done| patient.map(|()| done)) {
        Ok(done) => done,
        Err(error) => {
            tracing::warn!(%error, "the store's WAL could not begin anew; it is tried again");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::connection::{open_reader, open_writer};

    const SMALL: Bounds = Bounds {
        begin: 32,
        again: 8,
        wait: 128,
    };
    const COMMITS: i64 = 2_000;

    struct File {
        directory: tempfile::TempDir,
        writer: Connection,
        checkpoints: Checkpoints,
        /// Most pages that the WAL had.
        most: i32,
    }

    impl File {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let path = directory.path().join("postrider.db");
            let writer = open_writer(&path).expect("a file");
            writer
                .execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, body BLOB)")
                .expect("a table");
            let checkpoints = Checkpoints::start(&writer, path, SMALL).expect("a thread");
            Self {
                directory,
                writer,
                checkpoints,
                most: 0,
            }
        }

        fn write(&mut self, rows: std::ops::Range<i64>) {
            for n in rows {
                self.writer
                    .execute("INSERT INTO t VALUES (?1, zeroblob(5000))", [n])
                    .expect("a row");
                self.checkpoints.after_commit(&self.writer);
                self.most = self.most.max(WAL_PAGES.get());
            }
        }

        fn reader(&self) -> Connection {
            open_reader(&self.directory.path().join("postrider.db")).expect("a reader")
        }

        /// Ends, and tells how many rows the file alone has.
        fn finish(self) -> i64 {
            self.checkpoints.finish(&self.writer, true);
            let wal = fs::metadata(self.directory.path().join("postrider.db-wal"));
            assert_eq!(wal.expect("a WAL").len(), 0, "all is in the file");
            rows(&self.writer)
        }
    }

    fn rows(connection: &Connection) -> i64 {
        let count = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0));
        count.expect("a count")
    }

    #[test]
    fn a_wal_that_is_written_without_a_pause_begins_anew() {
        let mut file = File::new();
        file.write(0..COMMITS);
        // Each commit adds a few pages after the bound was looked at.
        assert!(file.most <= SMALL.wait + 16, "{} pages", file.most);
        assert!(file.most >= SMALL.begin, "{} pages", file.most);
        assert_eq!(file.finish(), COMMITS);
    }

    #[test]
    fn the_thread_copies_while_the_writer_does_nothing() {
        let mut file = File::new();
        let length = |file: &File| {
            fs::metadata(file.directory.path().join("postrider.db"))
                .expect("a file")
                .len()
        };
        let mut rows = 0;
        while !file.checkpoints.copying {
            file.write(rows..rows + 1);
            rows += 1;
        }
        let written = u64::try_from(rows).expect("not negative") * 5_000;
        file.checkpoints.done.recv().expect("it copies");
        assert!(length(&file) >= written, "{} of {written} bytes", length(&file));
    }

    #[test]
    fn a_reader_keeps_what_it_sees_and_holds_up_nobody() {
        let mut file = File::new();
        file.write(0..10);
        let reader = file.reader();
        reader.execute_batch("BEGIN").expect("a transaction");
        assert_eq!(rows(&reader), 10);
        file.write(10..COMMITS);
        assert!(file.most > SMALL.wait, "{} pages", file.most);
        assert_eq!(rows(&reader), 10);
        reader.execute_batch("END").expect("its end");
        let most = file.most;
        file.write(COMMITS..2 * COMMITS);
        assert!(
            WAL_PAGES.get() <= SMALL.wait + 16,
            "it began anew: {} of {most}",
            WAL_PAGES.get()
        );
        drop(reader);
        assert_eq!(file.finish(), 2 * COMMITS);
    }

    /// At no time is there none that reads.
    #[test]
    fn reads_that_overlap_do_not_let_it_grow() {
        let mut file = File::new();
        file.write(0..10);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let reader = file.reader();
                let ended = &ended;
                scope.spawn(move || {
                    while !ended.load(Ordering::Relaxed) {
                        reader.execute_batch("BEGIN").expect("a transaction");
                        let row = reader.query_row("SELECT n FROM t LIMIT 1", [], |row| row.get::<_, i64>(0));
                        assert_eq!(row.expect("a row"), 0);
                        std::thread::sleep(Duration::from_millis(20));
                        reader.execute_batch("END").expect("its end");
                    }
                });
            }
            file.write(10..2 * COMMITS);
            ended.store(true, Ordering::Relaxed);
        });
        // Readers that get no processor for long let it double once or twice.
        assert!(i64::from(file.most) < COMMITS, "{} pages", file.most);
        assert_eq!(file.finish(), 2 * COMMITS);
    }

    /// The thread cannot open the file: the writer, which can, copies alone.
    #[test]
    fn without_the_thread_the_writer_copies() {
        let mut file = File::new();
        let elsewhere = file.directory.path().join("no").join("such.db");
        file.checkpoints = Checkpoints::start(&file.writer, elsewhere, SMALL).expect("a thread");
        file.write(0..COMMITS);
        assert!(file.most <= SMALL.wait + 16, "{} pages", file.most);
        assert_eq!(file.finish(), COMMITS);
    }
}
