//! Convolutions of every geometry that the models use, and awkward ones, on kernels of both precisions.

use cosyvoice::backend::{Act, Conv, ConvGeom, Epilogue, Fidelity, Memory, Padding, Weight};
use cosyvoice::cuda::Precision;
use cosyvoice::tensor::{Segments, Tensor};

use super::{Bounds, agree, device, values};
use crate::ops::cases::values as seeded;
use crate::support::emulator;

/// Operands rounded to bf16 once each, sums of up to a few hundred terms in f32.
const PRODUCT: Bounds = Bounds {
    f32: 1e-12,
    bf16: 1e-5,
};
/// The same where the activation before is rounded as well.
const ACTIVATED: Bounds = Bounds {
    f32: 1e-12,
    bf16: 2e-5,
};
/// The same of the vocoder's operands, which keep three more bits.
const SIGNAL: Bounds = Bounds {
    f32: 1e-12,
    bf16: 4e-7,
};
/// f32 operands and f64 sums in both precisions.
const EXACT: Bounds = Bounds {
    f32: 1e-14,
    bf16: 1e-14,
};

/// How a case's tensors are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    Usual,
    /// In f32 in either precision.
    Wide,
    /// As the vocoder keeps them; its weights too.
    Signal,
}

/// What is done before and after.
#[derive(Clone, Copy, Debug)]
enum Around {
    Nothing,
    SnakeAndAccumulate,
    LeakyAndAdd,
    TanhAndScaled,
    SiluAndElu,
}

/// A convolution over a batch of sequences.
#[derive(Clone, Debug)]
struct Case {
    lengths: Vec<usize>,
    ci: usize,
    co: usize,
    kernel: usize,
    groups: usize,
    geom: ConvGeom,
    around: Around,
    kept: Kept,
}

impl Case {
    fn new(lengths: &[usize], (ci, co): (usize, usize), kernel: usize, geom: ConvGeom) -> Self {
        Self {
            lengths: lengths.to_vec(),
            ci,
            co,
            kernel,
            groups: 1,
            geom,
            around: Around::Nothing,
            kept: Kept::Usual,
        }
    }

    fn weights(&self) -> (Weight<'static>, Weight<'static>) {
        let channels = self.ci / self.groups;
        let scale = ((channels * self.kernel) as f32).sqrt().recip();
        let w: Vec<f32> = seeded(2, self.co * channels * self.kernel);
        let w: Vec<f32> = w.iter().map(|v| v * scale).collect();
        (
            Weight::f32(&[self.co, channels, self.kernel], w),
            Weight::f32(&[self.co], seeded(3, self.co)),
        )
    }

    fn run<B: Conv>(&self, b: &B) -> Vec<f32> {
        let (w, bias) = self.weights();
        let fidelity = match self.kept {
            Kept::Signal => Fidelity::Signal,
            _ => Fidelity::Usual,
        };
        let conv = b
            .pack_conv1d(&w, Some(&bias), self.groups, fidelity)
            .unwrap();
        self.run_packed(b, &conv)
    }

    fn run_packed<B: Conv>(&self, b: &B, conv: &B::Conv1d) -> Vec<f32> {
        let segments = Segments::new(b, &self.lengths).unwrap();
        let rows = |&t: &usize| self.geom.output_rows(t, self.kernel);
        let out_lengths: Vec<usize> = self.lengths.iter().map(rows).collect();
        let to = Segments::new(b, &out_lengths).unwrap();
        let x = tensor(
            b,
            self.kept,
            self.ci,
            &seeded(1, segments.total() * self.ci),
        );
        let mut out = tensor(b, self.kept, self.co, &seeded(7, to.total() * self.co));
        around(
            b,
            (self.around, self.kept),
            self.ci,
            &[to.total(), self.co],
            |pre, ep| {
                b.conv1d(&x, &segments, conv, self.geom, pre, ep, &mut out, &to)
                    .unwrap();
            },
        );
        values(b, &out)
    }
}

/// Calls `op` with what comes before and after.
fn around<B: Conv>(
    b: &B,
    (which, kept): (Around, Kept),
    ci: usize,
    &[rows, co]: &[usize; 2],
    op: impl FnOnce(Option<Act<'_, B>>, Epilogue<'_, B>),
) {
    let alpha: Vec<f32> = seeded(8, ci).iter().map(|v| v.abs() + 0.2).collect();
    let alpha = b.tensor(1, ci, &alpha).unwrap();
    let residual = match kept {
        Kept::Signal => kept,
        _ => Kept::Usual,
    };
    let residual = tensor(b, residual, co, &seeded(9, rows * co));
    match which {
        Around::Nothing => op(None, Epilogue::None),
        Around::SnakeAndAccumulate => op(Some(Act::Snake(&alpha)), Epilogue::Accumulate),
        Around::LeakyAndAdd => op(Some(Act::LeakyRelu(0.1)), Epilogue::Add(&residual)),
        Around::TanhAndScaled => op(Some(Act::Tanh), Epilogue::AccumulateScaled(0.25)),
        Around::SiluAndElu => op(Some(Act::Silu), Epilogue::Act(Act::Elu)),
    }
}

