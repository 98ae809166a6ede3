//! Norms, row additions, the flow's ops, sampling and the vocoder's ends against their references.

use cosyvoice::backend::philox::source_normals;
use cosyvoice::backend::{
    Act, Flow, Memory, Norm, Sample, SampleParams, SampleRow, SineSource, SourceNoise, Uniforms,
    Vocoder,
};
use cosyvoice::cpu::reference::{dense, norm as reference, sample, vocoder};
use cosyvoice::cpu::{Activation, WeightPrecision};
use cosyvoice::tensor::Segments;

use super::cases::values;
use super::{F32_BOUND, check, cpu_with, tensor};

const F32: WeightPrecision = WeightPrecision::F32;

#[test]
fn norms_of_awkward_sizes() {
    for (n, d) in [(1, 1), (3, 15), (7, 16), (65, 17), (9, 896)] {
        let (x, r) = (values(1, n * d), values(2, n * d));
        let (w, b) = (values(3, d), values(4, d));
        let mut expected = vec![0.0; n * d];
        for (x, out) in x.chunks(d).zip(expected.chunks_mut(d)) {
            reference::layer_norm(x, &w, &b, 1e-5, 3.0, out);
            dense::activate(Activation::Mish, out, d);
        }
        // A single channel is its own mean: everything cancels but the rounding.
        let bound = if d == 1 { 1e-6 } else { F32_BOUND };
        check(
            &format!("layer_norm {n}x{d}"),
            F32,
            bound,
            &expected,
            |cpu| {
                let mut out = cpu.alloc(n, d).unwrap();
                let (x, w, b) = (tensor(cpu, d, &x), tensor(cpu, d, &w), tensor(cpu, d, &b));
                cpu.layer_norm(&x, &w, &b, 1e-5, 3.0, Some(Act::Mish), &mut out)
                    .unwrap();
                out.data().to_vec()
            },
        );
        let sum: Vec<f32> = x.iter().zip(&r).map(|(x, r)| r + x).collect();
        for (sum, out) in sum.chunks(d).zip(expected.chunks_mut(d)) {
            reference::rms_norm(sum, &w, 1e-6, out);
        }
        let both = [expected, sum].concat();
        check(&format!("rms_norm {n}x{d}"), F32, F32_BOUND, &both, |cpu| {
            let mut out = cpu.alloc(n, d).unwrap();
            let mut residual = tensor(cpu, d, &r);
            let (x, w) = (tensor(cpu, d, &x), tensor(cpu, d, &w));
            cpu.rms_norm(&x, Some(&mut residual), &w, 1e-6, &mut out)
                .unwrap();
            [out.data(), residual.data()].concat()
        });
    }
}

#[test]
fn rows_are_added_per_sequence_and_normalised() {
    let (lengths, c) = ([3, 0, 40], 9);
    let (x, v) = (values(1, 43 * c), values(2, 3 * c));
    let mut expected = x.clone();
    for (i, row) in expected.chunks_mut(c).enumerate() {
        let b = if i < 3 { 0 } else { 2 };
        row.iter_mut().zip(&v[b * c..]).for_each(|(x, v)| *x += v);
        reference::l2_normalize(row, 1e-12);
    }
    check(
        "add_segment_rows, l2_normalize",
        F32,
        F32_BOUND,
        &expected,
        |cpu| {
            let mut x = tensor(cpu, c, &x);
            let segments = Segments::new(cpu, &lengths).unwrap();
            cpu.add_segment_rows(&mut x, &segments, &tensor(cpu, c, &v))
                .unwrap();
            cpu.l2_normalize(&mut x, 1e-12).unwrap();
            x.data().to_vec()
        },
    );
}

#[test]
fn guidance_packs_and_steps() {
    let (lengths, n, c) = ([2, 5], 7, 3);
    let [x, mu, cond, spk] = [(1, n), (2, n), (3, n), (4, 2)].map(|(s, rows)| values(s, rows * c));
    let v = values(5, 2 * n * c);
    let dt = [0.1, 0.3];
    let of = |i: usize| usize::from(i >= 2);
    let mut expected = Vec::new();
    for half in 0..2 {
        for i in 0..n {
            let row = |t: &[f32], i: usize| t[i * c..(i + 1) * c].to_vec();
            expected.extend(row(&x, i));
            let rest = [row(&mu, i), row(&spk, of(i)), row(&cond, i)].concat();
            expected.extend(if half == 0 { rest } else { vec![0.0; 3 * c] });
        }
    }
    for i in 0..n * c {
        let step = 1.7 * v[i] - 0.7 * v[n * c + i];
        expected.push(x[i] + dt[of(i / c)] * step);
    }
    check("cfm_pack, cfg_euler", F32, F32_BOUND, &expected, |cpu| {
        let [mut x, mu, cond, spk] = [&x, &mu, &cond, &spk].map(|t| tensor(cpu, c, t));
        let segments = Segments::new(cpu, &lengths).unwrap();
        let mut packed = cpu.alloc(2 * n, 4 * c).unwrap();
        cpu.cfm_pack(&x, &mu, &spk, &cond, &segments, &mut packed)
            .unwrap();
        cpu.cfg_euler(
            &mut x,
            &tensor(cpu, c, &v),
            0.7,
            &tensor(cpu, 1, &dt),
            &segments,
        )
        .unwrap();
        [packed.data(), x.data()].concat()
    });
}

