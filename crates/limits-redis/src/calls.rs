//! The calls: requests into script arguments, answers back.

use std::collections::HashMap;
use std::time::Duration;
use std::vec::IntoIter;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_limits::breaker::MEMORY;
use postrider_limits::gcra::{Gcra, micros};
use postrider_limits::{
    Admission, AdmitRequest, BreakerChange, ClaimAnswer, FinishReport, Gate, GateRequest, Limits,
    LimitsError, PUSH_BACK_MAX, Rate, Release, ReleaseRequest, Settlement, Signal, Verdict,
};
use postrider_model::{AppId, UnixMillis};
use redis::{ErrorKind, RedisResult, Value};
use tokio::sync::broadcast;

use crate::RedisLimits;
use crate::batch::{Batch, Call};

#[async_trait]
impl Limits for RedisLimits {
    async fn admit(&self, batch: &[AdmitRequest]) -> Result<Vec<Admission>, LimitsError> {
        let mut calls = Batch::new(self.connection.clustered());
        for request in batch {
            let call = calls.next(&request.app.to_string());
            call.key(self.keys.version(request.app));
            call.key(self.keys.quota(request.app));
            let quota = request.quota.map(Gcra::new);
            let cost = quota.map_or(0, |quota| quota.interval() * u64::from(request.messages));
            call.number(cost);
            call.number(quota.map_or(0, |quota| quota.tolerance().max(cost)));
            call.number(request.claims.len() as u64);
            for claim in &request.claims {
                call.key(self.keys.claim(request.app, &claim.key));
                call.bytes(claim.resource);
                call.bytes(claim.fingerprint);
                call.number(millis(claim.ttl));
                call.number(micros(claim.pending_ttl));
            }
        }
        let read =
            |index: usize, values: &mut IntoIter<Value>| read_admission(batch[index].claims.len(), values);
        self.call("admit", calls.run(&self.connection, &self.scripts.admit, read))
            .await
    }

    async fn settle(&self, batch: &[Settlement]) -> Result<(), LimitsError> {
        let mut calls = Batch::new(self.connection.clustered());
        for settlement in batch {
            let call = calls.next(&settlement.app.to_string());
            call.key(self.keys.claim(settlement.app, &settlement.key));
            call.bytes(settlement.resource);
            call.number(settlement.finish.map_or(0, millis));
        }
        let nothing = |_, _: &mut IntoIter<Value>| Ok(());
        self.call(
            "settle",
            calls.run(&self.connection, &self.scripts.settle, nothing),
        )
        .await
        .map(drop)
    }

    async fn publish_version(&self, app: AppId, version: u64) -> Result<(), LimitsError> {
        let mut calls = Batch::new(self.connection.clustered());
        let call = calls.next(&app.to_string());
        call.key(self.keys.version(app));
        call.number(version);
        call.bytes(self.keys.channel());
        call.bytes(app.to_string());
        let nothing = |_, _: &mut IntoIter<Value>| Ok(());
        self.call(
            "publish",
            calls.run(&self.connection, &self.scripts.publish, nothing),
        )
        .await
        .map(drop)
    }

    fn invalidations(&self) -> broadcast::Receiver<AppId> {
        self.changes.subscribe()
    }

    async fn gate(&self, batch: &[GateRequest]) -> Result<Vec<Gate>, LimitsError> {
        let mut calls = Batch::new(self.connection.clustered());
        for request in batch {
            let call = calls.next(&request.endpoint.to_string());
            call.key(self.keys.endpoint(request.endpoint));
            call.key(self.keys.mark(request.endpoint, request.delivery, request.run));
            call.number(request.released);
            rate_args(call, request.rate);
        }
        let read = |_, values: &mut IntoIter<Value>| read_verdict(values);
        let verdicts = calls.run(&self.connection, &self.scripts.gate, read);
        let versions = self.versions(batch.iter().map(|request| request.app));
        let both = futures_util::future::try_join(verdicts, versions);
        let (verdicts, versions) = self.call("gate", both).await?;
        let gate = |(request, verdict): (&GateRequest, Verdict)| Gate {
            version: versions.get(&request.app).copied(),
            verdict,
        };
        Ok(batch.iter().zip(verdicts).map(gate).collect())
    }

