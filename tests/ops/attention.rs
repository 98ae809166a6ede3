//! Attention inside sequences and over the paged cache.

use cosyvoice::backend::{
    Attention, AttnPlan, Dense, Epilogue, KvShape, Mask, Masks, Memory, PlanSequence, RelPos,
    Weight,
};
use cosyvoice::cpu::reference::attention as reference;
use cosyvoice::cpu::reference::dense::dot;
use cosyvoice::cpu::{Cpu, WeightPrecision};
use cosyvoice::tensor::Segments;

use super::cases::values;
use super::{F32_BOUND, backends, bits, check, check_each, cpu_with, in_bf16, tensor};

const F32: WeightPrecision = WeightPrecision::F32;
const BF16: WeightPrecision = WeightPrecision::Bf16;
const ALL: [WeightPrecision; 3] = [F32, BF16, WeightPrecision::Int8];

/// Bound on the NMSE of attention in bf16. Scores of heads of 80 values are off by some 2⁻⁹ of the products' sizes, and weights and values are rounded
/// once more, each an NMSE of 2⁻¹⁸ / 3 and less.
const BF16_BOUND: f64 = 3e-5;

/// The same in 16-bit integers, where queries have 8191 steps, keys of 80 values 3276, weights 8191 and values 2048.
const INTEGER_BOUND: f64 = 1e-6;

/// Self-attention of a batch.
struct Case {
    heads: usize,
    dh: usize,
    lengths: Vec<usize>,
    wanted: Vec<usize>,
    masks: Vec<Mask>,
    relative: bool,
}

impl Case {
    fn center(&self) -> usize {
        self.lengths.iter().max().unwrap() + 3
    }

    /// `qkv`, `p`, `u`, `v`
    fn inputs(&self) -> [Vec<f32>; 4] {
        let d = self.heads * self.dh;
        let rows: usize = self.lengths.iter().sum();
        [
            values(1, rows * 3 * d),
            values(2, (2 * self.center() + 1) * d),
            values(3, d),
            values(4, d),
        ]
    }

    fn expected(&self) -> Vec<f32> {
        let [qkv, p, u, v] = self.inputs();
        let (d, dh) = (self.heads * self.dh, self.dh);
        let mut out = Vec::new();
        let mut first = 0;
        for (b, &rows) in self.lengths.iter().enumerate() {
            for i in rows - self.wanted[b]..rows {
                for h in 0..self.heads {
                    let at = |row: usize, part: usize| {
                        &qkv[((first + row) * 3 + part) * d + h * dh..][..dh]
                    };
                    let biased = |bias: &[f32]| -> Vec<f32> {
                        let bias = &bias[h * dh..(h + 1) * dh];
                        at(i, 0).iter().zip(bias).map(|(q, b)| q + b).collect()
                    };
                    let (q, q_position) = match self.relative {
                        true => (biased(&u), biased(&v)),
                        false => (at(i, 0).to_vec(), vec![0.0; dh]),
                    };
                    let mut row = vec![0.0; dh];
                    reference::attend(
                        &q,
                        self.masks[b].end(i, rows),
                        |j| at(j, 1),
                        |j| at(j, 2),
                        |j| {
                            dot(
                                &q_position,
                                &p[(self.center() + j - i) * d + h * dh..][..dh],
                            )
                        },
                        &mut row,
                    );
                    out.extend(row);
                }
            }
            first += rows;
        }
        out
    }

    fn actual(&self, cpu: &Cpu) -> Vec<f32> {
        let d = self.heads * self.dh;
        let [qkv, p, u, v] = self.inputs();
        let (p, u, v) = (tensor(cpu, d, &p), tensor(cpu, d, &u), tensor(cpu, d, &v));
        let rel = RelPos {
            p: &p,
            u: &u,
            v: &v,
            center: self.center(),
        };
        let segments = Segments::new(cpu, &self.lengths).unwrap();
        let queries = Segments::new(cpu, &self.wanted).unwrap();
        let masks = Masks::new(cpu, &self.masks).unwrap();
        let mut out = cpu.alloc(queries.total(), d).unwrap();
        let qkv = tensor(cpu, 3 * d, &qkv);
        let rel = self.relative.then_some(rel);
        cpu.attention(&qkv, self.heads, &segments, &queries, rel, &masks, &mut out)
            .unwrap();
        out.data().to_vec()
    }
}

