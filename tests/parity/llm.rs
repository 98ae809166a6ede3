//! The language model: log-probabilities, layer outputs, token traces, and that neither chunks nor batch mates change a byte.

use cosyvoice::backend::{Backend, Memory, Sample, SampleParams, SampleRow, Sampled, Uniforms};
use cosyvoice::cpu::Cpu;
use cosyvoice::model::llm::{
    Conditioning, Generation, InputToken, Limits, Llm, LlmWorkspace, StepSequence, Stop,
};
use cosyvoice::tensor::{Tensor, Trace};

use crate::support::golden::{self, Golden};
use crate::support::metrics::max_abs;
use crate::support::model;

const PAGE_SIZE: usize = 16;
const PAGES: usize = 256;

/// Bounds on the distance from the recorded tensors.
#[derive(Clone, Copy)]
pub(crate) struct Tolerances {
    /// Of embeddings.
    pub(crate) input: f32,
    /// Of the layers' outputs, which reach a few tens.
    pub(crate) hidden: f32,
    /// Of log-probabilities.
    pub(crate) logp: f32,
}

pub(crate) const EXACT: Tolerances = Tolerances {
    input: 0.0,
    hidden: 1e-3,
    logp: 1e-3,
};

/// The kit's language model with a cache.
pub(crate) struct Rig<B: Backend> {
    backend: B,
    llm: Llm<B>,
    kv: B::KvCache,
    ws: LlmWorkspace<B>,
}

impl Rig<Cpu> {
    fn new(threads: usize) -> Self {
        Self::on(model::cpu(threads))
    }
}

impl<B: Backend> Rig<B> {
    pub(crate) fn on(backend: B) -> Self {
        let llm = model::llm(&backend);
        let kv = backend.alloc_kv(llm.kv_shape(PAGES, PAGE_SIZE)).unwrap();
        let ws = LlmWorkspace::new(&backend).unwrap();
        Self {
            backend,
            llm,
            kv,
            ws,
        }
    }

    fn step(&mut self, sequences: &[StepSequence<'_>], trace: &Trace) {
        let (kv, ws) = (&mut self.kv, &mut self.ws);
        self.llm
            .step(&self.backend, PAGE_SIZE, sequences, None, kv, ws, trace)
            .unwrap();
    }

    /// Runs everything that is pending of one sequence, on the pages from 0 on, `chunk` rows at a time.
    fn run(&mut self, g: &mut Generation, chunk: usize, trace: &Trace) {
        let pages: Vec<u32> = (0..PAGES as u32).collect();
        while !g.pending().is_empty() {
            let n = g.pending().len().min(chunk);
            let step = StepSequence {
                inputs: &g.pending()[..n],
                context: g.context(),
                pages: &pages,
                logits: n == g.pending().len() && g.draws_after_pending(),
            };
            self.step(&[step], trace);
            g.advance(n);
        }
    }

    fn log_probabilities(&self) -> Vec<f32> {
        let logits = self.ws.logits();
        let mut out = self.backend.alloc(logits.rows(), logits.cols()).unwrap();
        self.backend.log_softmax(logits, &mut out).unwrap();
        values(&self.backend, &out)
    }

    fn sample(&self, row: SampleRow<'_>) -> Sampled {
        let mut ids = self.backend.ids(&[0]).unwrap();
        self.backend
            .sample(self.ws.logits(), &[row], &mut ids)
            .unwrap()[0]
    }
}

fn values<B: Backend>(backend: &B, t: &Tensor<B>) -> Vec<f32> {
    let mut out = Vec::new();
    backend.download(t, &mut out).unwrap();
    out
}

/// Prompt text, text and prompt speech of a golden file.
fn inputs(golden: &Golden) -> [Vec<i32>; 3] {
    ["prompt_text", "text", "prompt_speech_token"].map(|name| golden.i32(name))
}

fn generation<B: Backend>(llm: &Llm<B>, golden: &Golden) -> Generation {
    let [prompt_text, text, prompt_speech] = inputs(golden);
    let conditioning = Conditioning::zero_shot(&prompt_text, &prompt_speech);
    Generation::new(llm.vocabulary(), conditioning, &text).unwrap()
}

fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    let error = max_abs(actual, expected);
    eprintln!("{what}: max abs error {error:.2e}");
    assert!(error <= tolerance, "{what}: {error:e} > {tolerance:e}");
}

