//! Ops without weights against tensors recorded from the official code.

use cosyvoice::backend::{
    Memory, Sample, SampleParams, SampleRow, SineSource, SourceNoise, Uniforms, Vocoder,
};
use cosyvoice::tensor::Segments;

use super::{cpu, tensor};
use crate::support::golden::{self, Golden, transpose};
use crate::support::metrics::{max_abs, nmse, snr_db};

/// The official sampling settings, which the recorded cases were drawn with.
const OFFICIAL: SampleParams = SampleParams {
    top_p: 0.8,
    top_k: 25,
    window: 10,
    repetition_rate: 0.1,
};

#[test]
fn sampling_draws_the_official_tokens() {
    let Some(g) = golden::open("sampling.safetensors") else {
        return;
    };
    let cpu = cpu();
    let logp = g.f32("logp");
    let vocabulary = g.shape("logp")[1];
    let cases = g.i32("case");
    let (decoded, width) = (g.i32("case_decoded"), g.shape("case_decoded")[1]);
    let uniforms = g.f64("case_u");
    // The end token is the first of the three ids behind the speech tokens.
    let end = (vocabulary - 3) as i32;
    let mut logits = Vec::new();
    let mut rows = Vec::new();
    let mut expected = Vec::new();
    for (i, case) in cases.chunks_exact(6).enumerate() {
        let &[row, ignore_eos, length, draws, candidates, token] = case else {
            unreachable!()
        };
        logits.extend_from_slice(&logp[row as usize * vocabulary..][..vocabulary]);
        rows.push(SampleRow {
            params: OFFICIAL,
            uniforms: Uniforms::Given([uniforms[2 * i], uniforms[2 * i + 1]]),
            history: &decoded[i * width..][..length as usize],
            ahead: false,
            forbidden: (ignore_eos != 0).then_some(end),
        });
        expected.push((token, draws as u32, candidates as u32));
    }
    let mut ids = cpu.ids(&vec![0; rows.len()]).unwrap();
    let drawn = cpu
        .sample(&tensor(&cpu, vocabulary, &logits), &rows, &mut ids)
        .unwrap();
    let actual: Vec<_> = drawn
        .iter()
        .map(|s| (s.token, s.draws, s.candidates))
        .collect();
    assert_eq!(actual, expected);
    let tokens: Vec<i32> = drawn.iter().map(|s| s.token).collect();
    assert_eq!(ids.data(), tokens);
}

#[test]
fn nucleus_draws_the_official_tokens() {
    let Some(g) = golden::open("sampling.safetensors") else {
        return;
    };
    let cpu = cpu();
    let logp = g.f32("logp");
    let vocabulary = g.shape("logp")[1];
    let (cases, params) = (g.i32("nucleus_case"), g.f64("nucleus_param"));
    for (case, param) in cases.chunks_exact(4).zip(params.chunks_exact(2)) {
        let row = SampleRow {
            params: SampleParams {
                top_p: param[0] as f32,
                top_k: case[1] as usize,
                ..OFFICIAL
            },
            uniforms: Uniforms::Given([param[1], 0.0]),
            history: &[],
            ahead: false,
            forbidden: None,
        };
        let logits = tensor(
            &cpu,
            vocabulary,
            &logp[case[0] as usize * vocabulary..][..vocabulary],
        );
        let mut id = cpu.ids(&[0]).unwrap();
        let drawn = cpu.sample(&logits, &[row], &mut id).unwrap()[0];
        assert_eq!((drawn.candidates as i32, drawn.token), (case[2], case[3]));
    }
}

/// Rows of the noise pool that a vocoder call of `samples` samples used.
fn noise(g: &Golden, pool: &Golden, samples: usize) -> Vec<f32> {
    let (rows, offset) = (pool.shape("pool")[0], g.i32("noise_off")[0] as usize);
    let (values, harmonics) = (pool.f32("pool"), pool.shape("pool")[1]);
    (0..samples)
        .flat_map(|t| values[(offset + t) % rows * harmonics..][..harmonics].to_vec())
        .collect()
}

