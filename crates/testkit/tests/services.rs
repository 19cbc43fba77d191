//! Each server starts, answers, stops, comes back, and leaves no process.

use std::path::Path;
use std::time::Duration;

use postrider_testkit::services::{
    self, PostgresDatabase, PostgresServer, RabbitServer, RedisCluster, RedisServer, reachable, unique_name,
};
use postrider_testkit::wait::{Poll, wait_for};

/// Fails if any process still has `needle` in its command line or environment.
async fn nothing_mentions(needle: &str) {
    let what = format!("no process to mention {needle}");
    let gone = wait_for(&what, Duration::from_secs(10), async || {
        let left = mentioning(needle)?;
        Ok(if left.is_empty() {
            Poll::Ready(())
        } else {
            Poll::NotYet(format!("{left:?}"))
        })
    })
    .await;
    if let Err(error) = gone {
        panic!("{error:#}");
    }
}

fn mentioning(needle: &str) -> std::io::Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == std::process::id().to_string() {
            continue;
        }
        let text = |name| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let both = [text("cmdline"), text("environ")].concat();
        if String::from_utf8_lossy(&both).contains(needle) {
            left.push(pid);
        }
    }
    Ok(left)
}

#[tokio::test]
async fn redis_restarts_on_its_port_and_leaves_nothing() {
    let mut redis = RedisServer::start().await.unwrap();
    let url = redis.url();
    let port = format!("--port\0{}\0", redis.port());
    assert_eq!(redis.command(&["SET", "k", "v"]).await.unwrap(), "+OK\r\n");
    redis.flush().await.unwrap();
    assert_eq!(redis.command(&["GET", "k"]).await.unwrap(), "$-1\r\n");
    redis.pause().unwrap();
    assert!(!reachable(&url).await);
    redis.resume().unwrap();
    assert!(reachable(&url).await);
    redis.stop().await.unwrap();
    assert!(!reachable(&url).await);
    redis.start_again().await.unwrap();
    redis.kill9();
    assert!(!reachable(&url).await);
    redis.start_again().await.unwrap();
    assert!(reachable(&url).await);
    redis.pause().unwrap();
    drop(redis);
    assert!(!reachable(&url).await);
    if cfg!(target_os = "linux") {
        nothing_mentions(&port).await;
    }
}

#[tokio::test]
async fn a_redis_cluster_serves_all_slots() {
    let mut cluster = RedisCluster::start(3).await.unwrap();
    assert_eq!(cluster.urls().len(), 3);
    let mut moved = 0;
    for node in cluster.nodes_mut() {
        let answer = node.command(&["SET", "key", "value"]).await.unwrap();
        moved += usize::from(answer.starts_with("-MOVED"));
    }
    assert_eq!(moved, 2, "one node of three owns the key");
}

#[tokio::test]
async fn rabbitmq_keeps_its_data_over_a_restart_and_leaves_nothing() {
    let mut rabbit = RabbitServer::start().await.unwrap();
    let url = rabbit.url();
    let port = format!("RABBITMQ_NODE_PORT={}\0", rabbit.port());
    rabbit.ctl(&["add_vhost", "kept"]).await.unwrap();
    rabbit.stop().await.unwrap();
    assert!(!reachable(&url).await);
    if cfg!(target_os = "linux") {
        nothing_mentions(&port).await;
    }
    assert!(rabbit.ctl(&["list_vhosts"]).await.is_err());
    rabbit.start_again().await.unwrap();
    let vhosts = rabbit.ctl(&["list_vhosts"]).await.unwrap();
    assert!(vhosts.lines().any(|line| line == "kept"), "{vhosts}");
    rabbit.kill9();
    assert!(!reachable(&url).await);
    rabbit.start_again().await.unwrap();
    assert!(reachable(&url).await);
    drop(rabbit);
    if cfg!(target_os = "linux") {
        nothing_mentions(&port).await;
    }
}

#[tokio::test]
async fn postgres_keeps_its_data_over_a_restart_and_leaves_nothing() {
    let mut server = PostgresServer::start().await.unwrap();
    let url = server.url();
    let database = PostgresDatabase::create_in(&url).await.unwrap();
    server.stop().await.unwrap();
    assert!(!reachable(&url).await);
    server.start_again().await.unwrap();
    server.kill9();
    assert!(!reachable(&url).await);
    server.start_again().await.unwrap();
    connect(database.url()).await.unwrap();
    let gone = database.url().to_owned();
    drop(database);
    assert!(connect(&gone).await.is_err(), "the database outlived its value");
    let port = format!("port={}\0", server.port());
    drop(server);
    if cfg!(target_os = "linux") {
        nothing_mentions(&port).await;
    }
}

async fn connect(url: &str) -> Result<(), sqlx::Error> {
    use sqlx::Connection;
    sqlx::PgConnection::connect(url).await?.close().await
}

#[tokio::test]
async fn shared_servers_are_shared() {
    let (first, second) = tokio::join!(services::redis(), services::redis());
    assert_eq!(first.unwrap(), second.unwrap());
    let rabbit = services::rabbitmq().await.unwrap();
    assert_eq!(services::rabbitmq().await.unwrap(), rabbit);
    let (one, two) = tokio::join!(PostgresDatabase::create(), PostgresDatabase::create());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.url(), two.url());
    connect(one.url()).await.unwrap();
    connect(two.url()).await.unwrap();
}

/// The test binary starts itself; the copy starts a server and is killed without a chance to clean up.
#[tokio::test]
async fn a_killed_test_takes_its_servers_with_it() {
    const MARK: &str = "POSTRIDER_TESTKIT_PORT_FILE";
    if let Some(file) = std::env::var_os(MARK) {
        let redis = RedisServer::start().await.unwrap();
        std::fs::write(&file, redis.url()).unwrap();
        std::future::pending::<()>().await;
    }
    if !cfg!(target_os = "linux") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("port");
    let mut copy = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_test_takes_its_servers_with_it"])
        .env(MARK, &file)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let url = wait_for("the copy's server", Duration::from_secs(30), async || {
        let url = read(&file);
        Ok(if url.is_empty() {
            Poll::NotYet("no file".to_owned())
        } else {
            Poll::Ready(url)
        })
    })
    .await
    .unwrap();
    copy.kill().await.unwrap();
    wait_for("the server to die", Duration::from_secs(10), async || {
        Ok(if reachable(&url).await {
            Poll::NotYet("alive".to_owned())
        } else {
            Poll::Ready(())
        })
    })
    .await
    .unwrap();
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

#[test]
fn unique_names_are_unique_and_plain() {
    let names: std::collections::HashSet<_> = (0..1_000).map(|_| unique_name("q")).collect();
    assert_eq!(names.len(), 1_000);
    assert!(
        names
            .iter()
            .all(|n| n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
    );
}
