//! Admissions and their claims.
//!
//! Nearly every request makes one claim and has no quota. Then a plain `SET … NX GET` tells whether the key was free, for
//! a quarter of what a script costs the server; all other requests, and afterwards those whose key was not free, ask the
//! script, which decides all or none. A claim that a lost answer leaves behind ends like any other that nobody finishes.

use std::collections::HashMap;
use std::vec::IntoIter;

use postrider_limits::gcra::{Gcra, micros};
use postrider_limits::{Admission, AdmitRequest, ClaimAnswer, ClaimRequest};
use postrider_model::AppId;
use redis::{Cmd, RedisResult, Value};

use crate::RedisLimits;
use crate::answer::{text, unexpected, wait};
use crate::batch::Batch;
use crate::scripts::VERSION_TTL;

/// Bytes of a claim's command but for its key and its value.
const OTHER_ARGS: usize = 32;

pub(crate) async fn admit(limits: &RedisLimits, batch: &[AdmitRequest]) -> RedisResult<Vec<Admission>> {
    let (mut lone, mut others) = (Vec::new(), Vec::new());
    for request in batch {
        match lone_claim(request) {
            Some(claim) => lone.push((request, claim)),
            None => others.push(request),
        }
    }
    let (made, decided) = tokio::try_join!(claim_free(limits, &lone), decide(limits, &others))?;
    let held = lone.iter().zip(&made).filter(|(_, made)| made.is_none());
    let held: Vec<_> = held.map(|((request, _), _)| *request).collect();
    let mut late = decide(limits, &held).await?.into_iter();
    let mut made = made.into_iter().map(|made| made.or_else(|| late.next()));
    let mut decided = decided.into_iter();
    let admission = |request| match lone_claim(request) {
        Some(_) => made.next().flatten(),
        None => decided.next(),
    };
    Ok(batch.iter().filter_map(admission).collect())
}

/// How a claim starts that this resource has not finished.
pub(crate) fn pending(resource: &[u8; 16]) -> [u8; 17] {
    let mut start = [b'p'; 17];
    start[1..].copy_from_slice(resource);
    start
}

/// The admissions of requests of one claim that was free; `None` where it was not.
async fn claim_free(
    limits: &RedisLimits,
    batch: &[(&AdmitRequest, &ClaimRequest)],
) -> RedisResult<Vec<Option<Admission>>> {
    let mut versions = HashMap::new();
    let (mut reads, mut claims) = (Vec::new(), Vec::new());
    for (request, claim) in batch {
        versions.entry(request.app).or_insert_with(|| {
            reads.push(read_version(limits, request.app));
            reads.len() - 1
        });
        claims.push(claim_if_free(limits, request.app, claim));
    }
    let known = reads.len();
    reads.append(&mut claims);
    let mut answers = limits.connection.send_all(reads).await?;
    let mut claimed = answers.split_off(known).into_iter();
    let known: Vec<Option<u64>> = answers
        .into_iter()
        .map(redis::from_redis_value)
        .collect::<Result<_, _>>()?;
    let made = |(request, _): &(&AdmitRequest, &ClaimRequest)| {
        (claimed.next()? == Value::Nil).then(|| Admission {
            version: known[versions[&request.app]],
            quota_wait: None,
            claims: vec![ClaimAnswer::Claimed],
            has_forgotten: false,
        })
    };
    Ok(batch.iter().map(made).collect())
}

fn lone_claim(request: &AdmitRequest) -> Option<&ClaimRequest> {
    match (request.quota, &request.claims[..]) {
        (None, [claim]) => Some(claim),
        _ => None,
    }
}

fn read_version(limits: &RedisLimits, app: AppId) -> Cmd {
    let mut command = redis::cmd("GETEX");
    let key = limits.keys.version(app);
    command.arg(key).arg("PX").arg(micros(VERSION_TTL) / 1000);
    command
}

fn claim_if_free(limits: &RedisLimits, app: AppId, claim: &ClaimRequest) -> Cmd {
    let mut value = Vec::with_capacity(64);
    value.extend_from_slice(&pending(&claim.resource));
    value.extend_from_slice(&claim.fingerprint);
    value.extend_from_slice(left(claim).to_string().as_bytes());
    let key = limits.keys.claim(app, &claim.key);
    let mut command = Cmd::with_capacity(7, key.len() + value.len() + OTHER_ARGS);
    command
        .arg("SET")
        .arg(key)
        .arg(value)
        .arg("NX")
        .arg("GET")
        .arg("PX")
        .arg(ttl(claim));
    command
}

/// Asks the script.
async fn decide(limits: &RedisLimits, batch: &[&AdmitRequest]) -> RedisResult<Vec<Admission>> {
    let mut calls = Batch::new(limits.connection.clustered());
    for request in batch {
        let call = calls.next(request.app);
        call.key(limits.keys.version(request.app));
        call.key(limits.keys.quota(request.app));
        let quota = request.quota.map(Gcra::new);
        let cost = quota.map_or(0, |quota| quota.interval() * u64::from(request.messages));
        call.number(cost);
        call.number(quota.map_or(0, |quota| quota.tolerance().max(cost)));
        call.number(request.claims.len() as u64);
        for claim in &request.claims {
            call.key(limits.keys.claim(request.app, &claim.key));
            call.bytes(claim.resource);
            call.bytes(claim.fingerprint);
            call.number(ttl(claim));
            call.number(left(claim));
        }
    }
    let read = |index: usize, values: &mut IntoIter<Value>| read_admission(batch[index].claims.len(), values);
    calls.run(&limits.connection, &limits.scripts.admit, read).await
}

/// A claim's time in milliseconds, at least the 1 that `PX` accepts.
fn ttl(claim: &ClaimRequest) -> u64 {
    (micros(claim.ttl) / 1000).max(1)
}

/// What is left of that time, in milliseconds, when the next one may take the claim over. The key's own time is the
/// only clock of a claim, so that a plain command can make it.
fn left(claim: &ClaimRequest) -> u64 {
    micros(claim.ttl.saturating_sub(claim.pending_ttl)) / 1000
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
        // What a full server drops it does not tell.
        has_forgotten: false,
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
