//! The vocoder in stages, each from recorded inputs, then whole; and that batch mates do not change a byte.
//!
//! The phase of the source is a long f32 sum: a rounding of f0 moves it visibly, which is why the stages after it are also run from the recorded source.

use std::collections::BTreeMap;
use std::ops::Range;

use cosyvoice::backend::{Backend, Memory, SourceNoise, Vocoder};
use cosyvoice::cpu::Cpu;
use cosyvoice::model::vocoder::{Hift, HiftWorkspace};
use cosyvoice::tensor::{Segments, Tensor, Trace, TracedTensor};

use crate::support::golden::{self, Golden, transpose};
use crate::support::metrics::{max_abs, nmse, snr_db};
use crate::support::model;

const SNR_DB: f64 = 60.0;
/// From the mel on. The recorded f32 run is itself only about 62 dB from the same code in f64: a rounding of f0 adds up in the phase.
const WHOLE_SNR_DB: f64 = 55.0;
/// Of each stage from recorded inputs.
const NMSE: f64 = 1e-9;

pub(crate) struct Rig<B: Backend> {
    backend: B,
    hift: Hift<B>,
    ws: HiftWorkspace<B>,
}

impl Rig<Cpu> {
    fn new(threads: usize) -> Self {
        Self::on(model::cpu(threads))
    }
}

impl<B: Backend> Rig<B> {
    pub(crate) fn on(backend: B) -> Self {
        let hift = model::hift(&backend);
        let ws = HiftWorkspace::new(&backend).unwrap();
        Self { backend, hift, ws }
    }

    fn values(&self, t: &Tensor<B>) -> Vec<f32> {
        let mut out = Vec::new();
        self.backend.download(t, &mut out).unwrap();
        out
    }

    fn segments(&self, lengths: &[usize]) -> Segments<B> {
        Segments::new(&self.backend, lengths).unwrap()
    }

    fn column(&self, values: &[f32]) -> Tensor<B> {
        self.backend.tensor(values.len(), 1, values).unwrap()
    }
}

/// A recorded call: mel, draws, cached source.
struct Call<B: Backend> {
    golden: Golden,
    frames: usize,
    mel: Tensor<B>,
    noise: Tensor<B>,
    cache: Option<Tensor<B>>,
}

fn call<B: Backend>(rig: &Rig<B>, name: &str) -> Option<Call<B>> {
    let golden = golden::open(name)?;
    let pool = golden::open("hift_noise.safetensors")?;
    let (mels, frames) = (golden.shape("mel")[1], golden.shape("mel")[2]);
    let mel = rig
        .backend
        .tensor(frames, mels, &golden.time_last("mel"))
        .unwrap();
    let (rows, harmonics) = (pool.shape("pool")[0], pool.shape("pool")[1]);
    let (offset, length) = (golden.i32("noise_off")[0], golden.i32("noise_len")[0]);
    assert_eq!(length as usize, frames * rig.hift.samples_per_frame());
    let pool = pool.f32("pool");
    let noise: Vec<f32> = (offset..offset + length)
        .flat_map(|row| &pool[row as usize % rows * harmonics..][..harmonics])
        .copied()
        .collect();
    let noise = rig
        .backend
        .tensor(length as usize, harmonics, &noise)
        .unwrap();
    let cache = golden
        .has("cache_source")
        .then(|| rig.column(&golden.f32("cache_source")));
    Some(Call {
        golden,
        frames,
        mel,
        noise,
        cache,
    })
}

fn assert_nmse(what: &str, actual: &[f32], expected: &[f32], tolerance: f64) {
    let (error, max) = (nmse(actual, expected), max_abs(actual, expected));
    eprintln!("{what}: NMSE {error:.1e}, max abs error {max:.1e}");
    assert!(error <= tolerance, "{what}: NMSE {error:e} > {tolerance:e}");
}

pub(crate) fn check_f0<B: Backend>(rig: &mut Rig<B>, name: &str, bound: f64) {
    let Some(call) = call(rig, name) else { return };
    let segments = rig.segments(&[call.frames]);
    rig.hift
        .predict_f0(
            &rig.backend,
            &call.mel,
            &segments,
            &mut rig.ws,
            &Trace::off(),
        )
        .unwrap();
    let f0 = rig.values(rig.ws.f0());
    assert_nmse("f0", &f0, &call.golden.f32("f0"), bound);
}

