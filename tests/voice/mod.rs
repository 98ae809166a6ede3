//! The bundled voice, as a fresh clone has it: it speaks in every mode, keeps to the length of its text, and joins what it streams.
//! How well it is understood is measured by `weights/train/evaluate.py`; these tests hold what needs no listener.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cosyvoice::engine::{
    Device, Event, Mode, Synthesizer, SynthesizerOptions, Utterance, VoiceChoice,
};
use cosyvoice::model::voice::Voice;

/// Sentences that the voice was not trained on, 485 words.
const SENTENCES: &str = include_str!("../../weights/train/eval_sentences.txt");
const SENTENCE: &str = "The small boat drifted past the lighthouse while the children waved.";
const RATE: f64 = 24_000.0;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/tiny")
}

/// One engine for all tests here.
fn voice() -> &'static Synthesizer {
    static OPEN: OnceLock<(Synthesizer, tempfile::TempDir)> = OnceLock::new();
    let (synthesizer, _) = OPEN.get_or_init(|| {
        let data = tempfile::tempdir().expect("a temporary folder");
        let options = SynthesizerOptions {
            voices_dir: data.path().to_owned(),
            // Where the tests of the kernels have loaded the emulated driver, `auto` would take it for a GPU.
            device: Device::Cpu,
            ..SynthesizerOptions::default()
        };
        let open = Synthesizer::open(&folder(), &options).unwrap_or_else(|e| panic!("{e}"));
        (open, data)
    });
    synthesizer
}

/// Chunks of samples as they come.
fn speak(utterance: &Utterance) -> Vec<Vec<f32>> {
    let prepared = voice()
        .prepare(utterance)
        .unwrap_or_else(|e| panic!("{:?}: {e}", utterance.text));
    let mut job = voice().submit(prepared.request).expect("room");
    let mut chunks = Vec::new();
    while let Some(event) = job.next_blocking() {
        match event {
            Event::Audio(samples) => chunks.push(samples),
            Event::Failed(e) => panic!("{:?}: {e}", utterance.text),
            _ => {}
        }
    }
    chunks
}

fn named(name: &str, text: &str) -> Utterance {
    Utterance {
        text: text.into(),
        voice: VoiceChoice::Named(name.into()),
        ..Utterance::default()
    }
}

fn prompt() -> Arc<Voice> {
    let wav = std::fs::read(folder().join("prompt.wav")).expect("the prompt");
    let text = std::fs::read_to_string(folder().join("prompt.txt")).expect("the prompt's text");
    let voice = voice().encode_voice(&wav, text.trim());
    Arc::new(voice.unwrap_or_else(|e| panic!("{e}")))
}

/// Speech of a believable length that is neither silent nor clipped and begins at once.
#[track_caller]
fn assert_speech(samples: &[f32], text: &str) {
    let letters = text.chars().filter(|c| c.is_alphanumeric()).count() as f64;
    let seconds = samples.len() as f64 / RATE;
    let what = format!("{seconds:.2} s for {letters} letters: {text:.60}");
    assert!(seconds > 0.04 * letters, "too short: {what}");
    assert!(seconds < 1.2 + 0.16 * letters, "too long: {what}");
    assert!(samples.iter().all(|s| s.is_finite()), "{what}");
    let peak = samples.iter().fold(0.0f32, |m, s| m.max(s.abs()));
    assert!(peak > 0.05, "silent: {what}");
    let clipped = samples.iter().filter(|s| s.abs() >= 0.985).count();
    assert!(clipped == 0, "{clipped} samples are clipped: {what}");
    let silence = samples.iter().take_while(|s| s.abs() < 0.03 * peak).count();
    assert!(silence as f64 / RATE < 0.15, "begins late: {what}");
}

#[test]
fn four_voices_speak() {
    let names = voice().voices().names();
    assert!(names.len() >= 4, "{names:?}");
    assert_eq!(
        voice().default_voice().expect("a voice"),
        "pretrained_voice_001"
    );
    let mut spoken: Vec<Vec<f32>> = Vec::new();
    for name in &names {
        let samples = speak(&named(name, SENTENCE)).concat();
        assert_speech(&samples, SENTENCE);
        assert!(!spoken.contains(&samples), "{name} is another's voice");
        spoken.push(samples);
    }
}

#[test]
fn a_recording_is_cloned_in_every_mode() {
    let text = "We will meet again tomorrow morning.";
    let order = voice()
        .frontend()
        .prepare_prompt("Slowly.", &Default::default());
    let instruction = order.unwrap_or_else(|e| panic!("{e}")).tokens;
    for mode in [
        Mode::ZeroShot,
        Mode::CrossLingual,
        Mode::Instruct { instruction },
    ] {
        let utterance = Utterance {
            text: text.into(),
            mode: Some(mode),
            voice: VoiceChoice::Given(prompt()),
            ..Utterance::default()
        };
        assert_speech(&speak(&utterance).concat(), text);
    }
}

#[test]
fn long_and_odd_texts_end() {
    let words = SENTENCES.split_whitespace();
    let long = words.clone().chain(words).take(600).collect::<Vec<_>>();
    for (text, read) in [
        (long.join(" "), long.join(" ")),
        ("A".into(), "A".into()),
        ("Yes.".into(), "Yes.".into()),
        (
            "THE MEETING BEGINS AT NOON ON THE FIRST FLOOR.".into(),
            SENTENCE[..40].into(),
        ),
        (
            "Dr. Smith paid $42.50 on 3 May 2021. 🙂🎉".into(),
            "Doctor Smith paid forty two dollars fifty cents on the third of May twenty twenty one"
                .into(),
        ),
        // Of very short sentences the model may drop one, as its card says.
        (
            "\n\n\nOne thing.\n\n\nAnother thing.\n\n".into(),
            "Another thing.".into(),
        ),
    ] {
        let text: String = text;
        let read: String = read;
        assert_speech(
            &speak(&named("pretrained_voice_001", &text)).concat(),
            &read,
        );
    }
    for empty in ["", " \n ", "🙂"] {
        assert!(
            voice()
                .prepare(&named("pretrained_voice_001", empty))
                .is_err(),
            "{empty:?}"
        );
    }
}

/// How far each sample is from the line through its neighbours: a click is a peak of it.
fn bends(samples: &[f32]) -> Vec<f32> {
    samples
        .windows(3)
        .map(|w| (w[0] - 2.0 * w[1] + w[2]).abs())
        .collect()
}

#[test]
fn streamed_chunks_join_without_a_click() {
    let mut utterance = named("pretrained_voice_001", &format!("{SENTENCE} {SENTENCE}"));
    let whole = speak(&utterance).concat();
    utterance.stream = true;
    let chunks = speak(&utterance);
    assert!(chunks.len() > 2, "{} chunks", chunks.len());
    let streamed = chunks.concat();
    assert_speech(&streamed, &utterance.text);
    assert_eq!(streamed.len(), whole.len());
    let usual = bends(&whole).into_iter().fold(0.0, f32::max);
    let bends = bends(&streamed);
    let mut join = 0;
    for chunk in &chunks[..chunks.len() - 1] {
        join += chunk.len();
        let here = bends[join - 4..join + 2]
            .iter()
            .fold(0.0, |m: f32, b| m.max(*b));
        assert!(
            here <= usual,
            "a step of {here} at sample {join}; {usual} elsewhere"
        );
    }
}
