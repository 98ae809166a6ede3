//! Callbacks: signed, retried, kept over a restart.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::serve::Serving;

struct Delivery {
    headers: String,
    body: Value,
}

/// Answers each connection with the next of `statuses`, then with 200.
fn receiver(statuses: &'static [u16]) -> (String, Receiver<Delivery>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!(
        "http://{}/hook?x=1",
        listener.local_addr().expect("an address")
    );
    let (sender, deliveries) = channel();
    std::thread::spawn(move || {
        let mut statuses = statuses.iter();
        for stream in listener.incoming().flatten() {
            let delivery = take(stream, *statuses.next().unwrap_or(&200));
            if sender.send(delivery).is_err() {
                return;
            }
        }
    });
    (url, deliveries)
}

fn take(mut stream: TcpStream, status: u16) -> Delivery {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).expect("a request");
        bytes.extend(&piece[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: "));
            break (
                head.to_owned(),
                length
                    .expect("a length")
                    .parse::<usize>()
                    .expect("a number"),
            );
        }
    };
    while bytes.len() < head.len() + 4 + length {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).expect("the body");
        bytes.extend(&piece[..n]);
    }
    let _ = write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
    Delivery {
        body: serde_json::from_slice(&bytes[head.len() + 4..]).expect("JSON"),
        headers: head,
    }
}

fn header<'a>(delivery: &'a Delivery, name: &str) -> &'a str {
    let line = delivery
        .headers
        .lines()
        .find_map(|l| l.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {}", delivery.headers))
}

const WAIT: Duration = Duration::from_secs(20);

#[test]
fn callbacks_are_signed_and_retried() {
    let server = Serving::new(&[
        ("WEBHOOK_ALLOW_PRIVATE", "true"),
        ("WEBHOOK_SECRET", "not base64, so taken as it is"),
    ]);
    let client = server.client();
    let (url, deliveries) = receiver(&[500, 302]);
    let body = json!({"text": "Tell me", "voice_id": "pretrained_voice_001", "callback_url": url});
    let id = client.submit("/api/v1/async/synthesize/sft", &body);
    let tries: Vec<Delivery> = (0..3)
        .map(|_| deliveries.recv_timeout(WAIT).expect("a callback"))
        .collect();
    for delivery in &tries {
        assert!(delivery.headers.starts_with("POST /hook?x=1 HTTP/1.1"));
        assert_eq!(delivery.body["type"], "task.completed");
        assert_eq!(delivery.body["data"]["task_id"], id);
        assert_eq!(delivery.body["data"]["success"], true);
        let message = header(delivery, "webhook-id");
        assert_eq!(
            message,
            header(&tries[0], "webhook-id"),
            "the same message every time"
        );
        let signed = format!(
            "{message}.{}.{}",
            header(delivery, "webhook-timestamp"),
            delivery.body
        );
        let mut mac = Hmac::<Sha256>::new_from_slice(b"not base64, so taken as it is").unwrap();
        mac.update(signed.as_bytes());
        let sent = header(delivery, "webhook-signature")
            .strip_prefix("v1,")
            .expect("version 1")
            .to_owned();
        assert_eq!(sent, base64(&mac.finalize().into_bytes()));
    }
    assert!(
        deliveries.recv_timeout(Duration::from_millis(400)).is_err(),
        "taken once is enough"
    );
    let failing = json!({"text": "FAIL", "voice_id": "pretrained_voice_001", "callback_url": url});
    client.submit("/api/v1/async/synthesize/sft", &failing);
    let told = deliveries.recv_timeout(WAIT).expect("a callback");
    assert_eq!(
        (
            told.body["type"].as_str(),
            told.body["data"]["status"].as_str()
        ),
        (Some("task.failed"), Some("failed"))
    );
}

/// By the definition, bit by bit.
fn base64(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|b| (0..8).rev().map(move |i| b >> i & 1))
        .collect();
    let letters: Vec<char> = ('A'..='Z')
        .chain('a'..='z')
        .chain('0'..='9')
        .chain(['+', '/'])
        .collect();
    let mut text: String = bits
        .chunks(6)
        .map(|six| letters[six.iter().fold(0, |v, b| v << 1 | usize::from(*b)) << (6 - six.len())])
        .collect();
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text
}

#[test]
fn callbacks_survive_a_restart() {
    let values = [("WEBHOOK_ALLOW_PRIVATE", "true"), ("SHUTDOWN_TIMEOUT", "0")];
    let server = Serving::new(&values);
    let client = server.client();
    // A port that nobody answers on yet.
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    drop(held);
    let url = format!("http://{address}/late");
    let body = json!({"text": "Later", "voice_id": "pretrained_voice_001", "callback_url": url});
    let id = client.submit("/api/v1/async/synthesize/sft", &body);
    client.wait(&id);
    let data = server.stop();
    let listener = TcpListener::bind(address).expect("the same port");
    let _server = Serving::on(data, Duration::from_micros(10), &values);
    let (stream, _) = listener.accept().expect("a callback");
    assert_eq!(take(stream, 200).body["data"]["task_id"], id);
}

#[test]
fn names_that_lead_inside_are_refused_at_delivery() {
    let server = Serving::new(&[]);
    let client = server.client();
    for url in [
        "http://localhost:9/",
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://169.254.169.254/latest",
        "https://example.org/",
    ] {
        let body = json!({"text": "x", "voice_id": "pretrained_voice_001", "callback_url": url});
        let reply = client.post("/api/v1/async/synthesize/sft", &body);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (422, "validation_error"),
            "{url}"
        );
    }
}
