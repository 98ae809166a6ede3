//! Mixed load on the real program for twenty minutes: memory stays, nothing leaks, and every result has the bytes of its request run
//! alone. `SOAK_SECONDS=1200 cargo test --release --test main -- --ignored --nocapture soak`
//!
//! Clients submit tasks of all modes and formats, cancel some, stream, walk away from streams, register and delete voices, list and
//! make mistakes. The checkpoint is that of the tests. Memory is compared after a quarter of the time and at its end.

use std::io::Read;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Client, Part};
use super::program::Program;
use crate::support::golden;

const CLIENTS: usize = 8;
/// Requests that the load draws from; each has been run alone.
const REQUESTS: usize = 120;
/// How much memory may grow between the two marks.
const GROWTH: f64 = 0.05;
/// Memory is the median of so many samples, one a second, before a mark: what is in work then differs, by megabytes for each long stream.
const SAMPLES: usize = 120;
/// Until a finished task and its file are gone, at the settings below.
const GONE: Duration = Duration::from_secs(40);
const VOICE: &str = "pretrained_voice_001";

/// A reproducible sequence of draws.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

/// A request and what it gives alone.
struct Known {
    mode: &'static str,
    fields: Value,
    recording: Option<Vec<u8>>,
    streams: bool,
    expected: Vec<u8>,
}

impl Known {
    fn draw(n: usize, draws: &mut Draws, recordings: &[Vec<u8>]) -> Self {
        const SENTENCES: [&str; 6] = [
            "Good morning.",
            "The train to the coast leaves at half past nine.",
            "今天天气很好，我们去公园散步。",
            "She said yes. He said no! Who would have thought so?",
            "Numbers such as 42 and 3.14 are read aloud.",
            "Rain fell all night on the old town; nobody slept, and in the morning the river had risen above its banks.",
        ];
        const FORMATS: [&str; 7] = ["wav", "flac", "mp3", "opus", "aac", "m4a", "pcm"];
        let mode = ["sft", "zero-shot", "cross-lingual", "instruct"][n % 4];
        let streams = n.is_multiple_of(5);
        let sentences = 1 + draws.below(3);
        let text: Vec<&str> = (0..sentences)
            .map(|_| SENTENCES[draws.below(SENTENCES.len())])
            .collect();
        let mut fields = json!({
            "text": text.join(" "),
            "seed": n,
            "format": FORMATS[draws.below(FORMATS.len())],
            "speed": if streams { 1.0 } else { [1.0, 0.8, 1.5][draws.below(3)] },
        });
        if mode == "instruct" {
            fields["instruct_text"] = json!("Speak slowly.");
        }
        let uploads = mode != "sft" && draws.below(2) == 0;
        if uploads {
            fields["prompt_text"] = json!("What was said in the recording.");
        } else {
            fields["voice_id"] = json!(VOICE);
        }
        Self {
            mode,
            fields,
            recording: uploads.then(|| recordings[draws.below(recordings.len())].clone()),
            streams,
            expected: Vec::new(),
        }
    }

    fn post(&self, client: &Client, path: &str, more: &[(&str, &str)]) -> super::client::Reply {
        let texts: Vec<(String, String)> = self
            .fields
            .as_object()
            .expect("an object")
            .iter()
            .map(|(name, value)| {
                (
                    name.clone(),
                    value.as_str().map_or(value.to_string(), str::to_owned),
                )
            })
            .chain(more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())))
            .collect();
        let mut parts: Vec<Part> = texts.iter().map(|(n, v)| Part::Text(n, v)).collect();
        if let Some(recording) = &self.recording {
            parts.push(Part::File("prompt_audio", recording));
        }
        client.form("POST", &format!("{path}/{}", self.mode), &parts)
    }

    fn submit(&self, client: &Client) -> String {
        let reply = self.post(client, "/api/v1/async/synthesize", &[]);
        assert_eq!(reply.status, 202, "{}", reply.json());
        reply.json()["task_id"].as_str().expect("an id").to_owned()
    }

    fn stream(&self, client: &Client) -> Vec<u8> {
        let reply = self.post(client, "/api/v1/synthesize", &[("stream", "true")]);
        assert_eq!(
            (reply.status, reply.complete),
            (200, true),
            "{}",
            self.fields
        );
        reply.body
    }

    /// The audio by the way that this request is used.
    fn audio(&self, client: &Client) -> Vec<u8> {
        if self.streams {
            return self.stream(client);
        }
        let task_id = self.submit(client);
        let status = client.wait(&task_id);
        assert_eq!(status["status"], "completed", "{}: {status}", self.fields);
        client.audio(&task_id)
    }

    fn check(&self, audio: &[u8], by: &str) {
        assert!(
            !audio.is_empty() && audio == self.expected,
            "{by} changed {}",
            self.fields
        );
    }
}

