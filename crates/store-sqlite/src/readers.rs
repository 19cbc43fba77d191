//! Readers: a few connections for reads, each read on the blocking pool and under a deadline.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postrider_store::StoreError;
use rusqlite::Connection;
use tokio::sync::Semaphore;

use crate::connection::open_reader;
use crate::error::{Fallible, unavailable};

/// SQLite looks at the deadline each time it has run so many of its instructions.
const DEADLINE_OPS: i32 = 20_000;

#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
    timeout: Duration,
}

impl Readers {
    pub(crate) fn new(path: PathBuf, count: usize, timeout: Duration) -> Self {
        Self {
            path,
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
        let permit = tokio::time::timeout(self.timeout, self.permits.clone().acquire_owned())
            .await
            .map_err(|_| unavailable("every reader is busy"))?
            .map_err(|_| unavailable("the store is closed"))?;
        let idle = self.idle.clone();
        let path = self.path.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
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

    pub(crate) fn close(&self) {
        self.permits.close();
        self.idle.lock().clear();
    }
}
