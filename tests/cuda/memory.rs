//! Allocation, copies and lookups.

use cosyvoice::backend::{Memory, Weight};
use cosyvoice::cuda::{Dtype, PeakWork, Precision};
use cosyvoice::tensor::Segments;

use super::{COPY, agree, device, values};
use crate::ops::cases::values as seeded;
use crate::support::emulator;

#[test]
fn what_is_uploaded_comes_back() {
    for precision in [Precision::F32, Precision::Bf16] {
        let Some(cuda) = device(precision) else {
            return;
        };
        let x: Vec<f32> = (0..3 * 1000).map(|i| (i % 256) as f32 - 100.0).collect();
        let mut t = cuda.alloc(3, 1000).unwrap();
        assert_eq!(values(&*cuda, &t), vec![0.0; 3000]);
        cuda.upload(&x, &mut t).unwrap();
        assert_eq!(
            values(&*cuda, &t),
            x,
            "integers below 256 are exact in bf16"
        );
        cuda.resize(&mut t, 2, 7).unwrap();
        assert_eq!(t.shape(), (2, 7));
        assert_eq!(cuda.tensor(1, 2, &[1.0, 2.0]).unwrap().dtype(), Dtype::F32);
    }
}

#[test]
fn more_than_the_staging_ring_holds_is_uploaded() {
    let Some(cuda) = device(Precision::F32) else {
        return;
    };
    let x = seeded(1, 3_000_001);
    let t = cuda.tensor(1, x.len(), &x).unwrap();
    assert!(values(&*cuda, &t) == x);
}

#[test]
fn ids_come_back() {
    let Some(cuda) = device(Precision::Bf16) else {
        return;
    };
    let mut ids = cuda.ids(&[3, -1, 7]).unwrap();
    let mut back = Vec::new();
    cuda.download_ids(&ids, &mut back).unwrap();
    assert_eq!(back, [3, -1, 7]);
    let long: Vec<i32> = (0..1000).collect();
    cuda.upload_ids(&long, &mut ids).unwrap();
    cuda.download_ids(&ids, &mut back).unwrap();
    assert_eq!(back, long);
}

#[test]
fn rows_are_copied_gathered_repeated_and_joined() {
    let x = seeded(1, 9 * 5);
    agree!("copy_rows", COPY, |b| {
        let mut out = b.tensor(7, 5, &seeded(2, 7 * 5)).unwrap();
        b.copy_rows(&b.tensor(9, 5, &x).unwrap(), 2, &mut out, 3, 4)
            .unwrap();
        values(b, &out)
    });
    agree!("gather_rows", COPY, |b| {
        let mut out = b.alloc(3, 5).unwrap();
        let rows = b.ids(&[8, 0, 4]).unwrap();
        b.gather_rows(&b.tensor(9, 5, &x).unwrap(), &rows, &mut out)
            .unwrap();
        values(b, &out)
    });
    agree!("upsample_rows", COPY, |b| {
        let mut out = b.alloc(18, 5).unwrap();
        b.upsample_rows(&b.tensor(9, 5, &x).unwrap(), 2, &mut out)
            .unwrap();
        values(b, &out)
    });
    agree!("concat_cols", COPY, |b| {
        let parts = [
            b.tensor(9, 5, &x).unwrap(),
            b.tensor(9, 3, &seeded(4, 27)).unwrap(),
        ];
        let mut out = b.alloc(9, 8).unwrap();
        b.concat_cols(&[&parts[0], &parts[1]], &mut out).unwrap();
        values(b, &out)
    });
}

#[test]
fn segments_are_interpolated() {
    let x = seeded(1, 12 * 3);
    let bounds = super::Bounds {
        f32: 1e-13,
        bf16: 1e-5,
    };
    agree!("interpolate_rows", bounds, |b| {
        let mut out = b.alloc(14, 3).unwrap();
        let (from, to) = (
            Segments::new(b, &[5, 7]).unwrap(),
            Segments::new(b, &[8, 6]).unwrap(),
        );
        b.interpolate_rows(&b.tensor(12, 3, &x).unwrap(), &from, &mut out, &to)
            .unwrap();
        values(b, &out)
    });
}

#[test]
fn tables_are_looked_up() {
    let (first, second) = (seeded(1, 6 * 4), seeded(2, 3 * 4));
    agree!("embed", COPY, |b| {
        let tables = [(6, &first), (3, &second)]
            .map(|(n, w)| b.pack_embedding(&Weight::f32(&[n, 4], &w[..])).unwrap());
        let (which, ids) = (b.ids(&[0, 1, 0, 1]).unwrap(), b.ids(&[5, 2, 0, 0]).unwrap());
        let mut out = b.alloc(4, 4).unwrap();
        b.embed(&[&tables[0], &tables[1]], &which, &ids, None, &mut out)
            .unwrap();
        values(b, &out)
    });
    agree!("embed of drawn ids", COPY, |b| {
        let table = b.pack_embedding(&Weight::f32(&[6, 4], &first[..])).unwrap();
        let (which, ids) = (b.ids(&[0, 0, 0]).unwrap(), b.ids(&[-3, 1, -1]).unwrap());
        let (drawn, mut out) = (b.ids(&[2, 0, 5]).unwrap(), b.alloc(3, 4).unwrap());
        b.embed(&[&table], &which, &ids, Some(&drawn), &mut out)
            .unwrap();
        values(b, &out)
    });
    let Some(cuda) = device(Precision::F32) else {
        return;
    };
    let table = cuda
        .pack_embedding(&Weight::f32(&[6, 4], &first[..]))
        .unwrap();
    let mut out = cuda.alloc(1, 4).unwrap();
    let (which, ids) = (cuda.ids(&[0]).unwrap(), cuda.ids(&[6]).unwrap());
    cuda.embed(&[&table], &which, &ids, None, &mut out).unwrap();
    assert!(
        values(&*cuda, &out).iter().all(|v| v.is_nan()),
        "no such row"
    );
}

/// What the vocoder keeps never becomes infinite, and a NaN is not hidden, whether host or device rounds.
#[test]
fn signals_saturate_and_keep_nan() {
    let Some(cuda) = device(Precision::Bf16) else {
        return;
    };
    let source = [1e6, -1e6, f32::NAN, 1.5, 65520.0, 2049.0];
    let mut uploaded = cuda.alloc_signal(1, 6).unwrap();
    cuda.upload(&source, &mut uploaded).unwrap();
    let (wide, mut copied) = (
        cuda.tensor(1, 6, &source).unwrap(),
        cuda.alloc_signal(1, 6).unwrap(),
    );
    cuda.copy_rows(&wide, 0, &mut copied, 0, 1).unwrap();
    for kept in [values(&*cuda, &uploaded), values(&*cuda, &copied)] {
        assert!(kept[2].is_nan());
        assert_eq!(kept[..2], [65504.0, -65504.0]);
        assert_eq!(kept[3..], [1.5, 65504.0, 2048.0]);
    }
}

/// The benchmarks' own kernels, small: they end, and what they measure is a number.
#[test]
fn limits_are_measured() {
    let Some(cuda) = device(Precision::Bf16) else {
        return;
    };
    let work = PeakWork {
        read_bytes: 16 * 1001,
        steps: 2,
    };
    let peaks = cuda.measure_peaks(work).unwrap();
    for rate in [peaks.read_bytes_per_s, peaks.mma_flops_per_s] {
        assert!(rate.is_finite() && rate > 0.0);
    }
}

#[test]
fn checked() {
    emulator::run_checked("cuda::memory::");
}