/// What the clients did.
#[derive(Debug, Default)]
struct Counts {
    equal: AtomicUsize,
    cancelled: AtomicUsize,
    abandoned: AtomicUsize,
    voices: AtomicUsize,
    refused: AtomicUsize,
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One thing that a user does.
fn act(client: &Client, me: usize, draws: &mut Draws, known: &[Known], counts: &Counts) {
    let request = &known[draws.below(known.len())];
    match draws.below(20) {
        0..=10 => {
            request.check(&request.audio(client), "load");
            count(&counts.equal);
        }
        11..=14 => cancel(client, request, draws, counts),
        15 | 16 => {
            let mut half = client.open(
                "POST",
                "/api/v1/synthesize/sft",
                &[("content-type", "application/json")],
                json!({"text": request.fields["text"], "voice_id": VOICE, "stream": true})
                    .to_string()
                    .as_bytes(),
            );
            let mut piece = vec![0; 1 + draws.below(20_000)];
            let _ = half.read(&mut piece);
            count(&counts.abandoned);
        }
        17 => {
            voice(client, &format!("soak-{me}"), known, draws);
            count(&counts.voices);
        }
        18 => {
            let list = client.get("/api/v1/async/tasks?limit=20");
            assert_eq!(list.status, 200, "{}", list.json());
            assert_eq!(client.get("/metrics").status, 200);
        }
        _ => {
            let wrong = client.post(
                "/api/v1/async/synthesize/sft",
                &json!({"text": "x", "voice_id": "nobody"}),
            );
            assert_eq!(
                (wrong.status, wrong.error().as_str()),
                (404, "voice_not_found")
            );
            let broken = client.form(
                "POST",
                "/api/v1/async/synthesize/cross-lingual",
                &[
                    Part::Text("text", "Hello"),
                    Part::File("prompt_audio", b"RIFF no recording"),
                ],
            );
            assert_eq!(broken.status, 415, "{}", broken.json());
            count(&counts.refused);
        }
    }
}

/// Cancels after a moment; a task that was faster must have its bytes.
fn cancel(client: &Client, request: &Known, draws: &mut Draws, counts: &Counts) {
    let task_id = request.submit(client);
    std::thread::sleep(Duration::from_millis(draws.below(250) as u64));
    let answer = client.delete(&format!("/api/v1/async/tasks/{task_id}"));
    let status = client.wait(&task_id);
    if answer.status == 200 {
        assert_eq!(
            (&status["status"], &status["cancelled"]),
            (&json!("failed"), &json!(true)),
            "{status}"
        );
        count(&counts.cancelled);
    } else {
        assert_eq!(
            (answer.status, &status["status"]),
            (409, &json!("completed")),
            "{status}"
        );
        if !request.streams {
            request.check(&client.audio(&task_id), "a late cancel");
            count(&counts.equal);
        }
    }
}

/// A voice from its registration to its deletion.
fn voice(client: &Client, id: &str, known: &[Known], draws: &mut Draws) {
    let recordings: Vec<&Vec<u8>> = known.iter().filter_map(|k| k.recording.as_ref()).collect();
    let made = client.form(
        "POST",
        "/api/v1/voices/",
        &[
            Part::Text("voice_id", id),
            Part::Text("prompt_text", "What was said."),
            Part::File("audio_file", recordings[draws.below(recordings.len())]),
        ],
    );
    assert_eq!(made.status, 201, "{}", made.json());
    let task_id = client.submit(
        "/api/v1/async/synthesize/zero-shot",
        &json!({"text": "With a voice of mine.", "voice_id": id}),
    );
    assert_eq!(client.delete(&format!("/api/v1/voices/{id}")).status, 200);
    assert_eq!(client.wait(&task_id)["status"], "completed");
}

/// A client that fails ends the load at once.
struct EndOnPanic<'a>(&'a AtomicBool);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn median(mut samples: Vec<u64>) -> u64 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// Samples memory until `end`; the medians before the quarter and before the end, in KiB.
fn watch(program: &Program, start: Instant, length: Duration, over: &AtomicBool) -> (u64, u64) {
    let mut samples = Vec::new();
    let mut quarter = 0;
    while start.elapsed() < length && !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_secs(1));
        samples.push(program.memory());
        let recent = median(samples[samples.len().saturating_sub(SAMPLES)..].to_vec());
        if quarter == 0 && start.elapsed() >= length / 4 {
            quarter = recent;
        }
        if samples.len() % 60 == 0 {
            println!(
                "{:5.0} s: {:.1} MiB, {} descriptors, {} threads",
                start.elapsed().as_secs_f64(),
                recent as f64 / 1024.0,
                program.entries("fd"),
                program.entries("task")
            );
        }
    }
    (
        quarter,
        median(samples.split_off(samples.len().saturating_sub(SAMPLES))),
    )
}