/// Prefill and up to `steps` forced tokens against the recorded tensors.
pub(crate) fn check_forced<B: Backend>(
    rig: &mut Rig<B>,
    name: &str,
    tolerances: Tolerances,
    steps: usize,
) {
    let Some(golden) = golden::open(name) else {
        return;
    };
    let mut g = generation(&rig.llm, &golden);
    let text = golden.i32("text").len();
    let limits = [golden.i32("min_len")[0], golden.i32("max_len")[0]].map(|n| n as usize);
    assert_eq!(
        Limits::of_text(text),
        Limits {
            min: limits[0],
            max: limits[1]
        }
    );

    let (layers, rows) = (golden.shape("layer_out")[0], golden.shape("layer_out")[1]);
    let hidden = golden.shape("layer_out")[2];
    assert_eq!(g.pending().len(), rows);
    let trace = Trace::on();
    rig.run(&mut g, usize::MAX, &trace);
    let traced = trace.into_tensors();
    let expected = golden.f32("layer_out");
    let lm_input = &traced["llm.lm_input"].data;
    assert_close(
        "lm_input",
        lm_input,
        &golden.f32("lm_input"),
        tolerances.input,
    );
    for (layer, expected) in expected.chunks_exact(rows * hidden).enumerate() {
        let actual = &traced[&format!("llm.layers.{layer}")];
        // The last layer is computed for the last row alone.
        let last = layer + 1 == layers;
        let expected = if last {
            &expected[(rows - 1) * hidden..]
        } else {
            expected
        };
        assert_close(
            &format!("{name} layer {layer}"),
            &actual.data,
            expected,
            tolerances.hidden,
        );
    }
    let norm = &golden.f32("norm_out")[(rows - 1) * hidden..];
    assert_close("norm", &traced["llm.norm"].data, norm, tolerances.hidden);

    let logp = golden.f32("logp");
    let vocabulary = golden.shape("logp")[1];
    let mut logp = logp.chunks_exact(vocabulary);
    let forced = golden.i32("forced_tokens");
    let mut next = || logp.next().expect("a row per step");
    assert_close(
        "logp of prefill",
        &rig.log_probabilities(),
        next(),
        tolerances.logp,
    );
    let (layer_out, norm_out) = (
        golden.f32("decode_layer_out"),
        golden.f32("decode_norm_out"),
    );
    for (i, &token) in forced.iter().enumerate().take(steps) {
        g.accept(token);
        let trace = Trace::on();
        rig.run(&mut g, usize::MAX, &trace);
        let traced = trace.into_tensors();
        for layer in 0..layers {
            let at = (layer * forced.len() + i) * hidden;
            let actual = &traced[&format!("llm.layers.{layer}")].data;
            assert!(max_abs(actual, &layer_out[at..at + hidden]) <= tolerances.hidden);
        }
        let norm = &norm_out[i * hidden..(i + 1) * hidden];
        assert!(max_abs(&traced["llm.norm"].data, norm) <= tolerances.hidden);
        let what = format!("{name} logp of step {i}");
        assert_close(&what, &rig.log_probabilities(), next(), tolerances.logp);
    }
}

#[test]
fn sft_log_probabilities() {
    check_forced(&mut Rig::new(1), "llm_sft.safetensors", EXACT, usize::MAX);
}

#[test]
fn zero_shot_log_probabilities() {
    check_forced(
        &mut Rig::new(1),
        "llm_zero_shot.safetensors",
        EXACT,
        usize::MAX,
    );
}

#[test]
fn instruct_log_probabilities() {
    check_forced(
        &mut Rig::new(1),
        "llm_instruct2.safetensors",
        EXACT,
        usize::MAX,
    );
}

/// Recorded random numbers, consumed in order.
struct Draws {
    uniforms: Vec<f64>,
    counts: Vec<i32>,
    at: usize,
}

impl Draws {
    fn new(golden: &Golden) -> Self {
        Self {
            uniforms: golden.f64("uniforms"),
            counts: golden.i32("draw_n"),
            at: 0,
        }
    }

    fn next(&self) -> Uniforms {
        let at = |i: usize| self.uniforms.get(i).copied().unwrap_or(0.0);
        Uniforms::Given([at(self.at), at(self.at + 1)])
    }

