//! A connection that is kept: one JSON question at a time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    pub(crate) fn get(&mut self, path: &str) -> Value {
        self.ask("GET", path, "", 200)
    }

    /// Whether the answer is 200.
    pub(crate) fn is_ok(&mut self, path: &str) -> bool {
        self.exchange("GET", path, "").0 == 200
    }

    pub(crate) fn post(&mut self, path: &str, body: &Value, status: u16) -> Value {
        self.ask("POST", path, &body.to_string(), status)
    }

    fn ask(&mut self, method: &str, path: &str, body: &str, expected: u16) -> Value {
        let (status, answer) = self.exchange(method, path, body);
        assert_eq!(status, expected, "{method} {path}: {answer}");
        answer
    }

    fn exchange(&mut self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0
            .get_mut()
            .write_all(request.as_bytes())
            .expect("the request is taken");
        let status: u16 = self.line()[9..12].parse().expect("a status");
        let mut length = 0;
        loop {
            let line = self.line().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("the body");
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }
}
