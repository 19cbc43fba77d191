//! Readers: a few connections for reads, each read on the blocking pool and under a deadline.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postrider_store::StoreError;
use rusqlite::Connection;
use tokio::sync::Semaphore;

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
    idle: Arc<Mutex<Vec<Connection>>>,
    timeout: Duration,
}

impl Readers {
    pub(crate) fn new(path: PathBuf, count: usize, timeout: Duration) -> Self {
        Self {
            path,
            count: count.max(1),
            calls: Arc::default(),
            permits: Arc::new(Semaphore::new(count.max(1))),
            idle: Arc::default(),
            timeout,
        }
    }

    pub(crate) async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Fallible<T> + Send + 'static,
    {
        let deadline = Instant::now() + self.timeout;
        let call = Call::new(&self.calls);
        let permit = tokio::time::timeout(self.timeout, self.permits.clone().acquire_owned())
            .await
            .map_err(|_| unavailable("every reader is busy"))?
            .map_err(|_| unavailable("the store is closed"))?;
        let idle = self.idle.clone();
        let path = self.path.clone();
        let task = tokio::task::spawn_blocking(move || {
            let (_call, _permit) = (call, permit);
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
        self.permits.close();
        self.idle.lock().clear();
    }
}
