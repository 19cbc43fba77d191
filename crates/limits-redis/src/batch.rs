//! One batch as script calls: a call a slot in a cluster, one call (or a few, when it is huge) on a single node.

use std::collections::HashMap;
use std::fmt::Display;

use redis::{RedisResult, Value};

use crate::connection::Connection;
use crate::scripts::Script;

/// Keys in one call, so that a script holds the server for a few milliseconds at most, and can hand all of them to one
/// command (Lua's `unpack` takes less than 8,000). One request's keys are never divided.
const KEYS_MAX: usize = 2048;
/// Digits of a call's number of keys.
const NUMBER: usize = 4;

/// The requests of a batch, grouped into calls.
pub(crate) struct Batch {
    clustered: bool,
    open: HashMap<u16, usize>,
    calls: Vec<Call>,
    requests: usize,
}

/// One script call.
#[derive(Default)]
pub(crate) struct Call {
    keys: Vec<Vec<u8>>,
    args: Vec<Vec<u8>>,
    /// Which requests of the batch it holds, in order.
    requests: Vec<usize>,
}

impl Call {
    pub(crate) fn key(&mut self, key: Vec<u8>) {
        self.keys.push(key);
    }

    pub(crate) fn bytes(&mut self, arg: impl Into<Vec<u8>>) {
        self.args.push(arg.into());
    }

    pub(crate) fn number(&mut self, arg: impl Into<u64>) {
        let number: u64 = arg.into();
        self.args.push(number.to_string().into_bytes());
    }

    fn command(&self, name: &str, script: &str) -> redis::Cmd {
        let bytes = |parts: &[Vec<u8>]| parts.iter().map(Vec::len).sum::<usize>();
        let (keys, args) = (&self.keys, &self.args);
        let all = name.len() + script.len() + NUMBER + bytes(keys) + bytes(args);
        let mut command = redis::Cmd::with_capacity(3 + keys.len() + args.len(), all);
        command.arg(name).arg(script).arg(keys.len()).arg(keys).arg(args);
        command
    }
}

impl Batch {
    pub(crate) fn new(clustered: bool) -> Self {
        Self {
            clustered,
            open: HashMap::new(),
            calls: Vec::new(),
            requests: 0,
        }
    }

    /// The call for the next request, whose keys have this tag.
    pub(crate) fn next(&mut self, tag: impl Display) -> &mut Call {
        let slot = if self.clustered {
            crate::keys::slot(&tag.to_string())
        } else {
            0
        };
        let known = self
            .open
            .get(&slot)
            .copied()
            .filter(|index| self.calls[*index].keys.len() < KEYS_MAX);
        let index = known.unwrap_or_else(|| {
            self.calls.push(Call::default());
            self.open.insert(slot, self.calls.len() - 1);
            self.calls.len() - 1
        });
        let call = &mut self.calls[index];
        call.requests.push(self.requests);
        self.requests += 1;
        call
    }

    /// Makes all calls at once: one round trip, or two where a server does not know the script.
    ///
    /// Each answer is split by `read`, which is called once a request, and put back in the batch's order.
    pub(crate) async fn run<T>(
        self,
        connection: &Connection,
        script: &Script,
        mut read: impl FnMut(usize, &mut std::vec::IntoIter<Value>) -> RedisResult<T>,
    ) -> RedisResult<Vec<T>> {
        let calls = self.calls.iter().map(|call| evaluate(connection, script, call));
        let answers = futures_util::future::try_join_all(calls).await?;
        let mut read_answers: Vec<Option<T>> = (0..self.requests).map(|_| None).collect();
        for (call, answer) in self.calls.iter().zip(answers) {
            let values: Vec<Value> = redis::from_redis_value(answer)?;
            let mut values = values.into_iter();
            for request in &call.requests {
                read_answers[*request] = Some(read(*request, &mut values)?);
            }
        }
        Ok(read_answers.into_iter().flatten().collect())
    }
}

async fn evaluate(connection: &Connection, script: &Script, call: &Call) -> RedisResult<Value> {
    let known = connection.send(&call.command("EVALSHA", &script.sha1)).await;
    match known {
        // Refused before anything was done, so it is safe to repeat. EVAL also makes the script known.
        Err(error) if error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript) => {
            connection.send(&call.command("EVAL", &script.source)).await
        }
        answer => answer,
    }
}
