//! Linear layers with every epilogue and weight precision, activations, `axpby`.

use cosyvoice::backend::{Act, Dense, Epilogue, Memory, Weight};
use cosyvoice::cpu::reference::dense as reference;
use cosyvoice::cpu::{Activation, Cpu, Store, WeightPrecision};
use cosyvoice::tensor::Tensor;

use super::cases::{LINEARS, ROWS, values};
use super::{
    F32_BOUND, backends, bf16_bound, bits, check, check_each, cpu, in_bf16, rounds_to_bf16, tensor,
};
use crate::support::metrics::nmse;

const PRECISIONS: [WeightPrecision; 3] = [
    WeightPrecision::F32,
    WeightPrecision::Bf16,
    WeightPrecision::Int8,
];

/// Bound on the NMSE of a product. With int8 weights its input is rounded too, to steps of 1 / 127 of the largest value of a stretch: for evenly spread
/// values that is an NMSE of 3 / (12 · 127²) = 1.55e-5, of a few products up to twice that, which the reference does not have.
fn bound(cpu: &Cpu, precision: WeightPrecision) -> f64 {
    match precision {
        WeightPrecision::F32 => F32_BOUND,
        WeightPrecision::Bf16 => bf16_bound(cpu),
        WeightPrecision::Int8 => 5e-5,
    }
}

/// The weight as a precision holds it: what the reference multiplies by.
fn rounded(w: &[f32], k: usize, precision: WeightPrecision) -> Vec<f32> {
    match precision {
        WeightPrecision::F32 => w.to_vec(),
        WeightPrecision::Bf16 => in_bf16(w),
        WeightPrecision::Int8 => w
            .chunks(k)
            .flat_map(|row| {
                let scale = row.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
                row.iter()
                    .map(move |v| (v / scale).round_ties_even() * scale)
            })
            .collect(),
    }
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
            x: values(1, n * k),
            w: values(2, m * k),
            bias: values(3, m),
            old: values(4, n * m),
        }
    }

    fn expected(&self, precision: WeightPrecision, ep: Store<'_>) -> Vec<f32> {
        self.expected_of(&self.x, precision, ep)
    }

    /// With other inputs.
    fn expected_of(&self, x: &[f32], precision: WeightPrecision, ep: Store<'_>) -> Vec<f32> {
        let mut y = vec![0.0; self.n * self.m];
        let w = rounded(&self.w, self.k, precision);
        reference::linear(x, &w, Some(&self.bias), self.k, &mut y);
        let mut out = self.old.clone();
        reference::store(&y, self.m, ep, &mut out);
        out
    }

    fn actual(
        &self,
        cpu: &Cpu,
        ep: impl for<'a> Fn(&'a Tensor<Cpu>) -> Epilogue<'a, Cpu>,
        r: &[f32],
    ) -> Vec<f32> {
        let w = Weight::f32(&[self.m, self.k], &self.w[..]);
        let bias = Weight::f32(&[self.m], &self.bias[..]);
        let linear = cpu.pack_linear(&w, Some(&bias)).unwrap();
        let mut out = tensor(cpu, self.m, &self.old);
        let r = tensor(cpu, self.m, r);
        cpu.linear(&tensor(cpu, self.k, &self.x), &linear, ep(&r), &mut out)
            .unwrap();
        out.data().to_vec()
    }
}

#[test]
fn linear_of_every_size_and_precision() {
    for (m, k) in LINEARS {
        for n in ROWS {
            let case = Case::new(n, m, k);
            for precision in PRECISIONS {
                let plain = case.expected(precision, Store::Set);
                let of_rounded = case.expected_of(&in_bf16(&case.x), precision, Store::Set);
                let expected = |cpu: &Cpu| match rounds_to_bf16(cpu) {
                    true => of_rounded.clone(),
                    false => plain.clone(),
                };
                let what = format!("linear {n}x{m}x{k} {precision:?}");
                check_each(
                    &what,
                    precision,
                    |cpu| bound(cpu, precision),
                    expected,
                    |cpu| case.actual(cpu, |_| Epilogue::None, &case.old),
                );
            }
        }
    }
}

