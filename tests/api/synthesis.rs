//! The four ways to speak, as tasks and waited for, in every body format and audio format.

use std::time::Duration;

use cosyvoice::audio::{self, Format};
use serde_json::json;

use super::client::{Client, Part, wav};
use super::fake::{RATE_HZ, builtin_voice, samples};
use super::serve::Serving;

const SFT: &str = "/api/v1/async/synthesize/sft";

fn expected(text: &str, seed: u64, format: Format) -> Vec<u8> {
    audio::encode(format, &samples(text, seed, &builtin_voice()), RATE_HZ).expect("encodable")
}

#[test]
fn a_task_goes_from_submit_to_audio() {
    let server = Serving::new(&[]);
    let client = server.client();
    let body = json!({"text": "Hello there.", "voice_id": "pretrained_voice_001", "seed": 7});
    let reply = client.post(SFT, &body);
    assert_eq!(reply.status, 202);
    let submitted = reply.json();
    let task_id = submitted["task_id"].as_str().unwrap();
    let hex = task_id.strip_prefix("task_").unwrap();
    assert!(
        hex.len() >= 12
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    );
    assert_eq!(submitted["status"], "pending");
    assert_eq!(
        reply.header("location"),
        submitted["check_status_url"].as_str().unwrap()
    );
    assert!(submitted["estimated_time"].as_f64().is_some());

    let status = client.wait(task_id);
    assert_eq!(status["status"], "completed");
    assert_eq!(status["progress"], 1.0);
    assert_eq!(status["result_available"], true);
    assert_eq!(status["result_url"], submitted["result_url"]);
    assert!(status["completed_at"].as_str().unwrap() >= status["started_at"].as_str().unwrap());

    let result = client.get(submitted["result_url"].as_str().unwrap()).json();
    assert_eq!(result["success"], true);
    assert_eq!(result["seed"], 7);
    assert_eq!(result["sample_rate"], RATE_HZ);
    assert_eq!(result["format"], "wav");
    assert_eq!(result["voice_id"], "pretrained_voice_001");
    assert_eq!(result["normalized_text"], "Hello there.");
    assert_eq!(result["duration"], 0.24);
    let audio = client.get(result["audio_url"].as_str().unwrap());
    assert_eq!(audio.header("content-type"), "audio/wav");
    assert_eq!(audio.body, expected("Hello there.", 7, Format::Wav));
    assert_eq!(
        std::fs::read(result["file_path"].as_str().unwrap()).unwrap(),
        audio.body
    );
}

#[test]
fn every_mode_takes_every_body_format() {
    let server = Serving::new(&[]);
    let client = server.client();
    let prompt = wav(1.0, 16_000);
    let base64 = |bytes: &[u8]| {
        let mut child = std::process::Command::new("base64")
            .arg("-w0")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("base64");
        let mut stdin = child.stdin.take().unwrap();
        let bytes = bytes.to_vec();
        let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &bytes));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for mode in ["sft", "zero-shot", "cross-lingual", "instruct"] {
        let path = format!("/api/v1/async/synthesize/{mode}");
        let json = json!({"text": "One", "voice_id": "pretrained_voice_001", "instruct_text": "Slowly", "speed": 1.5});
        let mut ids = vec![client.submit(&path, &json)];
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let body = b"text=One&voice_id=pretrained_voice_001&instruct_text=Slowly&speed=1.5&seed=3";
        let reply = client.send("POST", &path, &form, body);
        assert_eq!(reply.status, 202, "{mode}: {}", reply.json());
        ids.push(reply.json()["task_id"].as_str().unwrap().to_owned());
        if mode != "sft" {
            let parts = [
                Part::Text("text", "One"),
                Part::Text("prompt_text", "What is said"),
                Part::Text("instruct_text", "Slowly"),
                Part::File("prompt_audio", &prompt),
            ];
            let reply = client.form("POST", &path, &parts);
            assert_eq!(reply.status, 202, "{mode}: {}", reply.json());
            ids.push(reply.json()["task_id"].as_str().unwrap().to_owned());
            let json = json!({
                "text": "One", "prompt_text": "What is said", "instruct_text": "Slowly",
                "prompt_audio": format!("data:audio/wav;base64,{}", base64(&prompt)),
            });
            ids.push(client.submit(&path, &json));
        }
        for id in ids {
            let status = client.wait(&id);
            assert_eq!(status["status"], "completed", "{mode}: {status}");
            assert_eq!(status["mode"], mode.replace('-', "_"));
        }
    }
}