/// Source from the recorded f0.
pub(crate) fn check_source<B: Backend>(rig: &mut Rig<B>, name: &str, bound: f64) {
    let Some(call) = call(rig, name) else { return };
    let segments = rig.segments(&[call.frames]);
    *rig.ws.f0_mut() = rig.column(&call.golden.f32("f0"));
    let noise = SourceNoise::Given(&call.noise);
    rig.hift
        .make_source(
            &rig.backend,
            &segments,
            &[],
            noise,
            &mut rig.ws,
            &Trace::off(),
        )
        .unwrap();
    let source = rig.values(rig.ws.source());
    assert_nmse("source", &source, &call.golden.f32("source_nocache"), bound);
}

/// Waveform from the recorded f0 and draws.
pub(crate) fn check_from_f0<B: Backend>(rig: &mut Rig<B>, name: &str, bound_db: f64) {
    let Some(call) = call(rig, name) else { return };
    let segments = rig.segments(&[call.frames]);
    *rig.ws.f0_mut() = rig.column(&call.golden.f32("f0"));
    let noise = SourceNoise::Given(&call.noise);
    let (backend, ws, trace) = (&rig.backend, &mut rig.ws, Trace::off());
    let cached = [call.cache.as_ref()];
    rig.hift
        .make_source(backend, &segments, &cached, noise, ws, &trace)
        .unwrap();
    rig.hift
        .generate(backend, &call.mel, &segments, ws, &trace)
        .unwrap();
    let wave = rig.values(rig.ws.wave());
    let snr = snr_db(&wave, &call.golden.f32("wav"));
    eprintln!("{name}: waveform from the recorded f0: {snr:.1} dB");
    assert!(snr >= bound_db, "{snr} dB");
}

/// Waveform from the recorded source, with all stages between.
pub(crate) fn check_generator<B: Backend>(
    rig: &mut Rig<B>,
    name: &str,
    stages: f64,
    bound_db: f64,
) {
    let Some(call) = call(rig, name) else { return };
    let golden = &call.golden;
    let segments = rig.segments(&[call.frames]);
    *rig.ws.f0_mut() = rig.column(&golden.f32("f0"));
    // A cached source as long as the whole.
    let source = rig.column(&golden.f32("source"));
    let noise = SourceNoise::Given(&call.noise);
    let (backend, ws, trace) = (&rig.backend, &mut rig.ws, Trace::on());
    rig.hift
        .make_source(backend, &segments, &[Some(&source)], noise, ws, &trace)
        .unwrap();
    rig.hift
        .generate(backend, &call.mel, &segments, ws, &trace)
        .unwrap();
    check_stages(golden, &trace.into_tensors(), stages);
    let wave = rig.values(rig.ws.wave());
    let snr = snr_db(&wave, &golden.f32("wav"));
    eprintln!("{name}: waveform from the recorded source: {snr:.1} dB");
    assert!(snr >= bound_db, "{snr} dB");
}

fn check_stages(golden: &Golden, traced: &BTreeMap<String, TracedTensor>, bound: f64) {
    let (bins, rows) = (golden.shape("stft_real")[1], golden.shape("stft_real")[2]);
    let mut spectrum = golden.f32("stft_real");
    spectrum.extend(golden.f32("stft_imag"));
    let spectrum = transpose(&spectrum, 2 * bins, rows);
    assert_nmse("stft", &traced["hift.stft"].data, &spectrum, bound);
    let mut checked = 0;
    let mut check = |recorded: String, ours: String| {
        if golden.has(&recorded) {
            assert_nmse(
                &ours,
                &traced[&ours].data,
                &golden.time_last(&recorded),
                bound,
            );
            checked += 1;
        }
    };
    check("conv_pre".into(), "hift.conv_pre".into());
    for i in 0.. {
        let down = format!("hift.source_downs.{i}");
        if !traced.contains_key(&down) {
            break;
        }
        check(format!("source_down{i}"), down);
        check(
            format!("source_res{i}"),
            format!("hift.source_resblocks.{i}"),
        );
    }
    for j in 0.. {
        let block = format!("hift.resblocks.{j}");
        if !traced.contains_key(&block) {
            break;
        }
        check(format!("resblock{j}"), block);
    }
    check("conv_post".into(), "hift.conv_post".into());
    assert!(checked > 0, "no stage was compared");
    for i in 0.. {
        let (up, res) = (format!("ups{i}"), format!("source_res{i}"));
        if !golden.has(&up) {
            break;
        }
        let channels = golden.shape(&up)[1];
        let (mut up, res) = (golden.time_last(&up), golden.time_last(&res));
        if up.len() < res.len() {
            // The last stage mirrors its second row to the front.
            let mirrored = up[channels..2 * channels].to_vec();
            up.splice(..0, mirrored);
        }
        let sum: Vec<f32> = up.iter().zip(&res).map(|(a, b)| a + b).collect();
        let fused = format!("hift.fused.{i}");
        assert_nmse(&fused, &traced[&fused].data, &sum, bound);
    }
}