#[test]
fn sampling_follows_the_reference() {
    for (v, top_k, top_p) in [
        (7, 25, 0.8),
        (200, 1, 0.8),
        (6564, 25, 0.8),
        (500, 400, 0.999),
    ] {
        let n = 40;
        let logits: Vec<f32> = values(1, n * v).iter().map(|x| 6.0 * x).collect();
        let history: Vec<i32> = (0..30).map(|i| i % v as i32).collect();
        let rows: Vec<SampleRow<'_>> = (0..n)
            .map(|i| SampleRow {
                params: SampleParams {
                    top_p,
                    top_k,
                    window: 10,
                    repetition_rate: 0.1,
                },
                uniforms: Uniforms::Philox {
                    seed: 5,
                    step: i as u32,
                },
                history: &history,
                ahead: false,
                forbidden: (i % 2 == 0).then_some(3),
            })
            .collect();
        let expected: Vec<_> = rows
            .iter()
            .zip(logits.chunks(v))
            .map(|(row, logits)| sample::sample(logits, row))
            .collect();
        assert!(expected.iter().all(|s| s.draws > 0));
        for threads in [1, 2] {
            let cpu = cpu_with(threads, F32);
            let mut ids = cpu.ids(&vec![0; n]).unwrap();
            let actual = cpu.sample(&tensor(&cpu, v, &logits), &rows, &mut ids);
            assert_eq!(actual.unwrap(), expected, "V {v}, top_k {top_k}");
        }
        let mut expected = vec![0.0; n * v];
        for (x, out) in logits.chunks(v).zip(expected.chunks_mut(v)) {
            sample::log_softmax(x, out);
        }
        check("log_softmax", F32, F32_BOUND, &expected, |cpu| {
            let mut out = cpu.alloc(n, v).unwrap();
            cpu.log_softmax(&tensor(cpu, v, &logits), &mut out).unwrap();
            out.data().to_vec()
        });
    }
}

#[test]
fn source_and_transforms_follow_the_reference() {
    let params = SineSource {
        upsample: 480,
        sample_rate_hz: 24_000.0,
        harmonics: 9,
        sine_amp: 0.1,
        noise_std: 0.003,
        voiced_threshold_hz: 10.0,
    };
    let lengths = [1, 7, 13];
    let f0: Vec<f32> = values(1, 21).iter().map(|v| (v * 400.0).max(0.0)).collect();
    let (w, bias) = (values(2, 9), [0.05]);
    let (seeds, first_samples) = ([1, 2, 3], [0, 960, 0]);
    let (n_fft, hop) = (16, 4);
    let (mut source, mut spectra, mut waves) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = 0;
    for (b, t) in lengths.into_iter().enumerate() {
        let noise = |i: usize, h: usize| {
            source_normals(seeds[b], first_samples[b] + i as u64, (h / 4) as u32)[h % 4]
        };
        let mut signal = vec![0.0; t * 480];
        vocoder::sine_source(
            &f0[first..first + t],
            &params,
            noise,
            &w,
            bias[0],
            &mut signal,
        );
        let mut spectrum = vec![0.0; (t * 120 + 1) * 18];
        vocoder::stft(&signal, n_fft, hop, &mut spectrum);
        let mut wave = vec![0.0; t * 480];
        vocoder::istft_head(&spectrum, n_fft, hop, 0.99, &mut wave);
        source.extend(signal);
        spectra.extend(spectrum);
        waves.extend(wave);
        first += t;
    }
    let expected = [source, spectra, waves].concat();
    check(
        "source, stft, istft_head",
        F32,
        F32_BOUND,
        &expected,
        |cpu| {
            let segments = Segments::new(cpu, &lengths).unwrap();
            let samples = Segments::new(cpu, &lengths.map(|t| t * 480)).unwrap();
            let frames = Segments::new(cpu, &lengths.map(|t| t * 120 + 1)).unwrap();
            let mut source = cpu.alloc(samples.total(), 1).unwrap();
            let noise = SourceNoise::Philox {
                seeds: &seeds,
                first_samples: &first_samples,
            };
            let (w, bias) = (tensor(cpu, 9, &w), tensor(cpu, 1, &bias));
            cpu.sine_source(
                &tensor(cpu, 1, &f0),
                &segments,
                &params,
                noise,
                &w,
                &bias,
                &mut source,
            )
            .unwrap();
            let mut spectra = cpu.alloc(frames.total(), 18).unwrap();
            cpu.stft(&source, &samples, n_fft, hop, &mut spectra, &frames)
                .unwrap();
            let mut waves = cpu.alloc(samples.total(), 1).unwrap();
            cpu.istft_head(&spectra, &frames, n_fft, hop, 0.99, &mut waves, &samples)
                .unwrap();
            [source.data(), spectra.data(), waves.data()].concat()
        },
    );
}