#[test]
fn every_format_is_served_with_its_type() {
    let server = Serving::new(&[]);
    let client = server.client();
    let text = "A sentence long enough to fill some frames of every encoder.";
    for format in Format::available() {
        let body = json!({"text": text, "voice_id": "pretrained_voice_001", "format": format.name(), "seed": 1});
        let id = client.submit(SFT, &body);
        assert_eq!(client.wait(&id)["status"], "completed", "{format}");
        let url = format!("/api/v1/audio/{id}.{format}");
        let reply = client.get(&url);
        assert_eq!(reply.header("content-type"), format.content_type(RATE_HZ));
        assert_eq!(reply.header("content-length"), reply.body.len().to_string());
        assert_eq!(reply.body, expected(text, 1, format), "{format}");
    }
}

#[test]
fn waiting_gives_the_result_object() {
    let server = Serving::new(&[]);
    let client = server.client();
    let prompt = wav(0.5, 24_000);
    let json = json!({"text": "Now", "voice_id": "pretrained_voice_002", "format": "flac"});
    let reply = client.post("/api/v1/synthesize/sft", &json);
    assert_eq!(reply.status, 200, "{}", reply.json());
    assert_eq!(reply.json()["success"], true);
    assert!(
        reply.json()["audio_url"]
            .as_str()
            .unwrap()
            .ends_with(".flac")
    );
    for path in [
        "/api/v1/synthesize/cross-lingual",
        "/api/v1/cross-lingual/with-audio",
    ] {
        let parts = [
            Part::Text("text", "Now"),
            Part::File("prompt_audio", &prompt),
        ];
        let reply = client.form("POST", path, &parts);
        assert_eq!(reply.status, 200, "{}", reply.json());
        assert_eq!(
            client
                .get(reply.json()["audio_url"].as_str().unwrap())
                .status,
            200
        );
    }
    let json = json!({"text": "Now", "voice_id": "pretrained_voice_002"});
    assert_eq!(
        client
            .post("/api/v1/cross-lingual/with-cache", &json)
            .status,
        200
    );
    let failed = client.post(
        "/api/v1/synthesize/sft",
        &json!({"text": "FAIL", "voice_id": "pretrained_voice_001"}),
    );
    assert_eq!((failed.status, failed.error().as_str()), (422, "no_speech"));
}

#[test]
fn the_seed_decides_the_bytes_whatever_else_runs() {
    let server = Serving::paced(Duration::from_millis(1), &[("MAX_SYNTHESIS_WORKERS", "8")]);
    let client = server.client();
    let submit = |client: &Client, seed: u64| {
        let body = json!({"text": format!("Same words {}", seed % 3), "voice_id": "pretrained_voice_001", "seed": seed});
        client.submit(SFT, &body)
    };
    let ids: Vec<(u64, String)> = (0..24).map(|n| (n % 6, submit(&client, n % 6))).collect();
    for (seed, id) in ids {
        assert_eq!(client.wait(&id)["status"], "completed");
        let text = format!("Same words {}", seed % 3);
        assert_eq!(client.audio(&id), expected(&text, seed, Format::Wav));
    }
    let unseeded = client.submit(
        SFT,
        &json!({"text": "x1", "voice_id": "pretrained_voice_001"}),
    );
    client.wait(&unseeded);
    let result = client
        .get(&format!("/api/v1/async/tasks/{unseeded}/result"))
        .json();
    let seed = result["seed"].as_u64().expect("the drawn seed is told");
    assert_eq!(client.audio(&unseeded), expected("x1", seed, Format::Wav));
}

#[test]
fn audio_has_tags_and_ranges() {
    let server = Serving::new(&[]);
    let client = server.client();
    let id = client.submit(
        SFT,
        &json!({"text": "Ranges", "voice_id": "pretrained_voice_001"}),
    );
    client.wait(&id);
    let url = format!("/api/v1/audio/{id}.wav");
    let whole = client.get(&url);
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let etag = whole.header("etag").to_owned();
    assert!(etag.starts_with('"') && etag.len() > 10);
    let part = client.send("GET", &url, &[("range", "bytes=10-19")], b"");
    assert_eq!(
        (part.status, part.body.as_slice()),
        (206, &whole.body[10..20])
    );
    assert_eq!(
        part.header("content-range"),
        format!("bytes 10-19/{}", whole.body.len())
    );
    let tail = client.send("GET", &url, &[("range", "bytes=-4")], b"");
    assert_eq!(tail.body, whole.body[whole.body.len() - 4..]);
    let beyond = client.send("GET", &url, &[("range", "bytes=99999999-")], b"");
    assert_eq!(beyond.status, 416);
    assert_eq!(
        beyond.header("content-range"),
        format!("bytes */{}", whole.body.len())
    );
    let same = client.send("GET", &url, &[("if-none-match", &etag)], b"");
    assert_eq!((same.status, same.body.len()), (304, 0));
    let stale = client.send(
        "GET",
        &url,
        &[("range", "bytes=0-3"), ("if-range", "\"old\"")],
        b"",
    );
    assert_eq!((stale.status, stale.body.len()), (200, whole.body.len()));
    let head = client.send("HEAD", &url, &[], b"");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), whole.body.len().to_string());
}
