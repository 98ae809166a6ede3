//! Linear layers of every kernel family with every epilogue, activations, `axpby`; rows alone against rows in a batch.
//!
//! On a device that has Hopper's instructions, and the emulated one has them, small weights are multiplied by wgmma; the same device
//! `without_hopper` covers the kernels of all the others.

use cosyvoice::backend::{Act, Dense, Epilogue, Memory, Weight};
use cosyvoice::cuda::{Cuda, Precision};
use cosyvoice::tensor::Tensor;

use super::{Bounds, agree, compare, cpu, device, values};
use crate::ops::cases::{LINEARS, values as seeded};
use crate::support::emulator;

/// Sums of up to a few thousand f32 terms; operands and outputs rounded to bf16.
const PRODUCTS: Bounds = Bounds {
    f32: 1e-12,
    bf16: 3e-5,
};
/// A product of two of them, each rounded factor of which counts where there is one element alone.
const GATED: Bounds = Bounds {
    f32: 1e-12,
    bf16: 1e-4,
};
/// Element-wise arithmetic on values rounded to bf16 before and after.
const ELEMENTS: Bounds = Bounds {
    f32: 1e-12,
    bf16: 2e-5,
};

/// `(M, K)` in whole 16-byte rows: within a tile, over its edges, with K that is no multiple of a step.
const ALIGNED: [(usize, usize); 4] = [(40, 72), (80, 320), (129, 264), (264, 64)];
/// Weights whose sums are segmented: seven segments and eight, a last one that is shorter, and few tiles to share.
const STREAMED: [(usize, usize); 3] = [(1024, 512), (600, 904), (128, 4096)];

/// Row counts around the tile heights 8, 16, 64 and 128.
fn rows() -> &'static [usize] {
    if emulator::checking() {
        &[1, 9, 70]
    } else {
        &[1, 8, 9, 16, 17, 64, 130]
    }
}

/// Sizes of weights; under the checks, which are slow, one of each kind.
fn weights() -> Vec<(usize, usize)> {
    if emulator::checking() {
        return vec![(17, 255), (129, 264)];
    }
    LINEARS.into_iter().chain(ALIGNED).collect()
}

/// A tensor in the backend's activation precision.
fn activations<B: Memory>(b: &B, n: usize, c: usize, x: &[f32]) -> Tensor<B> {
    let mut t = b.alloc(n, c).unwrap();
    b.upload(x, &mut t).unwrap();
    t
}

/// `agree!`, and once more without Hopper's instructions.
macro_rules! agree_on_all {
    ($what:expr, $bounds:expr, |$b:ident| $body:expr) => {{
        agree!($what, $bounds, |$b| $body);
        if let Some(device) = device(Precision::Bf16) {
            let expected: Vec<f32> = {
                let $b = &cpu();
                $body
            };
            let device = device.without_hopper();
            let $b = &*device;
            compare(
                &format!("{} without Hopper", $what),
                Precision::Bf16,
                $bounds,
                &$body,
                &expected,
            );
        }
    }};
}

struct Case {
    n: usize,
    m: usize,
    k: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    old: Vec<f32>,
}

impl Case {
    fn new(n: usize, m: usize, k: usize) -> Self {
        Self {
            n,
            m,
            k,
            x: seeded(1, n * k),
            w: seeded(2, m * k),
            bias: seeded(3, m),
            old: seeded(4, n * m),
        }
    }

    fn run<B: Dense>(&self, b: &B, ep: Epilogue<'_, B>) -> Vec<f32> {
        let w = Weight::f32(&[self.m, self.k], &self.w[..]);
        let bias = Weight::f32(&[self.m], &self.bias[..]);
        let linear = b.pack_linear(&w, Some(&bias)).unwrap();
        let mut out = activations(b, self.n, self.m, &self.old);
        let x = activations(b, self.n, self.k, &self.x);
        b.linear(&x, &linear, ep, &mut out).unwrap();
        values(b, &out)
    }
}

#[test]
fn linears_of_every_size() {
    for (m, k) in weights() {
        for &n in rows() {
            let case = Case::new(n, m, k);
            agree_on_all!(format!("linear {n}x{m}x{k}"), PRODUCTS, |b| case
                .run(b, Epilogue::None));
        }
    }
}