#[test]
fn linear_with_every_epilogue() {
    for (n, m, k) in [(1, 40, 33), (7, 33, 300), (50, 16, 20)] {
        let case = Case::new(n, m, k);
        let r = values(5, n * m);
        let alpha: Vec<f32> = values(6, m).iter().map(|v| v.abs() + 0.1).collect();
        let run = |what: &str, store: Store<'_>, ep: fn(&Tensor<Cpu>) -> Epilogue<'_, Cpu>| {
            let expected = case.expected(WeightPrecision::F32, store);
            let what = format!("{what} {n}x{m}x{k}");
            check(&what, WeightPrecision::F32, F32_BOUND, &expected, |cpu| {
                case.actual(cpu, ep, &r)
            });
        };
        run("add", Store::Add(&r), |r| Epilogue::Add(r));
        run("accumulate", Store::Accumulate, |_| Epilogue::Accumulate);
        run("scaled", Store::AccumulateScaled(0.3), |_| {
            Epilogue::AccumulateScaled(0.3)
        });
        run("gelu", Store::Act(Activation::Gelu), |_| {
            Epilogue::Act(Act::Gelu)
        });
        run("mish", Store::Act(Activation::Mish), |_| {
            Epilogue::Act(Act::Mish)
        });
        let expected = case.expected(WeightPrecision::F32, Store::Act(Activation::Snake(&alpha)));
        check("snake", WeightPrecision::F32, F32_BOUND, &expected, |cpu| {
            let alpha = tensor(cpu, m, &alpha);
            let w = Weight::f32(&[m, k], &case.w[..]);
            let bias = Weight::f32(&[m], &case.bias[..]);
            let linear = cpu.pack_linear(&w, Some(&bias)).unwrap();
            let mut out = tensor(cpu, m, &case.old);
            let ep = Epilogue::Act(Act::Snake(&alpha));
            cpu.linear(&tensor(cpu, k, &case.x), &linear, ep, &mut out)
                .unwrap();
            out.data().to_vec()
        });
    }
}

#[test]
fn gated_mlp_of_every_size() {
    for (m, k) in LINEARS {
        for n in ROWS {
            let x = values(1, n * k);
            let (gate, up) = (values(2, m * k), values(3, m * k));
            let (mut y, mut expected) = (vec![0.0; n * 2 * m], vec![0.0; n * m]);
            reference::linear(&x, &[&gate[..], &up[..]].concat(), None, k, &mut y);
            reference::store(&y, 2 * m, Store::SiluMul, &mut expected);
            let what = format!("gated {n}x{m}x{k}");
            check(&what, WeightPrecision::F32, F32_BOUND, &expected, |cpu| {
                let gate = Weight::f32(&[m, k], &gate[..]);
                let up = Weight::f32(&[m, k], &up[..]);
                let linear = cpu.pack_gate_up(&gate, &up).unwrap();
                let mut out = tensor(cpu, m, &vec![0.0; n * m]);
                cpu.linear(&tensor(cpu, k, &x), &linear, Epilogue::SiluMul, &mut out)
                    .unwrap();
                out.data().to_vec()
            });
        }
    }
}

#[test]
fn packed_linears_are_their_parts_side_by_side() {
    let (cpu, k) = (cpu(), 24);
    let x = tensor(&cpu, k, &values(1, 5 * k));
    let parts: Vec<(usize, Vec<f32>)> = [(17, 2), (3, 3), (40, 4)]
        .map(|(m, seed)| (m, values(seed, m * k)))
        .to_vec();
    let weights: Vec<Weight<'_>> = parts
        .iter()
        .map(|(m, w)| Weight::f32(&[*m, k], &w[..]))
        .collect();
    let bias = Weight::f32(&[3], values(9, 3));
    let together = cpu
        .pack_linears(&[
            (&weights[0], None),
            (&weights[1], Some(&bias)),
            (&weights[2], None),
        ])
        .unwrap();
    let mut all = tensor(&cpu, 60, &[0.0; 300]);
    cpu.linear(&x, &together, Epilogue::None, &mut all).unwrap();
    let mut first = 0;
    for (i, (m, _)) in parts.iter().enumerate() {
        let linear = cpu
            .pack_linear(&weights[i], (i == 1).then_some(&bias))
            .unwrap();
        let mut out = tensor(&cpu, *m, &vec![0.0; 5 * m]);
        cpu.linear(&x, &linear, Epilogue::None, &mut out).unwrap();
        for (all, part) in all.data().chunks(60).zip(out.data().chunks(*m)) {
            assert_eq!(bits(&all[first..first + m]), bits(part));
        }
        first += m;
    }
}

