//! The server under load, with the checkpoint of the tests: `cargo bench --bench http`.
//!
//! Prints answers per second and latencies of status and submit requests beside 64 running tasks, and the seconds of audio made per second
//! with 1, 4, 16 and 64 tasks at the same time. Server, engine and this client share the machine's cores.

#![allow(clippy::print_stdout)]

mod connection;
mod program;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use connection::Connection;
use program::Program;
use serde_json::{Value, json};

const VOICE: &str = "pretrained_voice_001";
const CONCURRENT: [usize; 4] = [1, 4, 16, 64];
/// Tasks of each throughput measurement: the same ones each time, so the same audio.
const TASKS: usize = 96;
const RUNNING: usize = 64;
const STATUS_CLIENTS: usize = 4;
const STATUS_TIME: Duration = Duration::from_secs(10);
const SUBMITS: usize = 500;

/// A text of some sentences.
fn text(sentences: usize, n: usize) -> String {
    (0..sentences)
        .map(|s| format!("This is sentence {s} of text {n}. "))
        .collect()
}

fn task(sentences: usize, n: usize) -> Value {
    json!({"text": text(sentences, n), "voice_id": VOICE, "seed": n})
}

/// The time at or below which this share of the sorted times lies.
fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1;
    sorted[index].as_secs_f64() * 1e3
}

fn row(what: &str, mut times: Vec<Duration>, seconds: f64) {
    times.sort_unstable();
    println!(
        "| {what} | {:.0} | {:.2} ms | {:.2} ms | {:.2} ms |",
        times.len() as f64 / seconds,
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        quantile(&times, 1.0)
    );
}

/// Runs the tasks, `concurrent` at a time: seconds of audio, and seconds that it took.
fn throughput(program: &Program, tasks: usize, concurrent: usize) -> (f64, f64) {
    let next = AtomicUsize::new(0);
    let audio = Mutex::new(0.0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..concurrent {
            scope.spawn(|| {
                let mut connection = program.connect();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= tasks {
                        return;
                    }
                    let result =
                        connection.post("/api/v1/synthesize/sft", &task(1 + n % 2, n), 200);
                    *audio.lock().expect("no panic") +=
                        result["duration"].as_f64().expect("seconds");
                }
            });
        }
    });
    (
        audio.into_inner().expect("no panic"),
        start.elapsed().as_secs_f64(),
    )
}

/// Tasks that run for long, all at the same time; their ids.
fn fill(connection: &mut Connection) -> Vec<String> {
    let ids: Vec<String> = (0..RUNNING)
        .map(|n| submit(connection, &task(240, n)))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    while running(connection) < RUNNING {
        assert!(Instant::now() < deadline, "the tasks do not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    ids
}

fn running(connection: &mut Connection) -> usize {
    let stats = connection.get("/api/v1/stats");
    stats["tasks"]["running"].as_u64().expect("a count") as usize
}

fn submit(connection: &mut Connection, task: &Value) -> String {
    let accepted = connection.post("/api/v1/async/synthesize/sft", task, 202);
    accepted["task_id"].as_str().expect("an id").to_owned()
}

/// Status requests as fast as some clients can send them.
fn status(program: &Program, ids: &[String]) -> (Vec<Duration>, f64) {
    let times = Mutex::new(Vec::new());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..STATUS_CLIENTS {
            let times = &times;
            scope.spawn(move || {
                let mut connection = program.connect();
                let mut mine = Vec::new();
                for id in ids.iter().cycle().skip(client) {
                    if start.elapsed() >= STATUS_TIME {
                        break;
                    }
                    let asked = Instant::now();
                    let status = connection.get(&format!("/api/v1/async/tasks/{id}/status"));
                    mine.push(asked.elapsed());
                    assert_eq!(status["status"], "processing", "the tasks are too short");
                }
                times.lock().expect("no panic").extend(mine);
            });
        }
    });
    (
        times.into_inner().expect("no panic"),
        start.elapsed().as_secs_f64(),
    )
}

fn main() {
    // Without it this is `cargo test --benches`, which wants to know that it builds.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let program = Program::start(RUNNING);
    println!(
        "| tasks at the same time | audio s per s | ratio to one | wall s |\n|---|---|---|---|"
    );
    // The first tasks of a server find cold caches and small buffers.
    throughput(&program, TASKS / 4, 16);
    let mut alone = None;
    for concurrent in CONCURRENT {
        let (audio, seconds) = throughput(&program, TASKS, concurrent);
        let rate = audio / seconds;
        let ratio = rate / *alone.get_or_insert(rate);
        println!("| {concurrent} | {rate:.2} | {ratio:.2} | {seconds:.1} |");
    }
    // Only now: the server closes connections that are idle for long.
    let mut connection = program.connect();
    let ids = fill(&mut connection);
    println!(
        "\n| beside {RUNNING} running tasks | per second | median | p99 | worst |\n|---|---|---|---|---|"
    );
    let (times, seconds) = status(&program, &ids);
    row(&format!("status, {STATUS_CLIENTS} clients"), times, seconds);
    let start = Instant::now();
    let times = (0..SUBMITS).map(|n| {
        let asked = Instant::now();
        submit(&mut connection, &task(1, n));
        asked.elapsed()
    });
    let times: Vec<Duration> = times.collect();
    row("submit, 1 client", times, start.elapsed().as_secs_f64());
    assert_eq!(running(&mut connection), RUNNING, "the tasks are too short");
}
