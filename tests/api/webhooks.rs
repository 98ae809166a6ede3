//! Callbacks: signed, retried, kept over a restart.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::program::Program;
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

fn take(mut stream: impl Read + Write, status: u16) -> Delivery {
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
        "https://127.0.0.1/",
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

const TLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls");

/// Secures what connects with a certificate for `localhost`; `None` when the other side does not want it.
fn secured(listener: &TcpListener) -> Option<StreamOwned<ServerConnection, std::net::TcpStream>> {
    let file = |name: &str| format!("{TLS}/{name}");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(file("localhost.pem")).expect("a certificate")],
            PrivateKeyDer::from_pem_file(file("localhost.key")).expect("a key"),
        )
        .expect("they fit");
    let connection = ServerConnection::new(Arc::new(config)).expect("a connection");
    let (stream, _) = listener.accept().expect("a callback");
    let mut secured = StreamOwned::new(connection, stream);
    while secured.conn.is_handshaking() {
        secured.conn.complete_io(&mut secured.sock).ok()?;
    }
    Some(secured)
}

#[test]
fn callbacks_go_over_tls_to_those_who_are_trusted() {
    for (authority, host, trusted) in [
        (Some(format!("{TLS}/ca.pem")), "localhost", true),
        // Another name than the certificate's; a certificate that nobody vouches for.
        (Some(format!("{TLS}/ca.pem")), "127.0.0.2", false),
        (None, "localhost", false),
    ] {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut variables = vec![("WEBHOOK_ALLOW_PRIVATE", "true")];
        variables.extend(authority.as_deref().map(|file| ("SSL_CERT_FILE", file)));
        let program = Program::start(&variables);
        let url = format!("https://{host}:{port}/hook");
        let body =
            json!({"text": "Tell me", "voice_id": "pretrained_voice_001", "callback_url": url});
        let id = program.client.submit("/api/v1/async/synthesize/sft", &body);
        match secured(&listener) {
            Some(stream) if trusted => {
                let delivery = take(stream, 200);
                assert!(delivery.headers.starts_with("POST /hook HTTP/1.1"));
                assert_eq!(delivery.body["data"]["task_id"], id);
            }
            Some(mut stream) => {
                // TLS 1.3 ends the server's handshake before the client has judged the certificate.
                assert!(
                    !matches!(stream.read(&mut [0; 1]), Ok(n) if n > 0),
                    "{host}"
                );
            }
            None => assert!(!trusted, "{host}"),
        }
    }
}
