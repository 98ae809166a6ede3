//! Attention inside sequences: one head of one sequence is a task.

use std::cell::RefCell;
use std::ops::Range;

use super::super::buffer::Reused;
use super::super::gemm::{self, Input, Span, WIDTH, Weights};
#[cfg(target_arch = "x86_64")]
use super::super::isa::Level;
use super::super::pool::SharedMut;
use super::super::{Cpu, Isa, WeightPrecision, check_shape};
use super::block::{Block, Distances};
#[cfg(target_arch = "x86_64")]
use super::fixed::Fixed;
use super::operand::{Exact, Operands, Rounded};
#[cfg(target_arch = "x86_64")]
use super::operand::{Pairs, Tiled};
use super::pages::Packed;
use crate::backend::{Masks, RelPos};
use crate::tensor::{Segments, Tensor};

thread_local! {
    /// A thread's packed sequence and block of queries, in f32 and in bf16.
    static WORK: RefCell<Work<f32>> = RefCell::default();
    #[cfg(target_arch = "x86_64")]
    static WORK_BF16: RefCell<Work<u16>> = RefCell::default();
    #[cfg(target_arch = "x86_64")]
    static WORK_FIXED: RefCell<Fixed> = RefCell::default();
    /// Queries, keys and values of one head.
    static HEAD: RefCell<Reused<f32>> = RefCell::default();
}

type Work<T> = (Packed<T>, Block<T>);

/// Query rows of a block: whole tiles of every kernel but that of tile registers, and of that.
const BLOCK_QUERIES: usize = 24;
const BLOCK_QUERIES_TILED: usize = 32;

/// Where queries, keys and values come from.
pub(super) enum Projected<'a> {
    /// All of them, `[N, 3 · H·Dh]`.
    Whole(&'a Tensor<Cpu>),
    /// Each head's are made of `x [N, K]` when it is its turn.
    ByHead {
        /// Of this product, see [`gemm::number`].
        number: u64,
        x: &'a Tensor<Cpu>,
        weights: Weights<'a>,
    },
}

/// Attention inside sequences, as the threads see it.
pub(super) struct Inside<'a> {
    projected: Projected<'a>,
    heads: usize,
    segments: &'a Segments<Cpu>,
    queries: &'a Segments<Cpu>,
    rel: Option<RelPos<'a, Cpu>>,
    masks: &'a Masks<Cpu>,
    /// Values of all heads.
    d: usize,
    out: SharedMut<'a>,
}

/// Queries, keys and values of one head of one sequence: `dh` values of each row, which lie `stride` values apart.
#[derive(Clone, Copy)]
struct Head<'a> {
    values: &'a [f32],
    stride: usize,
    /// Where a row's queries, keys and values begin.
    first: [usize; 3],
    dh: usize,
}

impl<'a> Head<'a> {
    fn row(self, part: usize, row: usize) -> &'a [f32] {
        &self.values[row * self.stride + self.first[part]..][..self.dh]
    }
}

impl<'a> Inside<'a> {
    /// `segments` of rows, and of each the last `queries` that are wanted.
    pub(super) fn new(
        projected: Projected<'a>,
        heads: usize,
        (segments, queries): (&'a Segments<Cpu>, &'a Segments<Cpu>),
        rel: Option<RelPos<'a, Cpu>>,
        masks: &'a Masks<Cpu>,
        out: &'a mut Tensor<Cpu>,
    ) -> Self {
        let d = out.cols();
        check_shape!("attention", out.rows(), queries.total());
        check_shape!("attention", queries.count(), segments.count());
        check_shape!("attention", d % heads, 0);
        check_shape!("attention", masks.count(), segments.count());
        if let Some(rel) = &rel {
            check_shape!("attention", rel.p.shape(), (2 * rel.center + 1, d));
            assert!(
                segments.longest() <= rel.center + 1,
                "attention: {} rows with positions for {}",
                segments.longest(),
                rel.center + 1
            );
        }
        Self {
            projected,
            heads,
            segments,
            queries,
            rel,
            masks,
            d,
            out: SharedMut::new(out.data_mut()),
        }
    }

    /// All heads of all sequences.
    pub(super) fn run(&self, cpu: &Cpu) {
        let pairs = cpu.isa.multiplies_bf16() && cpu.options.weights != WeightPrecision::F32;
        cpu.pool.run(self.segments.count() * self.heads, |task| {
            let task = (task / self.heads, task % self.heads);
            HEAD.with_borrow_mut(|buffer| {
                let head = self.head(cpu.isa, task, buffer);
                #[cfg(target_arch = "x86_64")]
                if pairs {
                    return WORK_BF16.with_borrow_mut(|work| match cpu.isa.has_tiles() {
                        true => self.attend::<Tiled, _>(cpu.isa, task, head, work),
                        false => self.attend::<Pairs, _>(cpu.isa, task, head, work),
                    });
                }
                let _ = pairs;
                #[cfg(target_arch = "x86_64")]
                if self.takes_integers(cpu) {
                    return WORK_FIXED
                        .with_borrow_mut(|work| self.attend_fixed(cpu.isa, task, head, work));
                }
                WORK.with_borrow_mut(|work| self.attend::<Exact, _>(cpu.isa, task, head, work));
            });
        });
    }

