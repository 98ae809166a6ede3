//! Speech without a model: samples are a function of text, seed and voice, made at a set pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cosyvoice::audio;
use cosyvoice::engine::{
    EngineError, EngineStats, Event, Job, Mode, Request, Segment, Stage, Summary,
};
use cosyvoice::model::voice::Voice;
use cosyvoice::tasks::{
    BuiltinVoice, Kind, ModelInfo, Prepared, Prompt, Synthesis, SynthesisError, Utterance,
};

pub(crate) const RATE_HZ: u32 = 24_000;
const SAMPLES_PER_CHAR: usize = 480;
const STEPS: usize = 20;

pub(crate) struct Fake {
    info: ModelInfo,
    /// Time for each character.
    pace: Duration,
    pub(crate) running: Arc<AtomicUsize>,
    pub(crate) most_running: Arc<AtomicUsize>,
    pub(crate) started: Arc<AtomicUsize>,
}

impl Fake {
    pub(crate) fn new(pace: Duration) -> Self {
        Self {
            info: ModelInfo {
                name: String::from("fake"),
                device: String::from("none"),
                sample_rate_hz: RATE_HZ,
                fingerprint: String::from("fake-1"),
                workers: 4,
            },
            pace,
            running: Arc::default(),
            most_running: Arc::default(),
            started: Arc::default(),
        }
    }
}

/// The samples of a text, as 16-bit steps so that every lossless format keeps them.
pub(crate) fn samples(text: &str, seed: u64, voice: &Voice) -> Vec<f32> {
    let tint: f32 = voice.embedding.iter().sum();
    let mut state = text.bytes().fold(seed ^ u64::from(tint.to_bits()), |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    (0..text.chars().count() * SAMPLES_PER_CHAR)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            f32::from((state >> 50) as i16 - 8192) / 32768.0
        })
        .collect()
}

fn voice(tint: f32) -> Arc<Voice> {
    Arc::new(Voice {
        embedding: vec![tint; 4],
        prompt_text: vec![1, 2],
        speech_tokens: vec![1, 2, 3],
        mel: vec![0.0; 12],
    })
}

pub(crate) fn builtin_voice() -> Arc<Voice> {
    voice(1.0)
}

impl Synthesis for Fake {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn builtin_voices(&self) -> Vec<BuiltinVoice> {
        ["pretrained_voice_001", "pretrained_voice_002"]
            .iter()
            .zip([1.0, 2.0])
            .map(|(id, tint)| BuiltinVoice {
                voice_id: (*id).to_owned(),
                name: (*id).to_owned(),
                description: String::from("A voice of the stand-in"),
                language: String::from("en"),
                voice: voice(tint),
            })
            .collect()
    }

    fn encode_prompt(
        &self,
        bytes: &[u8],
        text: Option<&str>,
        limit: Duration,
    ) -> Result<Prompt, SynthesisError> {
        let recording = audio::prompt::read(bytes, 50 << 20)?;
        if recording.seconds() > limit.as_secs_f64() {
            return Err(audio::AudioError::TooLong {
                limit_seconds: limit.as_secs_f64(),
            }
            .into());
        }
        let mean =
            recording.samples.iter().map(|x| x.abs()).sum::<f32>() / recording.samples.len() as f32;
        Ok(Prompt {
            voice: Voice {
                embedding: vec![mean; 4],
                prompt_text: text.unwrap_or_default().chars().map(|c| c as i32).collect(),
                speech_tokens: vec![5; 10],
                mel: vec![mean; 40],
            },
            duration: Duration::from_secs_f64(recording.seconds()),
        })
    }

    fn prepare(&self, utterance: &Utterance, _: &Arc<Voice>) -> Result<Prepared, SynthesisError> {
        if !utterance.text.chars().any(char::is_alphanumeric) {
            return Err(SynthesisError::Field {
                field: "text",
                word: "nothing_to_say",
                message: String::from("The text has nothing to say"),
            });
        }
        let tokens = |text: &str| text.chars().map(|c| c as i32).collect::<Vec<i32>>();
        let mode = match utterance.kind {
            Kind::Sft => Mode::Sft,
            Kind::ZeroShot => Mode::ZeroShot,
            Kind::CrossLingual => Mode::CrossLingual,
            Kind::Instruct => Mode::Instruct {
                instruction: tokens(utterance.instruct_text.as_deref().unwrap_or_default()),
            },
        };
        Ok(Prepared {
            segments: vec![Segment::Speech(tokens(&utterance.text))],
            mode,
            normalized_text: utterance.text.trim().to_owned(),
        })
    }

    fn submit(&self, request: Request) -> Result<Job, EngineError> {
        let (events, cancelled, job) = Job::channel();
        self.started.fetch_add(1, Ordering::SeqCst);
        let count = Running::new(&self.running, &self.most_running);
        let pace = self.pace;
        tokio::spawn(async move {
            let _count = count;
            speak(request, &events, &cancelled, pace).await
        });
        Ok(job)
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.running.load(Ordering::SeqCst),
            ..EngineStats::default()
        }
    }
}

struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(running: &Arc<AtomicUsize>, most: &AtomicUsize) -> Self {
        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Self(Arc::clone(running))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn speak(
    request: Request,
    events: &tokio::sync::mpsc::UnboundedSender<Event>,
    cancelled: &AtomicBool,
    pace: Duration,
) -> Option<()> {
    let text: String = request
        .segments
        .iter()
        .flat_map(|s| match s {
            Segment::Speech(tokens) => tokens.clone(),
            _ => Vec::new(),
        })
        .filter_map(|t| char::from_u32(t as u32))
        .collect();
    assert!(!text.contains("PANIC"), "asked to panic");
    let samples = samples(&text, request.seed, &request.voice);
    let step = pace * text.chars().count() as u32 / STEPS as u32;
    events.send(Event::Started).ok()?;
    let mut sent = 0;
    for i in 1..=STEPS {
        if cancelled.load(Ordering::Relaxed) {
            events.send(Event::Failed(EngineError::Cancelled)).ok()?;
            return None;
        }
        tokio::time::sleep(step).await;
        if text.contains("FAIL") && i == STEPS / 2 {
            events.send(Event::Failed(EngineError::NoSpeech)).ok()?;
            return None;
        }
        let fraction = i as f32 / STEPS as f32;
        let stage = [Stage::Llm, Stage::Flow, Stage::Vocoder][(i - 1) * 3 / STEPS];
        events.send(Event::Progress { stage, fraction }).ok()?;
        if request.stream {
            let end = samples.len() * i / STEPS;
            events
                .send(Event::Audio(samples[sent..end].to_vec()))
                .ok()?;
            sent = end;
        }
    }
    if sent < samples.len() {
        events.send(Event::Audio(samples[sent..].to_vec())).ok()?;
    }
    events
        .send(Event::Done(Summary {
            samples: samples.len(),
            sample_rate_hz: RATE_HZ,
            text_tokens: text.chars().count(),
            speech_tokens: text.chars().count(),
            synthesis_time: step * STEPS as u32,
            first_audio: step,
        }))
        .ok()
}