    fn used(&mut self, sampled: Sampled, vocabulary: usize) {
        assert_eq!(
            self.counts[self.at], sampled.candidates as i32,
            "draw {}",
            self.at
        );
        if sampled.draws == 2 {
            assert_eq!(self.counts[self.at + 1], vocabulary as i32);
        }
        self.at += sampled.draws as usize;
    }
}

/// Draws the next token with the recorded numbers and compares it with the recorded choice.
fn draw_and_check<B: Backend>(
    rig: &Rig<B>,
    g: &mut Generation,
    golden: &Golden,
    draws: &mut Draws,
    step: usize,
) {
    let config = rig.llm.config();
    let row = g.sample_row_with(config.sampling, draws.next());
    let ignore_eos = golden.i32("step_ignore_eos")[step] == 1;
    assert_eq!(row.forbidden.is_some(), ignore_eos, "step {step}");
    let sampled = rig.sample(row);
    draws.used(sampled, config.speech_vocab_size);
    assert_eq!(sampled.token, golden.i32("step_top")[step], "step {step}");
    g.accept(sampled.token);
}

/// All draws of a recorded generation.
pub(crate) fn check_trace<B: Backend>(rig: &mut Rig<B>, name: &str) {
    let Some(golden) = golden::open(name) else {
        return;
    };
    let mut g = generation(&rig.llm, &golden);
    let mut draws = Draws::new(&golden);
    let tokens = golden.i32("tokens");
    let steps = golden.i32("step_top").len();
    for (step, logp) in golden.f32("step_logp").into_iter().enumerate() {
        rig.run(&mut g, usize::MAX, &Trace::off());
        let drawn = rig.log_probabilities()[golden.i32("step_top")[step] as usize];
        // Recorded after the end token was masked, but not renormalised.
        assert!(
            (drawn - logp).abs() <= EXACT.logp,
            "step {step}: {drawn} {logp}"
        );
        draw_and_check(rig, &mut g, &golden, &mut draws, step);
    }
    assert_eq!(draws.at, draws.uniforms.len());
    assert_eq!(g.speech_tokens().collect::<Vec<_>>(), tokens);
    let ended = steps > tokens.len();
    assert_eq!(
        g.stop(),
        ended.then(|| Stop::End(rig.llm.vocabulary().end()))
    );
}

#[test]
fn token_trace() {
    check_trace(&mut Rig::new(1), "llm_trace60.safetensors");
}

#[test]
fn token_trace_to_the_end() {
    check_trace(&mut Rig::new(1), "llm_trace_eos.safetensors");
}

fn check_bistream(name: &str) {
    let Some(golden) = golden::open(name) else {
        return;
    };
    let mut rig = Rig::new(1);
    let [prompt_text, text, prompt_speech] = inputs(&golden);
    let conditioning = Conditioning::zero_shot(&prompt_text, &prompt_speech);
    let (vocabulary, ratio) = (rig.llm.vocabulary(), rig.llm.config().mix_ratio);
    let mut g = Generation::streaming(vocabulary, conditioning, ratio).unwrap();
    let mut draws = Draws::new(&golden);
    let mut step = 0;
    let mut speak = |g: &mut Generation| {
        while g.stop().is_none() && !g.pending().is_empty() {
            rig.run(g, 7, &Trace::off());
            if g.wants_token() {
                draw_and_check(&rig, g, &golden, &mut draws, step);
                step += 1;
            }
        }
    };
    let mut rest = text.as_slice();
    for n in golden.i32("text_chunk_len") {
        let (piece, tail) = rest.split_at(n as usize);
        rest = tail;
        g.push_text(piece).unwrap();
        speak(&mut g);
    }
    g.close_text();
    speak(&mut g);
    assert_eq!(step, golden.i32("step_top").len());
    assert_eq!(draws.at, draws.uniforms.len());
    assert_eq!(g.speech_tokens().collect::<Vec<_>>(), golden.i32("tokens"));
    assert_eq!(g.stop(), Some(Stop::End(vocabulary.end())));
}

#[test]
fn text_in_streaming() {
    check_bistream("llm_bistream_noprompt.safetensors");
}

#[test]
fn text_in_streaming_with_a_prompt() {
    check_bistream("llm_bistream_prompt.safetensors");
}

