//! One POST of a callback. The address that was checked is the one that is connected to, and no redirect is followed.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::{Timestamp, WebhookConfig};
use super::address::{Target, check_url, is_private};
use super::sign::signature;
use super::tls;

/// From the first lookup to the status line.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Longest part of an answer that is looked at.
const ANSWER_BYTES: usize = 1024;

/// Posts `body`; any 2xx is success.
pub(super) async fn post(
    url: &str,
    task_id: &str,
    body: String,
    config: &WebhookConfig,
) -> Result<(), String> {
    let target = check_url(url, config.allow_private).map_err(|e| format!("the URL {e}"))?;
    let exchange = exchange(&target, task_id, &body, config);
    let answered = tokio::time::timeout(TIMEOUT, exchange).await;
    let status = answered.map_err(|_| String::from("no answer in time"))??;
    if (200..300).contains(&status) {
        Ok(())
    } else {
        Err(format!("answered {status}"))
    }
}

async fn exchange(
    target: &Target,
    task_id: &str,
    body: &str,
    config: &WebhookConfig,
) -> Result<u16, String> {
    let addresses = resolve(target, config.allow_private).await?;
    let stream = TcpStream::connect(&addresses[..]).await.map_err(said)?;
    let request = request(target, task_id, body, config);
    if target.tls {
        converse(tls::connect(stream, &target.host).await?, &request).await
    } else {
        converse(stream, &request).await
    }
}

fn said(error: std::io::Error) -> String {
    error.to_string()
}

/// Sends the request; the status of its answer.
async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> Result<u16, String> {
    stream.write_all(request.as_bytes()).await.map_err(said)?;
    stream.flush().await.map_err(said)?;
    let mut answer = Vec::new();
    let mut reader = stream.take(ANSWER_BYTES as u64);
    while !answer.contains(&b'\n') {
        if reader.read_buf(&mut answer).await.map_err(said)? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(&answer);
    let mut words = line.split_ascii_whitespace();
    let version = words.next().filter(|v| v.starts_with("HTTP/1."));
    let status = version.and_then(|_| words.next()?.parse().ok());
    status.ok_or_else(|| String::from("the answer is not HTTP"))
}

/// The addresses of the host, if none of them is forbidden.
async fn resolve(target: &Target, allow_private: bool) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
    let addresses: Vec<SocketAddr> = found.map_err(|e| e.to_string())?.collect();
    if !allow_private && addresses.iter().any(|a| is_private(a.ip())) {
        return Err(String::from(
            "the host has a loopback, private or link-local address",
        ));
    }
    if addresses.is_empty() {
        return Err(String::from("the host has no address"));
    }
    Ok(addresses)
}

fn request(target: &Target, task_id: &str, body: &str, config: &WebhookConfig) -> String {
    let id = format!("msg_{task_id}");
    let timestamp = Timestamp::now().seconds();
    let signature = match &config.secret {
        Some(secret) => format!(
            "webhook-signature: {}\r\n",
            signature(secret, &id, timestamp, body)
        ),
        None => String::new(),
    };
    format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nuser-agent: cosyvoice/{}\r\n\
         webhook-id: {id}\r\nwebhook-timestamp: {timestamp}\r\n{signature}connection: close\r\n\r\n{body}",
        target.path,
        target.authority,
        body.len(),
        env!("CARGO_PKG_VERSION"),
    )
}
