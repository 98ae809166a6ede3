//! Attention over the paged cache and inside sequences.

use std::process::Command;

use cosyvoice::backend::{Attention, AttnPlan, KvShape, Mask, Masks, Memory, PlanSequence, RelPos};
use cosyvoice::cuda::{Cuda, Precision};
use cosyvoice::tensor::{Segments, Tensor};

use super::{Bounds, agree, device, values};
use crate::ops::cases::values as seeded;
use crate::support::emulator;

/// f32 differs by the order of sums; bf16 by the rounding of inputs, weights and results (2⁻⁹ each).
const BOUNDS: Bounds = Bounds {
    f32: 1e-11,
    bf16: 3e-5,
};

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Activations of a model: in the backend's precision.
fn activations<B: Memory>(b: &B, cols: usize, values: &[f32]) -> Tensor<B> {
    let mut t = b.alloc(values.len() / cols, cols).unwrap();
    b.upload(values, &mut t).unwrap();
    t
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

// ---- the paged cache -------------------------------------------------------------------------------------------------

/// Heads and pages of a language model.
#[derive(Clone, Copy, Debug)]
struct Llm {
    heads: usize,
    kv_heads: usize,
    dh: usize,
    page_size: usize,
    /// Pages that each sequence may fill.
    pages: usize,
}

impl Llm {
    fn new([heads, kv_heads, dh]: [usize; 3], page_size: usize, positions: usize) -> Self {
        Self {
            heads,
            kv_heads,
            dh,
            page_size,
            pages: positions.div_ceil(page_size),
        }
    }

    /// Positions so far and new ones of each sequence, step by step; the rotated queries and outputs of each step.
    fn run<B: Attention>(&self, b: &B, steps: &[&[(usize, usize)]]) -> Vec<[Vec<f32>; 2]> {
        let count = steps.iter().map(|s| s.len()).max().unwrap();
        let shape = KvShape {
            layers: 2,
            pages: self.pages * count,
            page_size: self.page_size,
            kv_heads: self.kv_heads,
            head_dim: self.dh,
        };
        let mut kv = b.alloc_kv(shape).unwrap();
        steps
            .iter()
            .map(|s| self.step(b, &mut kv, count, s))
            .collect()
    }

    fn step<B: Attention>(
        &self,
        b: &B,
        kv: &mut B::KvCache,
        count: usize,
        step: &[(usize, usize)],
    ) -> [Vec<f32>; 2] {
        // Pages of sequence s: s, s + count, …, so that they are never neighbours.
        let pages: Vec<Vec<u32>> = (0..step.len())
            .map(|s| (0..self.pages).map(|i| (i * count + s) as u32).collect())
            .collect();
        let sequences: Vec<PlanSequence<'_>> = (step.iter().zip(&pages))
            .map(|(&(context, new), pages)| PlanSequence {
                context,
                new,
                pages,
            })
            .collect();
        let plan = AttnPlan::new(b, self.page_size, &sequences).unwrap();
        let width = (self.heads + 2 * self.kv_heads) * self.dh;
        // Values depend on sequence and position alone.
        let qkv: Vec<f32> = (step.iter().enumerate())
            .flat_map(|(s, &(context, new))| (context..context + new).map(move |p| (s, p)))
            .flat_map(|(s, p)| seeded((10_000 * s + p) as u64, width))
            .collect();
        let rows = qkv.len() / width;
        let qkv = activations(b, width, &qkv);
        let mut q = b.alloc(rows, self.heads * self.dh).unwrap();
        let mut out = b.alloc(rows, self.heads * self.dh).unwrap();
        for layer in [1, 0] {
            b.rope_store_kv(&qkv, &plan, 1e4, kv, layer, &mut q)
                .unwrap();
        }
        b.paged_attention(&q, kv, 1, &plan, &mut out).unwrap();
        [values(b, &q), values(b, &out)]
    }

    /// The outputs of all steps.
    fn outputs<B: Attention>(&self, b: &B, steps: &[&[(usize, usize)]]) -> Vec<f32> {
        let steps = self.run(b, steps);
        steps.into_iter().flat_map(|[_, out]| out).collect()
    }
}

#[test]
fn queries_are_rotated_at_any_position() {
    for dh in [6, 8, 32, 64] {
        let llm = Llm::new([2, 1, dh], 16, 5008);
        let what = format!("rope_store_kv, heads of {dh}");
        let bounds = Bounds {
            f32: 1e-13,
            bf16: 1e-5,
        };
        agree!(what, bounds, |b| {
            let steps = llm.run(b, &[&[(0, 3), (4999, 2)]]);
            steps.into_iter().flat_map(|[q, _]| q).collect()
        });
    }
}

#[test]
fn paged_attention_of_groups_heads_and_pages() {
    for (heads, page_size) in [
        ([2, 2, 8], 16),
        ([4, 2, 16], 5),
        ([14, 2, 64], 16),
        ([7, 1, 32], 300),
        ([34, 2, 24], 16),
        ([3, 1, 80], 7),
        ([2, 1, 128], 32),
        ([2, 2, 6], 16),
        ([1, 1, 136], 16),
    ] {
        let llm = Llm::new(heads, page_size, 150);
        // The second sequence joins late, the third stays at one row.
        let steps: [&[(usize, usize)]; 4] = [
            &[(0, 11), (0, 1), (0, 1)],
            &[(11, 70), (1, 1), (1, 1)],
            &[(81, 1), (2, 130), (2, 1)],
            &[(82, 1), (132, 1), (3, 1)],
        ];
        let what = format!("paged attention, {heads:?}, pages of {page_size}");
        agree!(what, BOUNDS, |b| llm.outputs(b, &steps));
    }
}

#[test]
fn splits_end_where_they_should() {
    let llm = Llm::new([3, 1, 16], 16, 530);
    for n in [63, 64, 65, 255, 256, 257, 511, 512, 513] {
        agree!(format!("decoding position {n}"), BOUNDS, |b| {
            llm.outputs(b, &[&[(0, n)], &[(n, 1)]])[n * 3 * 16..].to_vec()
        });
    }
    agree!("prefill over three splits", BOUNDS, |b| {
        llm.outputs(b, &[&[(0, 200), (0, 3)], &[(200, 320), (3, 1)]])
    });
}

#[test]
fn prefill_in_parts_and_decoding_give_the_same_bytes() {
    for precision in PRECISIONS {
        let Some(cuda) = device(precision) else {
            return;
        };
        let llm = Llm::new([6, 2, 16], 16, 600);
        let whole = llm.outputs(&*cuda, &[&[(0, 530)]]);
        let parts = llm.outputs(
            &*cuda,
            &[
                &[(0, 1)],
                &[(1, 100)],
                &[(101, 155)],
                &[(256, 1)],
                &[(257, 255)],
                &[(512, 16)],
                &[(528, 1)],
                &[(529, 1)],
            ],
        );
        assert_eq!(bits(&whole), bits(&parts), "{precision:?}");
    }
}

#[test]
fn decoding_one_by_one_gives_the_bytes_of_prefill() {
    for precision in PRECISIONS {
        let Some(cuda) = device(precision) else {
            return;
        };
        let llm = Llm::new([3, 1, 64], 16, 80);
        let steps: Vec<[(usize, usize); 1]> = (0..70).map(|p| [(p, 1)]).collect();
        let steps: Vec<&[(usize, usize)]> = steps.iter().map(|s| &s[..]).collect();
        let (whole, single) = (
            llm.outputs(&*cuda, &[&[(0, 70)]]),
            llm.outputs(&*cuda, &steps),
        );
        assert_eq!(bits(&whole), bits(&single), "{precision:?}");
    }
}

#[test]
fn batch_mates_change_nothing_in_the_cache() {
    for precision in PRECISIONS {
        let Some(cuda) = device(precision) else {
            return;
        };
        let llm = Llm::new([4, 2, 16], 16, 400);
        let d = 4 * 16;
        let alone = llm.run(&*cuda, &[&[(0, 40)], &[(40, 1)], &[(41, 1)]]);
        let together = llm.run(
            &*cuda,
            &[
                &[(0, 40), (0, 300), (0, 1)],
                &[(40, 1), (300, 1), (1, 70)],
                &[(41, 1), (301, 1), (71, 1)],
            ],
        );
        for ([_, alone], [_, together]) in alone.iter().zip(&together) {
            assert_eq!(bits(alone), bits(&together[..alone.len()]));
        }
        // A long sequence's splits do not depend on the length of its mates either.
        let long = llm.run(&*cuda, &[&[(0, 1)], &[(1, 299)], &[(300, 1)]]);
        let with = llm.run(
            &*cuda,
            &[
                &[(0, 1), (0, 390)],
                &[(1, 299), (390, 1)],
                &[(300, 1), (391, 1)],
            ],
        );
        assert_eq!(bits(&long[2][1]), bits(&with[2][1][..d]), "{precision:?}");
    }
}

// ---- inside sequences --------------------------------------------------------------------------------------------------

/// Self-attention of a batch.
struct Flow {
    heads: usize,
    dh: usize,
    lengths: Vec<usize>,
    wanted: Vec<usize>,
    masks: Vec<Mask>,
    relative: bool,
}

impl Flow {
    fn center(&self) -> usize {
        self.lengths.iter().max().unwrap() + 3
    }

    fn run<B: Attention>(&self, b: &B) -> Vec<f32> {
        let rows: usize = self.lengths.iter().sum();
        self.run_on(b, &seeded(1, rows * 3 * self.heads * self.dh))
    }

    fn run_on<B: Attention>(&self, b: &B, qkv: &[f32]) -> Vec<f32> {
        let d = self.heads * self.dh;
        // Distances further away are there, and never looked at; a longer table has the same rows around its centre.
        let p: Vec<f32> = (0..=2 * self.center())
            .flat_map(|r| seeded((1000 + r - self.center()) as u64, d))
            .collect();
        let (u, v) = (seeded(3, d), seeded(4, d));
        let p = activations(b, d, &p);
        let (u, v) = (b.tensor(1, d, &u).unwrap(), b.tensor(1, d, &v).unwrap());
        let rel = RelPos {
            p: &p,
            u: &u,
            v: &v,
            center: self.center(),
        };
        let segments = Segments::new(b, &self.lengths).unwrap();
        let queries = Segments::new(b, &self.wanted).unwrap();
        let masks = Masks::new(b, &self.masks).unwrap();
        let mut out = b.alloc(queries.total(), d).unwrap();
        let qkv = activations(b, 3 * d, qkv);
        let rel = self.relative.then_some(rel);
        b.attention(&qkv, self.heads, &segments, &queries, rel, &masks, &mut out)
            .unwrap();
        values(b, &out)
    }
}

#[test]
fn attention_of_every_mask_and_size() {
    for (heads, dh) in [
        (1, 4),
        (2, 16),
        (3, 10),
        (2, 64),
        (1, 80),
        (1, 128),
        (1, 136),
    ] {
        for relative in [false, true] {
            let flow = Flow {
                heads,
                dh,
                lengths: vec![1, 2, 17, 0, 63, 64, 65, 130, 150],
                wanted: vec![1, 1, 17, 0, 5, 64, 0, 130, 99],
                masks: vec![
                    Mask::Full,
                    Mask::Causal,
                    Mask::Full,
                    Mask::Full,
                    Mask::Chunk(5),
                    Mask::Causal,
                    Mask::Chunk(25),
                    Mask::Chunk(50),
                    Mask::Full,
                ],
                relative,
            };
            let what = format!("attention {heads} x {dh}, relative {relative}");
            agree!(what, BOUNDS, |b| flow.run(b));
        }
    }
}

#[test]
fn rows_depend_on_what_they_see_alone() {
    for precision in PRECISIONS {
        let Some(cuda) = device(precision) else {
            return;
        };
        for relative in [false, true] {
            prefixes_and_batches(&cuda, relative);
        }
    }
}

fn prefixes_and_batches(cuda: &Cuda, relative: bool) {
    let (heads, dh, chunk) = (2, 16, 25);
    let (d, lengths) = (heads * dh, [7, 140, 33]);
    let qkv = seeded(1, 180 * 3 * d);
    let run = |first: usize, lengths: &[usize], wanted: &[usize]| {
        let flow = Flow {
            heads,
            dh,
            lengths: lengths.to_vec(),
            wanted: wanted.to_vec(),
            masks: vec![Mask::Chunk(chunk); lengths.len()],
            relative,
        };
        let rows: usize = lengths.iter().sum();
        flow.run_on(cuda, &qkv[first * 3 * d..][..rows * 3 * d])
    };
    let all = run(0, &lengths, &lengths);
    let mut first = 0;
    for t in lengths {
        let alone = run(first, &[t], &[t]);
        assert_eq!(bits(&all[first * d..(first + t) * d]), bits(&alone));
        // A longer sequence does not change what its earlier chunks see.
        let part = run(first, &[t / chunk * chunk], &[t / chunk * chunk]);
        assert_eq!(bits(&alone[..part.len()]), bits(&part));
        // Nor does it matter how many of the last rows are asked for.
        let last = run(first, &[t], &[t - t / 3]);
        assert_eq!(bits(&alone[t / 3 * d..]), bits(&last));
        first += t;
    }
}

/// The tensor core kernels that Hopper has others for, on an emulated Ampere.
#[test]
fn chips_before_hopper_agree_too() {
    const CAPABILITY: &str = "CUDA_EMULATOR_CC";
    if emulator::on_device() || std::env::var_os(CAPABILITY).is_some() {
        return;
    }
    let exe = std::env::current_exe().expect("a running test has a path. This is a bug.");
    let output = Command::new(exe)
        .args(["cuda::attention::attention_of_every", "--test-threads=1"])
        .env(CAPABILITY, "80")
        .output()
        .expect("the test binary runs. This is a bug.");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(
        !text.contains("running 0 tests"),
        "the test has another name"
    );
}

#[test]
fn checked() {
    emulator::run_checked("cuda::attention::");
}
