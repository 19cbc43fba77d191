//! One keep-alive connection that is made again when it breaks.

use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Bytes of a refusal's body that are kept.
const REFUSAL_MAX: usize = 500;

pub(crate) struct Client {
    target: SocketAddr,
    connection: Option<SendRequest<Full<Bytes>>>,
}

pub(crate) enum Answer {
    Accepted,
    Refused { status: StatusCode, body: String },
    Broken { error: String },
}

impl Client {
    pub(crate) fn new(target: SocketAddr) -> Self {
        Self {
            target,
            connection: None,
        }
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Answer {
        match self.try_send(request).await {
            Ok(answer) => answer,
            Err(error) => {
                self.connection = None;
                Answer::Broken {
                    error: format!("{error:#}"),
                }
            }
        }
    }

    /// Connects unless that is done.
    pub(crate) async fn connect(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        let usable = self.connection.take_if(|connection| !connection.is_closed());
        let connection = match usable {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(self.target).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender
            }
        };
        Ok(self.connection.insert(connection))
    }

    async fn try_send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let connection = self.connect().await?;
        connection.ready().await?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status.is_success() {
            return Ok(Answer::Accepted);
        }
        let body = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_MAX)]).into_owned();
        Ok(Answer::Refused { status, body })
    }
}
