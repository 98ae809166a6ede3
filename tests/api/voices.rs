//! Voices: registering, using, changing, deleting, keeping.

use std::time::Duration;

use serde_json::json;

use super::client::{Client, Part, wav};
use super::serve::Serving;

const VOICES: &str = "/api/v1/voices/";

fn create(client: &Client, id: &str, recording: &[u8]) -> super::client::Reply {
    client.form(
        "POST",
        VOICES,
        &[
            Part::Text("voice_id", id),
            Part::Text("name", "Anna"),
            Part::Text("description", "A test"),
            Part::Text("language", "en"),
            Part::Text("prompt_text", "What Anna says"),
            Part::Text("audio_format", "wav"),
            Part::File("audio_file", recording),
        ],
    )
}

#[test]
fn a_voice_is_registered_used_changed_and_deleted() {
    let server = Serving::new(&[]);
    let client = server.client();
    let created = create(&client, "anna", &wav(1.5, 16_000));
    assert_eq!(created.status, 201, "{}", created.json());
    assert_eq!(created.header("location"), "/api/v1/voices/anna");
    assert_eq!(created.json()["duration"], 1.5);
    assert_eq!(created.json()["voice_type"], "zero_shot");
    let again = create(&client, "anna", &wav(1.0, 16_000));
    assert_eq!(
        (again.status, again.error().as_str()),
        (409, "voice_exists")
    );

    let speak = json!({"text": "Hi", "voice_id": "anna", "seed": 1});
    let id = client.submit("/api/v1/async/synthesize/zero-shot", &speak);
    assert_eq!(client.wait(&id)["status"], "completed");
    let before = client.audio(&id);

    let changed = client.json(
        "PUT",
        "/api/v1/voices/anna",
        &json!({"name": "Anna B", "language": "de"}),
    );
    assert_eq!(
        (changed.status, changed.json()["name"].as_str()),
        (200, Some("Anna B"))
    );
    assert_eq!(changed.json()["description"], "A test");
    let other = wav(0.7, 24_000);
    let parts = [
        Part::File("audio_file", &other),
        Part::Text("prompt_text", "Other words"),
    ];
    let changed = client.form("PUT", "/api/v1/voices/anna", &parts);
    assert_eq!(
        (changed.status, changed.json()["duration"].as_f64()),
        (200, Some(0.7))
    );
    let id = client.submit("/api/v1/async/synthesize/zero-shot", &speak);
    client.wait(&id);
    assert!(client.audio(&id) != before, "the new recording is used");

    assert_eq!(client.delete("/api/v1/voices/anna").status, 200);
    for reply in [
        client.get("/api/v1/voices/anna"),
        client.delete("/api/v1/voices/anna"),
    ] {
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (404, "voice_not_found")
        );
    }
    let gone = client.post("/api/v1/async/synthesize/sft", &speak);
    assert_eq!(
        (gone.status, gone.error().as_str()),
        (404, "voice_not_found")
    );
}

#[test]
fn voices_survive_a_restart_and_tasks_keep_deleted_ones() {
    let values = [("MAX_SYNTHESIS_WORKERS", "1"), ("SHUTDOWN_TIMEOUT", "0")];
    let server = Serving::paced(Duration::from_millis(50), &values);
    let client = server.client();
    create(&client, "kept", &wav(1.0, 16_000));
    create(&client, "dropped", &wav(1.2, 16_000));
    let blocker = client.submit(
        "/api/v1/async/synthesize/sft",
        &json!({"text": "This one keeps the worker busy", "voice_id": "pretrained_voice_001"}),
    );
    let waiting = client.submit(
        "/api/v1/async/synthesize/zero-shot",
        &json!({"text": "Hi", "voice_id": "dropped"}),
    );
    assert_eq!(client.delete("/api/v1/voices/dropped").status, 200);
    let server = Serving::on(server.stop(), Duration::from_micros(10), &values);
    let client = server.client();
    assert_eq!(client.get("/api/v1/voices/kept").json()["name"], "Anna");
    assert_eq!(client.get("/api/v1/voices/dropped").status, 404);
    for id in [blocker, waiting] {
        assert_eq!(client.wait(&id)["status"], "completed");
    }
}

#[test]
fn lists_are_filtered_and_paged() {
    let server = Serving::new(&[]);
    let client = server.client();
    create(&client, "anna", &wav(1.0, 16_000));
    let all = client.get("/api/v1/voices").json();
    assert_eq!(
        (all["total"].as_u64(), all["total_pages"].as_u64()),
        (Some(3), Some(1))
    );
    let own = client
        .get("/api/v1/voices/?voice_type=zero_shot&language=EN")
        .json();
    assert_eq!(own["voices"][0]["voice_id"], "anna");
    assert_eq!(own["total"], 1);
    let second = client.get("/api/v1/voices/?page=2&page_size=2").json();
    assert_eq!(
        (
            second["total"].as_u64(),
            second["voices"].as_array().map(Vec::len)
        ),
        (Some(3), Some(1))
    );
    assert_eq!(
        client.get("/api/v1/voices/?page=0").error(),
        "validation_error"
    );
    let pretrained = client.get("/api/v1/voices/pretrained/list").json();
    assert_eq!(pretrained["total"], 2);
    assert_eq!(
        pretrained["pretrained_voices"][0]["voice_id"],
        "pretrained_voice_001"
    );
    let summary = client.get("/api/v1/voices/stats/summary").json();
    assert_eq!(summary["total_voices"], 3);
    assert_eq!(summary["by_type"], json!({"pretrained": 2, "zero_shot": 1}));
    assert_eq!(
        client.get("/v1/audio/voices").json()["voices"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn the_models_own_voices_are_not_changed() {
    let server = Serving::new(&[]);
    let client = server.client();
    let path = "/api/v1/voices/pretrained_voice_001";
    assert_eq!(client.get(path).json()["voice_type"], "pretrained");
    for (reply, word) in [
        (client.delete(path), "voice_protected"),
        (
            client.json("PUT", path, &json!({"name": "Mine"})),
            "voice_protected",
        ),
        (
            create(&client, "pretrained_voice_001", &wav(1.0, 16_000)),
            "voice_exists",
        ),
    ] {
        assert_eq!((reply.status, reply.error().as_str()), (409, word));
    }
}

#[test]
fn odd_ids_are_refused_and_never_reach_the_disk() {
    let server = Serving::new(&[]);
    let client = server.client();
    for id in [
        "../evil",
        "a/b",
        ".hidden",
        "a b",
        "%2e%2e",
        "x\u{0}",
        &"x".repeat(65),
    ] {
        let reply = create(&client, id, &wav(1.0, 16_000));
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (422, "validation_error"),
            "{id:?}"
        );
    }
    for path in ["..%2f..%2ftasks.redb", "%2e%2e", "..", "a%00b", "%ff"] {
        let reply = client.get(&format!("{VOICES}{path}"));
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (404, "voice_not_found"),
            "{path}"
        );
    }
    assert_eq!(
        std::fs::read_dir(server.data().join("voices"))
            .unwrap()
            .count(),
        0
    );
    let speak = json!({"text": "Hi", "voice_id": "pretrained_voice_001"});
    let id = client.submit("/api/v1/async/synthesize/sft", &speak);
    assert_eq!(client.wait(&id)["status"], "completed");
}
