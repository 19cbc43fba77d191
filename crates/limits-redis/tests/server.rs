//! Against a real Redis: conformance, and what happens when it is stopped, frozen, or forgets.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use postrider_limits::{
    AdmitRequest, BreakerSettings, ClaimAnswer, ClaimRequest, EVERY_APP, Fallback, GateRequest, InProcess,
    Limits, Rate, Verdict, conformance,
};
use postrider_limits_redis::{ConnectError, RedisLimits, Settings};
use postrider_model::{AppId, DeliveryId, EndpointId};
use postrider_testkit::proxy::Proxy;
use postrider_testkit::services::{RedisCluster, RedisServer};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);

/// Patient settings: tests share the machine, and nothing here is about speed.
fn settings(url: String) -> Settings {
    Settings {
        timeout: Duration::from_secs(5),
        breaker: conformance::SETTINGS,
        ..Settings::new(url)
    }
}

fn request(endpoint: EndpointId, rate: Option<Rate>) -> GateRequest {
    GateRequest {
        app: AppId::from_uuid(Uuid::now_v7()),
        endpoint,
        delivery: DeliveryId::from_uuid(Uuid::now_v7()),
        run: 0,
        rate,
        released: false,
    }
}

fn endpoint() -> EndpointId {
    EndpointId::from_uuid(Uuid::now_v7())
}

