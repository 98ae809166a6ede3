//! Linear layers with every epilogue and weight precision, activations, `axpby`.

use cosyvoice::backend::{Act, Dense, Epilogue, Weight};
use cosyvoice::cpu::reference::dense as reference;
use cosyvoice::cpu::{Activation, Cpu, Store, WeightPrecision};
use cosyvoice::tensor::Tensor;
use half::bf16;

use super::cases::{LINEARS, ROWS, values};
use super::{F32_BOUND, bits, check, cpu, tensor};

const PRECISIONS: [WeightPrecision; 3] = [
    WeightPrecision::F32,
    WeightPrecision::Bf16,
    WeightPrecision::Int8,
];

/// The weight as a precision holds it: what the reference multiplies by.
fn rounded(w: &[f32], k: usize, precision: WeightPrecision) -> Vec<f32> {
    match precision {
        WeightPrecision::F32 => w.to_vec(),
        WeightPrecision::Bf16 => w.iter().map(|&v| bf16::from_f32(v).to_f32()).collect(),
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
        let mut y = vec![0.0; self.n * self.m];
        let w = rounded(&self.w, self.k, precision);
        reference::linear(&self.x, &w, Some(&self.bias), self.k, &mut y);
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
                let expected = case.expected(precision, Store::Set);
                let what = format!("linear {n}x{m}x{k} {precision:?}");
                check(&what, precision, F32_BOUND, &expected, |cpu| {
                    case.actual(cpu, |_| Epilogue::None, &case.old)
                });
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
        for (m, k) in [(61, 300), (896, 64)] {
            let w = values(2, m * k);
            let linear = cpu.pack_linear(&Weight::f32(&[m, k], w), None).unwrap();
            let x = values(1, 101 * k);
            let mut all = tensor(&cpu, m, &vec![0.0; 101 * m]);
            cpu.linear(&tensor(&cpu, k, &x), &linear, Epilogue::None, &mut all)
                .unwrap();
            for (first, rows) in [(0, 1), (100, 1), (3, 2), (50, 3), (9, 4), (20, 11)] {
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
