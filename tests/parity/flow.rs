//! Token-to-mel: every stage of the encoder and the estimator, the mel, the fixed noise, the speed change, the streaming calls;
//! and that an utterance in a batch is, bit for bit, what it is alone.

use std::collections::BTreeMap;

use cosyvoice::backend::{Backend, Memory};
use cosyvoice::cpu::{Cpu, CpuOptions};
use cosyvoice::model::flow::streaming::{FlowCall, HOP_TOKENS, StreamSchedule};
use cosyvoice::model::flow::{
    Flow, FlowInput, FlowPrefix, FlowState, FlowWorkspace, change_speed, fixed_noise,
};
use cosyvoice::model::voice::Voice;
use cosyvoice::tensor::{Trace, TracedTensor};

use crate::support::golden::{self, Golden};
use crate::support::metrics::{max_abs, nmse};
use crate::support::model;

const BOUND: f64 = 1e-7;

pub(crate) struct Fixture<B: Backend> {
    backend: B,
    flow: Flow<B>,
}

fn fixture() -> Fixture<Cpu> {
    Fixture::on(model::cpu(0))
}

/// One utterance with its recorded result.
struct Case {
    name: String,
    voice: Voice,
    tokens: Vec<i32>,
    streaming: bool,
    finalize: bool,
}

impl Case {
    fn input(&self) -> FlowInput<'_> {
        FlowInput {
            voice: &self.voice,
            tokens: &self.tokens,
            streaming: self.streaming,
            finalize: self.finalize,
        }
    }
}

/// Files of the kit whose name begins with `prefix`, sorted.
fn files(prefix: &str) -> Vec<(String, Golden)> {
    let dir = golden::kit().join("golden");
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .expect("golden folder")
        .map(|e| e.expect("entry").file_name().into_string().expect("name"))
        .filter(|n| n.starts_with(prefix) && n.ends_with(".safetensors"))
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|n| (n.clone(), Golden::read(&dir.join(&n))))
        .collect()
}

/// The `flow_*` cases with their recorded tensors.
fn recorded() -> Vec<(Case, Golden)> {
    let cases: Vec<_> = files("flow_")
        .into_iter()
        .filter(|(_, g)| g.has("mel_full"))
        .map(|(name, g)| {
            let case = Case {
                name,
                voice: Voice {
                    embedding: g.f32("embedding"),
                    prompt_text: Vec::new(),
                    speech_tokens: g.i32("prompt_token"),
                    mel: g.f32("prompt_feat"),
                },
                tokens: g.i32("token"),
                streaming: g.i32("streaming")[0] == 1,
                finalize: g.i32("finalize")[0] == 1,
            };
            (case, g)
        })
        .collect();
    assert!(!cases.is_empty(), "the kit has no flow case");
    cases
}

impl<B: Backend> Fixture<B> {
    pub(crate) fn on(backend: B) -> Self {
        let flow = model::flow(&backend);
        Self { backend, flow }
    }

    fn state(&self) -> FlowState<B> {
        FlowState::new(&self.backend).unwrap()
    }

    /// Runs one utterance alone; the mel without the prompt, row-major.
    fn run(&self, case: &Case, trace: &Trace) -> Vec<f32> {
        let (backend, flow) = (&self.backend, &self.flow);
        let mut ws = FlowWorkspace::new(backend).unwrap();
        let mut state = self.state();
        flow.check(&case.input())
            .expect("a recorded input is valid");
        let mut states = [&mut state];
        flow.encode(backend, &[case.input()], &mut states, &mut ws, trace)
            .unwrap();
        while !states[0].is_done() {
            flow.euler_step(backend, &mut states, &mut ws, trace)
                .unwrap();
        }
        self.mel(&state, 0)
    }

    fn mel(&self, state: &FlowState<B>, token_offset: usize) -> Vec<f32> {
        let mut mel = self.backend.alloc_f32(0, 0).unwrap();
        self.flow
            .mel(&self.backend, state, token_offset, &mut mel)
            .unwrap();
        let mut values = Vec::new();
        self.backend.download(&mel, &mut values).unwrap();
        values
    }
}