/// Asks until it answers.
async fn answers(limits: &dyn Limits) -> Result<()> {
    let until = Instant::now() + LIMIT;
    while let Err(error) = limits.ping().await {
        if Instant::now() > until {
            return Err(error).context("redis is up again and still does not answer");
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Names of keys that would stay for ever.
async fn everlasting(server: &RedisServer) -> Result<String> {
    let script = "local names = {} for _, key in ipairs(redis.call('KEYS', '*')) do \
                  if redis.call('PTTL', key) < 0 then table.insert(names, key) end end return names";
    server.command(&["EVAL", script, "0"]).await
}

#[tokio::test]
async fn a_single_node_conforms_and_all_keys_expire() -> Result<()> {
    let server = RedisServer::start().await?;
    let limits = RedisLimits::connect(settings(server.url())).await?;
    conformance::run(limits.as_ref()).await;
    assert!(
        !server.command(&["DBSIZE"]).await?.starts_with(":0"),
        "the keys are here"
    );
    assert_eq!(everlasting(&server).await?, "*0\r\n");
    Ok(())
}

#[tokio::test]
async fn a_cluster_conforms_and_is_used_whole() -> Result<()> {
    let mut cluster = RedisCluster::start(3).await?;
    let limits = RedisLimits::connect(settings(cluster.urls().join(","))).await?;
    conformance::run(limits.as_ref()).await;
    let by_one_node = settings(cluster.urls()[1].replace("redis://", "redis+cluster://"));
    conformance::run(RedisLimits::connect(by_one_node).await?.as_ref()).await;
    for node in cluster.nodes_mut() {
        assert!(
            !node.command(&["DBSIZE"]).await?.starts_with(":0"),
            "each node has its share"
        );
        assert_eq!(everlasting(node).await?, "*0\r\n");
    }
    Ok(())
}

#[tokio::test]
async fn scripts_and_state_may_be_forgotten() -> Result<()> {
    let mut server = RedisServer::start().await?;
    let limits = RedisLimits::connect(settings(server.url())).await?;
    let app = AppId::from_uuid(Uuid::now_v7());
    let known = async || -> Result<Option<u64>> {
        let request = GateRequest {
            app,
            ..request(endpoint(), None)
        };
        Ok(limits.gate(&[request]).await?.remove(0).version)
    };
    limits.publish_version(app, 3).await?;
    assert_eq!(known().await?, Some(3));
    server.command(&["SCRIPT", "FLUSH"]).await?;
    assert_eq!(known().await?, Some(3), "an unknown script is sent again");
    server.flush().await?;
    assert_eq!(known().await?, None);
    limits.publish_version(app, 2).await?;
    assert_eq!(known().await?, Some(2));

    server.stop().await?;
    assert!(limits.ping().await.is_err());
    server.start_again().await?;
    answers(limits.as_ref()).await?;
    assert_eq!(known().await?, None);
    Ok(())
}

#[tokio::test]
async fn a_rate_holds_over_three_clients() -> Result<()> {
    let server = RedisServer::start().await?;
    let rate = Rate {
        per_second: 100,
        burst: 10,
    };
    let endpoint = endpoint();
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(RedisLimits::connect(settings(server.url())).await?);
    }
    let began = Instant::now();
    let spam = clients.iter().map(async |limits| -> Result<u64> {
        let mut passed = 0;
        while began.elapsed() < Duration::from_secs(2) {
            let batch = [request(endpoint, Some(rate)); 4];
            let answers = limits.gate(&batch).await?;
            passed += answers.iter().filter(|gate| gate.verdict == Verdict::Go).count() as u64;
        }
        Ok(passed)
    });
    let passed: u64 = futures_util::future::try_join_all(spam).await?.into_iter().sum();
    // A millisecond for the difference of the two clocks.
    let most = 10 + 100 * (u64::try_from(began.elapsed().as_micros())? + 1_000) / 1_000_000;
    assert!(passed <= most, "{passed} passed, {most} may");
    assert!(passed >= 100, "{passed} passed, about {most} may");
    Ok(())
}

#[tokio::test]
async fn changes_reach_other_processes_and_lost_ones_count_as_all() -> Result<()> {
    let mut server = RedisServer::start().await?;
    let (one, other) = (
        RedisLimits::connect(settings(server.url())).await?,
        RedisLimits::connect(settings(server.url())).await?,
    );
    let mut changes = other.invalidations();
    let app = AppId::from_uuid(Uuid::now_v7());
    one.publish_version(app, 1).await?;
    assert_eq!(timeout(LIMIT, changes.recv()).await??, app);

    server.kill9();
    server.start_again().await?;
    assert_eq!(timeout(LIMIT, changes.recv()).await??, EVERY_APP);
    answers(one.as_ref()).await?;
    one.publish_version(app, 2).await?;
    assert_eq!(timeout(LIMIT, changes.recv()).await??, app);
    Ok(())
}

#[tokio::test]
async fn a_frozen_server_costs_a_time_out_and_then_nothing() -> Result<()> {
    let server = RedisServer::start().await?;
    let settings = Settings {
        timeout: Duration::from_millis(100),
        ..Settings::new(server.url())
    };
    let limits = RedisLimits::connect(settings).await?;
    let fallback = Fallback::new(limits, InProcess::new(BreakerSettings::default()), 2, |_| {});
    answers(&fallback).await?;
    server.pause()?;
    let endpoint = endpoint();
    let began = Instant::now();
    let rate = Some(Rate {
        per_second: 2,
        burst: 40,
    });
    let mut passed = 0;
    for _ in 0..1_000 {
        let verdict = fallback.gate(&[request(endpoint, rate)]).await?.remove(0).verdict;
        passed += u32::from(verdict == Verdict::Go);
    }
    assert!(fallback.degraded());
    assert!(
        began.elapsed() < Duration::from_secs(50),
        "1,000 time-outs would take 100 s"
    );
    assert!((20..=70).contains(&passed), "half of the limit, not {passed}");
    server.resume()?;
    answers(&fallback).await?;
    let until = Instant::now() + LIMIT;
    while fallback.degraded() {
        fallback.gate(&[request(endpoint, None)]).await?;
        if Instant::now() > until {
            bail!("still degraded");
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_stopped_server_is_stood_in_for_and_found_again() -> Result<()> {
    let mut server = RedisServer::start().await?;
    let limits = RedisLimits::connect(settings(server.url())).await?;
    let local = InProcess::new(BreakerSettings::default());
    let fallback = Fallback::new(Arc::<RedisLimits>::clone(&limits), local, 1, |_| {});
    server.kill9();
    let app = AppId::from_uuid(Uuid::now_v7());
    let mut changes = fallback.invalidations();
    timeout(LIMIT, fallback.publish_version(app, 4)).await??;
    assert_eq!(
        timeout(LIMIT, changes.recv()).await??,
        app,
        "this process hears of it at once"
    );
    assert!(fallback.degraded());
    server.start_again().await?;
    let until = Instant::now() + LIMIT;
    loop {
        let request = GateRequest {
            app,
            ..request(endpoint(), None)
        };
        if fallback.gate(&[request]).await?.remove(0).version == Some(4) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("the version was not published after all");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Requests with a key each, from one application; `resource` says whose they are.
fn claims(app: AppId, keys: std::ops::Range<u32>, resource: u8) -> Vec<AdmitRequest> {
    keys.map(|n| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        AdmitRequest {
            app,
            messages: 1,
            quota: None,
            claims: vec![ClaimRequest {
                key,
                resource: [resource; 16],
                fingerprint: [0; 32],
                ttl: Duration::from_secs(3600),
                pending_ttl: Duration::from_secs(60),
            }],
        }
    })
    .collect()
}

/// How many of the keys another request holds.
async fn held(limits: &dyn Limits, app: AppId, keys: std::ops::Range<u32>) -> Result<usize> {
    let admissions = limits.admit(&claims(app, keys, 2)).await?;
    let is_held = |answer: &&ClaimAnswer| matches!(answer, ClaimAnswer::Held { .. });
    Ok(admissions
        .iter()
        .flat_map(|admission| &admission.claims)
        .filter(is_held)
        .count())
}

/// Memory of a server that gets full.
const FULL: &str = "8mb";
/// Keys that are claimed at once.
const PORTION: u32 = 500;
/// More than such a server holds.
const PORTIONS: u32 = 100;
/// Redis tells the age of keys in whole seconds: what was used less far apart goes at random.
const OLDER: Duration = Duration::from_millis(1_200);

#[tokio::test]
async fn a_full_server_that_evicts_forgets_old_claims_and_goes_on() -> Result<()> {
    let server =
        RedisServer::start_with(&["--maxmemory", FULL, "--maxmemory-policy", "volatile-lru"]).await?;
    let limits = RedisLimits::connect(settings(server.url())).await?;
    let app = AppId::from_uuid(Uuid::now_v7());
    for portion in 0..PORTIONS {
        let keys = portion * PORTION..(portion + 1) * PORTION;
        let admissions = limits.admit(&claims(app, keys.clone(), 1)).await?;
        let claimed = |answer: &ClaimAnswer| *answer == ClaimAnswer::Claimed;
        assert!(
            admissions
                .iter()
                .all(|admission| admission.claims.iter().all(claimed)),
            "portion {portion}"
        );
        let now = held(&*limits, app, keys).await?;
        // What goes is chosen by samples, so a few new ones may be among it.
        assert!(
            now > PORTION as usize * 9 / 10,
            "{now} of portion {portion} are known"
        );
        if portion == 0 {
            sleep(OLDER).await;
        }
    }
    let old = held(&*limits, app, 0..PORTION).await?;
    assert!(
        old < PORTION as usize / 2,
        "{old} of the first are known: it was never full, or forgets the new"
    );
    Ok(())
}

#[tokio::test]
async fn a_full_server_that_refuses_is_stood_in_for_and_keeps_what_it_has() -> Result<()> {
    let server = RedisServer::start_with(&["--maxmemory-policy", "noeviction"]).await?;
    let limits = RedisLimits::connect(settings(server.url())).await?;
    let local = InProcess::new(BreakerSettings::default());
    let fallback = Fallback::new(Arc::<RedisLimits>::clone(&limits), local, 1, |_| {});
    let app = AppId::from_uuid(Uuid::now_v7());
    fallback.admit(&claims(app, 0..PORTION, 1)).await?;
    assert!(!fallback.degraded());
    // Less than it holds already.
    let maxmemory = async |size| server.command(&["CONFIG", "SET", "maxmemory", size]).await;
    assert!(maxmemory("100kb").await?.starts_with("+OK"));
    let new = claims(app, PORTION..2 * PORTION, 1);
    let refused = limits
        .admit(&new)
        .await
        .err()
        .context("a full server took keys")?;
    let why = refused.source.context("no cause")?.to_string();
    assert!(why.contains("OOM"), "{why}");
    assert_eq!(
        fallback.admit(&new).await?.len(),
        new.len(),
        "each request is answered"
    );
    assert!(fallback.degraded());
    assert!(maxmemory("0").await?.starts_with("+OK"));
    assert_eq!(held(&*limits, app, 0..PORTION).await?, PORTION as usize);
    Ok(())
}

#[tokio::test]
async fn a_server_that_comes_later_is_found() -> Result<()> {
    let mut server = RedisServer::start().await?;
    server.stop().await?;
    let settings = Settings {
        timeout: Duration::from_millis(250),
        ..Settings::new(server.url())
    };
    let limits = RedisLimits::connect(settings).await?;
    assert!(limits.ping().await.is_err());
    server.start_again().await?;
    answers(limits.as_ref()).await
}

#[tokio::test]
async fn large_batches_keep_their_order() -> Result<()> {
    let server = RedisServer::start().await?;
    let limits = RedisLimits::connect(settings(server.url())).await?;
    let rate = Rate {
        per_second: 1,
        burst: 1,
    };
    let fresh: Vec<_> = (0..1_500).map(|_| request(endpoint(), Some(rate))).collect();
    let batch: Vec<_> = fresh.iter().chain(&fresh).copied().collect();
    let verdicts = limits.gate(&batch).await?;
    let went: HashSet<_> = verdicts
        .iter()
        .take(1_500)
        .map(|gate| gate.verdict == Verdict::Go)
        .collect();
    assert_eq!(went, HashSet::from([true]), "each endpoint's first");
    assert!(
        verdicts
            .iter()
            .skip(1_500)
            .all(|gate| matches!(gate.verdict, Verdict::Rate(_)))
    );
    Ok(())
}

#[tokio::test]
async fn bad_settings_are_refused_and_urls_are_hidden() {
    let refused = async |settings: Settings| RedisLimits::connect(settings).await.err().expect("a refusal");
    assert!(matches!(refused(Settings::new("")).await, ConnectError::NoUrl));
    assert!(matches!(
        refused(Settings::new("http://localhost")).await,
        ConnectError::Url(_)
    ));
    let prefix = Settings {
        prefix: "{x}".into(),
        ..Settings::new("redis://localhost")
    };
    assert!(matches!(refused(prefix).await, ConnectError::Prefix));
    let secret = Settings::new("redis://:hunter2@localhost");
    assert!(!format!("{secret:?}").contains("hunter2"));
}

/// After a failover: the name leads to the new primary, and the old one keeps its connections.
#[tokio::test]
async fn a_server_that_became_a_replica_is_left() -> Result<()> {
    let (old, new) = (RedisServer::start().await?, RedisServer::start().await?);
    let (old_at, new_port) = (([127, 0, 0, 1], old.port()).into(), new.port());
    let name = Proxy::start(old_at).await?;
    let limits = RedisLimits::connect(settings(format!("redis://{}", name.address()))).await?;
    let app = AppId::from_uuid(Uuid::now_v7());
    limits.admit(&claims(app, 0..1, 1)).await?;
    name.retarget(([127, 0, 0, 1], new_port).into());
    let replicate = ["REPLICAOF", "127.0.0.1", &new_port.to_string()];
    assert!(old.command(&replicate).await?.starts_with("+OK"));
    let until = Instant::now() + LIMIT;
    while let Err(error) = limits.admit(&claims(app, 1..2, 1)).await {
        if Instant::now() > until {
            bail!("still there: {error:?}");
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