    async fn finish(&self, batch: &[FinishReport]) -> Result<Vec<BreakerChange>, LimitsError> {
        let mut calls = Batch::new(self.connection.clustered());
        for report in batch {
            let (signal, pause) = signal_args(report.signal);
            let call = calls.next(&report.endpoint.to_string());
            call.key(self.keys.endpoint(report.endpoint));
            call.key(self.keys.mark(report.endpoint, report.delivery, report.run));
            call.number(report.probe);
            call.number(report.mark.is_some());
            call.bytes(report.mark.as_deref().unwrap_or_default());
            call.bytes(signal);
            call.number(micros(pause.min(PUSH_BACK_MAX)));
        }
        let read = |_, values: &mut IntoIter<Value>| {
            Ok(match number(values)? {
                0 => BreakerChange::None,
                opened => u64::try_from(opened).map_or(BreakerChange::Closed, |micros| {
                    BreakerChange::Opened(Duration::from_micros(micros))
                }),
            })
        };
        let changes = self
            .call("finish", calls.run(&self.connection, &self.scripts.finish, read))
            .await?;
        self.note_breakers(batch, &changes).await;
        Ok(changes)
    }

    async fn release(&self, batch: &[ReleaseRequest]) -> Result<Vec<Release>, LimitsError> {
        let mut calls = Batch::new(self.connection.clustered());
        for request in batch {
            let call = calls.next(&request.endpoint.to_string());
            call.key(self.keys.endpoint(request.endpoint));
            call.number(request.wanted.max(1));
            call.number(request.more);
            rate_args(call, request.rate);
        }
        let read = |_, values: &mut IntoIter<Value>| read_release(values);
        self.call(
            "release",
            calls.run(&self.connection, &self.scripts.release, read),
        )
        .await
    }

    async fn open_breakers(&self) -> Result<u64, LimitsError> {
        let key = self.keys.open_breakers();
        let mut forget = redis::cmd("ZREMRANGEBYSCORE");
        forget.arg(&key).arg("-inf").arg(UnixMillis::now().0 / 1000);
        let mut count = redis::cmd("ZCARD");
        count.arg(&key);
        let counted = async {
            self.connection.send(&forget).await?;
            redis::from_redis_value(self.connection.send(&count).await?).map_err(Into::into)
        };
        self.call("open_breakers", counted).await
    }

    async fn ping(&self) -> Result<(), LimitsError> {
        self.call("ping", self.connection.send(&redis::cmd("PING")))
            .await
            .map(drop)
    }
}

impl RedisLimits {
    /// Keeps the list of open breakers, which is for people only: a failure here changes nothing else.
    async fn note_breakers(&self, batch: &[FinishReport], changes: &[BreakerChange]) {
        let key = self.keys.open_breakers();
        let mut commands = Vec::new();
        for (report, change) in batch.iter().zip(changes) {
            let endpoint = report.endpoint.to_string();
            match *change {
                BreakerChange::None => {}
                BreakerChange::Opened(time) => {
                    let known_for = time + MEMORY;
                    let forget_at = UnixMillis::now().plus(known_for).0 / 1000;
                    commands.push(redis::cmd("ZADD").arg(&key).arg(forget_at).arg(endpoint).take());
                    // The list lives as long as its last entry: `GT` lengthens a time that is set, `NX` sets the first.
                    for when in ["NX", "GT"] {
                        let seconds = known_for.as_secs();
                        commands.push(redis::cmd("EXPIRE").arg(&key).arg(seconds).arg(when).take());
                    }
                }
                BreakerChange::Closed => commands.push(redis::cmd("ZREM").arg(&key).arg(endpoint).take()),
            }
        }
        for command in commands {
            if let Err(error) = self.call("breakers", self.connection.send(&command)).await {
                tracing::debug!(%error, "limits: open breakers were not counted");
                return;
            }
        }
    }

    /// The known versions of these applications.
    async fn versions(&self, apps: impl Iterator<Item = AppId>) -> RedisResult<HashMap<AppId, u64>> {
        let mut slots: HashMap<u16, Vec<AppId>> = HashMap::new();
        for app in apps {
            let slot = if self.connection.clustered() {
                crate::keys::slot(&app.to_string())
            } else {
                0
            };
            let apps = slots.entry(slot).or_default();
            // Batches are of a few dozen, and neighbours are often of one application.
            if !apps.contains(&app) {
                apps.push(app);
            }
        }
        let asked = slots.into_values().map(async |apps| {
            let mut command = redis::cmd("MGET");
            for app in &apps {
                command.arg(self.keys.version(*app));
            }
            let versions: Vec<Option<u64>> = redis::from_redis_value(self.connection.send(&command).await?)?;
            RedisResult::Ok(apps.into_iter().zip(versions))
        });
        let answers = futures_util::future::try_join_all(asked).await?;
        Ok(answers
            .into_iter()
            .flatten()
            .filter_map(|(app, version)| Some((app, version?)))
            .collect())
    }
}

