//! Voices: those of the model and those that users register.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::{StatusCode, header};
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::fields::Reader;
use super::super::handle::Context;
use super::super::reply::{Response, json_reply, ok, set};
use super::request::{MAX_NAME, MAX_PROMPT_TEXT};
use crate::tasks::{BuiltinVoice, Changes, NewVoice, VoiceError, VoiceInfo, Voices, is_valid_id};

type Answer = Result<Response, ApiError>;

const MAX_PAGE: u64 = 200;
const DEFAULT_PAGE: u64 = 20;
const MAX_DESCRIPTION: usize = 2000;
const PRETRAINED: &str = "pretrained";

fn builtin_json(voice: &BuiltinVoice) -> Value {
    json!({
        "voice_id": voice.voice_id,
        "name": voice.name,
        "description": voice.description,
        "voice_type": PRETRAINED,
        "language": voice.language,
        "prompt_text": null,
        "audio_format": null,
        "duration": null,
        "created_at": null,
        "updated_at": null,
    })
}

fn registered_json(voice: &VoiceInfo) -> Value {
    json!({
        "voice_id": voice.voice_id,
        "name": voice.name,
        "description": voice.description,
        "voice_type": voice.voice_type,
        "language": voice.language,
        "prompt_text": voice.prompt_text,
        "audio_format": voice.audio_format,
        "duration": voice.duration_s,
        "created_at": voice.created_at.to_string(),
        "updated_at": voice.updated_at.to_string(),
    })
}

async fn all(voices: &Arc<Voices>) -> Vec<Value> {
    voices.look_again().await;
    let (builtin, registered) = (voices.builtin(), voices.registered());
    let builtin = builtin.iter().map(builtin_json);
    builtin
        .chain(registered.iter().map(registered_json))
        .collect()
}

pub(crate) async fn list(context: Context) -> Answer {
    let tasks = context.tasks()?;
    let mut query = context.query();
    let mut filter = |name| {
        let wanted = query.optional_text(name, MAX_NAME);
        wanted.filter(|w| !w.is_empty())
    };
    let (voice_type, language) = (filter("voice_type"), filter("language"));
    let page = query.integer("page", 1, 1_000_000).unwrap_or(1);
    let size = query
        .integer("page_size", 1, MAX_PAGE)
        .unwrap_or(DEFAULT_PAGE);
    query.finish()?;
    let is = |voice: &Value, field: &str, wanted: &Option<String>| {
        wanted.as_ref().is_none_or(|w| {
            voice[field]
                .as_str()
                .is_some_and(|v| v.eq_ignore_ascii_case(w))
        })
    };
    let mut voices = all(tasks.voices()).await;
    voices.retain(|v| is(v, "voice_type", &voice_type) && is(v, "language", &language));
    let total = voices.len();
    let first = (page - 1) * size;
    let shown: Vec<Value> = voices
        .into_iter()
        .skip(first as usize)
        .take(size as usize)
        .collect();
    Ok(ok(&json!({
        "voices": shown,
        "total": total,
        "page": page,
        "page_size": size,
        "total_pages": (total as u64).div_ceil(size),
    })))
}

pub(crate) async fn get(context: Context) -> Answer {
    let voices = context.tasks()?.voices();
    let voice_id = context.param("voice_id");
    voices.look_again().await;
    let builtin = voices
        .builtin()
        .iter()
        .find(|b| b.voice_id == voice_id)
        .map(builtin_json);
    let found = builtin.or_else(|| voices.get(voice_id).as_ref().map(registered_json));
    let found = found.ok_or_else(|| VoiceError::NotFound(voice_id.to_owned()))?;
    Ok(ok(&found))
}

/// The fields that a new and a changed voice share.
fn read_changes(fields: &mut Reader) -> Changes {
    let voice_type = fields.optional_text("voice_type", 32);
    let is_word = |t: &String| {
        t.chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    };
    if voice_type
        .as_ref()
        .is_some_and(|t| !is_word(t) || t == PRETRAINED)
    {
        fields.fault(
            "voice_type",
            "must be a word such as zero_shot, and not `pretrained`",
        );
    }
    Changes {
        name: fields.optional_text("name", MAX_NAME),
        description: fields.optional_text("description", MAX_DESCRIPTION),
        voice_type,
        language: fields.optional_text("language", 35),
        prompt_text: fields.optional_text("prompt_text", MAX_PROMPT_TEXT),
        audio_format: fields.optional_text("audio_format", 32),
        recording: fields.file("audio_file"),
    }
}

