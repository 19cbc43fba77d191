//! Reading a script's answer, which is one flat list for all requests of its call.

use std::time::Duration;
use std::vec::IntoIter;

use redis::{ErrorKind, RedisResult, Value};

pub(crate) fn unexpected(what: &'static str) -> redis::RedisError {
    (ErrorKind::UnexpectedReturnType, what).into()
}

pub(crate) fn number(values: &mut IntoIter<Value>) -> RedisResult<i64> {
    match values.next() {
        Some(Value::Int(number)) => Ok(number),
        _ => Err(unexpected("a script's answer lacks a number")),
    }
}

pub(crate) fn text(values: &mut IntoIter<Value>) -> RedisResult<Vec<u8>> {
    match values.next() {
        Some(Value::BulkString(text)) => Ok(text),
        _ => Err(unexpected("a script's answer lacks a text")),
    }
}

pub(crate) fn wait(values: &mut IntoIter<Value>) -> RedisResult<Duration> {
    let wait =
        u64::try_from(number(values)?).map_err(|_| unexpected("a script's answer is a negative time"))?;
    Ok(Duration::from_micros(wait))
}