/// Where a golden tensor is found in our trace: candidate names (the recorded module may be the first or the last transformer
/// of a stage), and whether time is its last axis.
fn place(name: &str, flow: &BTreeMap<String, TracedTensor>) -> Option<(Vec<String>, bool)> {
    let (stage, step) = match name.rsplit_once("_step") {
        Some((stage, step)) => (stage, step),
        None => (name, "0"),
    };
    let encoder = |s: &str| Some((vec![format!("flow.encoder.{s}")], false));
    let estimator = |s: &str, time_last: bool| {
        let prefix = format!("flow.decoder.step{step}.");
        Some((vec![format!("{prefix}{s}")], time_last))
    };
    let transformers = |s: &str| {
        let prefix = format!("flow.decoder.step{step}.{s}.1.");
        let names = flow.keys().filter(|k| k.starts_with(&prefix)).cloned();
        Some((names.collect(), false))
    };
    match stage {
        "enc_embed" => encoder("embed"),
        "enc_prelookahead" => encoder("pre_lookahead_layer"),
        "enc_up" => Some((vec!["flow.encoder.up_layer".into()], true)),
        "enc_up_embed" => encoder("up_embed"),
        "enc_out" => encoder("after_norm"),
        "mu" => Some((vec!["flow.encoder_proj".into()], false)),
        "spk_proj" => Some((vec!["flow.spk_embed_affine_layer".into()], false)),
        "est_temb" => estimator("time_mlp", false),
        "est_x" => estimator("x", true),
        "est_out" => estimator("final_proj", true),
        "est_down_resnet" => estimator("down_blocks.0.0", true),
        "est_down_attn" => transformers("down_blocks.0"),
        "est_down_conv" => estimator("down_blocks.0.2", true),
        "est_up_conv" => estimator("up_blocks.0.2", true),
        "est_final_block" => estimator("final_block", true),
        "est_t" => estimator("t", false),
        _ => {
            if let Some(i) = stage.strip_prefix("enc_up_block") {
                return encoder(&format!("up_encoders.{i}"));
            }
            if let Some(i) = stage.strip_prefix("enc_block") {
                return encoder(&format!("encoders.{i}"));
            }
            let middle = stage.strip_prefix("est_mid")?;
            let i = middle.strip_suffix("_attn")?;
            transformers(&format!("mid_blocks.{i}"))
        }
    }
}

/// The recorded tensor in our layout.
fn expected(golden: &Golden, name: &str, time_last: bool) -> Vec<f32> {
    let mut values = if time_last {
        golden.time_last(name)
    } else {
        golden.f32(name)
    };
    if name == "enc_embed" && golden.has("enc_embed_context") {
        values.extend(golden.f32("enc_embed_context"));
    }
    values
}

/// Compares every recorded intermediate with the trace; how many there were.
fn compare_stages(
    case: &Case,
    golden: &Golden,
    trace: &BTreeMap<String, TracedTensor>,
    bound: f64,
) -> usize {
    let mut names: Vec<&str> = golden.names().collect();
    names.sort_unstable();
    let mut compared = 0;
    for name in names {
        let Some((candidates, time_last)) = place(name, trace) else {
            continue;
        };
        let expected = expected(golden, name, time_last);
        let error = candidates
            .iter()
            .map(|c| {
                let ours = trace.get(c).unwrap_or_else(|| panic!("no trace of {c}"));
                // What both guidance halves are given alike is recorded once here.
                let whole = [expected.len(), expected.len() / 2].contains(&ours.data.len());
                assert!(whole, "{name}: {} values", ours.data.len());
                nmse(&ours.data, &expected[..ours.data.len()])
            })
            .fold(f64::INFINITY, f64::min);
        assert!(error <= bound, "{}: {name}: NMSE {error:e}", case.name);
        compared += 1;
    }
    compared
}

#[test]
fn every_stage_and_the_mel() {
    check_recorded(&fixture(), BOUND, usize::MAX);
}

