//! Reports of what became of deliveries: done marks by plain commands, signals by a script, all at once.

use std::collections::HashSet;
use std::time::Duration;
use std::vec::IntoIter;

use postrider_limits::gcra::micros;
use postrider_limits::{BreakerChange, DONE_MARK_TTL, FinishReport, PUSH_BACK_MAX, Signal};
use redis::{Cmd, RedisResult, Value};

use crate::RedisLimits;
use crate::answer::number;
use crate::batch::Batch;

/// Bytes of a mark's command but for its key and the mark.
const OTHER_ARGS: usize = 24;

pub(crate) async fn finish(limits: &RedisLimits, batch: &[FinishReport]) -> RedisResult<Vec<BreakerChange>> {
    let marks = batch
        .iter()
        .filter_map(|report| keep_mark(limits, report))
        .collect();
    let telling = telling(batch);
    let (_, told) = tokio::try_join!(limits.connection.send_all(marks), tell(limits, batch, &telling))?;
    let mut changes = vec![BreakerChange::None; batch.len()];
    for (index, change) in telling.into_iter().zip(told) {
        changes[index] = change;
    }
    Ok(changes)
}

/// The first mark of a delivery's run stands.
fn keep_mark(limits: &RedisLimits, report: &FinishReport) -> Option<Cmd> {
    let mark = report.mark.as_deref()?;
    let key = limits.keys.mark(report.endpoint, report.delivery, report.run);
    let mut command = Cmd::with_capacity(6, key.len() + mark.len() + OTHER_ARGS);
    command
        .arg("SET")
        .arg(key)
        .arg(mark)
        .arg("NX")
        .arg("PX")
        .arg(micros(DONE_MARK_TTL) / 1000);
    Some(command)
}

/// The reports that may change their endpoint's state. A success after another one of the same endpoint tells nothing
/// new, which is most of them.
fn telling(batch: &[FinishReport]) -> Vec<usize> {
    let mut works = HashSet::new();
    let mut tells = |report: &FinishReport| match report.signal {
        Signal::Neutral => report.probe,
        Signal::Success => works.insert(report.endpoint),
        _ => {
            works.remove(&report.endpoint);
            true
        }
    };
    (0..batch.len()).filter(|index| tells(&batch[*index])).collect()
}

async fn tell(
    limits: &RedisLimits,
    batch: &[FinishReport],
    telling: &[usize],
) -> RedisResult<Vec<BreakerChange>> {
    let mut calls = Batch::new(limits.connection.clustered());
    for index in telling {
        let report = &batch[*index];
        let (signal, pause) = signal_args(report.signal);
        let call = calls.next(report.endpoint);
        call.key(limits.keys.endpoint(report.endpoint));
        call.number(report.probe);
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
    calls.run(&limits.connection, &limits.scripts.finish, read).await
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

#[cfg(test)]
mod tests {
    use postrider_model::{AppId, DeliveryId, EndpointId};
    use uuid::Uuid;

    use super::*;

    fn report(endpoint: u128, signal: Signal, probe: bool) -> FinishReport {
        FinishReport {
            app: AppId::from_uuid(Uuid::nil()),
            endpoint: EndpointId::from_uuid(Uuid::from_u128(endpoint)),
            delivery: DeliveryId::from_uuid(Uuid::now_v7()),
            run: 0,
            probe,
            mark: None,
            signal,
        }
    }

    #[test]
    fn only_reports_that_may_change_something_are_told() {
        let batch = [
            report(1, Signal::Success, false),
            report(2, Signal::Neutral, false),
            report(1, Signal::Success, true),
            report(2, Signal::Success, false),
            report(1, Signal::Failure, false),
            report(1, Signal::Success, false),
            report(2, Signal::Neutral, true),
            report(2, Signal::Success, false),
            report(1, Signal::Failure, false),
            report(1, Signal::Failure, false),
        ];
        assert_eq!(telling(&batch), [0, 3, 4, 5, 6, 8, 9]);
    }
}