#[test]
fn attention_of_every_mask_and_size() {
    for (heads, dh) in [(1, 4), (2, 16), (3, 10), (2, 64), (1, 80)] {
        for relative in [false, true] {
            let case = Case {
                heads,
                dh,
                lengths: vec![1, 2, 17, 23, 24, 25, 170],
                wanted: vec![1, 1, 17, 5, 24, 25, 149],
                masks: vec![
                    Mask::Full,
                    Mask::Causal,
                    Mask::Full,
                    Mask::Chunk(5),
                    Mask::Causal,
                    Mask::Chunk(25),
                    Mask::Chunk(16),
                ],
                relative,
            };
            let what = format!("attention {heads}x{dh} relative {relative}");
            let expected = case.expected();
            check(&what, F32, F32_BOUND, &expected, |cpu| case.actual(cpu));
            let bound = |cpu: &Cpu| match cpu.isa().multiplies_bf16() {
                true => BF16_BOUND,
                false => INTEGER_BOUND,
            };
            let expected = |_: &Cpu| expected.clone();
            check_each(&what, BF16, bound, expected, |cpu| case.actual(cpu));
        }
    }
}

#[test]
fn attention_of_a_sequence_alone_equals_that_in_a_batch() {
    for weights in [F32, BF16] {
        alone_equals_in_a_batch(&cpu_with(2, weights));
    }
}

fn alone_equals_in_a_batch(cpu: &Cpu) {
    let (heads, dh, d) = (2, 16, 32);
    let lengths = [7, 60, 33, 300];
    let qkv = values(1, 400 * 3 * d);
    let run = |first: usize, lengths: &[usize]| {
        let segments = Segments::new(cpu, lengths).unwrap();
        let masks = Masks::uniform(cpu, Mask::Chunk(8), lengths.len()).unwrap();
        let mut out = cpu.alloc(segments.total(), d).unwrap();
        let x = tensor(
            cpu,
            3 * d,
            &qkv[first * 3 * d..][..segments.total() * 3 * d],
        );
        cpu.attention(&x, heads, &segments, &segments, None, &masks, &mut out)
            .unwrap();
        assert_eq!(dh * heads, d);
        out.data().to_vec()
    };
    let all = run(0, &lengths);
    let mut first = 0;
    for t in lengths {
        let alone = run(first, &[t]);
        assert_eq!(bits(&all[first * d..(first + t) * d]), bits(&alone));
        // A longer sequence does not change what its earlier chunks see.
        let part = run(first, &[t / 8 * 8]);
        assert_eq!(bits(&alone[..part.len()]), bits(&part));
        first += t;
    }
}

#[test]
fn a_value_that_is_not_finite_is_seen_by_those_that_see_its_row() {
    let (d, rows, bad) = (32, 150, 131);
    let backends: Vec<_> = ALL.into_iter().flat_map(backends).collect();
    for (cpu, part) in backends
        .iter()
        .flat_map(|cpu| [(cpu, 0), (cpu, 1), (cpu, 2)])
    {
        let mut qkv = values(1, rows * 3 * d);
        qkv[bad * 3 * d + part * d + 20] = f32::NAN;
        let segments = Segments::new(cpu, &[rows]).unwrap();
        let masks = Masks::uniform(cpu, Mask::Causal, 1).unwrap();
        let (x, mut out) = (tensor(cpu, 3 * d, &qkv), cpu.alloc(rows, d).unwrap());
        cpu.attention(&x, 2, &segments, &segments, None, &masks, &mut out)
            .unwrap();
        for row in 0..rows {
            // The second head's, of a row's queries only its own.
            let seen = if part == 0 { row == bad } else { row >= bad };
            let (others, own) = out.data()[row * d..(row + 1) * d].split_at(d / 2);
            let (own, name) = (own[20 - d / 2], cpu.instructions());
            assert!(others.iter().all(|v| v.is_finite()), "{name} {part} {row}");
            // A weight of nothing does not take away what a value is not, where f32 multiplies both.
            let blurred = part == 2 && !seen;
            assert!(own.is_nan() == seen || blurred, "{name} {part} {row}");
        }
    }
}

