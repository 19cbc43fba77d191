//! The writer: one thread, one connection, many jobs a commit.
//!
//! Jobs are closures over the connection. The thread starts a transaction for the first, lets those that are queued
//! behind it join, each in a savepoint, and answers all of them after the commit. Under load a commit, and with it an
//! fsync, is shared by everything that came while the one before it ran; a quiet store commits at once. Each commit
//! also carries a portion of the merge of claims.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postrider_store::StoreError;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::checkpoint::{self, Checkpoints};
use crate::claims::recent::RecentClaims;
use crate::error::{Fallible, unavailable};

/// Jobs that may be queued; more wait at the sender.
const QUEUE_JOBS: usize = 256;
/// Jobs in one commit.
const GROUP_JOBS: usize = 256;
/// A group takes no more jobs once it has worked for so long: the first one waits for its answer.
const GROUP_TIME: Duration = Duration::from_millis(20);

/// Tells a job's caller what came of it, once the commit succeeded or failed.
type Answer = Box<dyn FnOnce(Result<(), &str>) + Send>;
/// Runs, or learns why there is no transaction to run in; says whether to keep what it did.
type Job = Box<dyn FnOnce(Result<&Connection, &str>) -> (bool, Answer) + Send>;

#[derive(Debug)]
pub(crate) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// `serves`: as in [`Settings`](crate::Settings).
    pub(crate) fn start(
        connection: Connection,
        path: PathBuf,
        claims: Arc<RecentClaims>,
        serves: bool,
    ) -> Result<Self, StoreError> {
        let (sender, receiver) = mpsc::channel(QUEUE_JOBS);
        let start = || {
            let checkpoints = Checkpoints::start(&connection, path, checkpoint::BOUNDS)?;
            std::thread::Builder::new()
                .name("store-writer".into())
                .spawn(move || {
                    let checkpoints = run(&connection, checkpoints, &claims, receiver);
                    checkpoints.finish(&connection, serves);
                })
        };
        let thread = start().map_err(|error| StoreError::Unavailable(Box::new(error)))?;
        Ok(Self {
            jobs: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Runs `work` in a transaction; returns after its commit.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Fallible<T> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let result = connection.map_err(unavailable).and_then(|connection| {
                std::panic::catch_unwind(AssertUnwindSafe(|| work(connection)))
                    .map_err(|_| StoreError::Rejected("the write panicked".into()))
                    .and_then(|result| result.map_err(StoreError::from))
            });
            let keep = result.is_ok();
            let answer: Answer = Box::new(move |commit| {
                let result = match commit {
                    Err(reason) if keep => Err(unavailable(reason)),
                    _ => result,
                };
                // The caller may have stopped waiting; what was written stays written.
                let _ = sender.send(result);
            });
            (keep, answer)
        });
        let jobs = self.jobs.lock().clone();
        let jobs = jobs.ok_or_else(|| unavailable("the store is closed"))?;
        jobs.send(job)
            .await
            .map_err(|_| unavailable("the store's writer is gone"))?;
        receiver
            .await
            .map_err(|_| unavailable("the store's writer is gone"))?
    }

    /// Jobs that are queued for the connection.
    pub(crate) fn queued(&self) -> usize {
        let jobs = self.jobs.lock();
        jobs.as_ref()
            .map_or(0, |jobs| QUEUE_JOBS.saturating_sub(jobs.capacity()))
    }

    /// Takes no more jobs, finishes those that are queued, moves the WAL into the file if this process serves it.
    pub(crate) async fn close(&self) {
        drop(self.jobs.lock().take());
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the store's writer ended by a panic");
            }
        }
    }
}

fn run(
    connection: &Connection,
    mut checkpoints: Checkpoints,
    claims: &RecentClaims,
    mut jobs: mpsc::Receiver<Job>,
) -> Checkpoints {
    while let Some(first) = jobs.blocking_recv() {
        run_group(connection, claims, first, &mut jobs);
        checkpoints.after_commit(connection);
    }
    checkpoints
}

