//! The ends of the vocoder: the same phases and the same noise as on the CPU, in both precisions, since all of it is f32.

use cosyvoice::backend::{Memory, SineSource, SourceNoise, Vocoder};
use cosyvoice::tensor::Segments;

use super::{Bounds, agree, device, values};
use crate::ops::cases::values as seeded;
use crate::support::emulator;
use cosyvoice::cuda::Precision;

/// Elementary functions differ by an ulp or two; signals are kept in f32 tensors.
const SIGNAL: Bounds = Bounds {
    f32: 1e-11,
    bf16: 1e-11,
};

fn params(upsample: usize, harmonics: usize) -> SineSource {
    SineSource {
        upsample,
        sample_rate_hz: 24_000.0,
        harmonics,
        sine_amp: 0.1,
        noise_std: 0.003,
        voiced_threshold_hz: 10.0,
    }
}

/// A melody with pauses, Hz.
fn f0(frames: usize) -> Vec<f32> {
    (0..frames)
        .map(|i| match i % 23 {
            0..4 => 0.0,
            k => 120.0 + 11.7 * k as f32 + 40.0 * (i as f32 * 0.07).sin(),
        })
        .collect()
}

/// The source of sequences of `lengths` frames with noise drawn by Philox from sample `first` on.
fn source<B: Vocoder>(
    b: &B,
    lengths: &[usize],
    up: usize,
    harmonics: usize,
    first: u64,
) -> Vec<f32> {
    let segments = Segments::new(b, lengths).unwrap();
    let n = segments.total();
    let f0 = b.tensor(n, 1, &f0(n)).unwrap();
    let seeds: Vec<u64> = (0..lengths.len() as u64).map(|i| 7 + (i << 33)).collect();
    let noise = SourceNoise::Philox {
        seeds: &seeds,
        first_samples: &vec![first; lengths.len()],
    };
    let w = b.tensor(1, harmonics, &seeded(2, harmonics)).unwrap();
    let bias = b.tensor(1, 1, &[0.01]).unwrap();
    let mut out = b.alloc_f32(n * up, 1).unwrap();
    b.sine_source(
        &f0,
        &segments,
        &params(up, harmonics),
        noise,
        &w,
        &bias,
        &mut out,
    )
    .unwrap();
    values(b, &out)
}

#[test]
fn source_has_the_same_phase_and_noise() {
    for (lengths, up, harmonics, first) in [
        (vec![1], 480, 9, 0),
        (vec![3, 0, 40], 480, 9, 1 << 40),
        (vec![700, 30], 7, 5, 12_345),
        (vec![50], 12, 300, 0),
    ] {
        agree!(format!("source of {lengths:?}"), SIGNAL, |b| source(
            b, &lengths, up, harmonics, first
        ));
    }
}

#[test]
fn phase_does_not_drift() {
    // Half a minute of frames: the last sines, not the mean of all, within 1e-5 of the CPU's.
    let lengths = [1500];
    let expected = source(&super::cpu(), &lengths, 16, 9, 0);
    let Some(cuda) = device(Precision::Bf16) else {
        return;
    };
    let actual = source(&*cuda, &lengths, 16, 9, 0);
    for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
        assert!((a - e).abs() < 1e-5, "sample {i}: {a} {e}");
    }
}

#[test]
fn source_takes_given_noise() {
    let noise = seeded(5, 8 * 24 * 9);
    agree!("given noise", SIGNAL, |b| {
        let segments = Segments::new(b, &[3, 5]).unwrap();
        let f0 = b.tensor(8, 1, &f0(8)).unwrap();
        let noise = b.tensor(8 * 24, 9, &noise).unwrap();
        let (w, bias) = (
            b.tensor(1, 9, &seeded(2, 9)).unwrap(),
            b.tensor(1, 1, &[0.0]).unwrap(),
        );
        let mut out = b.alloc_f32(8 * 24, 1).unwrap();
        b.sine_source(
            &f0,
            &segments,
            &params(24, 9),
            SourceNoise::Given(&noise),
            &w,
            &bias,
            &mut out,
        )
        .unwrap();
        values(b, &out)
    });
}

/// `(n_fft, hop)`: the vocoder's, one whose hop is not a divisor, one that fills a block's shared memory.
const TRANSFORMS: [(usize, usize); 3] = [(16, 4), (12, 5), (512, 128)];

#[test]
fn transforms_of_any_size() {
    for (n_fft, hop) in TRANSFORMS {
        let lengths = [n_fft / 2 + 1, 40 * hop, 131 * hop + 3];
        agree!(format!("stft {n_fft} {hop}"), SIGNAL, |b| {
            let segments = Segments::new(b, &lengths).unwrap();
            let out_segments = Segments::new(b, &lengths.map(|n| n / hop + 1)).unwrap();
            let s = b
                .tensor(segments.total(), 1, &seeded(3, segments.total()))
                .unwrap();
            let mut out = b.alloc_f32(out_segments.total(), n_fft + 2).unwrap();
            b.stft(&s, &segments, n_fft, hop, &mut out, &out_segments)
                .unwrap();
            values(b, &out)
        });
        let frames = [n_fft / hop + 1, 0, 1, 150];
        for limit in [0.05, f32::INFINITY] {
            agree!(format!("istft {n_fft} {hop} {limit}"), SIGNAL, |b| {
                let segments = Segments::new(b, &frames).unwrap();
                let samples = frames.map(|n| n.saturating_sub(1) * hop);
                let out_segments = Segments::new(b, &samples).unwrap();
                let cols = n_fft + 2;
                let mut x = seeded(4, segments.total() * cols);
                // Magnitudes on both sides of their limit.
                x.iter_mut().step_by(3).for_each(|v| *v *= 7.0);
                let h = b.tensor(segments.total(), cols, &x).unwrap();
                let mut out = b.alloc_f32(out_segments.total(), 1).unwrap();
                b.istft_head(&h, &segments, n_fft, hop, limit, &mut out, &out_segments)
                    .unwrap();
                values(b, &out)
            });
        }
    }
}

#[test]
fn a_sequence_alone_equals_the_sequence_in_a_batch() {
    let Some(cuda) = device(Precision::Bf16) else {
        return;
    };
    let all = source(&*cuda, &[20, 31], 16, 9, 3);
    let alone = source(&*cuda, &[20], 16, 9, 3);
    assert!(all[..20 * 16] == alone[..], "the source");
}

#[test]
fn checked() {
    emulator::run_checked("cuda::vocoder::");
}