#[test]
fn a_row_alone_equals_the_row_in_a_batch() {
    for precision in PRECISIONS {
        let cpu = super::cpu_with(2, precision);
        for (m, k) in [(61, 300), (896, 64), (17, 5001)] {
            let w = values(2, m * k);
            let linear = cpu.pack_linear(&Weight::f32(&[m, k], w), None).unwrap();
            let x = values(1, 101 * k);
            let mut all = tensor(&cpu, m, &vec![0.0; 101 * m]);
            cpu.linear(&tensor(&cpu, k, &x), &linear, Epilogue::None, &mut all)
                .unwrap();
            // Of every kind of tile: up to 6 rows, to 12, to 16, and several.
            for (first, rows) in [
                (0, 1),
                (100, 1),
                (3, 2),
                (50, 3),
                (9, 4),
                (95, 6),
                (0, 7),
                (20, 11),
                (89, 12),
                (30, 13),
                (85, 16),
                (60, 17),
                (1, 50),
            ] {
                let mut out = tensor(&cpu, m, &vec![0.0; rows * m]);
                let x = tensor(&cpu, k, &x[first * k..(first + rows) * k]);
                cpu.linear(&x, &linear, Epilogue::None, &mut out).unwrap();
                let expected = &all.data()[first * m..(first + rows) * m];
                assert_eq!(
                    bits(out.data()),
                    bits(expected),
                    "{precision:?} {first}+{rows}"
                );
            }
        }
    }
}

#[test]
fn products_in_integers_are_the_same_with_all_instructions_and_threads() {
    for ((m, k), n) in LINEARS.into_iter().flat_map(|l| ROWS.map(|n| (l, n))) {
        for precision in [WeightPrecision::Int8, WeightPrecision::Bf16] {
            let case = Case::new(n, m, k);
            let mut first = None;
            let mut all = backends(precision);
            all.retain(|cpu| precision == WeightPrecision::Int8 || !cpu.isa().multiplies_bf16());
            for cpu in all {
                let actual = bits(&case.actual(&cpu, |_| Epilogue::None, &case.old));
                let (threads, name) = (cpu.options().threads, cpu.instructions());
                assert!(
                    *first.get_or_insert_with(|| actual.clone()) == actual,
                    "{precision:?} {n}x{m}x{k}: {threads} threads or {name} change the result"
                );
            }
        }
    }
}

#[test]
fn int8_products_of_rows_of_all_magnitudes() {
    let (m, k) = (33, 700);
    let magnitudes = [1.0, 0.0, 1e-33, 1e-20, 1e30, 1.0];
    let mut bounds = [bound(&cpu(), WeightPrecision::Int8); 6];
    let mut case = Case::new(magnitudes.len(), m, k);
    case.bias.fill(0.0);
    for (row, magnitude) in case.x.chunks_mut(k).zip(magnitudes) {
        row.iter_mut().for_each(|v| *v *= magnitude);
    }
    // One value far above the rest of its stretch of 128, all of which is lost below half of its steps of 5e3 / 127.
    case.x[5 * k + 300] = 5e3;
    bounds[5] = 5e-6;
    let expected = case.expected(WeightPrecision::Int8, Store::Set);
    for cpu in backends(WeightPrecision::Int8) {
        let actual = case.actual(&cpu, |_| Epilogue::None, &case.old);
        let rows = actual.chunks(m).zip(expected.chunks(m));
        for (((actual, expected), magnitude), bound) in rows.zip(magnitudes).zip(bounds) {
            if magnitude == 0.0 {
                assert_eq!(actual, expected);
                continue;
            }
            // Brought to about one, so that the squares neither vanish nor overflow.
            let [actual, expected] =
                [actual, expected].map(|y| y.iter().map(|v| v / magnitude).collect::<Vec<_>>());
            let error = nmse(&actual, &expected);
            assert!(error <= bound, "{magnitude:e}: {error:e} > {bound:e}");
        }
    }
}