/// Every stage and the mel of the first `count` recorded cases.
pub(crate) fn check_recorded<B: Backend>(fixture: &Fixture<B>, bound: f64, count: usize) {
    for (case, golden) in recorded().into_iter().take(count) {
        let trace = Trace::on();
        let mel = fixture.run(&case, &trace);
        let trace = trace.into_tensors();
        let compared = compare_stages(&case, &golden, &trace, bound);
        assert!(compared >= 6, "{}: {compared} stages compared", case.name);
        let t: Vec<f32> = (0..fixture.flow.steps())
            .flat_map(|k| trace[&format!("flow.decoder.step{k}.t")].data.clone())
            .collect();
        let difference = max_abs(&t, &golden.f32("est_t_all"));
        assert!(difference <= 1e-7, "{}: t off by {difference:e}", case.name);
        let error = nmse(&mel, &golden.time_last("mel"));
        println!("{}: {compared} stages, mel NMSE {error:.1e}", case.name);
        assert!(error <= bound, "{}: mel NMSE {error:e}", case.name);
    }
}

#[test]
fn noise() {
    let Some(golden) = golden::open("flow_noise.safetensors") else {
        return;
    };
    let (mels, frames) = (golden.shape("rand_noise_head")[1], 15_000);
    let noise = fixed_noise(mels, frames);
    for (name, first) in [("rand_noise_head", 0), ("rand_noise_tail", frames - 16)] {
        let expected = golden.time_last(name);
        let ours = &noise[first * mels..][..expected.len()];
        let difference = max_abs(ours, &expected);
        println!("{name}: {difference:e}");
        assert!(difference <= 1e-6, "{name}: {difference:e}");
    }
    let sum: f64 = noise.iter().map(|&x| f64::from(x)).sum();
    let squares: f64 = noise.iter().map(|&x| f64::from(x).powi(2)).sum();
    let stats = golden.f64("rand_noise_stats");
    println!("sum {sum} squares {squares} {stats:?}");
    assert!((sum - stats[0]).abs() <= 0.1, "sum {sum}, {stats:?}");
    assert!(
        (squares / stats[1] - 1.0).abs() <= 1e-6,
        "{squares}, {stats:?}"
    );
}

#[test]
fn speed() {
    let Some(golden) = golden::open("mel_speed.safetensors") else {
        return;
    };
    let backend = Cpu::new(CpuOptions::default());
    let (mels, frames) = (golden.shape("mel")[1], golden.shape("mel")[2]);
    let mel = backend
        .tensor(frames, mels, &golden.time_last("mel"))
        .unwrap();
    let speeds: Vec<&str> = golden.names().filter(|n| n.starts_with("speed_")).collect();
    assert!(!speeds.is_empty());
    for name in speeds {
        let speed: f64 = name["speed_".len()..].parse().unwrap();
        let mut out = backend.alloc(0, 0).unwrap();
        change_speed(&backend, &mel, speed, &mut out).unwrap();
        assert_eq!(out.rows(), golden.shape(name)[2], "{name}");
        let difference = max_abs(out.data(), &golden.time_last(name));
        assert!(difference <= 1e-5, "{name}: {difference:e}");
    }
}

/// Streamed end-to-end files: the calls that the rules ask for, for any arrival of the tokens.
#[test]
fn streaming_calls() {
    let fixture = fixture();
    let mut streamed = 0;
    for (name, golden) in files("e2e_").into_iter().chain(files("stream_")) {
        let calls: Vec<i32> = golden.i32("flow_calls");
        if calls.len() == 4 {
            continue;
        }
        streamed += 1;
        let tokens = golden.shape("tokens")[1];
        let prompt = prompt_tokens(&golden).len();
        for per_arrival in [1, 7, tokens] {
            let lookahead = fixture.flow.lookahead_tokens();
            let mut schedule = StreamSchedule::new(HOP_TOKENS, lookahead, prompt);
            let mut ours = Vec::new();
            let mut available = 0;
            while !schedule.is_finished() {
                available = tokens.min(available + per_arrival);
                while let Some(call) = schedule.next(available, available == tokens) {
                    ours.extend(row(call));
                }
            }
            assert_eq!(ours, calls, "{name}");
        }
    }
    assert!(streamed > 0, "the kit has no streamed file");
}