#[test]
fn large_weights_in_segments() {
    for (m, k) in STREAMED {
        for &n in rows() {
            let case = Case::new(n, m, k);
            agree!(format!("linear {n}x{m}x{k}"), PRODUCTS, |b| case
                .run(b, Epilogue::None));
        }
    }
}

#[test]
fn every_epilogue() {
    let shapes = [
        (1, 40, 33),
        (7, 33, 304),
        (50, 16, 24),
        (130, 264, 72),
        (3, 1024, 512),
        (20, 128, 4096),
    ];
    // Under the checks, which are slow, every second.
    let step = if emulator::checking() { 2 } else { 1 };
    for (n, m, k) in shapes.into_iter().step_by(step) {
        let case = Case::new(n, m, k);
        let r = seeded(5, n * m);
        let alpha: Vec<f32> = seeded(6, m).iter().map(|v| v.abs() + 0.1).collect();
        let what = |ep: &str| format!("{ep} {n}x{m}x{k}");
        agree_on_all!(what("add"), PRODUCTS, |b| {
            let r = activations(b, n, m, &r);
            case.run(b, Epilogue::Add(&r))
        });
        agree_on_all!(what("add f32"), PRODUCTS, |b| {
            let r = b.tensor(n, m, &r).unwrap();
            case.run(b, Epilogue::Add(&r))
        });
        agree_on_all!(what("accumulate"), PRODUCTS, |b| case
            .run(b, Epilogue::Accumulate));
        agree_on_all!(what("accumulate scaled"), PRODUCTS, |b| {
            case.run(b, Epilogue::AccumulateScaled(0.3))
        });
        agree_on_all!(what("gelu"), PRODUCTS, |b| case
            .run(b, Epilogue::Act(Act::Gelu)));
        agree_on_all!(what("leaky"), PRODUCTS, |b| {
            case.run(b, Epilogue::Act(Act::LeakyRelu(0.1)))
        });
        agree_on_all!(what("snake"), PRODUCTS, |b| {
            let alpha = b.tensor(1, m, &alpha).unwrap();
            case.run(b, Epilogue::Act(Act::Snake(&alpha)))
        });
    }
}

#[test]
fn gated_mlps_of_every_size() {
    for (m, k) in weights().into_iter().chain([(520, 512)]) {
        for &n in rows() {
            let x = seeded(1, n * k);
            let (gate, up) = (seeded(2, m * k), seeded(3, m * k));
            agree_on_all!(format!("gated {n}x{m}x{k}"), GATED, |b| {
                let (gate, up) = (
                    Weight::f32(&[m, k], &gate[..]),
                    Weight::f32(&[m, k], &up[..]),
                );
                let linear = b.pack_gate_up(&gate, &up).unwrap();
                let mut out = b.alloc(n, m).unwrap();
                b.linear(
                    &activations(b, n, k, &x),
                    &linear,
                    Epilogue::SiluMul,
                    &mut out,
                )
                .unwrap();
                values(b, &out)
            });
        }
    }
}

#[test]
fn several_linears_and_other_dtypes() {
    let (n, k) = (5, 24);
    let x = seeded(1, n * k);
    let weights: Vec<Weight<'_>> = [(17, 2), (3, 3)]
        .map(|(m, seed)| Weight::f32(&[m, k], seeded(seed, m * k)))
        .to_vec();
    let int8 = Weight {
        shape: vec![40, k],
        data: cosyvoice::backend::weight::WeightData::I8 {
            q: (0..40 * k).map(|i| (i * 37 % 255) as i8).collect(),
            scale: seeded(7, 40).iter().map(|v| v.abs() / 100.0).collect(),
        },
    };
    let bias = Weight::f32(&[3], seeded(9, 3));
    agree_on_all!("linears", PRODUCTS, |b| {
        let parts = [
            (&weights[0], None),
            (&weights[1], Some(&bias)),
            (&int8, None),
        ];
        let linear = b.pack_linears(&parts).unwrap();
        // f32 activations and outputs beside the backend's.
        let mut precise = b.alloc_f32(n, 60).unwrap();
        b.linear(
            &b.tensor(n, k, &x).unwrap(),
            &linear,
            Epilogue::None,
            &mut precise,
        )
        .unwrap();
        let mut mixed = b.alloc_f32(n, 60).unwrap();
        b.linear(
            &activations(b, n, k, &x),
            &linear,
            Epilogue::None,
            &mut mixed,
        )
        .unwrap();
        [values(b, &precise), values(b, &mixed)].concat()
    });
}