/// Twenty minutes, or as many seconds as the environment says.
fn length() -> Duration {
    let given = std::env::var("SOAK_SECONDS").ok();
    let seconds = given.map_or(1200, |s| s.parse().expect("SOAK_SECONDS is a number"));
    Duration::from_secs(seconds)
}

#[test]
#[ignore = "takes twenty minutes"]
fn a_long_mixed_load_leaks_nothing_and_changes_no_byte() {
    let recordings = ["prompt.wav", "prompt_odd.wav"]
        .map(|name| std::fs::read(golden::kit().join("golden").join(name)).expect("a recording"));
    let program = Program::start(&[("MAX_TASK_AGE", "30"), ("TASK_CLEANUP_INTERVAL", "5")]);
    let mut draws = Draws(7);
    let mut known: Vec<Known> = (0..REQUESTS)
        .map(|n| Known::draw(n, &mut draws, &recordings))
        .collect();
    for request in &mut known {
        request.expected = request.audio(&program.client);
    }
    program.idle();
    std::thread::sleep(Duration::from_secs(1));
    let descriptors = program.entries("fd");
    println!(
        "{REQUESTS} requests alone: {:.1} MiB, {descriptors} descriptors",
        program.memory() as f64 / 1024.0
    );

    let (start, length, over, counts) = (
        Instant::now(),
        length(),
        AtomicBool::new(false),
        Counts::default(),
    );
    let (quarter, end) = std::thread::scope(|scope| {
        for me in 0..CLIENTS {
            let (program, known, over, counts) = (&program, &known, &over, &counts);
            scope.spawn(move || {
                let mut draws = Draws(100 + me as u64);
                let _end = EndOnPanic(over);
                while !over.load(Ordering::Relaxed) {
                    act(&program.client, me, &mut draws, known, counts);
                }
            });
        }
        let marks = watch(&program, start, length, &over);
        over.store(true, Ordering::Relaxed);
        marks
    });
    println!("{counts:?} in {:.0} s", start.elapsed().as_secs_f64());
    let growth = end as f64 / quarter as f64 - 1.0;
    println!(
        "memory after a quarter {:.1} MiB, at the end {:.1} MiB: {:+.2} %",
        quarter as f64 / 1024.0,
        end as f64 / 1024.0,
        growth * 100.0
    );
    assert!(
        growth.abs() <= GROWTH,
        "memory changed by {:.1} %",
        growth * 100.0
    );
    nothing_is_left(program, descriptors);
}

fn nothing_is_left(mut program: Program, descriptors: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    program.idle();
    while program.entries("fd") != descriptors {
        assert!(
            Instant::now() < deadline,
            "{} descriptors, {descriptors} before",
            program.entries("fd")
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(GONE);
    assert_eq!(program.client.get("/api/v1/async/tasks").json()["total"], 0);
    assert_eq!(program.files("results"), Vec::<String>::new());
    assert_eq!(program.files("voices"), Vec::<String>::new());
    // Two recordings, with and without either text; unused ones go after ten minutes.
    let prompts = program.files("prompts");
    assert!(
        prompts.len() <= 6 && prompts.iter().all(|f| f.ends_with(".safetensors")),
        "{prompts:?}"
    );
    let log = std::fs::read_to_string(program.data.path().join("log")).expect("a log");
    assert_eq!(log, "", "errors were logged");
    let id = program.child.id().to_string();
    let asked = Command::new("kill").args(["-TERM", &id]).status();
    assert!(asked.expect("`kill` runs").success());
    assert!(program.child.wait().expect("it ends").success());
}