    /// Whether queries, keys, weights and values are rounded to 16-bit integers, as linear layers' input is where pairs of bf16 are not multiplied.
    #[cfg(target_arch = "x86_64")]
    fn takes_integers(&self, cpu: &Cpu) -> bool {
        let isa = cpu.isa;
        let rounds = cpu.options.weights != WeightPrecision::F32 && self.rel.is_none();
        rounds && isa.level() == Level::Avx512 && !isa.multiplies_bf16()
    }

    /// Rows of sequence `b`, those that are wanted, and how many come before these.
    fn rows(&self, b: usize) -> (Range<usize>, Range<usize>, usize) {
        let (range, wanted) = (self.segments.range(b), self.queries.range(b));
        let Some(past) = range.len().checked_sub(wanted.len()) else {
            panic!("attention: {} of {} rows", wanted.len(), range.len());
        };
        (range, wanted, past)
    }

    /// A head of sequence `b`, where it lies or made in `buffer`.
    fn head<'b>(
        &'b self,
        isa: Isa,
        (b, head): (usize, usize),
        buffer: &'b mut Reused<f32>,
    ) -> Head<'b> {
        let (d, dh, range) = (self.d, self.d / self.heads, self.segments.range(b));
        match &self.projected {
            Projected::Whole(qkv) => Head {
                values: &qkv.data()[range.start * 3 * d..],
                stride: 3 * d,
                first: [0, d, 2 * d].map(|part| part + head * dh),
                dh,
            },
            Projected::ByHead { number, x, weights } => {
                let k = x.cols();
                buffer.grow(range.len() * 3 * dh);
                let input = Input {
                    values: x.data(),
                    row_stride: k,
                    taps: 1,
                    tap_stride: 0,
                    depth: k,
                };
                let span = Span {
                    input: range.start * k,
                    rows: range.len(),
                    out: 0,
                };
                let panels = [0, d, 2 * d].map(|part| {
                    let first = (part + head * dh) / WIDTH;
                    first..first + dh / WIDTH
                });
                gemm::columns((*number, isa), input, span, *weights, panels, buffer);
                Head {
                    values: buffer,
                    stride: 3 * dh,
                    first: [0, dh, 2 * dh],
                    dh,
                }
            }
        }
    }

    /// One head of sequence `b` in 16-bit integers, without positions.
    #[cfg(target_arch = "x86_64")]
    fn attend_fixed(&self, isa: Isa, (b, head): (usize, usize), qkv: Head<'_>, work: &mut Fixed) {
        let (range, wanted, past) = self.rows(b);
        let [_, key, value] = qkv.first;
        let shape = (range.len(), qkv.dh);
        work.pack(isa, shape, (qkv.values, qkv.stride), [key, value]);
        let queries = work.block_queries(wanted.len());
        for start in (past..range.len()).step_by(queries) {
            let count = queries.min(range.len() - start);
            let place = (start * qkv.stride + qkv.first[0], count);
            let seen = |i| self.masks.get(b).end(start + i, range.len());
            let first = (wanted.start + start - past) * self.d + head * qkv.dh;
            // Other threads have often held these lines last: they come while scores are computed.
            for row in (0..count).map(|i| first + i * self.d) {
                (row..row + qkv.dh)
                    .step_by(WIDTH)
                    .for_each(|place| self.out.expect(place));
            }
            work.attend(
                isa,
                (qkv.values, qkv.stride),
                place,
                seen,
                |i, column, width| {
                    // SAFETY: no two tasks share both a row and a head.
                    unsafe { self.out.slice(first + i * self.d + column, width) }
                },
            );
        }
    }

    /// One head of sequence `b`.
    fn attend<O: Operands<Left = T, Right = T>, T: Rounded>(
        &self,
        isa: Isa,
        (b, head): (usize, usize),
        qkv: Head<'_>,
        (packed, block): &mut Work<T>,
    ) {
        let (d, dh) = (self.d, qkv.dh);
        let scale = 1.0 / (dh as f32).sqrt();
        let (range, wanted, past) = self.rows(b);
        let at = head * dh;
        let shape = (range.len(), dh);
        packed.pack::<O>(isa, shape, |j| qkv.row(1, j), |j| qkv.row(2, j));
        let biases = self.rel.as_ref().map(|rel| {
            // Distances −(T − 1) to T − 1.
            let first = rel.center + 1 - range.len().max(1);
            let rows = (2 * range.len()).saturating_sub(1);
            packed.pack_positions::<O>(isa, rows, dh, |e| &rel.p.row(first + e)[at..at + dh]);
            (&rel.u.data()[at..at + dh], &rel.v.data()[at..at + dh])
        });
        let queries = match isa.has_tiles() {
            true => BLOCK_QUERIES_TILED,
            false => BLOCK_QUERIES,
        };
        for start in (past..range.len()).step_by(queries) {
            let end = (start + queries).min(range.len());
            block.start::<O>(dh);
            for i in start..end {
                let count = self.masks.get(b).end(i, range.len());
                block.push::<O>(isa, qkv.row(0, i), biases, scale, count);
            }
            let distances = biases.map(|_| Distances {
                positions: packed.positions(),
                first_query: start,
                last: range.len() - 1,
            });
            block.attend::<O>(isa, &packed.pages(), distances);
            for i in start..end {
                let row = wanted.start + i - past;
                // SAFETY: no two tasks share both a row and a head.
                let to = unsafe { self.out.slice(row * d + at, dh) };
                block.result(i - start, to);
            }
        }
    }
}