#[test]
fn a_row_that_is_not_finite_stays_so_and_alone() {
    let (n, m, k) = (8, 20, 300);
    for precision in PRECISIONS {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut case = Case::new(n, m, k);
            for cpu in backends(precision) {
                case.x = values(1, n * k);
                let sound = case.actual(&cpu, |_| Epilogue::None, &case.old);
                case.x[3 * k + 270] = bad;
                let actual = case.actual(&cpu, |_| Epilogue::None, &case.old);
                for (row, (a, s)) in actual.chunks(m).zip(sound.chunks(m)).enumerate() {
                    if row == 3 {
                        assert!(a.iter().all(|v| !v.is_finite()), "{precision:?} {bad}");
                    } else {
                        assert_eq!(bits(a), bits(s), "{precision:?} {bad} row {row}");
                    }
                }
            }
        }
    }
}

#[test]
fn two_layers_are_one_after_the_other() {
    let (k, m) = (40, 72);
    let (up, down) = (values(2, m * k), values(3, k * m));
    for precision in PRECISIONS {
        for n in [1, 31, 64, 65, 200] {
            let (x, old) = (values(1, n * k), values(4, n * k));
            for cpu in backends(precision) {
                let up = cpu
                    .pack_linear(&Weight::f32(&[m, k], &up[..]), None)
                    .unwrap();
                let down = cpu
                    .pack_linear(&Weight::f32(&[k, m], &down[..]), None)
                    .unwrap();
                let x = tensor(&cpu, k, &x);
                let (mut expected, mut actual) = (tensor(&cpu, k, &old), tensor(&cpu, k, &old));
                let mut hidden = cpu.alloc(n, m).unwrap();
                let gelu = Epilogue::Act(Act::Gelu);
                cpu.linear(&x, &up, gelu, &mut hidden).unwrap();
                cpu.linear(&hidden, &down, Epilogue::Accumulate, &mut expected)
                    .unwrap();
                cpu.feed_forward(&x, &up, Act::Gelu, &down, &mut hidden, &mut actual)
                    .unwrap();
                let name = cpu.instructions();
                assert_eq!(
                    bits(actual.data()),
                    bits(expected.data()),
                    "{precision:?} {n} {name}"
                );
            }
        }
    }
}

#[test]
fn activations_in_place() {
    let (n, c) = (37, 19);
    let x: Vec<f32> = values(1, n * c).iter().map(|v| v * 8.0).collect();
    let acts: [(Activation<'_>, Act<'_, Cpu>); 9] = [
        (Activation::Relu, Act::Relu),
        (Activation::Gelu, Act::Gelu),
        (Activation::GeluTanh, Act::GeluTanh),
        (Activation::Silu, Act::Silu),
        (Activation::Mish, Act::Mish),
        (Activation::Elu, Act::Elu),
        (Activation::Tanh, Act::Tanh),
        (Activation::Sigmoid, Act::Sigmoid),
        (Activation::LeakyRelu(0.01), Act::LeakyRelu(0.01)),
    ];
    for (host, act) in acts {
        let mut expected = x.clone();
        reference::activate(host, &mut expected, c);
        check(
            &format!("{host:?}"),
            WeightPrecision::F32,
            F32_BOUND,
            &expected,
            |cpu| {
                let mut x = tensor(cpu, c, &x);
                cpu.activate(act, &mut x).unwrap();
                x.data().to_vec()
            },
        );
    }
    let alpha: Vec<f32> = values(6, c).iter().map(|v| v.abs() + 0.1).collect();
    let mut expected = x.clone();
    reference::activate(Activation::Snake(&alpha), &mut expected, c);
    check("Snake", WeightPrecision::F32, F32_BOUND, &expected, |cpu| {
        let (mut x, alpha) = (tensor(cpu, c, &x), tensor(cpu, c, &alpha));
        cpu.activate(Act::Snake(&alpha), &mut x).unwrap();
        x.data().to_vec()
    });
}

#[test]
fn axpby_scales_and_adds() {
    let (x, y) = (values(1, 600), values(2, 600));
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 0.5 * x - 2.0 * y).collect();
    check("axpby", WeightPrecision::F32, F32_BOUND, &expected, |cpu| {
        let mut out = tensor(cpu, 20, &y);
        cpu.axpby(0.5, &tensor(cpu, 20, &x), -2.0, &mut out)
            .unwrap();
        out.data().to_vec()
    });
}