/// The product of some rows, as bits.
fn product(cuda: &Cuda, w: &<Cuda as Dense>::Linear, x: &[f32], k: usize, m: usize) -> Vec<u32> {
    let n = x.len() / k;
    let mut out = cuda.alloc_f32(n, m).unwrap();
    cuda.linear(&activations(cuda, n, k, x), w, Epilogue::None, &mut out)
        .unwrap();
    values(cuda, &out).iter().map(|v| v.to_bits()).collect()
}

/// Every kernel that a weight's products may take gives a row the same bits.
fn rows_are_alone(cuda: &Cuda, (m, k): (usize, usize)) {
    let most = if emulator::checking() { 70 } else { 200 };
    let w = Weight::f32(&[m, k], seeded(2, m * k));
    let linear = cuda.pack_linear(&w, None).unwrap();
    let x = seeded(1, most * k);
    let all = product(cuda, &linear, &x, k, m);
    for (first, rows) in [
        (0, 1),
        (most - 1, 1),
        (3, 2),
        (50, 8),
        (31, 9),
        (20, 16),
        (9, 17),
        (2, 65),
    ] {
        let some = product(cuda, &linear, &x[first * k..(first + rows) * k], k, m);
        assert!(
            some == all[first * m..(first + rows) * m],
            "{m}x{k}: rows {first}+{rows}"
        );
    }
}

#[test]
fn a_row_alone_equals_the_row_in_a_batch() {
    for shape in [
        (61, 304),
        (61, 305),
        (264, 64),
        (1024, 512),
        (600, 904),
        (128, 4096),
    ] {
        for precision in [Precision::F32, Precision::Bf16] {
            let Some(cuda) = device(precision) else {
                return;
            };
            // Plain f32 knows one kernel: the large weights would only take time.
            if precision == Precision::Bf16 || shape.0 * shape.1 < 1 << 16 {
                rows_are_alone(&cuda, shape);
                rows_are_alone(&cuda.without_hopper(), shape);
            }
        }
    }
}

#[test]
fn activations_in_place() {
    for (n, c) in [(37, 19), (5, 24)] {
        let x: Vec<f32> = seeded(1, n * c).iter().map(|v| v * 8.0).collect();
        let alpha: Vec<f32> = seeded(6, c).iter().map(|v| v.abs() + 0.1).collect();
        macro_rules! check {
            ($($act:expr),*) => {$(
                agree!(format!("{} {n}x{c}", stringify!($act)), ELEMENTS, |b| {
                    let mut t = activations(b, n, c, &x);
                    b.activate($act, &mut t).unwrap();
                    values(b, &t)
                });
            )*};
        }
        check!(
            Act::Relu,
            Act::Gelu,
            Act::GeluTanh,
            Act::Silu,
            Act::Mish,
            Act::Elu,
            Act::Tanh,
            Act::Sigmoid,
            Act::Abs,
            Act::LeakyRelu(0.01)
        );
        agree!(format!("snake {n}x{c}"), ELEMENTS, |b| {
            let (mut t, alpha) = (activations(b, n, c, &x), b.tensor(1, c, &alpha).unwrap());
            b.activate(Act::Snake(&alpha), &mut t).unwrap();
            values(b, &t)
        });
    }
}

#[test]
fn axpby_scales_and_adds() {
    for (n, c) in [(30, 20), (7, 3), (1, 5)] {
        let (x, y) = (seeded(1, n * c), seeded(2, n * c));
        agree!(format!("axpby {n}x{c}"), ELEMENTS, |b| {
            let mut out = activations(b, n, c, &y);
            b.axpby(0.5, &b.tensor(n, c, &x).unwrap(), -2.0, &mut out)
                .unwrap();
            values(b, &out)
        });
    }
}

#[test]
fn checked() {
    emulator::run_checked("cuda::dense::");
}