#[test]
fn sampling_choices() {
    let Some(golden) = golden::open("sampling.safetensors") else {
        return;
    };
    let cpu = model::cpu(1);
    let checkpoint = model::checkpoint();
    let config = &checkpoint.config().llm;
    let (params, end) = (config.sampling, config.speech_token_size as i32);
    let vocabulary = golden.shape("logp")[1];
    let logp = golden.f32("logp");
    let draw = |row: i32, sample: SampleRow<'_>| {
        let at = row as usize * vocabulary;
        let logits = cpu
            .tensor(1, vocabulary, &logp[at..at + vocabulary])
            .unwrap();
        let mut ids = cpu.ids(&[0]).unwrap();
        let sampled = cpu.sample(&logits, &[sample], &mut ids).unwrap()[0];
        let mut on_device = Vec::new();
        cpu.download_ids(&ids, &mut on_device).unwrap();
        assert_eq!(on_device, [sampled.token]);
        sampled
    };
    let (cases, decoded, u) = (
        golden.i32("case"),
        golden.i32("case_decoded"),
        golden.f64("case_u"),
    );
    let width = golden.shape("case_decoded")[1];
    for (i, case) in cases.chunks_exact(6).enumerate() {
        let history = &decoded[i * width..][..case[2] as usize];
        let sampled = draw(
            case[0],
            SampleRow {
                params,
                uniforms: Uniforms::Given([u[2 * i], u[2 * i + 1]]),
                history,
                ahead: false,
                forbidden: (case[1] == 1).then_some(end),
            },
        );
        let expected = (case[5], case[3] as u32, case[4] as u32);
        assert_eq!(
            (sampled.token, sampled.draws, sampled.candidates),
            expected,
            "case {i}"
        );
    }
    let nucleus = golden.f64("nucleus_param");
    for (i, case) in golden.i32("nucleus_case").chunks_exact(4).enumerate() {
        let sampled = draw(
            case[0],
            SampleRow {
                params: SampleParams {
                    top_p: nucleus[2 * i] as f32,
                    top_k: case[1] as usize,
                    ..params
                },
                uniforms: Uniforms::Given([nucleus[2 * i + 1], 0.0]),
                history: &[],
                ahead: false,
                forbidden: None,
            },
        );
        let expected = (case[3], case[2] as u32);
        assert_eq!(
            (sampled.token, sampled.candidates),
            expected,
            "nucleus case {i}"
        );
    }
}

/// Logits (as bits) and token of each draw of one sequence.
type Drawn = Vec<(Vec<u32>, i32)>;

/// Generates all sequences side by side for some draws each; sequence `b` starts after `b` steps and takes `chunk` prompt rows at a time.
fn generate<B: Backend>(
    rig: &mut Rig<B>,
    generations: &mut [Generation],
    chunk: usize,
    draws: usize,
) -> Vec<Drawn> {
    let count = generations.len();
    // Pages of the sequences interleave.
    let pages: Vec<Vec<u32>> = (0..count)
        .map(|b| (b as u32..PAGES as u32).step_by(count).collect())
        .collect();
    let mut drawn: Vec<Drawn> = vec![Vec::new(); count];
    for step in 0.. {
        let running: Vec<usize> = (0..count)
            .filter(|&b| step >= b && drawn[b].len() < draws && generations[b].stop().is_none())
            .collect();
        if running.is_empty() && step >= count {
            break;
        }
        let rows: Vec<usize> = running
            .iter()
            .map(|&b| generations[b].pending().len().min(chunk))
            .collect();
        let plan: Vec<StepSequence<'_>> = running
            .iter()
            .zip(&rows)
            .map(|(&b, &n)| StepSequence {
                inputs: &generations[b].pending()[..n],
                context: generations[b].context(),
                pages: &pages[b],
                logits: n == generations[b].pending().len(),
            })
            .collect();
        rig.step(&plan, &Trace::off());
        let logits = values(&rig.backend, rig.ws.logits());
        let width = rig.ws.logits().cols();
        for (&b, &n) in running.iter().zip(&rows) {
            generations[b].advance(n);
        }
        let wanting = running
            .iter()
            .copied()
            .filter(|&b| generations[b].wants_token());
        let wanting: Vec<usize> = wanting.collect();
        let params = rig.llm.config().sampling;
        let samples: Vec<_> = wanting
            .iter()
            .map(|&b| generations[b].sample_row(params, 40 + b as u64))
            .collect();
        let mut ids = rig.backend.ids(&vec![0; samples.len()]).unwrap();
        let sampled = rig
            .backend
            .sample(rig.ws.logits(), &samples, &mut ids)
            .unwrap();
        for (i, (&b, s)) in wanting.iter().zip(&sampled).enumerate() {
            let bits = logits[i * width..][..width]
                .iter()
                .map(|x| x.to_bits())
                .collect();
            drawn[b].push((bits, s.token));
            generations[b].accept(s.token);
        }
    }
    drawn
}

