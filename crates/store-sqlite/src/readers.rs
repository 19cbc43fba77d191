//! Readers: a few connections for reads, each read on the blocking pool and under a deadline. One of them is never a list's,
//! so that what the process itself waits for (what is due, claims, keys, whether the store is there) does not stand behind
//! what callers look through.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postrider_store::StoreError;
use rusqlite::Connection;
use tokio::sync::{AcquireError, Semaphore};

use crate::connection::open_reader;
use crate::error::{Fallible, unavailable};

/// SQLite looks at the deadline each time it has run so many of its instructions.
const DEADLINE_OPS: i32 = 20_000;

/// A read that counts until it is dropped.
struct Call(Arc<AtomicUsize>);

impl Call {
    fn new(calls: &Arc<AtomicUsize>) -> Self {
        calls.fetch_add(1, Ordering::Relaxed);
        Self(calls.clone())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    count: usize,
    /// Reads that have not ended.
    calls: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
    /// Those that lists may have.
    lists: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
    timeout: Duration,
}

impl Readers {
    pub(crate) fn new(path: PathBuf, count: usize, timeout: Duration) -> Self {
        let count = count.max(2);
        Self {
            path,
            count,
            calls: Arc::default(),
            permits: Arc::new(Semaphore::new(count)),
            lists: Arc::new(Semaphore::new(count - 1)),
            idle: Arc::default(),
            timeout,
        }
    }

    /// A read that finds what it wants by its key.
    pub(crate) async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Fallible<T> + Send + 'static,
    {
        self.run(None, work).await
    }

    /// A read that looks through many rows.
    pub(crate) async fn list<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Fallible<T> + Send + 'static,
    {
        self.run(Some(&self.lists), work).await
    }

    async fn run<T, F>(&self, among: Option<&Arc<Semaphore>>, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Fallible<T> + Send + 'static,
    {
        let deadline = Instant::now() + self.timeout;
        let call = Call::new(&self.calls);
        let permits = async {
            let among = match among {
                Some(among) => Some(among.clone().acquire_owned().await?),
                None => None,
            };
            Ok((among, self.permits.clone().acquire_owned().await?))
        };
        let permits = tokio::time::timeout(self.timeout, permits)
            .await
            .map_err(|_| StoreError::Slow("every reader is busy".into()))?
            .map_err(|_: AcquireError| unavailable("the store is closed"))?;
        let idle = self.idle.clone();
        let path = self.path.clone();
        let task = tokio::task::spawn_blocking(move || {
            let (_call, _permits) = (call, permits);
            let connection = idle.lock().pop();
            let connection = match connection {
                Some(connection) => connection,
                None => open_reader(&path)?,
            };
            connection.progress_handler(DEADLINE_OPS, Some(move || Instant::now() > deadline))?;
            let result = work(&connection)?;
            // After an error the connection is not used again: it is cheap to open one, and this one is suspect.
            idle.lock().push(connection);
            Ok(result)
        });
        match task.await {
            Ok(result) => result.map_err(|fail: crate::error::Fail| fail.into()),
            Err(_) => Err(unavailable("the read panicked")),
        }
    }

    /// Connections in use, idle ones, and reads without a connection.
    pub(crate) fn usage(&self) -> (usize, usize, usize) {
        let in_use = self.count.saturating_sub(self.permits.available_permits());
        let waiting = self.calls.load(Ordering::Relaxed).saturating_sub(in_use);
        (in_use, self.idle.lock().len(), waiting)
    }

    pub(crate) fn close(&self) {
        self.lists.close();
        self.permits.close();
        self.idle.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use postrider_model::{AppId, UnixMillis};
    use postrider_secrets::Keyring;
    use postrider_store::{LogStore as _, MessageFilter, Page, UpkeepStore as _, WaitingStore as _};

    use super::*;
    use crate::connection::open_writer;
    use crate::{Settings, SqliteStore};

    #[tokio::test]
    async fn a_read_that_runs_into_its_deadline_was_slow() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("postrider.db");
        let _file = open_writer(&path).expect("a file");
        let readers = Readers::new(path, 2, Duration::from_millis(50));
        let endless = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT max(n) FROM n";
        let read = readers.read(|connection| {
            let largest: i64 = connection.query_row(endless, [], |row| row.get(0))?;
            Ok(largest)
        });
        let read = read.await;
        assert!(matches!(read, Err(StoreError::Slow(_))), "{read:?}");
    }

    /// Lists in all places that they may have: the others go on, and one list more waits.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_process_waits_for_does_not_stand_behind_lists() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (keyring, _) = Keyring::generate().expect("randomness");
        let path = directory.path().join("postrider.db");
        let store = SqliteStore::open(path, Settings::new(Arc::new(keyring))).expect("the store opens");
        let mut held = Vec::new();
        for _ in 1..store.readers.count {
            let (end, ended) = mpsc::channel::<()>();
            let (begin, begun) = tokio::sync::oneshot::channel();
            let store = Arc::clone(&store);
            let list = tokio::spawn(async move {
                let work = move |_: &Connection| {
                    let _ = begin.send(());
                    Ok(ended.recv().is_ok())
                };
                store.readers.list(work).await
            });
            begun.await.expect("it begins");
            held.push((end, list));
        }
        let soon = Duration::from_secs(5);
        let others = async {
            store.ping().await?;
            store.next_due().await?;
            store.claims(&[[0; 32]]).await
        };
        let others = tokio::time::timeout(soon, others).await;
        assert_eq!(others.expect("at once").expect("read"), [None]);

        let page = Page {
            after: None,
            backwards: false,
            descending: true,
            limit: 50,
        };
        let (app, filter) = (AppId::floor(UnixMillis(1)), MessageFilter::default());
        let mut list = Box::pin(store.messages(app, &filter, &page));
        let early = tokio::time::timeout(Duration::from_millis(200), &mut list).await;
        assert!(early.is_err(), "{early:?}");
        for (end, list) in held {
            end.send(()).expect("it waits");
            assert!(list.await.expect("no panic").expect("read"));
        }
        let late = tokio::time::timeout(soon, list).await;
        assert!(
            late.expect("a place is free")
                .is_ok_and(|part| part.rows.is_empty())
        );
    }
}
