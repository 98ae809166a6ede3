//! The speech API that OpenAI's clients speak.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::fields::Reader;
use super::super::handle::Context;
use super::super::reply::{Pieces, Response, ok, pieces};
use super::super::sse;
use super::request::{MAX_NAME, MAX_PROMPT_TEXT, SPEEDS, read_format};
use super::synthesis::{audio_head, new_encoder, start};
use crate::audio::{Format, StreamEncoder};
use crate::engine::Event;
use crate::tasks::{Kind, Stream, Submit, Tasks, Utterance, base64};

type Answer = Result<Response, ApiError>;

/// Names that every client of that API knows; here they mean the default voice unless a voice is called so.
const THEIR_VOICES: [&str; 13] = [
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage",
    "shimmer", "verse",
];

pub(crate) async fn models(context: Context) -> Answer {
    let info = context.tasks()?.synthesis().info();
    Ok(ok(&json!({
        "object": "list",
        "data": [{"id": info.name, "object": "model", "created": 0, "owned_by": "cosyvoice"}],
    })))
}

pub(crate) async fn voices(context: Context) -> Answer {
    let voices = context.tasks()?.voices();
    voices.look_again().await;
    let (builtin, registered) = (voices.builtin(), voices.registered());
    let builtin = builtin
        .iter()
        .map(|b| json!({"id": b.voice_id, "name": b.name}));
    let registered = registered
        .iter()
        .map(|v| json!({"id": v.voice_id, "name": v.name}));
    let all: Vec<Value> = builtin.chain(registered).collect();
    Ok(ok(&json!({"voices": all, "total": all.len()})))
}

pub(crate) async fn speech(mut context: Context) -> Answer {
    let tasks = context.tasks()?.clone();
    let mut fields = context.fields().await?;
    let max_chars = context.app.settings.max_text_chars;
    fields.optional_text("model", MAX_NAME);
    let text = fields.required_text("input", max_chars);
    let voice_id = fields.required_text("voice", MAX_NAME);
    let instruct_text = fields.optional_text("instructions", MAX_PROMPT_TEXT);
    let format = read_format(&mut fields, "response_format", Format::Mp3);
    let speed = fields.number("speed", SPEEDS.0, SPEEDS.1, 1.0) as f32;
    let events = read_stream_format(&mut fields);
    fields.finish()?;
    let (voice_id, voice) = find_voice(&tasks, voice_id).await?;
    let instruct_text = instruct_text.filter(|t| !t.trim().is_empty());
    let kind = if instruct_text.is_some() {
        Kind::Instruct
    } else {
        default_kind(&voice.voice)
    };
    let submit = Submit {
        scope: context.caller.scope.clone(),
        client: context.caller.client.clone(),
        utterance: Utterance {
            kind,
            text,
            instruct_text,
            language: None,
            normalization: Default::default(),
            lexicon: BTreeMap::new(),
        },
        voice_id: Some(voice_id),
        voice,
        speed,
        format,
        seed: None,
        callback_url: None,
        idempotency: None,
    };
    stream(&tasks, submit, events).await
}

fn read_stream_format(fields: &mut Reader) -> bool {
    fields.choice("stream_format", false, "audio, sse", |word| match word {
        "audio" => Some(false),
        "sse" => Some(true),
        _ => None,
    })
}

/// Voices with a transcript continue it; with a bare prompt they lend their timbre; without one they are speakers of the model.
fn default_kind(voice: &crate::model::voice::Voice) -> Kind {
    match (voice.speech_tokens.is_empty(), voice.prompt_text.is_empty()) {
        (true, _) => Kind::Sft,
        (false, true) => Kind::CrossLingual,
        (false, false) => Kind::ZeroShot,
    }
}

async fn find_voice(
    tasks: &Tasks,
    voice_id: String,
) -> Result<(String, std::sync::Arc<crate::tasks::Loaded>), ApiError> {
    let voices = tasks.voices();
    let builtin = voices.builtin();
    let known = voices.get(&voice_id).is_some() || builtin.iter().any(|b| b.voice_id == voice_id);
    let voice_id = match builtin.first() {
        Some(default) if !known && THEIR_VOICES.contains(&voice_id.as_str()) => {
            default.voice_id.clone()
        }
        _ => voice_id,
    };
    let voice = voices.resolve(&voice_id).await?;
    Ok((voice_id, voice))
}

async fn stream(tasks: &Tasks, submit: Submit, events: bool) -> Answer {
    let format = submit.format;
    let chars = submit.utterance.text.chars().count();
    let rate_hz = tasks.synthesis().info().sample_rate_hz;
    let encoder = new_encoder(format, rate_hz)?;
    let (stream, first) = start(tasks, submit).await?;
    let (sender, response) = if events {
        sse::stream()
    } else {
        let (sender, body) = pieces();
        (sender, audio_head(format, rate_hz, body))
    };
    let mut sink = Sink {
        encoder,
        sender,
        events,
    };
    tokio::spawn(async move {
        match sink.pump(stream, first).await {
            Ok(true) => sink.end(chars).await,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error, "a stream broke off");
                sink.sender.abort(error).await;
            }
        }
    });
    Ok(response)
}

/// Encoded audio on its way out, bare or as events.
struct Sink {
    encoder: StreamEncoder,
    sender: Pieces,
    events: bool,
}

impl Sink {
    /// Sends samples; false when nobody listens any more.
    async fn push(&mut self, samples: &[f32]) -> Result<bool, String> {
        let bytes = self.encoder.push(samples).map_err(|e| e.to_string())?;
        Ok(self.send(bytes).await)
    }

    async fn send(&self, bytes: Vec<u8>) -> bool {
        if !self.events || bytes.is_empty() {
            return self.sender.send(bytes).await;
        }
        let data = json!({"type": "speech.audio.delta", "audio": base64(&bytes)});
        self.sender.send(sse::event(None, None, &data)).await
    }

    /// Sends all of a stream; false when nobody listens any more.
    async fn pump(&mut self, mut stream: Stream, first: Vec<f32>) -> Result<bool, String> {
        let mut listening = self.push(&first).await?;
        while listening {
            let event = tokio::select! {
                () = self.sender.closed() => return Ok(false),
                event = stream.next() => event,
            };
            match event {
                Some(Event::Audio(samples)) => listening = self.push(&samples).await?,
                Some(Event::Started | Event::Progress { .. }) => {}
                Some(Event::Done(_)) | None => return Ok(true),
                Some(Event::Failed(error)) => return Err(error.to_string()),
            }
        }
        Ok(false)
    }

    async fn end(mut self, chars: usize) {
        let fresh = StreamEncoder::new(Format::Pcm, 1);
        let Ok(encoder) = fresh.map(|fresh| std::mem::replace(&mut self.encoder, fresh)) else {
            return;
        };
        match encoder.finish() {
            Ok(bytes) => {
                if self.send(bytes).await && self.events {
                    // Characters stand for tokens: the two APIs count differently anyway.
                    let usage =
                        json!({"input_tokens": chars, "output_tokens": 0, "total_tokens": chars});
                    let data = json!({"type": "speech.audio.done", "usage": usage});
                    self.sender.send(sse::event(None, None, &data)).await;
                }
            }
            Err(error) => self.sender.abort(error.to_string()).await,
        }
    }
}