fn tensor<B: Memory>(b: &B, kept: Kept, cols: usize, values: &[f32]) -> Tensor<B> {
    let rows = values.len() / cols;
    let mut t = match kept {
        Kept::Usual => b.alloc(rows, cols),
        Kept::Wide => b.alloc_f32(rows, cols),
        Kept::Signal => b.alloc_signal(rows, cols),
    }
    .unwrap();
    b.upload(values, &mut t).unwrap();
    t
}

/// Geometries: causal, dilated, strided, looking ahead, mirrored.
fn geometries(kernel: usize) -> Vec<ConvGeom> {
    let same = ConvGeom::same(kernel, 1);
    vec![
        ConvGeom::causal(kernel, 1),
        ConvGeom::same(kernel, 3),
        ConvGeom {
            left: 0,
            right: kernel - 1,
            ..same
        },
        ConvGeom {
            stride: 3,
            left: 1,
            right: kernel,
            ..same
        },
        ConvGeom {
            left: 1,
            right: 0,
            padding: Padding::Reflect,
            ..same
        },
    ]
}

#[test]
fn conv1d_of_every_geometry() {
    for (ci, co, groups) in [(1, 1, 1), (5, 19, 1), (40, 72, 1), (6, 9, 3), (20, 20, 20)] {
        for kernel in [1, 2, 4, 7] {
            for geom in geometries(kernel) {
                let mut case = Case::new(&[11, 70], (ci, co), kernel, geom);
                case.groups = groups;
                agree!(format!("{case:?}"), PRODUCT, |b| case.run(b));
            }
        }
    }
}

#[test]
fn conv1d_activates_before_and_adds_after() {
    for around in [
        Around::SnakeAndAccumulate,
        Around::LeakyAndAdd,
        Around::TanhAndScaled,
        Around::SiluAndElu,
    ] {
        for (ci, co, groups) in [(64, 64, 1), (12, 10, 1), (12, 12, 12)] {
            for (kept, bounds) in [
                (Kept::Usual, ACTIVATED),
                (Kept::Wide, ACTIVATED),
                (Kept::Signal, SIGNAL),
            ] {
                let mut case = Case::new(&[3, 50], (ci, co), 3, ConvGeom::same(3, 2));
                (case.around, case.groups, case.kept) = (around, groups, kept);
                agree!(format!("{case:?}"), bounds, |b| case.run(b));
            }
        }
    }
}

/// The vocoder's and the flow's own shapes, channels scaled down: what each tile and each way to read the input meets.
#[test]
fn conv1d_of_the_models_shapes() {
    let stride = |stride: usize| ConvGeom {
        stride,
        left: stride / 2,
        right: stride / 2,
        ..ConvGeom::same(1, 1)
    };
    for (lengths, channels, kernel, geom) in [
        (vec![300], (96, 128), 11, ConvGeom::same(11, 5)),
        (vec![140, 1, 129], (64, 64), 7, ConvGeom::same(7, 3)),
        (vec![400, 77], (18, 128), 30, stride(15)),
        (vec![90], (64, 18), 7, ConvGeom::same(7, 1)),
        (vec![260, 5], (80, 256), 3, ConvGeom::causal(3, 1)),
        (vec![30], (24, 24), 3, ConvGeom::same(3, 600)),
    ] {
        for (kept, bounds) in [(Kept::Usual, PRODUCT), (Kept::Signal, SIGNAL)] {
            let mut case = Case::new(&lengths, channels, kernel, geom);
            case.kept = kept;
            agree!(format!("{case:?}"), bounds, |b| case.run(b));
        }
    }
}

#[test]
fn exact_convolution_is_the_cpus() {
    for (ci, co) in [(13, 21), (80, 64), (40, 1)] {
        let mut case = Case::new(&[1, 9, 40], (ci, co), 3, ConvGeom::same(3, 1));
        case.kept = Kept::Wide;
        agree!(format!("exact {ci}->{co}"), EXACT, |b| {
            let (w, bias) = case.weights();
            case.run_packed(
                b,
                &b.pack_conv1d(&w, Some(&bias), 1, Fidelity::Exact).unwrap(),
            )
        });
    }
}