pub(crate) async fn create(mut context: Context) -> Answer {
    let mut fields = context.fields().await?;
    let drawn = || format!("voice_{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    let voice_id = fields
        .optional_text("voice_id", MAX_NAME)
        .unwrap_or_else(drawn);
    if !is_valid_id(&voice_id) {
        fields.fault("voice_id", "must be letters, digits, `_`, `-` and `.`, start with a letter or digit, and have at most 64 bytes");
    }
    let given = read_changes(&mut fields);
    if given.recording.is_none() && !fields.has("audio_file") {
        fields.fault("audio_file", "is required");
    }
    fields.finish()?;
    let recording = given.recording.unwrap_or_default();
    let new = NewVoice {
        name: given.name.unwrap_or_else(|| voice_id.clone()),
        voice_id,
        description: given.description.unwrap_or_default(),
        voice_type: given
            .voice_type
            .unwrap_or_else(|| String::from("zero_shot")),
        language: given.language.unwrap_or_default(),
        prompt_text: given.prompt_text.unwrap_or_default(),
        audio_format: given
            .audio_format
            .unwrap_or_else(|| container(&recording).to_owned()),
        recording,
    };
    let info = context.tasks()?.voices().create(new).await?;
    let mut response = json_reply(StatusCode::CREATED, &registered_json(&info));
    set(
        &mut response,
        header::LOCATION,
        &format!("/api/v1/voices/{}", info.voice_id),
    );
    Ok(response)
}

/// The container of a recording by its first bytes.
fn container(recording: &[u8]) -> &'static str {
    match recording {
        [b'R', b'I', b'F', b'F', ..] => "wav",
        [b'f', b'L', b'a', b'C', ..] => "flac",
        [b'O', b'g', b'g', b'S', ..] => "ogg",
        [b'I', b'D', b'3', ..] => "mp3",
        [0xff, second, ..] if *second >= 0xe0 => "mp3",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "m4a",
        [0x1a, 0x45, 0xdf, 0xa3, ..] => "webm",
        _ => "unknown",
    }
}

pub(crate) async fn update(mut context: Context) -> Answer {
    let mut fields = context.fields().await?;
    let changes = read_changes(&mut fields);
    fields.finish()?;
    let info = context
        .tasks()?
        .voices()
        .update(context.param("voice_id"), changes)
        .await?;
    Ok(ok(&registered_json(&info)))
}

pub(crate) async fn delete(context: Context) -> Answer {
    let voice_id = context.param("voice_id");
    context.tasks()?.voices().delete(voice_id).await?;
    let message = format!("Voice {voice_id} deleted successfully");
    Ok(ok(&json!({"message": message, "voice_id": voice_id})))
}

pub(crate) async fn pretrained(context: Context) -> Answer {
    let voices = context.tasks()?.voices();
    voices.look_again().await;
    let voices: Vec<Value> = voices.builtin().iter().map(builtin_json).collect();
    Ok(ok(
        &json!({"pretrained_voices": voices, "total": voices.len()}),
    ))
}

pub(crate) async fn summary(context: Context) -> Answer {
    let voices = all(context.tasks()?.voices()).await;
    let count = |field: &str| {
        let mut counts = BTreeMap::<String, usize>::new();
        for voice in &voices {
            let word = voice[field]
                .as_str()
                .filter(|w| !w.is_empty())
                .unwrap_or("unknown");
            *counts.entry(word.to_owned()).or_default() += 1;
        }
        counts
    };
    let seconds: f64 = voices.iter().filter_map(|v| v["duration"].as_f64()).sum();
    Ok(ok(&json!({
        "total_voices": voices.len(),
        "by_type": count("voice_type"),
        "by_language": count("language"),
        "total_duration": seconds,
    })))
}
