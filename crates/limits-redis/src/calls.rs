//! The calls: requests into commands and script arguments, answers back.

use std::collections::{HashMap, HashSet};
use std::time::Duration;
use std::vec::IntoIter;

use async_trait::async_trait;
use bytes::Bytes;
use postrider_limits::breaker::MEMORY;
use postrider_limits::gcra::Gcra;
use postrider_limits::{
    Admission, AdmitRequest, BreakerChange, ClaimEnd, FinishReport, Gate, GateRequest, Limits, LimitsError,
    Rate, Release, ReleaseRequest, Settlement, Verdict,
};
use postrider_model::{AppId, UnixMillis};
use redis::{Cmd, RedisResult, Value};
use tokio::sync::broadcast;

use crate::answer::{number, text, unexpected, wait};
use crate::batch::{Batch, Call};
use crate::{RedisLimits, admit, finish};

#[async_trait]
impl Limits for RedisLimits {
    async fn admit(&self, batch: &[AdmitRequest]) -> Result<Vec<Admission>, LimitsError> {
        self.call("admit", admit::admit(self, batch)).await
    }

    async fn settle(&self, batch: &[Settlement]) -> Result<(), LimitsError> {
        let mut calls = Batch::new(self.connection.clustered());
        for settlement in batch {
            let call = calls.next(settlement.app);
            call.key(self.keys.claim(settlement.app, &settlement.key));
            call.bytes(admit::pending(&settlement.resource));
            call.number(settlement.end == ClaimEnd::Finished);
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
        let call = calls.next(app);
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
            let call = calls.next(request.endpoint);
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
        let changes = self.call("finish", finish::finish(self, batch)).await?;
        self.note_breakers(batch, &changes).await;
        Ok(changes)
    }

    async fn release(&self, batch: &[ReleaseRequest]) -> Result<Vec<Release>, LimitsError> {
        let mut calls = Batch::new(self.connection.clustered());
        for request in batch {
            let call = calls.next(request.endpoint);
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
        // One may close and open again within a batch: its last change counts.
        let (mut opened, mut closed) = (HashMap::new(), HashSet::new());
        for (report, change) in batch.iter().zip(changes) {
            let endpoint = report.endpoint;
            match *change {
                BreakerChange::None => {}
                BreakerChange::Opened(time) => {
                    closed.remove(&endpoint);
                    opened.insert(endpoint, time + MEMORY);
                }
                BreakerChange::Closed => {
                    opened.remove(&endpoint);
                    closed.insert(endpoint);
                }
            }
        }
        if opened.is_empty() && closed.is_empty() {
            return;
        }
        let key = self.keys.open_breakers();
        let on_the_list = |name| redis::cmd(name).arg(&key).take();
        let mut changed = Vec::new();
        if !opened.is_empty() {
            let mut add = on_the_list("ZADD");
            for (endpoint, known_for) in &opened {
                let forget_at = UnixMillis::now().plus(*known_for).0 / 1000;
                add.arg(forget_at).arg(endpoint.to_string());
            }
            changed.push(add);
        }
        if !closed.is_empty() {
            let mut remove = on_the_list("ZREM");
            for endpoint in &closed {
                remove.arg(endpoint.to_string());
            }
            changed.push(remove);
        }
        // The list lives as long as its last entry: `GT` lengthens a time that is set, `NX` sets the first.
        let expire = |time: &Duration| {
            ["NX", "GT"].map(|when| on_the_list("EXPIRE").arg(time.as_secs()).arg(when).take())
        };
        let lives_on: Vec<Cmd> = opened.values().max().into_iter().flat_map(expire).collect();
        for commands in [changed, lives_on] {
            if let Err(error) = self.call("breakers", self.connection.send_all(commands)).await {
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

fn rate_args(call: &mut Call, rate: Option<Rate>) {
    let gcra = rate.map(Gcra::new);
    call.number(gcra.map_or(0, |gcra| gcra.interval()));
    call.number(gcra.map_or(0, |gcra| gcra.tolerance()));
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
