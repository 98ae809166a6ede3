//! Requests that are wrong: each names its fault, and the server goes on serving.

use serde_json::json;

use super::client::{BOUNDARY, Client, Part, Reply, multipart, wav};
use super::serve::Serving;

const SFT: &str = "/api/v1/async/synthesize/sft";
const ZERO_SHOT: &str = "/api/v1/async/synthesize/zero-shot";

fn still_serves(client: &Client) {
    let body = json!({"text": "Still here", "voice_id": "pretrained_voice_001"});
    let id = client.submit(SFT, &body);
    assert_eq!(client.wait(&id)["status"], "completed");
}

fn refused(reply: &Reply, expected: (u16, &str), what: &str) {
    assert_eq!((reply.status, reply.error().as_str()), expected, "{what}");
}

#[test]
fn fields_out_of_range_are_named() {
    let server = Serving::new(&[]);
    let client = server.client();
    let long = "a".repeat(100_000);
    for (field, body) in [
        ("text", json!({"voice_id": "pretrained_voice_001"})),
        (
            "text",
            json!({"text": "", "voice_id": "pretrained_voice_001"}),
        ),
        (
            "text",
            json!({"text": " \n\t ", "voice_id": "pretrained_voice_001"}),
        ),
        (
            "text",
            json!({"text": long, "voice_id": "pretrained_voice_001"}),
        ),
        (
            "text",
            json!({"text": "bell \u{7}", "voice_id": "pretrained_voice_001"}),
        ),
        (
            "text",
            json!({"text": "zero \u{0}", "voice_id": "pretrained_voice_001"}),
        ),
        (
            "text",
            json!({"text": 17, "voice_id": "pretrained_voice_001"}),
        ),
        (
            "text",
            json!({"text": ["a"], "voice_id": "pretrained_voice_001"}),
        ),
        (
            "text",
            json!({"text": null, "voice_id": "pretrained_voice_001"}),
        ),
        ("voice_id", json!({"text": "x"})),
        ("voice_id", json!({"text": "x", "voice_id": {}})),
        ("speed", json!({"text": "x", "voice_id": "v", "speed": -1})),
        (
            "speed",
            json!({"text": "x", "voice_id": "v", "speed": 1e308}),
        ),
        (
            "speed",
            json!({"text": "x", "voice_id": "v", "speed": 0.49}),
        ),
        (
            "speed",
            json!({"text": "x", "voice_id": "v", "speed": "fast"}),
        ),
        (
            "format",
            json!({"text": "x", "voice_id": "v", "format": "wma"}),
        ),
        ("format", json!({"text": "x", "voice_id": "v", "format": 3})),
        ("seed", json!({"text": "x", "voice_id": "v", "seed": -1})),
        ("seed", json!({"text": "x", "voice_id": "v", "seed": 1.5})),
        (
            "stream",
            json!({"text": "x", "voice_id": "v", "stream": "perhaps"}),
        ),
        (
            "text_normalization",
            json!({"text": "x", "voice_id": "v", "text_normalization": "some"}),
        ),
        (
            "lexicon",
            json!({"text": "x", "voice_id": "v", "lexicon": ["a"]}),
        ),
        (
            "callback_url",
            json!({"text": "x", "voice_id": "v", "callback_url": "http://127.0.0.1/hook"}),
        ),
        (
            "callback_url",
            json!({"text": "x", "voice_id": "v", "callback_url": "file:///etc/passwd"}),
        ),
    ] {
        let reply = client.post(SFT, &body);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (422, "validation_error"),
            "{field}"
        );
        assert_eq!(reply.json()["details"]["errors"][0]["field"], field);
    }
    let silent = client.post(
        SFT,
        &json!({"text": "?!… 🙂", "voice_id": "pretrained_voice_001"}),
    );
    assert_eq!(
        (silent.status, silent.error().as_str()),
        (422, "nothing_to_say")
    );
    still_serves(&client);
}

#[test]
fn numbers_in_forms_are_checked_too() {
    let server = Serving::new(&[]);
    let client = server.client();
    let form = [("content-type", "application/x-www-form-urlencoded")];
    for speed in [
        "nan", "NaN", "inf", "-inf", "1e999", "-0.0", "", "1,5", "0x1",
    ] {
        let body = format!("text=x&voice_id=pretrained_voice_001&speed={speed}");
        let reply = client.send("POST", SFT, &form, body.as_bytes());
        if speed.is_empty() {
            assert_eq!(reply.status, 202, "{}", reply.json());
        } else {
            refused(&reply, (422, "validation_error"), speed);
            assert_eq!(reply.json()["details"]["errors"][0]["field"], "speed");
        }
    }
    still_serves(&client);
}

