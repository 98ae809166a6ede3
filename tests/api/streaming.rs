//! Audio while it is made, events of tasks, the OpenAI routes.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cosyvoice::audio::{self, Format, StreamEncoder};
use serde_json::{Value, json};

use super::client::read_reply;
use super::fake::{RATE_HZ, builtin_voice, samples};
use super::serve::Serving;

fn streamed(text: &str, seed: u64, format: Format) -> Vec<u8> {
    let mut encoder = StreamEncoder::new(format, RATE_HZ).unwrap();
    let mut bytes = encoder
        .push(&samples(text, seed, &builtin_voice()))
        .unwrap();
    bytes.extend(encoder.finish().unwrap());
    bytes
}

#[test]
fn streams_carry_what_a_task_makes() {
    let server = Serving::new(&[]);
    let client = server.client();
    let text = "Samples on their way";
    for format in [Format::Wav, Format::Pcm] {
        let body = json!({"text": text, "voice_id": "pretrained_voice_001", "seed": 5, "stream": true, "format": format.name()});
        let reply = client.post("/api/v1/synthesize/sft", &body);
        assert_eq!(reply.status, 200);
        assert_eq!(
            (reply.header("transfer-encoding"), reply.header("x-seed")),
            ("chunked", "5")
        );
        assert!(reply.complete);
        assert_eq!(reply.body, streamed(text, 5, format));
    }
    let quick = json!({"text": text, "voice_id": "pretrained_voice_001", "seed": 5, "stream": true, "speed": 1.5});
    assert!(client.post("/api/v1/synthesize/sft", &quick).complete);
    assert_eq!(
        client.get("/api/v1/async/tasks").json()["total"],
        0,
        "streams leave no task"
    );
    assert_eq!(
        std::fs::read_dir(server.data().join("results"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_stream_that_fails_early_is_an_error_and_a_late_one_is_cut() {
    let server = Serving::new(&[]);
    let client = server.client();
    let body =
        json!({"text": "FAIL", "voice_id": "pretrained_voice_001", "stream": true, "speed": 1.5});
    let early = client.post("/api/v1/synthesize/sft", &body);
    assert_eq!((early.status, early.error().as_str()), (422, "no_speech"));
    let body = json!({"text": "FAIL", "voice_id": "pretrained_voice_001", "stream": true});
    let late = client.post("/api/v1/synthesize/sft", &body);
    assert_eq!((late.status, late.complete), (200, false));
}

#[test]
fn a_listener_who_leaves_ends_the_work() {
    let server = Serving::paced(Duration::from_millis(20), &[("MAX_SYNTHESIS_WORKERS", "1")]);
    let client = server.client();
    let text = "A long text that nobody will hear to its end, as it happens";
    for (path, body) in [
        (
            "/api/v1/synthesize/sft",
            json!({"text": text, "voice_id": "pretrained_voice_001", "stream": true}),
        ),
        (
            "/v1/audio/speech",
            json!({"input": text, "voice": "alloy", "response_format": "pcm"}),
        ),
        (
            "/api/v1/synthesize/sft",
            json!({"text": text, "voice_id": "pretrained_voice_001"}),
        ),
    ] {
        let json = [("content-type", "application/json")];
        let mut stream = client.open("POST", path, &json, body.to_string().as_bytes());
        let deadline = Instant::now() + Duration::from_secs(20);
        if body["stream"] == true || path.starts_with("/v1") {
            let mut some = [0; 600];
            stream.read_exact(&mut some).unwrap();
        }
        while server.fake.running.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
        drop(stream);
        while server.fake.running.load(Ordering::SeqCst) > 0 {
            assert!(Instant::now() < deadline, "{path} goes on alone");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let done = client.post(
        "/api/v1/synthesize/sft",
        &json!({"text": "ok", "voice_id": "pretrained_voice_001"}),
    );
    assert_eq!(done.status, 200);
}

fn events(body: &[u8]) -> Vec<(String, Value)> {
    let text = String::from_utf8_lossy(body).into_owned();
    text.split("\n\n")
        .filter_map(|event| {
            let line = |name: &str| {
                event
                    .lines()
                    .find_map(|l| l.strip_prefix(name))
                    .map(str::to_owned)
            };
            Some((
                line("id: ").unwrap_or_default(),
                serde_json::from_str(&line("data: ")?).unwrap(),
            ))
        })
        .collect()
}

#[test]
fn events_follow_a_task_to_its_end() {
    let server = Serving::paced(Duration::from_millis(10), &[]);
    let client = server.client();
    let body = json!({"text": "Followed to the end", "voice_id": "pretrained_voice_001"});
    let id = client.submit("/api/v1/async/synthesize/sft", &body);
    let path = format!("/api/v1/async/tasks/{id}/events");
    let mut stream = client.open("GET", &path, &[], b"");
    let reply = read_reply(&mut stream, false);
    assert_eq!(reply.header("content-type"), "text/event-stream");
    assert!(reply.complete);
    let seen = events(&reply.body);
    assert!(seen.len() > 5, "{}", seen.len());
    let progress: Vec<f64> = seen
        .iter()
        .map(|(_, s)| s["progress"].as_f64().unwrap())
        .collect();
    assert!(progress.is_sorted());
    let last = &seen.last().unwrap().1;
    assert_eq!(
        (last["status"].as_str(), last["progress"].as_f64()),
        (Some("completed"), Some(1.0))
    );
    let (last_id, _) = seen.last().unwrap();
    let again = client.send("GET", &path, &[("last-event-id", last_id)], b"");
    assert!(
        events(&again.body).is_empty(),
        "what was seen is not sent again"
    );
    let older = client.send("GET", &path, &[("last-event-id", &seen[0].0)], b"");
    assert_eq!(events(&older.body).len(), 1);
    assert_eq!(
        client
            .get("/api/v1/async/tasks/task_000000000000/events")
            .error(),
        "task_not_found"
    );
}

#[test]
fn openai_clients_are_understood() {
    let server = Serving::new(&[]);
    let client = server.client();
    let models = client.get("/v1/models").json();
    assert_eq!(
        (
            models["object"].as_str(),
            models["data"][0]["object"].as_str()
        ),
        (Some("list"), Some("model"))
    );
    let mut body = json!({"model": "tts-1", "input": "Hello from elsewhere", "voice": "alloy"});
    let mp3 = client.post("/v1/audio/speech", &body);
    assert_eq!(
        (mp3.status, mp3.header("content-type")),
        (200, "audio/mpeg")
    );
    let decoded = audio::decode(&mp3.body, &audio::Limits::default()).expect("an mp3 file");
    assert!(decoded.seconds() > 0.3);
    body["response_format"] = json!("pcm");
    body["instructions"] = json!("Cheerfully");
    let pcm = client.post("/v1/audio/speech", &body);
    assert_eq!(
        pcm.body.len(),
        samples("Hello from elsewhere", 0, &builtin_voice()).len() * 2
    );
    body["stream_format"] = json!("sse");
    let sse = client.post("/v1/audio/speech", &body);
    let kinds: Vec<String> = events(&sse.body)
        .iter()
        .map(|(_, e)| e["type"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        kinds.len() > 2
            && kinds[..kinds.len() - 1]
                .iter()
                .all(|k| k == "speech.audio.delta"),
        "{kinds:?}"
    );
    assert_eq!(kinds.last().unwrap(), "speech.audio.done");
    let unknown = client.post(
        "/v1/audio/speech",
        &json!({"input": "x", "voice": "nobody"}),
    );
    assert_eq!(
        (unknown.status, unknown.error().as_str()),
        (404, "voice_not_found")
    );
    let fast = client.post(
        "/v1/audio/speech",
        &json!({"input": "x", "voice": "alloy", "speed": 4.0}),
    );
    assert_eq!(
        (fast.status, fast.error().as_str()),
        (422, "validation_error")
    );
}
