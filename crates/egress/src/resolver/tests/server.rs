//! A name server that answers by a function of the name and of the kind of address, and counts what it is asked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// What the server says.
pub(super) enum Says {
    /// These addresses, whatever was asked for, with this TTL in seconds.
    Addresses(Vec<IpAddr>, u32),
    Code(ResponseCode),
    Nothing,
}

/// The server, on UDP; it ends when this is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Server {
    /// The script gets the name in lower case with its final dot.
    pub(super) async fn start(script: impl Fn(&str, RecordType) -> Says + Send + 'static) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = socket.local_addr().expect("bound");
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let serving = tokio::spawn(async move {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                let question = Message::from_vec(&packet[..length]).expect("a question");
                counter.fetch_add(1, Ordering::SeqCst);
                if let Some(reply) = reply(&question, &script) {
                    // Who asked may have gone.
                    let _ = socket.send_to(&reply, from).await;
                }
            }
        });
        Self {
            address,
            asked,
            serving,
        }
    }

    /// Questions that came.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn reply(question: &Message, script: &impl Fn(&str, RecordType) -> Says) -> Option<Vec<u8>> {
    let query = question.queries.first().expect("one question");
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.add_query(query.clone());
    match script(&query.name().to_string().to_lowercase(), query.query_type()) {
        Says::Nothing => return None,
        Says::Code(code) => reply.metadata.response_code = code,
        Says::Addresses(addresses, ttl) => {
            let record = |address| Record::from_rdata(query.name().clone(), ttl, RData::from(address));
            reply.add_answers(addresses.into_iter().map(record));
        }
    }
    Some(reply.to_vec().expect("a message"))
}