#[test]
fn missing_parts_of_a_mode_are_named() {
    let server = Serving::new(&[]);
    let client = server.client();
    let prompt = wav(1.0, 16_000);
    let no_words = [Part::Text("text", "x"), Part::File("prompt_audio", &prompt)];
    let reply = client.form("POST", ZERO_SHOT, &no_words);
    refused(&reply, (422, "validation_error"), "no prompt text");
    assert_eq!(reply.json()["details"]["errors"][0]["field"], "prompt_text");
    let reply = client.post(ZERO_SHOT, &json!({"text": "x"}));
    refused(&reply, (422, "validation_error"), "no voice");
    assert_eq!(reply.json()["details"]["errors"][0]["field"], "voice_id");
    let instruct = "/api/v1/async/synthesize/instruct";
    let reply = client.post(
        instruct,
        &json!({"text": "x", "voice_id": "pretrained_voice_001"}),
    );
    refused(&reply, (422, "validation_error"), "no instruction");
    assert_eq!(
        reply.json()["details"]["errors"][0]["field"],
        "instruct_text"
    );
    let reply = client.post(SFT, &json!({"text": "x", "voice_id": "nobody"}));
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (404, "voice_not_found")
    );
    assert_eq!(reply.json()["message"], "Voice with ID 'nobody' not found");
    still_serves(&client);
}

#[test]
fn malformed_bodies_are_400() {
    let server = Serving::new(&[]);
    let client = server.client();
    let json = [("content-type", "application/json")];
    let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        b"{\"text\": ".as_slice(),
        b"[1, 2]",
        b"\"text\"",
        b"null",
        b"{\"text\": \"\xff\xfe\", \"voice_id\": \"v\"}",
        b"{\"text\": \"\\ud800\", \"voice_id\": \"v\"}",
        b"{\"text\": \"x\", \"speed\": NaN}",
        b"{\"text\": \"x\", \"speed\": 1e999}",
        nested.as_bytes(),
    ] {
        let reply = client.send("POST", SFT, &json, body);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (400, "malformed_body")
        );
    }
    let parts = multipart(&[
        Part::Text("text", "x"),
        Part::File("prompt_audio", &[1; 5000]),
    ]);
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    for body in [
        &parts[..parts.len() / 2],
        &parts[..20],
        b"no boundary at all",
        b"--",
    ] {
        let reply = client.send("POST", ZERO_SHOT, &[("content-type", &content_type)], body);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (400, "malformed_body")
        );
    }
    let reply = client.send(
        "POST",
        ZERO_SHOT,
        &[("content-type", "multipart/form-data")],
        &parts,
    );
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (400, "malformed_body")
    );
    let reply = client.send(
        "POST",
        SFT,
        &[("content-type", "text/csv")],
        b"text,voice_id",
    );
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (415, "unsupported_media_type")
    );
    let not_utf8 = b"text=%ff%fe&voice_id=pretrained_voice_001";
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let reply = client.send("POST", SFT, &form, not_utf8);
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (422, "validation_error")
    );
    let key = [
        ("content-type", "application/json"),
        ("idempotency-key", "\u{e9}"),
    ];
    let body = b"{\"text\": \"x\", \"voice_id\": \"pretrained_voice_001\"}";
    let reply = client.send("POST", SFT, &key, body);
    refused(&reply, (400, "malformed_header"), "a key beyond ASCII");
    still_serves(&client);
}

/// A wav header that claims what is not there.
fn lying_wav(claimed_bytes: u32, channels: u16, rate_hz: u32, samples: &[u8]) -> Vec<u8> {
    let mut bytes = b"RIFF".to_vec();
    bytes.extend(claimed_bytes.saturating_add(36).to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0\x01\0");
    bytes.extend(channels.to_le_bytes());
    bytes.extend(rate_hz.to_le_bytes());
    bytes.extend(rate_hz.wrapping_mul(2).to_le_bytes());
    bytes.extend(b"\x02\0\x10\0data");
    bytes.extend(claimed_bytes.to_le_bytes());
    bytes.extend(samples);
    bytes
}

#[test]
fn recordings_that_cannot_serve_are_refused() {
    let server = Serving::new(&[]);
    let client = server.client();
    let silence: Vec<u8> = audio_of(vec![0.0; 24_000]);
    let bomb = cosyvoice::audio::encode(
        cosyvoice::audio::Format::Flac,
        &vec![0.25; 24_000 * 600],
        24_000,
    )
    .unwrap();
    assert!(bomb.len() < 1 << 20, "ten minutes in {} bytes", bomb.len());
    for (status, word, recording) in [
        (
            415,
            "undecodable_audio",
            b"not audio at all, just words".to_vec(),
        ),
        (415, "undecodable_audio", vec![0xff; 4096]),
        (415, "undecodable_audio", b"RIFF\x10\0\0\0WAVE".to_vec()),
        (
            415,
            "undecodable_audio",
            lying_wav(u32::MAX - 36, 0, 24_000, &[1; 100]),
        ),
        (422, "audio_too_short", wav(0.05, 24_000)),
        (422, "audio_too_long", wav(31.0, 16_000)),
        (422, "audio_rate", wav(1.0, 8_000)),
        (422, "audio_silent", silence),
        (422, "audio_too_long", bomb),
    ] {
        let parts = [
            Part::Text("text", "x"),
            Part::File("prompt_audio", &recording),
        ];
        let reply = client.form("POST", "/api/v1/async/synthesize/cross-lingual", &parts);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (status, word),
            "{}",
            reply.json()
        );
        let parts = [
            Part::Text("voice_id", "v"),
            Part::File("audio_file", &recording),
        ];
        let reply = client.form("POST", "/api/v1/voices/", &parts);
        refused(&reply, (status, word), "as a voice");
    }
    let liar = lying_wav(0x7fff_ffff, 1, 24_000, &wav(1.0, 24_000)[44..]);
    let parts = [Part::Text("text", "x"), Part::File("prompt_audio", &liar)];
    let reply = client.form("POST", "/api/v1/async/synthesize/cross-lingual", &parts);
    // A header that claims too much is what a stream of unknown length has: what is there is read.
    assert_eq!(reply.status, 202, "{}", reply.json());
    let id = reply.json()["task_id"].as_str().unwrap().to_owned();
    assert_eq!(client.wait(&id)["status"], "completed");
    assert_eq!(client.get("/api/v1/voices/").json()["total"], 2);
    still_serves(&client);
}