#[test]
fn sines_follow_the_official_phase() {
    let (Some(g), Some(pool)) = (
        golden::open("hift_whole.safetensors"),
        golden::open("hift_noise.safetensors"),
    ) else {
        return;
    };
    let cpu = cpu();
    let (f0, sines) = (g.f32("f0"), g.f32("sine"));
    let (samples, harmonics) = (g.shape("sine")[1], g.shape("sine")[2]);
    let params = SineSource {
        upsample: samples / f0.len(),
        sample_rate_hz: 24_000.0,
        harmonics,
        sine_amp: 0.1,
        noise_std: 0.003,
        voiced_threshold_hz: 10.0,
    };
    let noise = tensor(&cpu, harmonics, &noise(&g, &pool, samples));
    let segments = Segments::new(&cpu, &[f0.len()]).unwrap();
    let f0 = tensor(&cpu, 1, &f0);
    for h in 0..harmonics {
        let mut w = vec![0.0; harmonics];
        w[h] = 1.0;
        let mut out = cpu.alloc(samples, 1).unwrap();
        cpu.sine_source(
            &f0,
            &segments,
            &params,
            SourceNoise::Given(&noise),
            &tensor(&cpu, harmonics, &w),
            &tensor(&cpu, 1, &[0.0]),
            &mut out,
        )
        .unwrap();
        let expected: Vec<f32> = sines.chunks_exact(harmonics).map(|s| s[h].tanh()).collect();
        let snr = snr_db(out.data(), &expected);

        assert!(snr > 120.0, "harmonic {}: SNR {snr:.1} dB", h + 1);
    }
}

#[test]
fn stft_of_the_source_is_the_official_one() {
    let Some(g) = golden::open("hift_cache.safetensors") else {
        return;
    };
    let cpu = cpu();
    let source = g.f32("source");
    let &[_, bins, frames] = g.shape("stft_real") else {
        panic!("stft_real has no three dimensions")
    };
    let n_fft = 2 * (bins - 1);
    let hop = source.len() / (frames - 1);
    let segments = Segments::new(&cpu, &[source.len()]).unwrap();
    let out_segments = Segments::new(&cpu, &[frames]).unwrap();
    let mut out = cpu.alloc(frames, 2 * bins).unwrap();
    cpu.stft(
        &tensor(&cpu, 1, &source),
        &segments,
        n_fft,
        hop,
        &mut out,
        &out_segments,
    )
    .unwrap();
    let expected: Vec<f32> = [g.f32("stft_real"), g.f32("stft_imag")].concat();
    let expected = transpose(&expected, 2 * bins, frames);
    let error = nmse(out.data(), &expected);
    assert!(error < 1e-12, "NMSE {error:e}");
}

#[test]
fn istft_head_is_the_official_one() {
    let Some(g) = golden::open("hift_istft.safetensors") else {
        return;
    };
    let cpu = cpu();
    let &[_, cols, frames] = g.shape("x") else {
        panic!("x has no three dimensions")
    };
    let expected = g.f32("wav");
    let hop = expected.len() / (frames - 1);
    let segments = Segments::new(&cpu, &[frames]).unwrap();
    let out_segments = Segments::new(&cpu, &[expected.len()]).unwrap();
    let h = tensor(&cpu, cols, &g.time_last("x"));
    for (limit, expected) in [(0.99, expected), (f32::INFINITY, g.f32("wav_unclamped"))] {
        let mut out = cpu.alloc(expected.len(), 1).unwrap();
        cpu.istft_head(&h, &segments, cols - 2, hop, limit, &mut out, &out_segments)
            .unwrap();
        let error = nmse(out.data(), &expected);
        assert!(error < 1e-12, "NMSE {error:e} at limit {limit}");
    }
}

#[test]
fn speed_change_is_the_official_interpolation() {
    let Some(g) = golden::open("mel_speed.safetensors") else {
        return;
    };
    let cpu = cpu();
    let &[_, mels, frames] = g.shape("mel") else {
        panic!("mel has no three dimensions")
    };
    let mel = tensor(&cpu, mels, &g.time_last("mel"));
    let segments = Segments::new(&cpu, &[frames]).unwrap();
    for name in g.names().filter(|n| n.starts_with("speed_")) {
        let rows = g.shape(name)[2];
        let out_segments = Segments::new(&cpu, &[rows]).unwrap();
        let mut out = cpu.alloc(rows, mels).unwrap();
        cpu.interpolate_rows(&mel, &segments, &mut out, &out_segments)
            .unwrap();
        let error = max_abs(out.data(), &g.time_last(name));
        assert!(error < 1e-6, "{name}: max abs error {error:e}");
    }
}
