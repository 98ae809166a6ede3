//! Clients that mean harm or are broken: slow ones, idle ones, huge ones. The server goes on serving.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{BOUNDARY, Client, Part, multipart, read_reply};
use super::serve::Serving;

const SFT: &str = "/api/v1/async/synthesize/sft";

fn still_serves(client: &Client) {
    let body = json!({"text": "Still here", "voice_id": "pretrained_voice_001"});
    let id = client.submit(SFT, &body);
    assert_eq!(client.wait(&id)["status"], "completed");
}

/// Everything until the server closes.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

/// Sends the same byte again and again until the server has had enough.
fn trickle(mut stream: TcpStream, byte: u8) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for _ in 0..500 {
            std::thread::sleep(Duration::from_millis(20));
            if stream.write_all(&[byte]).is_err() {
                break;
            }
        }
    })
}

#[test]
fn headers_that_trickle_in_are_answered_408() {
    let server = Serving::new(&[("HEADER_TIMEOUT", "0.5")]);
    let client = server.client();
    let mut stream = client.connect();
    write!(stream, "GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ").unwrap();
    let writer = trickle(stream.try_clone().unwrap(), b'a');
    let reply = read_reply(&mut stream, false);
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (408, "request_timeout")
    );
    drop(stream);
    writer.join().unwrap();
    // One that has sent nothing is closed without a word.
    assert_eq!(rest(&mut client.connect()), b"");
    still_serves(&client);
}

#[test]
fn bodies_that_trickle_in_are_answered_408() {
    let server = Serving::new(&[("BODY_TIMEOUT", "0.5")]);
    let client = server.client();
    let mut stream = client.connect();
    write!(stream, "POST {SFT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{{").unwrap();
    let writer = trickle(stream.try_clone().unwrap(), b' ');
    let reply = read_reply(&mut stream, false);
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (408, "request_timeout")
    );
    drop(stream);
    writer.join().unwrap();
    still_serves(&client);
}

#[test]
fn a_body_that_breaks_off_harms_nobody() {
    let server = Serving::new(&[]);
    let client = server.client();
    let mut stream = client.connect();
    write!(stream, "POST {SFT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{{").unwrap();
    drop(stream);
    still_serves(&client);
}

#[test]
fn too_much_is_413_whether_announced_or_not() {
    let server = Serving::new(&[]);
    let client = server.client();
    let body = multipart(&[
        Part::Text("text", "x"),
        Part::File("prompt_audio", &vec![7; 60 << 20]),
    ]);
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    let path = "/api/v1/async/synthesize/cross-lingual";
    let reply = client.send("POST", path, &[("content-type", &content_type)], &body);
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (413, "file_too_large")
    );

    let mut stream = client.connect();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .unwrap();
    for piece in body.chunks(1 << 20) {
        if write!(stream, "{:x}\r\n", piece.len()).is_err() || stream.write_all(piece).is_err() {
            break;
        }
        let _ = stream.write_all(b"\r\n");
    }
    let _ = stream.write_all(b"0\r\n\r\n");
    let reply = read_reply(&mut stream, false);
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (413, "file_too_large")
    );

    // A client that asks first is told before it sends.
    let mut stream = client.connect();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    assert_eq!(read_reply(&mut stream, false).status, 413);
    still_serves(&client);
}

#[test]
fn heads_that_are_not_http_are_refused() {
    let server = Serving::new(&[]);
    let client = server.client();
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000));
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let mut stream = client.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let answer = rest(&mut stream);
        let line = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        assert!(
            answer.is_empty() || line.starts_with("HTTP/1.1 4"),
            "{line:?}"
        );
    }
    still_serves(&client);
}

#[test]
fn thousands_of_idle_connections_leave_room_to_work() {
    let server = Serving::new(&[]);
    let client = server.client();
    // Each costs two descriptors here, as both ends are in this process.
    let idle: Vec<TcpStream> = (0..5000).map(|_| client.connect()).collect();
    still_serves(&client);
    let state = client.get("/api/v1/stats").json();
    assert!(state["connections"].as_u64().unwrap() > 4500, "{state}");
    drop(idle);
    still_serves(&client);
}

#[test]
fn connections_beyond_the_bound_are_told_so() {
    let server = Serving::new(&[("MAX_CONNECTIONS", "3")]);
    let client = server.client();
    let held: Vec<TcpStream> = (0..3).map(|_| client.connect()).collect();
    let mut refused = client.connect();
    let reply = read_reply(&mut refused, false);
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (503, "too_many_connections")
    );
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut stream = client.open("GET", "/live", &[], b"");
        if read_reply(&mut stream, false).status == 200 {
            break;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_connection_serves_many_requests() {
    let server = Serving::new(&[]);
    let mut stream = server.client().connect();
    for _ in 0..3 {
        stream
            .write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"{\"status\":\"alive\"}") {
            let mut piece = [0; 1024];
            let n = stream.read(&mut piece).unwrap();
            assert!(n > 0);
            bytes.extend(&piece[..n]);
        }
    }
}