/// `draws` draws of up to four sequences, alone, and together in chunks of `chunks` prompt rows.
pub(crate) fn check_batches<B: Backend>(rig: &mut Rig<B>, chunks: &[usize], draws: usize) {
    let files = ["llm_trace60", "llm_sft", "llm_trace_eos", "llm_zero_shot"];
    let goldens: Vec<Golden> = files
        .iter()
        .filter_map(|name| golden::open(&format!("{name}.safetensors")))
        .collect();
    assert!(goldens.len() >= 2, "the kit has too few sequences");
    let fresh = |rig: &Rig<B>| -> Vec<Generation> {
        goldens
            .iter()
            .map(|golden| generation(&rig.llm, golden))
            .collect()
    };
    let mut one = fresh(rig);
    let one = one.iter_mut().enumerate();
    let alone: Vec<Drawn> = one.map(|(b, g)| generate_one(rig, g, b, draws)).collect();
    for &chunk in chunks {
        let mut batch = fresh(rig);
        let together = generate(rig, &mut batch, chunk, draws);
        assert!(
            together == alone,
            "chunk {chunk}: a batch of {} differs",
            goldens.len()
        );
    }
}

#[test]
fn neither_chunks_nor_batch_mates_nor_threads_change_a_byte() {
    check_batches(&mut Rig::new(1), &[1, 5, usize::MAX], 12);
}

/// One sequence alone, whole prompt at once, with the seed of list position `b`.
fn generate_one<B: Backend>(rig: &mut Rig<B>, g: &mut Generation, b: usize, draws: usize) -> Drawn {
    let mut drawn = Drawn::new();
    while drawn.len() < draws && g.stop().is_none() {
        rig.run(g, usize::MAX, &Trace::off());
        let sampled = rig.sample(g.sample_row(rig.llm.config().sampling, 40 + b as u64));
        let logits = values(&rig.backend, rig.ws.logits());
        drawn.push((logits.iter().map(|x| x.to_bits()).collect(), sampled.token));
        g.accept(sampled.token);
    }
    drawn
}

#[test]
fn a_rewound_sequence_goes_on_as_if_nothing_had_happened() {
    let Some(golden) = golden::open("llm_sft.safetensors") else {
        return;
    };
    let mut rig = Rig::new(1);
    let run = |rig: &mut Rig<Cpu>, rewind_at: Option<usize>| {
        let mut g = generation(&rig.llm, &golden);
        let mut all = Vec::new();
        for i in 0..10 {
            if rewind_at == Some(i) {
                g.rewind();
                assert_eq!(g.context(), 0);
            }
            all.extend(generate_one(rig, &mut g, 0, 1));
        }
        all
    };
    let expected = run(&mut rig, None);
    assert!(run(&mut rig, Some(6)) == expected);
}

#[test]
fn unknown_tokens_and_empty_texts_are_refused() {
    let rig = Rig::new(1);
    let vocabulary = rig.llm.vocabulary();
    let new = |conditioning, text: &[i32]| Generation::new(vocabulary, conditioning, text).err();
    let (text, speech) = (vocabulary.text as i32, vocabulary.speech as i32);
    let message = |c, t: &[i32]| new(c, t).expect("refused").to_string();
    assert!(message(Conditioning::NONE, &[]).contains("no text"));
    assert!(message(Conditioning::NONE, &[text]).contains(&text.to_string()));
    assert!(message(Conditioning::NONE, &[-1]).contains("-1"));
    let bad_prompt = [speech];
    let conditioning = Conditioning::zero_shot(&[], &bad_prompt);
    assert!(message(conditioning, &[0]).contains("speech token"));
    assert_eq!(new(Conditioning::instruct(&[0]), &[0]), None);
    let g = Generation::new(vocabulary, Conditioning::instruct(&[3]), &[4]).unwrap();
    use InputToken::{Sos, Task, Text};
    assert_eq!(g.pending(), [Sos, Text(3), Text(4), Task]);
    assert_eq!(g.max_positions(), Some(4 + 19));
}