fn audio_of(samples: Vec<f32>) -> Vec<u8> {
    cosyvoice::audio::encode(cosyvoice::audio::Format::Wav, &samples, 24_000).unwrap()
}

#[test]
fn unknown_things_are_404_and_paths_do_not_climb() {
    let server = Serving::new(&[]);
    let client = server.client();
    let id = client.submit(
        SFT,
        &json!({"text": "x", "voice_id": "pretrained_voice_001"}),
    );
    client.wait(&id);
    std::fs::write(server.data().join("secret.txt"), "secret").unwrap();
    for (path, word) in [
        (
            "/api/v1/async/tasks/task_0123456789ab/status",
            "task_not_found",
        ),
        ("/api/v1/async/tasks/%00/status", "task_not_found"),
        (
            "/api/v1/async/tasks/task_0123456789ab/result",
            "task_not_found",
        ),
        ("/api/v1/voices/nobody", "voice_not_found"),
        ("/api/v1/audio/task_0123456789ab.wav", "audio_not_found"),
        ("/api/v1/audio/..%2fsecret.txt", "audio_not_found"),
        ("/api/v1/audio/..%2Ftasks.redb", "audio_not_found"),
        ("/api/v1/audio/%2e%2e%2fsecret.txt", "audio_not_found"),
        ("/api/v1/audio/%2Fetc%2Fpasswd", "audio_not_found"),
        ("/api/v1/audio/x%00.wav", "audio_not_found"),
        ("/api/v1/audio/../../secret.txt", "not_found"),
        ("/nothing/here", "not_found"),
        ("/api/v1/audio/", "not_found"),
    ] {
        let reply = client.get(path);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (404, word),
            "{path}"
        );
    }
    let other = client.get(&format!("/api/v1/audio/{id}.mp3"));
    refused(&other, (404, "audio_not_found"), "another format");
    let deleted = client.delete("/api/v1/async/tasks/task_0123456789ab");
    refused(&deleted, (404, "task_not_found"), "an unknown task");
    let patch = client.send("PATCH", "/health", &[], b"");
    assert_eq!(
        (patch.status, patch.header("allow")),
        (405, "GET, HEAD, OPTIONS")
    );
    let posted = client.post("/health", &json!({}));
    refused(&posted, (405, "method_not_allowed"), "POST");
    still_serves(&client);
}

#[test]
fn origins_are_let_in_by_name() {
    let server = Serving::new(&[("ALLOWED_ORIGINS", "https://app.example")]);
    let client = server.client();
    let ours = client.send("GET", "/health", &[("origin", "https://app.example")], b"");
    assert_eq!(
        ours.header("access-control-allow-origin"),
        "https://app.example"
    );
    let theirs = client.send("GET", "/health", &[("origin", "https://evil.example")], b"");
    assert_eq!(theirs.header("access-control-allow-origin"), "");
    let headers = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
    ];
    let preflight = client.send("OPTIONS", SFT, &headers, b"");
    assert_eq!(preflight.status, 204);
    assert!(
        preflight
            .header("access-control-allow-headers")
            .contains("Idempotency-Key")
    );
    assert_eq!(
        preflight.header("access-control-allow-origin"),
        "https://app.example"
    );
}

#[test]
fn request_ids_are_kept_or_made() {
    let server = Serving::new(&[]);
    let client = server.client();
    let kept = client.send("GET", "/health", &[("x-request-id", "mine-1")], b"");
    assert_eq!(kept.header("x-request-id"), "mine-1");
    assert!(
        client
            .get("/health")
            .header("x-request-id")
            .starts_with("req_")
    );
    let odd = "x".repeat(500);
    assert!(
        client
            .send("GET", "/health", &[("x-request-id", &odd)], b"")
            .header("x-request-id")
            .starts_with("req_")
    );
}
