//! A name server that answers as told, also differently from one question to the next.
//!
//! UDP on 127.0.0.1, A and AAAA questions only (RFC 1035, RFC 3596). A name without an answer does not exist. Answers may
//! not be cached (TTL 0); a resolver that keeps them all the same does so by a rule of its own.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

const NAME_ERROR: u8 = 3;
const TYPE_A: [u8; 2] = [0, 1];
const TYPE_AAAA: [u8; 2] = [0, 28];
const HEADER: usize = 12;

/// What the server does with a question about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses, as far as they are of the kind that is asked for.
    Addresses(Vec<IpAddr>),
    /// An empty answer with this response code (RFC 1035, section 4.1.1).
    Code(u8),
    /// None at all.
    Silence,
}

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    serving: JoinHandle<()>,
}

impl NameServer {
    /// Listens on a free UDP port of 127.0.0.1.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub async fn start() -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("cannot listen on UDP")?;
        let address = socket.local_addr()?;
        let answers = Arc::new(Mutex::default());
        let serving = tokio::spawn(serve(socket, answers.clone()));
        Ok(Self {
            address,
            answers,
            serving,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on questions about `name` (lower case, without the final dot) are answered so.
    pub fn on(&self, name: &str, answer: Answer) {
        lock(&self.answers).insert(name.to_owned(), answer);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(socket: UdpSocket, answers: Arc<Mutex<HashMap<String, Answer>>>) {
    let mut packet = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut packet).await {
        let reply = reply(&packet[..length], &lock(&answers));
        if let Some(reply) = reply {
            // An asker that is gone is part of the tests.
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

/// The reply to a packet; `None` if it is no question, or is to be met with silence.
fn reply(packet: &[u8], answers: &HashMap<String, Answer>) -> Option<Vec<u8>> {
    let (name, length) = name_at(packet.get(HEADER..)?)?;
    let question = packet.get(HEADER..HEADER + length + 4)?;
    let kind = [question[length], question[length + 1]];
    let (code, addresses) = match answers.get(&name) {
        None => (NAME_ERROR, [].as_slice()),
        Some(Answer::Silence) => return None,
        Some(Answer::Code(code)) => (*code, [].as_slice()),
        Some(Answer::Addresses(addresses)) => (0, addresses.as_slice()),
    };
    let records: Vec<Vec<u8>> = addresses
        .iter()
        .filter_map(|address| record(*address, kind))
        .collect();
    let count = u16::try_from(records.len()).ok()?.to_be_bytes();
    let mut reply = packet[..2].to_vec();
    // A response with recursion, one question, the answers, nothing else.
    reply.extend([0x81, 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0]);
    reply.extend(question);
    reply.extend(records.concat());
    Some(reply)
}

/// A record of the question's name, if the address is of the kind that is asked for.
fn record(address: IpAddr, kind: [u8; 2]) -> Option<Vec<u8>> {
    let data = match (address, kind) {
        (IpAddr::V4(address), TYPE_A) => address.octets().to_vec(),
        (IpAddr::V6(address), TYPE_AAAA) => address.octets().to_vec(),
        _ => return None,
    };
    let length = u8::try_from(data.len()).ok()?;
    // The name by reference, the type, class IN, a TTL of 0.
    let mut record = vec![0xc0, 12, kind[0], kind[1], 0, 1, 0, 0, 0, 0, 0, length];
    record.extend(data);
    Some(record)
}

/// A name in labels, as text in lower case, and how many bytes it takes.
fn name_at(bytes: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (vec![], 0);
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = std::str::from_utf8(bytes.get(at..at + length)?).ok()?;
        labels.push(label.to_ascii_lowercase());
        at += length;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
