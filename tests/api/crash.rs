//! `kill -9` at any moment: what was acknowledged completes, once, with the bytes of its seed, and no file is left over.
//!
//! The process that is killed is this test binary itself, run again to serve.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cosyvoice::audio::{self, Format};
use serde_json::json;

use super::client::Client;
use super::fake::{Fake, RATE_HZ, builtin_voice, samples};
use super::serve::{run, settings};

const DATA: &str = "COSYVOICE_CRASH_TEST_DATA";
const TASKS: usize = 200;
const KILLS: usize = 20;

/// Serves when the environment says so; as a test of its own it has nothing to do.
#[test]
fn serving_child() {
    let Some(data) = std::env::var_os(DATA).map(PathBuf::from) else {
        return;
    };
    let settings = settings(
        &data,
        &[("MAX_SYNTHESIS_WORKERS", "4"), ("MAX_QUEUED_TASKS", "1000")],
    );
    let fake = Arc::new(Fake::new(Duration::from_micros(400)));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let announce = |address: std::net::SocketAddr| {
        let aside = data.join("address.new");
        std::fs::write(&aside, address.to_string()).expect("a writable folder");
        std::fs::rename(aside, data.join("address")).expect("a writable folder");
    };
    runtime.block_on(run(settings, fake, &announce, std::future::pending()));
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // SIGKILL; it may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(data: &Path) -> (Killed, Client) {
    let address = data.join("address");
    let _ = std::fs::remove_file(&address);
    let child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "api::crash::serving_child", "--nocapture"])
        .env(DATA, data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a second process");
    let child = Killed(child);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(text) = std::fs::read_to_string(&address) {
            return (child, Client::new(text.parse().expect("an address")));
        }
        assert!(Instant::now() < deadline, "the server does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn text(n: usize) -> String {
    format!("Sentence number {n} of the crash test")
}

/// The next of a reproducible sequence, below `bound`.
pub(super) fn draw(state: &mut u64, bound: u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    (*state >> 33) % bound
}

#[test]
fn acknowledged_tasks_complete_once_whenever_the_process_dies() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut state = 20;
    let mut acknowledged: HashMap<String, usize> = HashMap::new();
    let mut seen: HashMap<String, String> = HashMap::new();
    let mut next = 0;
    for kill in 0..=KILLS {
        let (child, client) = start(folder.path());
        let last = kill == KILLS;
        let goal = if last {
            TASKS
        } else {
            TASKS * (kill + 1) / (KILLS + 1)
        };
        while next < goal {
            let body =
                json!({"text": text(next), "voice_id": "pretrained_voice_001", "seed": next});
            acknowledged.insert(client.submit("/api/v1/async/synthesize/sft", &body), next);
            next += 1;
        }
        if last {
            for id in acknowledged.keys() {
                assert_eq!(client.wait(id)["status"], "completed");
            }
            check(&client, folder.path(), &acknowledged, &seen);
            return;
        }
        std::thread::sleep(Duration::from_millis(draw(&mut state, 60)));
        for id in acknowledged.keys() {
            let result = client.get(&format!("/api/v1/async/tasks/{id}/result"));
            assert!(
                [200, 202].contains(&result.status),
                "{id}: {}",
                result.json()
            );
            if result.status == 200 && !seen.contains_key(id) {
                let audio = client.get(result.json()["audio_url"].as_str().expect("a URL"));
                seen.insert(id.clone(), audio.header("etag").to_owned());
            }
        }
        std::thread::sleep(Duration::from_millis(draw(&mut state, 30)));
        drop(child);
    }
}

fn check(
    client: &Client,
    data: &Path,
    acknowledged: &HashMap<String, usize>,
    seen: &HashMap<String, String>,
) {
    assert_eq!(acknowledged.len(), TASKS);
    assert!(
        seen.len() > TASKS / 10,
        "tasks were finished before kills: {}",
        seen.len()
    );
    let mut files = HashSet::new();
    for (id, n) in acknowledged {
        let audio = client.get(&format!("/api/v1/audio/{id}.wav"));
        let expected = audio::encode(
            Format::Wav,
            &samples(&text(*n), *n as u64, &builtin_voice()),
            RATE_HZ,
        );
        assert_eq!(audio.body, expected.expect("a wav file"), "{id}");
        if let Some(etag) = seen.get(id) {
            assert_eq!(audio.header("etag"), etag, "{id} was made twice");
        }
        files.insert(format!("{id}.wav"));
    }
    assert_eq!(
        client.get("/api/v1/async/tasks?status=completed").json()["total"],
        TASKS
    );
    let results = std::fs::read_dir(data.join("results")).expect("the results");
    let present: HashSet<String> = results
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    // A submit whose answer was cut off by a kill would be a task that nobody knows; none was in flight here.
    assert_eq!(present, files);
}