/// Whole milliseconds, at least the 1 that `PX` accepts.
fn millis(duration: Duration) -> u64 {
    (micros(duration) / 1000).max(1)
}

fn rate_args(call: &mut Call, rate: Option<Rate>) {
    let gcra = rate.map(Gcra::new);
    call.number(gcra.map_or(0, |gcra| gcra.interval()));
    call.number(gcra.map_or(0, |gcra| gcra.tolerance()));
}

fn signal_args(signal: Signal) -> (&'static str, Duration) {
    match signal {
        Signal::Success => ("s", Duration::ZERO),
        Signal::Failure => ("f", Duration::ZERO),
        Signal::PushBack(pause) => ("p", pause),
        Signal::FailureWithPushBack(pause) => ("f", pause),
        Signal::Backlogged => ("b", Duration::ZERO),
        Signal::Stalled(pause) => ("b", pause),
        Signal::Neutral => ("n", Duration::ZERO),
    }
}

fn unexpected(what: &'static str) -> redis::RedisError {
    (ErrorKind::UnexpectedReturnType, what).into()
}

fn number(values: &mut IntoIter<Value>) -> RedisResult<i64> {
    match values.next() {
        Some(Value::Int(number)) => Ok(number),
        _ => Err(unexpected("a script's answer lacks a number")),
    }
}

fn text(values: &mut IntoIter<Value>) -> RedisResult<Vec<u8>> {
    match values.next() {
        Some(Value::BulkString(text)) => Ok(text),
        _ => Err(unexpected("a script's answer lacks a text")),
    }
}

fn wait(values: &mut IntoIter<Value>) -> RedisResult<Duration> {
    let wait =
        u64::try_from(number(values)?).map_err(|_| unexpected("a script's answer is a negative time"))?;
    Ok(Duration::from_micros(wait))
}

fn read_verdict(values: &mut IntoIter<Value>) -> RedisResult<Verdict> {
    Ok(match number(values)? {
        0 => number(values).map(|_| Verdict::Go)?,
        1 => Verdict::Done(Bytes::from(text(values)?)),
        2 => Verdict::Rate(wait(values)?),
        3 => Verdict::Breaker(wait(values)?),
        4 => number(values).map(|_| Verdict::Backlog)?,
        _ => return Err(unexpected("an unknown verdict")),
    })
}

fn read_release(values: &mut IntoIter<Value>) -> RedisResult<Release> {
    let (kind, count, wait) = (number(values)?, number(values)?, wait(values)?);
    let count = u32::try_from(count).map_err(|_| unexpected("an impossible number of releases"))?;
    Ok(match kind {
        0 => Release::Granted { count, next: wait },
        1 => Release::Probe,
        2 => Release::Wait(wait),
        _ => return Err(unexpected("an unknown release")),
    })
}

fn read_admission(claims: usize, values: &mut IntoIter<Value>) -> RedisResult<Admission> {
    let version = String::from_utf8(text(values)?)
        .ok()
        .and_then(|version| version.parse().ok());
    let quota_wait = Some(wait(values)?).filter(|wait| !wait.is_zero());
    let claims = (0..claims)
        .map(|_| read_claim(&text(values)?))
        .collect::<RedisResult<_>>()?;
    Ok(Admission {
        version,
        quota_wait,
        claims,
    })
}

fn read_claim(answer: &[u8]) -> RedisResult<ClaimAnswer> {
    let short = || unexpected("a malformed claim");
    let (kind, rest) = answer.split_first().ok_or_else(short)?;
    Ok(match kind {
        b'c' => ClaimAnswer::Claimed,
        b's' => ClaimAnswer::Skipped,
        b't' => ClaimAnswer::TakenOver {
            resource: rest.try_into().map_err(|_| short())?,
        },
        b'h' => {
            let (finished, rest) = rest.split_first().ok_or_else(short)?;
            let (resource, fingerprint) = rest.split_first_chunk::<16>().ok_or_else(short)?;
            let fingerprint = fingerprint.try_into().map_err(|_| short())?;
            ClaimAnswer::Held {
                resource: *resource,
                fingerprint,
                finished: *finished == b'1',
            }
        }
        _ => return Err(short()),
    })
}