fn run_group(connection: &Connection, claims: &RecentClaims, first: Job, jobs: &mut mpsc::Receiver<Job>) {
    let started = Instant::now();
    let mut answers = Vec::new();
    let mut result = match execute(connection, "BEGIN IMMEDIATE") {
        Ok(()) => run_first(connection, first, &mut answers),
        Err(reason) => {
            answers.push(first(Err(&reason)).1);
            Err(reason)
        }
    };
    while result.is_ok() && answers.len() < GROUP_JOBS && started.elapsed() < GROUP_TIME {
        let Ok(job) = jobs.try_recv() else { break };
        result = run_next(connection, job, &mut answers);
    }
    if result.is_ok() {
        result = claims
            .merge(connection)
            .map_err(|fail| StoreError::from(fail).to_string());
    }
    if result.is_ok() {
        result = execute(connection, "COMMIT");
    }
    if result.is_err() && !connection.is_autocommit() {
        // Nothing more can be done if this fails too: the next BEGIN will say so.
        let _ = execute(connection, "ROLLBACK");
    }
    claims.committed(result.is_ok());
    let failure = result.err();
    for answer in answers {
        answer(failure.as_deref().map_or(Ok(()), Err));
    }
}

/// The first job needs no savepoint: there is nothing yet that its failure could undo.
fn run_first(connection: &Connection, job: Job, answers: &mut Vec<Answer>) -> Result<(), String> {
    let (keep, answer) = job(Ok(connection));
    answers.push(answer);
    still_open(connection)?;
    if !keep {
        execute(connection, "ROLLBACK")?;
        execute(connection, "BEGIN IMMEDIATE")?;
    }
    Ok(())
}

/// A later job, in its savepoint. An error means that the whole transaction is lost.
fn run_next(connection: &Connection, job: Job, answers: &mut Vec<Answer>) -> Result<(), String> {
    execute(connection, "SAVEPOINT job")?;
    let (keep, answer) = job(Ok(connection));
    answers.push(answer);
    still_open(connection)?;
    if !keep {
        execute(connection, "ROLLBACK TO job")?;
    }
    execute(connection, "RELEASE job")
}

/// A full disk or an I/O error makes SQLite roll back by itself.
fn still_open(connection: &Connection) -> Result<(), String> {
    if connection.is_autocommit() {
        Err("the transaction was rolled back".into())
    } else {
        Ok(())
    }
}

fn execute(connection: &Connection, sql: &str) -> Result<(), String> {
    connection
        .prepare_cached(sql)
        .and_then(|mut statement| statement.execute([]))
        .map(|_| ())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    fn store() -> Writer {
        let mut connection = Connection::open_in_memory().expect("a database");
        schema::migrate(&mut connection).expect("a schema");
        connection
            .execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY)")
            .expect("a table");
        let claims = RecentClaims::load(&connection, true).expect("none");
        Writer::start(connection, PathBuf::new(), Arc::new(claims), true).expect("a thread")
    }

    fn insert(connection: &Connection, n: i64) -> Fallible<()> {
        connection.execute("INSERT INTO t VALUES (?1)", [n])?;
        Ok(())
    }

    async fn rows(writer: &Writer) -> Vec<i64> {
        let read = |connection: &Connection| {
            let mut statement = connection.prepare("SELECT n FROM t ORDER BY n")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        };
        writer.write(read).await.expect("rows")
    }

    #[tokio::test]
    async fn a_failing_job_undoes_itself_and_nothing_else() {
        let writer = std::sync::Arc::new(store());
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..200_i64 {
            let writer = writer.clone();
            tasks.spawn(async move {
                let job = move |connection: &Connection| {
                    insert(connection, n)?;
                    if n % 3 == 0 {
                        // Fails on a row that is there already.
                        insert(connection, n)?;
                    }
                    assert!(n % 10 != 1, "every tenth panics");
                    Ok(())
                };
                (n, writer.write(job).await.is_ok())
            });
        }
        while let Some(done) = tasks.join_next().await {
            let (n, ok) = done.expect("no panic outside of the job");
            assert_eq!(ok, n % 3 != 0 && n % 10 != 1, "job {n}");
        }
        let expected: Vec<_> = (0..200).filter(|n| n % 3 != 0 && n % 10 != 1).collect();
        assert_eq!(rows(&writer).await, expected);
    }

    #[tokio::test]
    async fn a_lost_transaction_fails_every_job_of_its_group_and_the_writer_goes_on() {
        let writer = store();
        let lost = writer
            .write(|connection| {
                insert(connection, 1)?;
                connection.execute_batch("ROLLBACK")?;
                Ok(())
            })
            .await;
        assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
        writer
            .write(|connection| insert(connection, 2))
            .await
            .expect("the next one");
        assert_eq!(rows(&writer).await, [2]);
    }

    #[tokio::test]
    async fn a_closed_writer_says_so() {
        let writer = store();
        writer.close().await;
        let refused = writer.write(|connection| insert(connection, 1)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
}