#[test]
fn self_attention_is_a_product_and_attention() {
    let (heads, k) = (2, 40);
    let lengths = [1, 33, 200];
    for dh in [16, 24, 64] {
        let d = heads * dh;
        let (x, w) = (values(1, 234 * k), values(2, 3 * d * k));
        for (weights, relative) in ALL.into_iter().flat_map(|w| [(w, false), (w, true)]) {
            for cpu in backends(weights) {
                let linear = cpu
                    .pack_linear(&Weight::f32(&[3 * d, k], &w[..]), None)
                    .unwrap();
                let center = 210;
                let p = tensor(&cpu, d, &values(3, (2 * center + 1) * d));
                let (u, v) = (
                    tensor(&cpu, d, &values(4, d)),
                    tensor(&cpu, d, &values(5, d)),
                );
                let rel = || {
                    relative.then_some(RelPos {
                        p: &p,
                        u: &u,
                        v: &v,
                        center,
                    })
                };
                let segments = Segments::new(&cpu, &lengths).unwrap();
                let queries = Segments::new(&cpu, &[1, 20, 200]).unwrap();
                let masks = Masks::uniform(&cpu, Mask::Chunk(25), 3).unwrap();
                let x = tensor(&cpu, k, &x);
                let mut qkv = cpu.alloc(234, 3 * d).unwrap();
                let [mut expected, mut actual] = [0, 1].map(|_| cpu.alloc(221, d).unwrap());
                cpu.linear(&x, &linear, Epilogue::None, &mut qkv).unwrap();
                let (heads, out) = (heads, &mut expected);
                cpu.attention(&qkv, heads, &segments, &queries, rel(), &masks, out)
                    .unwrap();
                let (layer, qkv, out) = ((&x, &linear), &mut qkv, &mut actual);
                cpu.self_attention(layer, qkv, heads, &segments, &queries, rel(), &masks, out)
                    .unwrap();
                let name = cpu.instructions();
                assert_eq!(
                    bits(actual.data()),
                    bits(expected.data()),
                    "{weights:?} {dh} {name}"
                );
            }
        }
    }
}

/// Sequences in a paged cache: positions so far and new ones.
fn cached(
    cpu: &Cpu,
    page_size: usize,
    heads: usize,
    kv_heads: usize,
    dh: usize,
    steps: &[Vec<(usize, usize)>],
) -> Vec<Vec<f32>> {
    let width = (heads + 2 * kv_heads) * dh;
    // Values depend on sequence and position alone.
    let row = |_: usize, b: usize, p: usize| values((1000 * b + p) as u64, width);
    cached_rows(cpu, page_size, (heads, kv_heads, dh), steps, row)
}

/// The same with rows of queries, keys and values by step, sequence and position.
fn cached_rows(
    cpu: &Cpu,
    page_size: usize,
    (heads, kv_heads, dh): (usize, usize, usize),
    steps: &[Vec<(usize, usize)>],
    row: impl Fn(usize, usize, usize) -> Vec<f32>,
) -> Vec<Vec<f32>> {
    let shape = KvShape {
        layers: 2,
        pages: 64,
        page_size,
        kv_heads,
        head_dim: dh,
    };
    let mut kv = cpu.alloc_kv(shape).unwrap();
    let mut outputs = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        // Pages of sequence b: b, b + 8, b + 16, …, so that they are never neighbours.
        let pages: Vec<Vec<u32>> = (0..step.len() as u32)
            .map(|b| (0..8).map(|i| 8 * i + b).collect())
            .collect();
        let sequences: Vec<PlanSequence<'_>> = step
            .iter()
            .zip(&pages)
            .map(|(&(context, new), pages)| PlanSequence {
                context,
                new,
                pages,
            })
            .collect();
        let plan = AttnPlan::new(cpu, page_size, &sequences).unwrap();
        let width = (heads + 2 * kv_heads) * dh;
        let qkv: Vec<f32> = step
            .iter()
            .enumerate()
            .flat_map(|(b, &(context, new))| (context..context + new).map(move |p| (b, p)))
            .flat_map(|(b, p)| row(index, b, p))
            .collect();
        let rows = qkv.len() / width;
        let mut q = cpu.alloc(rows, heads * dh).unwrap();
        let mut out = cpu.alloc(rows, heads * dh).unwrap();
        cpu.rope_store_kv(&tensor(cpu, width, &qkv), &plan, 1e4, &mut kv, 1, &mut q)
            .unwrap();
        cpu.paged_attention(&q, &kv, 1, &plan, &mut out).unwrap();
        outputs.push(out.data().to_vec());
    }
    outputs
}

