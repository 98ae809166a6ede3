//! How texts are read, asked of the real server on the checkpoint of the tests.

use std::io::Cursor;

use serde_json::{Value, json};

use super::client::Client;
use super::program::Program;
use crate::support::silence::assert_silences;

const ASYNC: &str = "/api/v1/async/synthesize/sft";
const SYNC: &str = "/api/v1/synthesize/sft";

/// The server with a lexicon of its own.
fn serve() -> Program {
    let lexicon = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(lexicon.path(), "ETA\tarrival time\nSQL\tess queue ell\n").expect("a file");
    // Read before the server is ready.
    Program::start(&[("LEXICON", lexicon.path().to_str().expect("a UTF-8 path"))])
}

/// A request for `text` in the model's first voice, with more fields.
fn body(client: &Client, text: &str, more: &Value) -> Value {
    let voices = client.get("/api/v1/voices/").json();
    let mut body = json!({"text": text, "voice_id": voices["voices"][0]["voice_id"], "seed": 1});
    for (name, value) in more.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

fn samples(wav: Vec<u8>) -> Vec<i16> {
    let mut reader = hound::WavReader::new(Cursor::new(wav)).expect("a wav file");
    reader.samples().map(|s| s.expect("a sample")).collect()
}

#[test]
fn requests_say_how_texts_are_read() {
    let server = serve();
    let client = &server.client;
    for (text, more, spoken) in [
        ("I have 3 apples.", json!({}), "I have three apples."),
        ("3", json!({"language": "zh"}), "三"),
        ("3 cats", json!({"text_normalization": "off"}), "3 cats"),
        (
            "Привет 3",
            json!({"text_normalization": "on"}),
            "Привет three",
        ),
        (
            "No. 5",
            json!({"text_normalization": "official"}),
            "Number. five ",
        ),
        // The server's lexicon, and the request's before it.
        ("The ETA is 3.", json!({}), "The arrival time is three."),
        (
            "SQL and ETA",
            json!({"lexicon": {"SQL": "sequel"}}),
            "sequel and arrival time",
        ),
        (
            "<speak>On <say-as interpret-as=\"date\">2024-05-01</say-as>.</speak>",
            json!({}),
            "On May first, twenty twenty four.",
        ),
    ] {
        let id = client.submit(ASYNC, &body(client, text, &more));
        assert_eq!(client.wait(&id)["status"], "completed");
        let result = client
            .get(&format!("/api/v1/async/tasks/{id}/result"))
            .json();
        assert_eq!(result["normalized_text"], spoken, "{text} {more}");
    }
}

#[test]
fn pauses_in_answers_are_silence_of_their_length() {
    let server = serve();
    let client = &server.client;
    let marked = "One.[pause:500ms]Two.[pause:1.25s]Three.";
    let ssml = "<speak>One<break time=\"500ms\"/>two<break time=\"1.25s\"/>three.</speak>";
    for text in [marked, ssml] {
        let id = client.submit(ASYNC, &body(client, text, &json!({})));
        assert_eq!(client.wait(&id)["status"], "completed");
        assert_silences(&samples(client.audio(&id)), &[500, 1250]);
        let pcm = client.post(
            SYNC,
            &body(client, text, &json!({"stream": true, "format": "pcm"})),
        );
        assert_eq!(pcm.status, 200);
        let streamed: Vec<i16> = pcm
            .body
            .chunks_exact(2)
            .map(|b| i16::from_le_bytes([b[0], b[1]]))
            .collect();
        assert_silences(&streamed, &[500, 1250]);
    }
}

#[test]
fn texts_that_cannot_be_read_are_refused() {
    let server = serve();
    let client = &server.client;
    for (text, more, word, names) in [
        ("?!… 🙂", json!({}), "nothing_to_say", "say"),
        ("[pause:1s]", json!({}), "nothing_to_say", "say"),
        ("<speak>…</speak>", json!({}), "nothing_to_say", "say"),
        ("a[pause:5m]", json!({}), "malformed_pause", "5m"),
        ("a[pause:90s]", json!({}), "malformed_pause", "10 s"),
        (
            "<speak>a<prosody>b</prosody></speak>",
            json!({}),
            "malformed_ssml",
            "<prosody>",
        ),
        ("<speak>a", json!({}), "malformed_ssml", "<speak>"),
        (
            "<!DOCTYPE x [<!ENTITY a 'b'>]><speak>&a;</speak>",
            json!({}),
            "malformed_ssml",
            "document type",
        ),
        ("<speak>&a;</speak>", json!({}), "malformed_ssml", "entity"),
        (
            "a",
            json!({"language": "klingon"}),
            "unknown_language",
            "klingon",
        ),
    ] {
        for path in [ASYNC, SYNC] {
            let reply = client.post(path, &body(client, text, &more));
            assert_eq!(
                (reply.status, reply.error().as_str()),
                (422, word),
                "{text}"
            );
            let message = reply.json()["message"].to_string();
            assert!(message.contains(names), "{message}");
        }
    }
    let spoken = client.post(SYNC, &body(client, "Still here.", &json!({})));
    assert_eq!(spoken.status, 200);
}
