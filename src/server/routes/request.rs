//! Reading a synthesis request: the fields of all four ways to speak, and the voice.

use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use sha2::{Digest, Sha256};

use super::super::error::ApiError;
use super::super::fields::Reader;
use super::super::handle::Context;
use crate::audio::Format;
use crate::tasks::{Idempotency, Kind, Loaded, Submit, Tasks, Utterance, check_url, hex};

pub(super) const MAX_NAME: usize = 256;
/// Prompt texts and instructions are a sentence or two.
pub(super) const MAX_PROMPT_TEXT: usize = 2000;
/// What every JSON parser keeps exactly.
const MAX_SEED: u64 = (1 << 53) - 1;
const MAX_LEXICON: usize = 1000;
const MAX_KEY: usize = 255;
pub(super) const SPEEDS: (f64, f64) = (0.5, 2.0);

/// A synthesis request, read and checked.
pub(super) struct SynthesisRequest {
    pub(super) submit: Submit,
    /// The answer is the audio, as it is made.
    pub(super) stream: bool,
}

/// Reads the body of one of the four routes.
pub(super) async fn read(context: &mut Context, kind: Kind) -> Result<SynthesisRequest, ApiError> {
    let tasks = context.tasks()?.clone();
    if tasks.is_draining() {
        return Err(super::super::error::draining());
    }
    let mut fields = context.fields().await?;
    let settings = &context.app.settings;
    let utterance = read_utterance(&mut fields, kind, settings.max_text_chars);
    let speed = fields.number("speed", SPEEDS.0, SPEEDS.1, 1.0) as f32;
    let format = read_format(&mut fields, "format", Format::Wav);
    let seed = fields.integer("seed", 0, MAX_SEED);
    let stream = fields.boolean("stream");
    let callback_url = fields.optional_text("callback_url", 2048);
    if let Some(url) = &callback_url
        && let Err(error) = check_url(url, settings.webhook_allow_private)
    {
        fields.fault("callback_url", error.to_string());
    }
    let source = read_source(&mut fields, kind);
    fields.finish()?;
    let (voice_id, voice) = find_voice(&tasks, source).await?;
    let mut submit = Submit {
        scope: context.caller.scope.clone(),
        client: context.caller.client.clone(),
        utterance,
        voice_id,
        voice,
        speed,
        format,
        seed,
        callback_url,
        idempotency: None,
    };
    submit.idempotency = idempotency(context, &submit)?;
    Ok(SynthesisRequest { submit, stream })
}

fn read_utterance(fields: &mut Reader, kind: Kind, max_chars: usize) -> Utterance {
    let instruct_text = match kind {
        Kind::Instruct => Some(fields.required_text("instruct_text", MAX_PROMPT_TEXT)),
        _ => None,
    };
    Utterance {
        kind,
        text: fields.required_text("text", max_chars),
        instruct_text,
        language: fields.optional_text("language", 35),
        normalization: fields.choice(
            "text_normalization",
            Default::default(),
            "auto, on, off, official",
            |word| word.parse().ok(),
        ),
        lexicon: fields.dictionary("lexicon", MAX_LEXICON),
    }
}

pub(super) fn read_format(fields: &mut Reader, name: &str, default: Format) -> Format {
    let words: Vec<&str> = Format::available().map(Format::name).collect();
    fields.choice(name, default, &words.join(", "), |word| word.parse().ok())
}

/// Where the voice comes from.
enum Source {
    Named(String),
    Uploaded {
        recording: Bytes,
        text: Option<String>,
    },
    /// A fault has been noted.
    Missing,
}

/// An uploaded prompt wins over a name.
fn read_source(fields: &mut Reader, kind: Kind) -> Source {
    let recording = if kind == Kind::Sft {
        None
    } else {
        fields.file("prompt_audio")
    };
    let prompt_text = fields.optional_text("prompt_text", MAX_PROMPT_TEXT);
    if let Some(recording) = recording {
        let text = match (kind, prompt_text) {
            (Kind::ZeroShot, None) => {
                fields.fault("prompt_text", "is required with prompt_audio");
                None
            }
            (Kind::ZeroShot, text) => text,
            // The other ways do not read it: leaving it out lets them share the encoded prompt.
            _ => None,
        };
        return Source::Uploaded { recording, text };
    }
    match fields.optional_text("voice_id", MAX_NAME) {
        Some(id) => Source::Named(id),
        None => {
            let message = match kind {
                Kind::Sft => "is required",
                _ => "or prompt_audio is required",
            };
            fields.fault("voice_id", message);
            Source::Missing
        }
    }
}

async fn find_voice(
    tasks: &Tasks,
    source: Source,
) -> Result<(Option<String>, Arc<Loaded>), ApiError> {
    match source {
        Source::Named(id) => {
            let voice = tasks.voices().resolve(&id).await?;
            Ok((Some(id), voice))
        }
        Source::Uploaded { recording, text } => {
            let voice = tasks.voices().encode(recording, text).await?;
            Ok((None, voice))
        }
        Source::Missing => Err(ApiError::field(
            "voice_id",
            "validation_error",
            "voice_id is required",
        )),
    }
}

/// The `Idempotency-Key` header, with a digest of all that makes the request what it is.
fn idempotency(context: &Context, submit: &Submit) -> Result<Option<Idempotency>, ApiError> {
    let Some(value) = context.headers.get("idempotency-key") else {
        return Ok(None);
    };
    let visible = |k: &&str| k.bytes().all(|b| b.is_ascii_graphic());
    let key = value.to_str().ok().filter(visible);
    let key = key.filter(|k| !k.is_empty() && k.len() <= MAX_KEY);
    let Some(key) = key else {
        let message = "Idempotency-Key must be 1 to 255 visible ASCII characters";
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "malformed_header",
            message,
        ));
    };
    let content = serde_json::json!([
        submit.utterance,
        submit.voice_id,
        submit.voice.source,
        submit.speed,
        submit.format.name(),
        submit.seed,
        submit.callback_url,
    ]);
    Ok(Some(Idempotency {
        key: key.to_owned(),
        digest: hex(&Sha256::digest(content.to_string())),
    }))
}