/// Everything from the mel and the recorded draws.
pub(crate) fn check_whole<B: Backend>(rig: &mut Rig<B>, name: &str, bound_db: f64) {
    let Some(call) = call(rig, name) else { return };
    let segments = rig.segments(&[call.frames]);
    let noise = SourceNoise::Given(&call.noise);
    let (cached, trace) = ([call.cache.as_ref()], Trace::off());
    rig.hift
        .run(
            &rig.backend,
            &call.mel,
            &segments,
            &cached,
            noise,
            &mut rig.ws,
            &trace,
        )
        .unwrap();
    let source = rig.values(rig.ws.source());
    let snr = snr_db(&source, &call.golden.f32("source"));
    eprintln!("{name}: source {snr:.1} dB");
    let wave = rig.values(rig.ws.wave());
    let snr = snr_db(&wave, &call.golden.f32("wav"));
    eprintln!("{name}: waveform {snr:.1} dB");
    assert!(snr >= bound_db, "{snr} dB");
    if call.golden.has("wav_f64") {
        // The same code in f64: we must be at least as near to it as the recorded f32 run is.
        let (exact, recorded) = (call.golden.f32("wav_f64"), call.golden.f32("wav"));
        let [ours, theirs] = [wave, recorded].map(|wave| snr_db(&wave, &exact));
        eprintln!("{name}: from the run in f64: ours {ours:.1} dB, recorded {theirs:.1} dB");
        assert!(ours >= theirs.min(SNR_DB), "{ours} dB");
    }
}

#[test]
fn f0_of_the_mel() {
    let mut rig = Rig::new(1);
    check_f0(&mut rig, "hift_whole.safetensors", NMSE);
    check_f0(&mut rig, "hift_cache.safetensors", NMSE);
}

#[test]
fn source_of_the_f0() {
    let mut rig = Rig::new(1);
    check_source(&mut rig, "hift_whole.safetensors", NMSE);
    check_source(&mut rig, "hift_cache.safetensors", NMSE);
}

#[test]
fn waveform_of_the_f0() {
    let mut rig = Rig::new(1);
    check_from_f0(&mut rig, "hift_whole.safetensors", SNR_DB);
    check_from_f0(&mut rig, "hift_cache.safetensors", SNR_DB);
}

#[test]
fn waveform_of_the_source() {
    let mut rig = Rig::new(1);
    check_generator(&mut rig, "hift_whole.safetensors", NMSE, SNR_DB + 20.0);
    check_generator(&mut rig, "hift_cache.safetensors", NMSE, SNR_DB + 20.0);
}

#[test]
fn waveform_of_the_mel() {
    check_whole(&mut Rig::new(1), "hift_whole.safetensors", WHOLE_SNR_DB);
}

#[test]
fn waveform_of_the_mel_with_a_cached_source() {
    check_whole(&mut Rig::new(1), "hift_cache.safetensors", WHOLE_SNR_DB);
}

#[test]
fn inverse_transform_of_the_head() {
    let Some(golden) = golden::open("hift_istft.safetensors") else {
        return;
    };
    let cpu = model::cpu(1);
    let checkpoint = model::checkpoint();
    let config = &checkpoint.config().hift;
    let (bins, rows) = (golden.shape("x")[1], golden.shape("x")[2]);
    let x = cpu.tensor(rows, bins, &golden.time_last("x")).unwrap();
    let expected = golden.f32("wav");
    let mut wave = cpu.alloc(expected.len(), 1).unwrap();
    let rows = Segments::new(&cpu, &[rows]).unwrap();
    let samples = Segments::new(&cpu, &[expected.len()]).unwrap();
    let (n_fft, hop) = (config.istft_n_fft, config.istft_hop_len);
    cpu.istft_head(
        &x,
        &rows,
        n_fft,
        hop,
        config.audio_limit,
        &mut wave,
        &samples,
    )
    .unwrap();
    let mut actual = Vec::new();
    cpu.download(&wave, &mut actual).unwrap();
    assert_nmse("istft", &actual, &expected, NMSE);
}