fn row(call: FlowCall) -> [i32; 4] {
    [
        call.tokens as i32,
        i32::from(call.streaming),
        i32::from(call.finalize),
        call.token_offset as i32,
    ]
}

fn prompt_tokens(golden: &Golden) -> Vec<i32> {
    ["in_flow_prompt_speech_token", "prompt_token"]
        .into_iter()
        .find(|n| golden.has(n))
        .map(|n| golden.i32(n))
        .unwrap_or_default()
}

/// The voice of an end-to-end file: its prompt mel is the trimmed one of the prompt recording.
fn voice(golden: &Golden) -> Option<Voice> {
    let embedding = ["in_flow_embedding", "embedding"];
    let embedding = embedding.into_iter().find(|n| golden.has(n))?;
    let speech_tokens = prompt_tokens(golden);
    let mel = if speech_tokens.is_empty() {
        Vec::new()
    } else if golden.has("prompt_feat") {
        golden.f32("prompt_feat")
    } else {
        golden::open("audio_prompt.safetensors")?.f32("zs_speech_feat")
    };
    Some(Voice {
        embedding: golden.f32(embedding),
        prompt_text: Vec::new(),
        speech_tokens,
        mel,
    })
}

/// Every flow call of the end-to-end files from their recorded tokens.
#[test]
fn calls_of_whole_utterances() {
    let fixture = fixture();
    let mut compared = 0;
    for (name, golden) in files("e2e_").into_iter().chain(files("stream_")) {
        let Some(voice) = voice(&golden) else {
            continue;
        };
        let tokens = golden.i32("tokens");
        for (i, call) in golden.i32("flow_calls").chunks_exact(4).enumerate() {
            let mel = format!("flow_mel_{i}");
            if !golden.has(&mel) {
                continue;
            }
            let case = Case {
                name: format!("{name} call {i}"),
                voice: voice.clone(),
                tokens: tokens[..call[0] as usize].to_vec(),
                streaming: call[1] == 1,
                finalize: call[2] == 1,
            };
            let error = nmse(&fixture.run(&case, &Trace::off()), &golden.time_last(&mel));
            println!("{}: NMSE {error:.1e}", case.name);
            assert!(error <= BOUND, "{}: NMSE {error:e}", case.name);
            compared += 1;
        }
    }
    if compared == 0 {
        eprintln!("SKIPPED: no whole utterance has recorded flow mels in this kit");
    }
}

#[test]
fn batched_is_alone() {
    check_batch(&fixture(), &varied());
}

/// All cases together, each joining one Euler step after the one before: the same bits as alone.
fn check_batch<B: Backend>(fixture: &Fixture<B>, cases: &[Case]) {
    let (backend, flow) = (&fixture.backend, &fixture.flow);
    let alone: Vec<Vec<f32>> = cases
        .iter()
        .map(|c| fixture.run(c, &Trace::off()))
        .collect();
    let mut ws = FlowWorkspace::new(backend).unwrap();
    let mut states: Vec<FlowState<B>> = cases.iter().map(|_| fixture.state()).collect();
    let inputs: Vec<FlowInput<'_>> = cases.iter().map(Case::input).collect();
    let off = Trace::off();
    let mut all: Vec<&mut FlowState<B>> = states.iter_mut().collect();
    flow.encode(backend, &inputs, &mut all, &mut ws, &off)
        .unwrap();
    for round in 0..cases.len() + flow.steps() {
        let mut running: Vec<&mut FlowState<B>> = states
            .iter_mut()
            .take(round + 1)
            .filter(|s| !s.is_done())
            .collect();
        flow.euler_step(backend, &mut running, &mut ws, &off)
            .unwrap();
    }
    for ((case, state), alone) in cases.iter().zip(&states).zip(&alone) {
        assert!(state.is_done(), "{}", case.name);
        assert_eq!(&fixture.mel(state, 0), alone, "{}", case.name);
        let tail = &alone[2 * flow.frames_per_token() * flow.mels()..];
        assert_eq!(fixture.mel(state, 2), tail, "{}", case.name);
    }
}

