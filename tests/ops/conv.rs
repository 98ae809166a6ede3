//! Convolutions of every geometry that the models use, and awkward ones.

use cosyvoice::backend::{Act, Conv, ConvGeom, Epilogue, Fidelity, Memory, Padding, Weight};
use cosyvoice::cpu::reference::{conv as reference, dense};
use cosyvoice::cpu::{Activation, Cpu, Store, WeightPrecision};
use cosyvoice::tensor::Segments;

use super::cases::values;
use super::{
    F32_BOUND, FIXED_BOUND, backends, bits, check, check_each, cpu_with, in_bf16, rounds_to_bf16,
    tensor,
};

const F32: WeightPrecision = WeightPrecision::F32;
const BF16: WeightPrecision = WeightPrecision::Bf16;

/// Bound on the NMSE of a convolution of [`Fidelity::Signal`]: with sums of two bf16, values and weights are off by some 2⁻¹⁸ of their sizes, and the
/// products of their low parts, as large, are left out.
const SIGNAL_BOUND: f64 = 2e-10;

/// Channels from which on AVX-512 multiplies 16-bit integers.
const LEAST_OF_INTEGERS: usize = 32;

/// Whether a convolution of so many channels a group is made of products of 16-bit integers where weights are rounded: of usual fidelity unless pairs of bf16
/// are multiplied, of [`Fidelity::Signal`] unless there are tile registers.
fn in_integers(cpu: &Cpu, channels: usize, groups: usize, fidelity: Fidelity) -> bool {
    let name = cpu.instructions();
    groups == 1
        && channels >= LEAST_OF_INTEGERS
        && name.contains("avx512")
        && match fidelity {
            Fidelity::Usual => !cpu.isa().multiplies_bf16(),
            Fidelity::Signal => !name.contains("amx"),
            Fidelity::Exact => false,
        }
}

/// A convolution over a batch of sequences.
struct Case {
    lengths: Vec<usize>,
    ci: usize,
    co: usize,
    kernel: usize,
    groups: usize,
    geom: ConvGeom,
    fidelity: Fidelity,
}

impl Case {
    fn out_lengths(&self) -> Vec<usize> {
        let rows = |&t: &usize| self.geom.output_rows(t, self.kernel);
        self.lengths.iter().map(rows).collect()
    }

    fn weights(&self) -> (Vec<f32>, Vec<f32>) {
        let n = self.co * self.ci / self.groups * self.kernel;
        (values(2, n), values(3, self.co))
    }

    fn input(&self) -> Vec<f32> {
        values(1, self.lengths.iter().sum::<usize>() * self.ci)
    }

    fn expected(&self, pre: Activation<'_>, store: Store<'_>, old: &[f32]) -> Vec<f32> {
        self.expected_of(<[f32]>::to_vec, pre, store, old)
    }

    /// With weights and activated inputs rounded.
    fn expected_of(
        &self,
        round: fn(&[f32]) -> Vec<f32>,
        pre: Activation<'_>,
        store: Store<'_>,
        old: &[f32],
    ) -> Vec<f32> {
        let (w, bias) = self.weights();
        let mut x = self.input();
        dense::activate(pre, &mut x, self.ci);
        let (w, x) = (round(&w), round(&x));
        let mut y = Vec::new();
        let mut first = 0;
        for (t, out) in self.lengths.iter().zip(self.out_lengths()) {
            let mut part = vec![0.0; out * self.co];
            let x = &x[first * self.ci..(first + t) * self.ci];
            let shape = (self.ci, self.co, self.groups);
            if out > 0 {
                reference::conv1d(
                    x,
                    shape.0,
                    &w,
                    shape.1,
                    shape.2,
                    Some(&bias),
                    &self.geom,
                    &mut part,
                );
            }
            y.extend(part);
            first += t;
        }
        let mut out = old.to_vec();
        dense::store(&y, self.co, store, &mut out);
        out
    }

