//! A small HTTP client that hides nothing: one connection per request, raw bytes when a test wants them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) struct Client {
    address: SocketAddr,
    patience: Duration,
    headers: Vec<(String, String)>,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// The body ended as its framing says.
    pub(crate) complete: bool,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| {
            panic!(
                "{e} in {} {:?}",
                self.status,
                String::from_utf8_lossy(&self.body)
            )
        })
    }

    /// The error's short name; every error must have all three parts.
    pub(crate) fn error(&self) -> String {
        let json = self.json();
        assert!(
            json["message"].as_str().is_some_and(|m| !m.is_empty()),
            "{json}"
        );
        assert!(json["details"].is_object(), "{json}");
        json["error"].as_str().expect("an error word").to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// A part of a multipart body.
pub(crate) enum Part<'a> {
    Text(&'a str, &'a str),
    File(&'a str, &'a [u8]),
}

pub(crate) const BOUNDARY: &str = "----test-boundary";

pub(crate) fn multipart(parts: &[Part]) -> Vec<u8> {
    let mut body = Vec::new();
    for part in parts {
        let (head, bytes) = match part {
            Part::Text(name, text) => (format!("name=\"{name}\""), text.as_bytes()),
            Part::File(name, bytes) => (
                format!("name=\"{name}\"; filename=\"prompt.wav\"\r\nContent-Type: audio/wav"),
                *bytes,
            ),
        };
        body.extend(
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n").bytes(),
        );
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").bytes());
    body
}

/// A prompt recording: a tone, as a 16-bit wav file.
pub(crate) fn wav(seconds: f64, rate_hz: u32) -> Vec<u8> {
    let samples: Vec<f32> = (0..(seconds * f64::from(rate_hz)) as usize)
        .map(|n| 0.3 * (n as f32 * 0.05).sin())
        .collect();
    cosyvoice::audio::encode(cosyvoice::audio::Format::Wav, &samples, rate_hz).expect("a wav file")
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            patience: Duration::from_secs(30),
            headers: Vec::new(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Waits so long for a byte, and twice as long for the end of a task.
    pub(crate) fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server accepts");
        stream
            .set_read_timeout(Some(self.patience))
            .expect("a timeout");
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub(crate) fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.json("POST", path, body)
    }

    pub(crate) fn json(&self, method: &str, path: &str, body: &Value) -> Reply {
        let headers = [("content-type", "application/json")];
        self.send(method, path, &headers, body.to_string().as_bytes())
    }

    pub(crate) fn form(&self, method: &str, path: &str, parts: &[Part]) -> Reply {
        let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
        self.send(
            method,
            path,
            &[("content-type", &content_type)],
            &multipart(parts),
        )
    }

    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        let mut stream = self.open(method, path, headers, body);
        read_reply(&mut stream, method == "HEAD")
    }

    /// Sends a request and leaves the answer unread.
    pub(crate) fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> TcpStream {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
        let own = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        for (name, value) in headers.iter().copied().chain(own) {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("content-length: {}\r\n", body.len());
        }
        head += "\r\n";
        stream
            .write_all(head.as_bytes())
            .expect("the head is taken");
        // A server may answer before it has read all; what it says then is what matters.
        let _ = stream.write_all(body);
        stream
    }

    /// Submits and returns the task's id.
    pub(crate) fn submit(&self, path: &str, body: &Value) -> String {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 202, "{}", reply.json());
        reply.json()["task_id"]
            .as_str()
            .expect("a task id")
            .to_owned()
    }

    pub(crate) fn status(&self, task_id: &str) -> Value {
        let reply = self.get(&format!("/api/v1/async/tasks/{task_id}/status"));
        assert_eq!(reply.status, 200, "{}", reply.json());
        reply.json()
    }

    /// Polls until the task has ended.
    pub(crate) fn wait(&self, task_id: &str) -> Value {
        let deadline = Instant::now() + 2 * self.patience;
        loop {
            let status = self.status(task_id);
            if ["completed", "failed"].contains(&status["status"].as_str().unwrap_or_default()) {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{task_id} does not end: {status}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The audio of a completed task.
    pub(crate) fn audio(&self, task_id: &str) -> Vec<u8> {
        let result = self.get(&format!("/api/v1/async/tasks/{task_id}/result"));
        assert_eq!(result.status, 200, "{}", result.json());
        let audio = self.get(result.json()["audio_url"].as_str().expect("a URL"));
        assert_eq!(audio.status, 200);
        audio.body
    }
}

/// Reads one answer to its end.
pub(crate) fn read_reply(stream: &mut TcpStream, head_only: bool) -> Reply {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).expect("an answer");
        assert!(
            n > 0,
            "the connection closed after {:?}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.extend(&piece[..n]);
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut rest = bytes.split_off(head_end + 4);
    let mut lines = head.split("\r\n");
    let status_line = lines.next().expect("a status line");
    let status: u16 = status_line[9..12].parse().expect("a status");
    if status == 100 {
        return read_reply(stream, head_only);
    }
    let headers: HashMap<String, String> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
        .collect();
    if !head_only {
        // Closed by the server; an error here is a body cut short.
        let _ = stream.read_to_end(&mut rest);
    }
    let chunked = headers
        .get("transfer-encoding")
        .is_some_and(|v| v == "chunked");
    let (body, complete) = match headers.get("content-length") {
        _ if chunked => unchunk(&rest),
        Some(length) if !head_only => {
            let complete = length.parse() == Ok(rest.len());
            (rest, complete)
        }
        _ => (rest, true),
    };
    Reply {
        status,
        headers,
        body,
        complete,
    }
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|w| w == b"\r\n") else {
            return (body, false);
        };
        let size = usize::from_str_radix(&String::from_utf8_lossy(&rest[..end]), 16)
            .expect("a chunk size");
        rest = &rest[end + 2..];
        if size == 0 {
            return (body, true);
        }
        if rest.len() < size + 2 {
            body.extend(rest);
            return (body, false);
        }
        body.extend(&rest[..size]);
        rest = &rest[size + 2..];
    }
}