#[test]
fn conv_transpose1d_of_every_geometry() {
    for (ci, co) in [(1, 1), (7, 18), (64, 72)] {
        for (kernel, stride, padding) in [
            (16, 8, 4),
            (11, 5, 3),
            (7, 3, 2),
            (3, 1, 1),
            (4, 4, 0),
            (2, 3, 0),
        ] {
            let lengths = [1, 2, 30, 61];
            let rows = |t: usize| (t - 1) * stride + kernel - 2 * padding;
            let scale = ((ci * kernel.div_ceil(stride)) as f32).sqrt().recip();
            let w: Vec<f32> = seeded(2, ci * co * kernel)
                .iter()
                .map(|v| v * scale)
                .collect();
            let what = format!("conv_transpose1d {ci}->{co} k {kernel} s {stride} p {padding}");
            agree!(what, SIGNAL, |b| {
                let conv = b
                    .pack_conv_transpose1d(
                        &Weight::f32(&[ci, co, kernel], &w[..]),
                        Some(&Weight::f32(&[co], seeded(3, co))),
                        stride,
                        padding,
                    )
                    .unwrap();
                let segments = Segments::new(b, &lengths).unwrap();
                let to = Segments::new(b, &lengths.map(rows)).unwrap();
                let x = tensor(b, Kept::Signal, ci, &seeded(1, segments.total() * ci));
                let mut out = tensor(b, Kept::Signal, co, &seeded(7, to.total() * co));
                around(
                    b,
                    (Around::LeakyAndAdd, Kept::Signal),
                    ci,
                    &[to.total(), co],
                    |pre, ep| {
                        b.conv_transpose1d(&x, &segments, &conv, pre, ep, &mut out, &to)
                            .unwrap();
                    },
                );
                values(b, &out)
            });
        }
    }
}

#[test]
fn a_sequence_alone_equals_the_sequence_in_a_batch() {
    for (precision, kept, fidelity) in [
        (Precision::Bf16, Kept::Usual, Fidelity::Usual),
        (Precision::Bf16, Kept::Signal, Fidelity::Signal),
        (Precision::F32, Kept::Usual, Fidelity::Usual),
    ] {
        let Some(cuda) = device(precision) else {
            return;
        };
        let (w, bias) = Case::new(&[1], (40, 128), 3, ConvGeom::causal(3, 1)).weights();
        let conv = cuda.pack_conv1d(&w, Some(&bias), 1, fidelity).unwrap();
        for geom in geometries(3) {
            let run = |lengths: &[usize], skip: usize| {
                let out_lengths: Vec<usize> =
                    lengths.iter().map(|&t| geom.output_rows(t, 3)).collect();
                let segments = Segments::new(&*cuda, lengths).unwrap();
                let to = Segments::new(&*cuda, &out_lengths).unwrap();
                let x = &seeded(1, 700 * 40)[skip * 40..][..segments.total() * 40];
                let x = tensor(&*cuda, kept, 40, x);
                let mut out = cuda.alloc_f32(to.total(), 128).unwrap();
                cuda.conv1d(
                    &x,
                    &segments,
                    &conv,
                    geom,
                    None,
                    Epilogue::None,
                    &mut out,
                    &to,
                )
                .unwrap();
                (values(&*cuda, &out), to)
            };
            // Together they get large tiles, alone the smallest.
            let lengths = [5, 500, 7, 129];
            let (all, at) = run(&lengths, 0);
            let mut skip = 0;
            for (b, &t) in lengths.iter().enumerate() {
                let (alone, _) = run(&[t], skip);
                let range = at.range(b);
                assert!(
                    all[range.start * 128..range.end * 128] == alone[..],
                    "{precision:?} {fidelity:?} {geom:?} sequence {b}"
                );
                skip += t;
            }
        }
    }
}

#[test]
fn left_context_gives_the_rows_of_the_whole_run() {
    let Some(cuda) = device(Precision::Bf16) else {
        return;
    };
    let geom = ConvGeom::causal(5, 2);
    let case = Case::new(&[1], (40, 48), 5, geom);
    let (w, bias) = case.weights();
    let conv = cuda
        .pack_conv1d(&w, Some(&bias), 1, Fidelity::Usual)
        .unwrap();
    let x = seeded(1, 200 * 40);
    let run = |first: usize| {
        let n = 200 - first;
        let segments = Segments::new(&*cuda, &[n]).unwrap();
        let x = tensor(&*cuda, Kept::Usual, 40, &x[first * 40..]);
        let mut out = cuda.alloc_f32(n, 48).unwrap();
        cuda.conv1d(
            &x,
            &segments,
            &conv,
            geom,
            None,
            Epilogue::None,
            &mut out,
            &segments,
        )
        .unwrap();
        values(&*cuda, &out)
    };
    let (whole, part) = (run(0), run(111));
    assert!(whole[(111 + geom.left) * 48..] == part[geom.left * 48..]);
}

#[test]
fn checked() {
    emulator::run_checked("cuda::conv::");
}