/// The last output row of a sequence of `n` positions, by the definition: exact attention over what the cache is to hold beside such weights.
fn expected_row(
    weights: WeightPrecision,
    (b, n): (usize, usize),
    (heads, kv_heads, dh): (usize, usize, usize),
) -> Vec<f32> {
    let width = (heads + 2 * kv_heads) * dh;
    let rows: Vec<Vec<f32>> = (0..n)
        .map(|p| {
            let mut row = values((1000 * b + p) as u64, width);
            let (cos, sin) = reference::rotary(p, 1e4, dh);
            for head in row[..(heads + kv_heads) * dh].chunks_exact_mut(dh) {
                reference::rotate(head, &cos, &sin);
            }
            if weights != F32 {
                let kept = in_bf16(&row[heads * dh..]);
                row[heads * dh..].copy_from_slice(&kept);
            }
            row
        })
        .collect();
    (0..heads)
        .flat_map(|h| {
            let group = h / (heads / kv_heads);
            let mut out = vec![0.0; dh];
            reference::attend(
                &rows[n - 1][h * dh..(h + 1) * dh],
                n,
                |j| &rows[j][(heads + group) * dh..][..dh],
                |j| &rows[j][(heads + kv_heads + group) * dh..][..dh],
                |_| 0.0,
                &mut out,
            );
            out
        })
        .collect()
}

#[test]
fn paged_attention_prefills_and_decodes() {
    for (page_size, heads, kv_heads, dh) in
        [(16, 4, 2, 16), (5, 7, 1, 8), (32, 14, 2, 64), (16, 2, 2, 6)]
    {
        // Prefill in two parts, then decode; the second sequence joins late.
        let steps = [
            vec![(0, 11), (0, 1)],
            vec![(11, 14), (1, 1)],
            vec![(25, 1), (2, 30)],
            vec![(26, 1), (32, 1)],
        ];
        for weights in ALL {
            let expected: Vec<f32> = [(0, 27), (1, 33)]
                .into_iter()
                .flat_map(|last| expected_row(weights, last, (heads, kv_heads, dh)))
                .collect();
            let what = format!(
                "paged attention beside {weights:?}, pages of {page_size}, {heads}/{kv_heads} heads of {dh}"
            );
            // Pairs of bf16 lie in pages of an even number of positions alone.
            let pairs = weights != F32 && page_size % 2 == 0;
            let bound = |cpu: &Cpu| match pairs && cpu.isa().multiplies_bf16() {
                true => BF16_BOUND,
                false => F32_BOUND,
            };
            let expected = |_: &Cpu| expected.clone();
            check_each(&what, weights, bound, expected, |cpu| {
                cached(cpu, page_size, heads, kv_heads, dh, &steps)
                    .pop()
                    .unwrap()
            });
        }
    }
}

#[test]
fn chunked_prefill_and_batch_mates_change_nothing() {
    let (heads, kv_heads, dh) = (4, 2, 16);
    for weights in ALL {
        for cpu in backends(weights) {
            for page_size in [16, 9] {
                let what = format!("{weights:?}, {}, {page_size}", cpu.instructions());
                let run = |steps: &[_]| cached(&cpu, page_size, heads, kv_heads, dh, steps);
                let whole = run(&[vec![(0, 40)]]).concat();
                let parts = run(&[vec![(0, 13)], vec![(13, 26)], vec![(39, 1)]]);
                assert_eq!(bits(&whole), bits(&parts.concat()), "{what}");
                let one_by_one: Vec<_> = (0..40).map(|p| vec![(p, 1)]).collect();
                assert_eq!(bits(&whole), bits(&run(&one_by_one).concat()), "{what}");
                let together = run(&[vec![(0, 40), (0, 9), (0, 70)]]).concat();
                let alone = &together[..whole.len()];
                assert_eq!(bits(&whole), bits(alone), "{what}");
            }
        }
    }
}

#[test]
fn what_a_page_held_before_does_not_matter() {
    let (heads, kv_heads, dh) = (4, 2, 16);
    let width = (heads + 2 * kv_heads) * dh;
    for weights in ALL {
        for cpu in backends(weights) {
            for page_size in [16, 9] {
                let fresh = [vec![(0, 21)], vec![(21, 1)], vec![(22, 1)]];
                let used = [vec![vec![(0, 40)]], fresh.to_vec()].concat();
                let run = |steps: &[Vec<_>], before: usize| {
                    let row = |step: usize, _: usize, p: usize| match step < before {
                        true => vec![f32::NAN; width],
                        false => values(p as u64, width),
                    };
                    let heads = (heads, kv_heads, dh);
                    cached_rows(&cpu, page_size, heads, steps, row)[before..].concat()
                };
                let (expected, actual) = (run(&fresh, 0), run(&used, 1));
                let what = format!("{weights:?}, {}, {page_size}", cpu.instructions());
                assert!(actual.iter().all(|v| v.is_finite()), "{what}");
                assert_eq!(bits(&expected), bits(&actual), "{what}");
            }
        }
    }
}