    fn actual(
        &self,
        cpu: &Cpu,
        pre: Option<Act<'_, Cpu>>,
        ep: Epilogue<'_, Cpu>,
        old: &[f32],
    ) -> Vec<f32> {
        let (w, bias) = self.weights();
        let w = Weight::f32(&[self.co, self.ci / self.groups, self.kernel], w);
        let conv = cpu
            .pack_conv1d(
                &w,
                Some(&Weight::f32(&[self.co], bias)),
                self.groups,
                self.fidelity,
            )
            .unwrap();
        let segments = Segments::new(cpu, &self.lengths).unwrap();
        let out_segments = Segments::new(cpu, &self.out_lengths()).unwrap();
        let x = tensor(cpu, self.ci, &self.input());
        let mut out = tensor(cpu, self.co, old);
        cpu.conv1d(
            &x,
            &segments,
            &conv,
            self.geom,
            pre,
            ep,
            &mut out,
            &out_segments,
        )
        .unwrap();
        out.data().to_vec()
    }
}

/// Geometries: causal, dilated, strided, looking ahead, mirrored.
fn geometries(kernel: usize) -> Vec<ConvGeom> {
    let same = ConvGeom::same(kernel, 1);
    vec![
        ConvGeom::causal(kernel, 1),
        ConvGeom::causal(kernel, 2),
        ConvGeom::same(kernel, 3),
        ConvGeom {
            left: 0,
            right: kernel - 1,
            ..same
        },
        ConvGeom { stride: 2, ..same },
        ConvGeom {
            stride: 2,
            dilation: 3,
            left: 2 * kernel,
            right: kernel,
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
    for (ci, co, groups) in [
        (1, 1, 1),
        (5, 19, 1),
        (16, 16, 1),
        (24, 33, 1),
        (6, 9, 3),
        (66, 68, 2),
        (20, 20, 20),
        (37, 70, 1),
        (80, 16, 1),
        (130, 33, 1),
    ] {
        for kernel in [1, 3, 4, 7] {
            for geom in geometries(kernel) {
                let lengths = vec![11, 12, 40, 201];
                let mut case = Case {
                    lengths,
                    ci,
                    co,
                    kernel,
                    groups,
                    geom,
                    fidelity: Fidelity::Usual,
                };
                let old = vec![0.0; case.out_lengths().iter().sum::<usize>() * co];
                let expected = case.expected(Activation::LeakyRelu(1.0), Store::Set, &old);
                let what = format!("conv1d {ci}->{co} k {kernel} groups {groups} {geom:?}");
                check(&what, F32, F32_BOUND, &expected, |cpu| {
                    case.actual(cpu, None, Epilogue::None, &old)
                });
                // One channel per group is no product.
                let product = groups == 1 || ci / groups > 1;
                let none = Activation::LeakyRelu(1.0);
                let of_rounded = case.expected_of(in_bf16, none, Store::Set, &old);
                let unrounded = expected;
                let expected = |cpu: &Cpu| match product && rounds_to_bf16(cpu) {
                    true => of_rounded.clone(),
                    false => unrounded.clone(),
                };
                let bound = |fidelity, otherwise| {
                    move |cpu: &Cpu| match in_integers(cpu, ci, groups, fidelity) {
                        true => FIXED_BOUND,
                        false => otherwise,
                    }
                };
                let bounds = bound(case.fidelity, F32_BOUND);
                check_each(&what, BF16, bounds, expected, |cpu| {
                    case.actual(cpu, None, Epilogue::None, &old)
                });
                case.fidelity = Fidelity::Signal;
                let (bounds, expected) = (bound(case.fidelity, SIGNAL_BOUND), |_: &Cpu| {
                    unrounded.clone()
                });
                check_each(&what, BF16, bounds, expected, |cpu| {
                    case.actual(cpu, None, Epilogue::None, &old)
                });
            }
        }
    }
}

#[test]
fn conv1d_activates_before_and_adds_after() {
    for (c, groups, weights, bound) in [
        (12, 1, F32, F32_BOUND),
        (12, 12, F32, F32_BOUND),
        (45, 1, BF16, FIXED_BOUND),
    ] {
        let case = Case {
            lengths: vec![3, 50],
            ci: c,
            co: c,
            kernel: 3,
            groups,
            geom: ConvGeom::same(3, 2),
            fidelity: Fidelity::Signal,
        };
        let old = values(7, 53 * c);
        let alpha: Vec<f32> = values(8, c).iter().map(|v| v.abs() + 0.2).collect();
        let expected = case.expected(Activation::Snake(&alpha), Store::Accumulate, &old);
        check("snake, accumulate", weights, bound, &expected, |cpu| {
            let alpha = tensor(cpu, c, &alpha);
            case.actual(cpu, Some(Act::Snake(&alpha)), Epilogue::Accumulate, &old)
        });
        let expected = case.expected(Activation::LeakyRelu(0.1), Store::Add(&old), &old);
        check("leaky, add", weights, bound, &expected, |cpu| {
            let r = tensor(cpu, c, &old);
            case.actual(
                cpu,
                Some(Act::LeakyRelu(0.1)),
                Epilogue::Add(&r),
                &vec![0.0; old.len()],
            )
        });
        let expected = case.expected(Activation::Relu, Store::AccumulateScaled(0.25), &old);
        check("relu, scaled", weights, bound, &expected, |cpu| {
            case.actual(cpu, Some(Act::Relu), Epilogue::AccumulateScaled(0.25), &old)
        });
    }
}

#[test]
fn exact_convolution_is_the_plain_one() {
    let case = Case {
        lengths: vec![1, 9, 40],
        ci: 13,
        co: 21,
        kernel: 3,
        groups: 1,
        geom: ConvGeom::same(3, 1),
        fidelity: Fidelity::Usual,
    };
    let old = vec![0.0; 50 * 21];
    let expected = case.expected(
        Activation::LeakyRelu(1.0),
        Store::Act(Activation::Elu),
        &old,
    );
    check("exact", F32, 1e-14, &expected, |cpu| {
        let (w, bias) = case.weights();
        let (w, bias) = (Weight::f32(&[21, 13, 3], w), Weight::f32(&[21], bias));
        let conv = cpu
            .pack_conv1d(&w, Some(&bias), 1, Fidelity::Exact)
            .unwrap();
        let segments = Segments::new(cpu, &case.lengths).unwrap();
        let x = tensor(cpu, 13, &case.input());
        let mut out = tensor(cpu, 21, &old);
        let ep = Epilogue::Act(Act::Elu);
        cpu.conv1d(
            &x, &segments, &conv, case.geom, None, ep, &mut out, &segments,
        )
        .unwrap();
        out.data().to_vec()
    });
}

#[test]
fn conv_transpose1d_of_every_geometry() {
    for (ci, co) in [(1, 1), (7, 18), (32, 16), (136, 66)] {
        for (kernel, stride, padding) in [
            (16, 8, 4),
            (11, 5, 3),
            (7, 3, 2),
            (3, 1, 1),
            (4, 4, 0),
            (2, 3, 0),
        ] {
            let lengths = [1, 2, 30, 61];
            let rows = |&t: &usize| (t - 1) * stride + kernel - 2 * padding;
            let out_lengths: Vec<usize> = lengths.iter().map(rows).collect();
            let x = values(1, lengths.iter().sum::<usize>() * ci);
            let (w, bias) = (values(2, ci * co * kernel), values(3, co));
            let mut pre = x.clone();
            dense::activate(Activation::LeakyRelu(0.1), &mut pre, ci);
            let mut expected = Vec::new();
            let mut first = 0;
            for (t, out) in lengths.iter().zip(&out_lengths) {
                let mut part = vec![0.0; out * co];
                let x = &pre[first * ci..(first + t) * ci];
                reference::conv_transpose1d(x, ci, &w, co, Some(&bias), stride, padding, &mut part);
                expected.extend(part);
                first += t;
            }
            let what = format!("conv_transpose1d {ci}->{co} k {kernel} s {stride} p {padding}");
            let actual = |cpu: &Cpu| {
                let w = Weight::f32(&[ci, co, kernel], &w[..]);
                let bias = Weight::f32(&[co], &bias[..]);
                let conv = cpu
                    .pack_conv_transpose1d(&w, Some(&bias), stride, padding)
                    .unwrap();
                let segments = Segments::new(cpu, &lengths).unwrap();
                let out_segments = Segments::new(cpu, &out_lengths).unwrap();
                let mut out = cpu.alloc(out_segments.total(), co).unwrap();
                let pre = Some(Act::LeakyRelu(0.1));
                let x = tensor(cpu, ci, &x);
                cpu.conv_transpose1d(
                    &x,
                    &segments,
                    &conv,
                    pre,
                    Epilogue::None,
                    &mut out,
                    &out_segments,
                )
                .unwrap();
                out.data().to_vec()
            };
            check(&what, F32, F32_BOUND, &expected, actual);
            let bound = |cpu: &Cpu| match in_integers(cpu, ci, 1, Fidelity::Signal) {
                true => FIXED_BOUND,
                false => SIGNAL_BOUND,
            };
            check_each(&what, BF16, bound, |_| expected.clone(), actual);
        }
    }
}

#[test]
fn a_sequence_alone_equals_the_sequence_in_a_batch() {
    for (weights, ci) in [(F32, 24), (BF16, 24), (BF16, 150)] {
        alone_equals_in_a_batch(&cpu_with(2, weights), ci);
    }
}

fn alone_equals_in_a_batch(cpu: &Cpu, ci: usize) {
    for geom in geometries(3) {
        let run = |lengths: &[usize], skip: usize| {
            let w = Weight::f32(&[40, ci, 3], values(2, 40 * ci * 3));
            let conv = cpu.pack_conv1d(&w, None, 1, Fidelity::Usual).unwrap();
            let out_lengths: Vec<usize> = lengths.iter().map(|&t| geom.output_rows(t, 3)).collect();
            let segments = Segments::new(cpu, lengths).unwrap();
            let out_segments = Segments::new(cpu, &out_lengths).unwrap();
            let x = &values(1, 300 * ci)[skip * ci..][..segments.total() * ci];
            let mut out = cpu.alloc(out_segments.total(), 40).unwrap();
            let x = tensor(cpu, ci, x);
            cpu.conv1d(
                &x,
                &segments,
                &conv,
                geom,
                None,
                Epilogue::None,
                &mut out,
                &out_segments,
            )
            .unwrap();
            (out.data().to_vec(), out_segments)
        };
        let lengths = [5, 100, 7, 33];
        let (all, at) = run(&lengths, 0);
        let mut skip = 0;
        for (b, &t) in lengths.iter().enumerate() {
            let (alone, _) = run(&[t], skip);
            let range = at.range(b);
            assert_eq!(
                bits(&all[range.start * 40..range.end * 40]),
                bits(&alone),
                "{geom:?}"
            );
            skip += t;
        }
    }
}

#[test]
fn what_is_not_finite_spoils_what_reads_it() {
    let (t, ci, co, kernel, bad) = (40, 70, 20, 3, 17);
    for bad_value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for cpu in backends(BF16) {
            for geom in [ConvGeom::causal(kernel, 2), ConvGeom::same(kernel, 1)] {
                let w = Weight::f32(&[co, ci, kernel], values(2, co * ci * kernel));
                let conv = cpu.pack_conv1d(&w, None, 1, Fidelity::Signal).unwrap();
                let segments = Segments::new(&cpu, &[t]).unwrap();
                let mut x = values(1, t * ci);
                x[bad * ci + 3] = bad_value;
                let x = tensor(&cpu, ci, &x);
                let mut out = cpu.alloc(t, co).unwrap();
                let (ep, to) = (Epilogue::None, &mut out);
                cpu.conv1d(&x, &segments, &conv, geom, None, ep, to, &segments)
                    .unwrap();
                let reads = |row: usize, tap: usize| row + tap * geom.dilation == bad + geom.left;
                for (row, out) in out.data().chunks_exact(co).enumerate() {
                    let spoiled = (0..kernel).any(|tap| reads(row, tap));
                    let (name, finite) = (cpu.instructions(), out.iter().all(|v| v.is_finite()));
                    assert_eq!(finite, !spoiled, "{name}: row {row} of {geom:?}");
                }
            }
        }
    }
}