/// The short ones of the cases together: the same bits as alone.
pub(crate) fn check_short_batch<B: Backend>(fixture: &Fixture<B>) {
    let mut cases = varied();
    cases.retain(|c| c.name.contains("cut to"));
    check_batch(fixture, &cases);
}

/// The calls of a streamed utterance of 130 tokens in `case`'s voice.
fn streamed(fixture: &Fixture<Cpu>, case: &Case) -> Vec<Case> {
    let prompt = case.voice.speech_tokens.len();
    let tokens: Vec<i32> = case.tokens.iter().copied().cycle().take(130).collect();
    let mut schedule = StreamSchedule::new(HOP_TOKENS, fixture.flow.lookahead_tokens(), prompt);
    let calls = std::iter::from_fn(|| schedule.next(tokens.len(), true));
    let case = |call: FlowCall| Case {
        name: format!("{} {call:?}", case.name),
        voice: case.voice.clone(),
        tokens: tokens[..call.tokens].to_vec(),
        streaming: call.streaming,
        finalize: call.finalize,
    };
    calls.map(case).collect()
}

/// What a streaming call has made of whole chunks, later calls make again, bit for bit; so a call that starts from what the one
/// before left computes fewer frames and the same mel, beside others that do not.
#[test]
fn streamed_calls_build_on_each_other() {
    let fixture = fixture();
    let (backend, flow, off) = (&fixture.backend, &fixture.flow, Trace::off());
    let (case, _) = recorded().pop().expect("a case");
    let calls = streamed(&fixture, &case);
    assert!(calls.len() >= 3, "{} calls", calls.len());
    let mut ws = FlowWorkspace::new(backend).unwrap();
    let (mut state, mut other) = (fixture.state(), fixture.state());
    let alone = fixture.run(&case, &off);
    let mut previous: Vec<f32> = Vec::new();
    let mut prefix = FlowPrefix::default();
    for call in calls {
        let whole = fixture.run(&call, &off);
        if call.streaming {
            assert_eq!(whole[..previous.len()], previous, "{}", call.name);
        }
        let covered = prefix.frames();
        state.set_prefix(prefix);
        let inputs = [case.input(), call.input()];
        let mut states = [&mut other, &mut state];
        flow.encode(backend, &inputs, &mut states, &mut ws, &off)
            .unwrap();
        while !states[0].is_done() {
            flow.euler_step(backend, &mut states, &mut ws, &off)
                .unwrap();
        }
        assert_eq!(fixture.mel(&other, 0), alone, "beside {}", call.name);
        let frames = flow.check(&call.input()).unwrap();
        if call.streaming {
            assert_eq!(state.frames(), frames - covered, "{}", call.name);
        } else {
            assert_eq!(state.frames(), frames, "{}", call.name);
        }
        let spoken = covered.saturating_sub(state.prompt_frames());
        let offset = spoken / flow.frames_per_token();
        let expected = &whole[spoken * flow.mels()..];
        assert_eq!(fixture.mel(&state, offset), expected, "{}", call.name);
        prefix = state.take_prefix().unwrap_or_default();
        assert_eq!(prefix.frames() > covered, call.streaming, "{}", call.name);
        previous = whole;
    }
}

/// The recorded cases, and shorter cuts of them in the other modes.
fn varied() -> Vec<Case> {
    let mut cases = Vec::new();
    for (case, _) in recorded() {
        for (cut, streaming, finalize) in [(7, true, false), (12, false, true)] {
            cases.push(Case {
                name: format!("{} cut to {cut}", case.name),
                voice: case.voice.clone(),
                tokens: case.tokens[..cut].to_vec(),
                streaming,
                finalize,
            });
        }
        cases.push(case);
    }
    cases
}