/// Values of a mel that is not silent and differs from row to row.
fn some_mel(values: usize, shift: f32) -> Vec<f32> {
    let wave = |i: usize| ((i as f32 * 0.37 + shift).sin() - 1.0) * 3.0;
    (0..values).map(wave).collect()
}

/// Chunks as a server would batch them: mels, seeds, places in their utterances, cached sources.
struct Chunks {
    mels: usize,
    lengths: Vec<usize>,
    values: Vec<Vec<f32>>,
    seeds: Vec<u64>,
    first_samples: Vec<u64>,
    cached: Vec<bool>,
}

impl Chunks {
    fn new() -> Self {
        let mels = model::checkpoint().config().hift.in_channels;
        let lengths = vec![3, 11, 1, 6];
        let values = lengths.iter().enumerate();
        Self {
            mels,
            values: values.map(|(b, n)| some_mel(n * mels, b as f32)).collect(),
            lengths,
            seeds: vec![5, 6, 7, 8],
            first_samples: vec![0, 4800, 96, 480],
            cached: vec![false, true, false, true],
        }
    }

    /// Bits of the waveforms of some of them, one after the other.
    fn vocode<B: Backend>(&self, rig: &mut Rig<B>, some: Range<usize>) -> Vec<u32> {
        let mel = self.values[some.clone()].concat();
        let mel = rig
            .backend
            .tensor(mel.len() / self.mels, self.mels, &mel)
            .unwrap();
        let segments = rig.segments(&self.lengths[some.clone()]);
        let cache = rig.column(&[0.25; 300]);
        let cached = self.cached[some.clone()].iter();
        let cached: Vec<_> = cached.map(|&cached| cached.then_some(&cache)).collect();
        let noise = SourceNoise::Philox {
            seeds: &self.seeds[some.clone()],
            first_samples: &self.first_samples[some],
        };
        rig.hift
            .run(
                &rig.backend,
                &mel,
                &segments,
                &cached,
                noise,
                &mut rig.ws,
                &Trace::off(),
            )
            .unwrap();
        rig.values(rig.ws.wave())
            .iter()
            .map(|x| x.to_bits())
            .collect()
    }
}

#[test]
fn neither_batch_mates_nor_threads_change_a_byte() {
    let alone = check_batch(&mut Rig::new(1));
    let chunks = Chunks::new();
    let together = chunks.vocode(&mut Rig::new(3), 0..chunks.lengths.len());
    assert!(together == alone, "3 threads");
}

/// Chunks alone and together: the same bits, which it returns.
pub(crate) fn check_batch<B: Backend>(rig: &mut Rig<B>) -> Vec<u32> {
    let chunks = Chunks::new();
    let count = chunks.lengths.len();
    let alone: Vec<u32> = (0..count)
        .flat_map(|b| chunks.vocode(rig, b..b + 1))
        .collect();
    assert!(chunks.vocode(rig, 0..count) == alone, "together and alone");
    alone
}

#[test]
fn the_noise_of_a_chunk_is_that_of_the_whole() {
    let mut rig = Rig::new(1);
    let (frames, skipped) = (9, 4);
    let per_frame = rig.hift.samples_per_frame();
    let mut source = |frames: usize, first: u64| {
        // Unvoiced: nothing but noise.
        *rig.ws.f0_mut() = rig.column(&vec![0.0; frames]);
        let segments = rig.segments(&[frames]);
        let noise = SourceNoise::Philox {
            seeds: &[77],
            first_samples: &[first],
        };
        rig.hift
            .make_source(
                &rig.backend,
                &segments,
                &[],
                noise,
                &mut rig.ws,
                &Trace::off(),
            )
            .unwrap();
        rig.values(rig.ws.source())
    };
    let whole = source(frames, 0);
    let chunk = source(frames - skipped, (skipped * per_frame) as u64);
    assert_eq!(whole[skipped * per_frame..], chunk);
    assert!(chunk.iter().any(|&x| x != chunk[0]), "there is noise");
}
