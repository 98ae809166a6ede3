//! Lists, cancels, progress, limits, idempotency, retention, restarts.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::Client;
use super::serve::Serving;

const SFT: &str = "/api/v1/async/synthesize/sft";
const TASKS: &str = "/api/v1/async/tasks";

fn body(text: &str) -> Value {
    json!({"text": text, "voice_id": "pretrained_voice_001", "seed": 1})
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn progress_moves_forward_and_ends_at_one() {
    let server = Serving::paced(Duration::from_millis(10), &[]);
    let client = server.client();
    let id = client.submit(SFT, &body("Some words that take a while to say"));
    let mut seen = Vec::new();
    let mut stages = Vec::new();
    loop {
        let status = client.status(&id);
        let progress = status["progress"].as_f64().unwrap();
        if seen.last() != Some(&progress) {
            seen.push(progress);
        }
        if let Some(stage) = status["stage"].as_str()
            && stages.last().map(String::as_str) != Some(stage)
        {
            stages.push(stage.to_owned());
        }
        if status["status"] == "completed" {
            break;
        }
        assert!(progress < 1.0, "{status}");
        std::thread::sleep(Duration::from_millis(3));
    }
    assert!(
        seen.is_sorted() && seen.len() >= 10 && seen.last() == Some(&1.0),
        "{seen:?}"
    );
    for stage in ["llm", "flow", "vocoder"] {
        assert!(stages.iter().any(|s| s == stage), "{stages:?}");
    }
}

#[test]
fn results_answer_by_state() {
    let server = Serving::paced(Duration::from_millis(20), &[]);
    let client = server.client();
    let id = client.submit(SFT, &body("Not finished yet, surely"));
    let early = client.get(&format!("{TASKS}/{id}/result"));
    assert_eq!((early.status, early.header("retry-after")), (202, "1"));
    assert_eq!(client.wait(&id)["status"], "completed");
    let failing = client.submit(SFT, &body("FAIL"));
    let status = client.wait(&failing);
    assert_eq!(
        (status["status"].as_str(), status["cancelled"].as_bool()),
        (Some("failed"), Some(false))
    );
    assert!(!status["error"].as_str().unwrap().is_empty());
    let result = client.get(&format!("{TASKS}/{failing}/result"));
    assert_eq!(
        (result.status, result.error().as_str()),
        (409, "task_failed")
    );
}

#[test]
fn a_panic_in_a_task_fails_that_task_only() {
    let server = Serving::new(&[]);
    let client = server.client();
    let id = client.submit(SFT, &body("PANIC"));
    assert_eq!(client.wait(&id)["status"], "failed");
    let next = client.submit(SFT, &body("Still here"));
    assert_eq!(client.wait(&next)["status"], "completed");
}

#[test]
fn pending_and_running_tasks_are_cancelled() {
    let server = Serving::paced(
        Duration::from_millis(200),
        &[("MAX_SYNTHESIS_WORKERS", "1")],
    );
    let client = server.client();
    let running = client.submit(SFT, &body("A long task that is running"));
    until("the first starts", || {
        client.status(&running)["status"] == "processing"
    });
    let pending = client.submit(SFT, &body("A task that waits"));
    let status = client.status(&pending);
    assert_eq!(
        (status["status"].as_str(), status["queue_position"].as_u64()),
        (Some("pending"), Some(1))
    );
    for id in [&pending, &running] {
        let reply = client.delete(&format!("{TASKS}/{id}"));
        assert_eq!(reply.status, 200, "{}", reply.json());
        assert_eq!(
            reply.json()["message"],
            format!("Task {id} cancelled successfully")
        );
        let status = client.status(id);
        assert_eq!(status["status"], "failed");
        assert_eq!(status["error"], "Task cancelled by user");
        assert_eq!(status["cancelled"], true);
        let again = client.delete(&format!("{TASKS}/{id}"));
        assert_eq!(
            (again.status, again.error().as_str()),
            (409, "task_finished")
        );
    }
    until("the engine is free", || {
        server.fake.running.load(Ordering::SeqCst) == 0
    });
    assert_eq!(
        server.fake.started.load(Ordering::SeqCst),
        1,
        "the pending task never ran"
    );
    assert_eq!(
        client.post("/api/v1/synthesize/sft", &body("ok")).status,
        200
    );
    assert_eq!(
        std::fs::read_dir(server.data().join("results"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn lists_are_paged_newest_first_and_filtered() {
    let server = Serving::new(&[("MAX_SYNTHESIS_WORKERS", "1")]);
    let client = server.client();
    let ids: Vec<String> = (0..7)
        .map(|n| client.submit(SFT, &body(&format!("Task {n}"))))
        .collect();
    for id in &ids {
        client.wait(id);
    }
    let failed = client.submit(SFT, &body("FAIL"));
    client.wait(&failed);
    let mut listed = Vec::new();
    let mut query = String::from("limit=3");
    loop {
        let page = client.get(&format!("{TASKS}?{query}")).json();
        assert_eq!(page["total"], 8);
        let tasks = page["tasks"].as_array().unwrap();
        assert!(tasks.len() <= 3);
        listed.extend(
            tasks
                .iter()
                .map(|t| t["task_id"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(cursor) => query = format!("limit=3&cursor={cursor}"),
            None => break,
        }
    }
    let newest_first: Vec<String> = ids.iter().chain([&failed]).rev().cloned().collect();
    assert_eq!(listed, newest_first);
    let only = client.get(&format!("{TASKS}?status=failed")).json();
    assert_eq!(
        (only["total"].as_u64(), only["tasks"][0]["task_id"].as_str()),
        (Some(1), Some(failed.as_str()))
    );
    assert_eq!(
        client
            .get("/api/v1/cross-lingual/async?status=completed")
            .json()["total"],
        7
    );
    assert_eq!(
        client
            .get(&format!("/api/v1/cross-lingual/async/{failed}"))
            .json()["status"],
        "failed"
    );
    assert_eq!(
        client.get(&format!("{TASKS}?status=done")).error(),
        "validation_error"
    );
}

#[test]
fn workers_bound_what_runs_at_the_same_time() {
    let server = Serving::paced(Duration::from_millis(2), &[("MAX_SYNTHESIS_WORKERS", "3")]);
    let client = server.client();
    let ids: Vec<String> = (0..12)
        .map(|n| client.submit(SFT, &body(&format!("Task number {n}"))))
        .collect();
    for id in ids {
        assert_eq!(client.wait(&id)["status"], "completed");
    }
    assert_eq!(server.fake.most_running.load(Ordering::SeqCst), 3);
}

#[test]
fn full_queues_and_clients_are_told_when_to_come_back() {
    let values = [("MAX_SYNTHESIS_WORKERS", "1"), ("MAX_QUEUED_TASKS", "2")];
    let server = Serving::paced(Duration::from_millis(100), &values);
    let client = server.client();
    let first = client.submit(SFT, &body("A task that runs for some time"));
    until("it runs", || {
        client.status(&first)["status"] == "processing"
    });
    client.submit(SFT, &body("two"));
    client.submit(SFT, &body("three"));
    let full = client.post(SFT, &body("four"));
    assert_eq!((full.status, full.error().as_str()), (429, "queue_full"));
    assert!(full.header("retry-after").parse::<u64>().unwrap() >= 1);
    let streams = client.post(
        "/api/v1/synthesize/sft",
        &json!({"text": "five", "voice_id": "pretrained_voice_001", "stream": true}),
    );
    assert_eq!(streams.status, 429);

    let server = Serving::paced(Duration::from_millis(100), &[("MAX_TASKS_PER_USER", "2")]);
    let client = server.client();
    let mine = client.submit(SFT, &body("A long enough task"));
    client.submit(SFT, &body("Another long enough task"));
    let limited = client.post(SFT, &body("three"));
    assert_eq!(
        (limited.status, limited.error().as_str()),
        (429, "too_many_tasks")
    );
    assert_eq!(client.delete(&format!("{TASKS}/{mine}")).status, 200);
    assert_eq!(client.post(SFT, &body("three")).status, 202);
}

#[test]
fn an_idempotency_key_returns_the_first_task() {
    let server = Serving::new(&[]);
    let client = Client::new(server.address).with("idempotency-key", "order-17");
    let first = client.submit(SFT, &body("Once"));
    assert_eq!(client.submit(SFT, &body("Once")), first);
    client.wait(&first);
    let again = client.post(SFT, &body("Once")).json();
    assert_eq!(
        (again["task_id"].as_str(), again["status"].as_str()),
        (Some(first.as_str()), Some("completed"))
    );
    let other = client.post(SFT, &body("Twice"));
    assert_eq!(
        (other.status, other.error().as_str()),
        (409, "idempotency_conflict")
    );
    assert_eq!(client.get(TASKS).json()["total"], 1);
    // Many at once make one task too.
    let address = server.address;
    let racing: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                Client::new(address)
                    .with("idempotency-key", "race")
                    .submit(SFT, &body("Race"))
            })
        })
        .collect();
    let ids: Vec<String> = racing.into_iter().map(|t| t.join().unwrap()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn old_tasks_expire_with_their_files() {
    let server = Serving::new(&[("MAX_TASK_AGE", "1"), ("TASK_CLEANUP_INTERVAL", "1")]);
    let client = server.client();
    let id = client.submit(SFT, &body("Short-lived"));
    let status = client.wait(&id);
    assert!(status["expires_at"].as_str().unwrap() > status["completed_at"].as_str().unwrap());
    let results = server.data().join("results");
    until("the file is removed", || {
        std::fs::read_dir(&results).unwrap().count() == 0
    });
    for path in [
        format!("{TASKS}/{id}/status"),
        format!("{TASKS}/{id}/result"),
        format!("/api/v1/audio/{id}.wav"),
    ] {
        let reply = client.get(&path);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (410, "task_expired"),
            "{path}"
        );
    }
    assert_eq!(client.get(TASKS).json()["total"], 0);
}

#[test]
fn a_restart_keeps_finished_tasks_and_resumes_open_ones() {
    let pace = Duration::from_millis(100);
    let values = [("MAX_SYNTHESIS_WORKERS", "1"), ("SHUTDOWN_TIMEOUT", "0")];
    let server = Serving::paced(pace, &values);
    let client = server.client();
    let done = client.submit(SFT, &body("ok"));
    client.wait(&done);
    let audio = client.audio(&done);
    let running = client.submit(SFT, &body("Interrupted by the restart"));
    until("it runs", || {
        client.status(&running)["status"] == "processing"
    });
    let waiting = client.submit(SFT, &body("Waiting"));
    let data = server.stop();
    let server = Serving::on(data, Duration::from_millis(1), &values);
    let client = server.client();
    assert_eq!(client.audio(&done), audio);
    for id in [&running, &waiting] {
        assert_eq!(client.wait(id)["status"], "completed");
    }
    assert_eq!(client.get(TASKS).json()["total"], 3);
}

#[test]
fn draining_finishes_what_runs() {
    let server = Serving::paced(Duration::from_millis(20), &[]);
    let client = server.client();
    let waiting = std::thread::spawn({
        let address = server.address;
        move || Client::new(address).post("/api/v1/synthesize/sft", &body("Said to the end"))
    });
    until("it runs", || {
        server.fake.running.load(Ordering::SeqCst) == 1
    });
    let id = client.get(TASKS).json()["tasks"][0]["task_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let data = server.stop();
    let reply = waiting.join().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.json());
    assert!(data.path().join(format!("results/{id}.wav")).is_file());
}

#[test]
fn keys_separate_the_tasks_of_users() {
    let server = Serving::new(&[("API_KEYS", "alpha,beta")]);
    let none = server.client();
    assert_eq!(
        (none.get(TASKS).status, none.get(TASKS).error().as_str()),
        (401, "missing_api_key")
    );
    let wrong = server.client().with("x-api-key", "gamma");
    assert_eq!(
        (wrong.get(TASKS).status, wrong.get(TASKS).error().as_str()),
        (403, "invalid_api_key")
    );
    assert_eq!(none.get("/health").status, 200);
    let alpha = server.client().with("authorization", "Bearer alpha");
    let beta = server.client().with("x-api-key", "beta");
    let id = alpha.submit(SFT, &body("Mine"));
    alpha.wait(&id);
    assert_eq!(
        beta.get(&format!("{TASKS}/{id}/status")).error(),
        "task_not_found"
    );
    assert_eq!(beta.delete(&format!("{TASKS}/{id}")).status, 404);
    assert_eq!(beta.get(&format!("/api/v1/audio/{id}.wav")).status, 404);
    assert_eq!(beta.get(TASKS).json()["total"], 0);
    assert_eq!(alpha.get(TASKS).json()["total"], 1);
}
