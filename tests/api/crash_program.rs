//! The real program, killed at random moments with requests on their way: whatever it answered 202 completes, with the bytes of its seed,
//! and no file is left that no task knows.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::Client;
use super::crash::draw;
use super::program::Program;

const TASKS: usize = 200;
const KILLS: usize = 20;
const CLIENTS: usize = 3;
/// Different requests; the tasks take turns with them.
const REQUESTS: usize = 10;
/// Few at a time, so that some are finished before each kill.
const FEW_WORKERS: [(&str, &str); 1] = [("MAX_SYNTHESIS_WORKERS", "2")];
const SUBMIT: &str = "/api/v1/async/synthesize/sft";

/// Tasks that were acknowledged, each with its request, and the audio that was seen of them.
#[derive(Default)]
struct Ledger {
    acknowledged: HashMap<String, usize>,
    seen: HashMap<String, Vec<u8>>,
}

fn request(n: usize) -> Value {
    let formats = ["wav", "flac", "mp3", "opus", "wav"];
    let text = format!("Task {n}, whatever happens.");
    json!({
        "text": text,
        "voice_id": "pretrained_voice_001",
        "seed": n,
        "format": formats[n % formats.len()],
    })
}

/// One question to a server that may die meanwhile: status and body of a whole answer.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
    let answer = bytes.split_off(end + 4);
    (length?.trim().parse() == Ok(answer.len()))
        .then(|| Some((head.get(9..12)?.parse().ok()?, answer)))?
}

/// Submits until the quota is full or the server is gone, and looks at what is ready.
fn use_until_gone(address: SocketAddr, next: &AtomicUsize, quota: usize, ledger: &Mutex<Ledger>) {
    while ledger.lock().expect("no panic").acknowledged.len() < quota {
        let n = next.fetch_add(1, Ordering::Relaxed) % REQUESTS;
        let Some((status, body)) = ask(address, "POST", SUBMIT, &request(n).to_string()) else {
            return;
        };
        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&body));
        let answer: Value = serde_json::from_slice(&body).expect("JSON");
        let id = answer["task_id"].as_str().expect("an id").to_owned();
        ledger.lock().expect("no panic").acknowledged.insert(id, n);
    }
    loop {
        let unseen: Vec<String> = {
            let ledger = ledger.lock().expect("no panic");
            let ids = ledger.acknowledged.keys();
            ids.filter(|id| !ledger.seen.contains_key(*id))
                .cloned()
                .collect()
        };
        for id in unseen {
            let path = format!("/api/v1/async/tasks/{id}/result");
            let Some((status, body)) = ask(address, "GET", &path, "") else {
                return;
            };
            assert!(
                [200, 202].contains(&status),
                "{id}: {}",
                String::from_utf8_lossy(&body)
            );
            if status == 200 {
                let result: Value = serde_json::from_slice(&body).expect("JSON");
                let url = result["audio_url"].as_str().expect("a URL");
                let Some((200, audio)) = ask(address, "GET", url, "") else {
                    return;
                };
                ledger.lock().expect("no panic").seen.insert(id, audio);
            }
        }
        if ask(address, "GET", "/live", "").is_none() {
            return;
        }
    }
}

/// Until so many results were heard in all: how long that takes is the machine's affair.
fn wait_for(heard: usize, ledger: &Mutex<Ledger>) {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let ledger = ledger.lock().expect("no panic");
        if ledger.seen.len() >= heard {
            return;
        }
        assert!(Instant::now() < deadline, "nothing is finished");
        drop(ledger);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Files of all tasks that the server lists as completed; nothing else may be listed.
fn listed_files(client: &Client) -> HashSet<String> {
    let mut files = HashSet::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/api/v1/async/tasks?limit=100{cursor}"));
        let page = page.json();
        for task in page["tasks"].as_array().expect("a list") {
            assert_eq!(task["status"], "completed", "{task}");
            let result = client.get(task["result_url"].as_str().expect("a URL"));
            let result = result.json();
            let url = result["audio_url"].as_str().expect("a URL");
            let name = url.rsplit('/').next().expect("a name");
            assert!(files.insert(name.to_owned()), "{name} belongs to two tasks");
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return files,
        }
    }
}

#[test]
fn what_the_program_acknowledged_completes_however_often_it_is_killed() {
    let mut data = tempfile::tempdir().expect("a temporary folder");
    let (ledger, next) = (Mutex::new(Ledger::default()), AtomicUsize::new(0));
    let mut random = 7;
    for kill in 0..KILLS {
        let mut program = Program::on(data, &FEW_WORKERS);
        let (address, quota) = (program.client.address(), TASKS * (kill + 1) / (KILLS + 1));
        let heard = ledger.lock().expect("no panic").seen.len() + draw(&mut random, 4) as usize;
        let pause = Duration::from_millis(draw(&mut random, 300));
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| use_until_gone(address, &next, quota, &ledger));
            }
            wait_for(heard, &ledger);
            std::thread::sleep(pause);
            program.child.kill().expect("SIGKILL is sent");
            program.child.wait().expect("it ends");
        });
        data = program.into_data();
    }
    let program = Program::on(data, &[]);
    let client = &program.client;
    let mut ledger = ledger.into_inner().expect("no panic");
    while ledger.acknowledged.len() < TASKS {
        let n = next.fetch_add(1, Ordering::Relaxed) % REQUESTS;
        let id = client.submit(SUBMIT, &request(n));
        ledger.acknowledged.insert(id, n);
    }
    for id in ledger.acknowledged.keys() {
        assert_eq!(client.wait(id)["status"], "completed");
    }
    program.idle();
    let seen = ledger.seen.len();
    assert!(seen > TASKS / 10, "{seen} tasks were heard before a kill");
    let expected: Vec<Vec<u8>> = (0..REQUESTS)
        .map(|n| {
            let id = client.submit(SUBMIT, &request(n));
            client.wait(&id);
            client.audio(&id)
        })
        .collect();
    for (id, &n) in &ledger.acknowledged {
        assert!(client.audio(id) == expected[n], "{id} has other bytes");
        assert!(
            ledger.seen.get(id).is_none_or(|a| *a == expected[n]),
            "{id} changed"
        );
    }
    let present: HashSet<String> = program.files("results").into_iter().collect();
    assert_eq!(present, listed_files(client));
    println!("{KILLS} kills, {TASKS} tasks, {seen} heard before a kill");
}
