//! Attention of a block of queries of one head: scores, softmax, weighted sum.

use super::super::Isa;
use super::super::gemm::{Accumulators, BLOCK_ROWS, Call, MAX_PANELS, WIDTH};
use super::super::isa::per_isa;
use super::super::math::exp;
use super::Pages;

/// Relative positions of a block whose rows are consecutive queries.
#[derive(Clone, Copy)]
pub(super) struct Distances<'a> {
    /// Packed `[(2T − 1) / 16][Dh][16]`, row `last + d` for distance `d`.
    pub(super) positions: &'a [f32],
    /// Query of the block's first row.
    pub(super) first_query: usize,
    /// `T − 1`
    pub(super) last: usize,
}

/// Queries of a block and everything on the way to their results; the vectors grow once.
pub(super) struct Block {
    dh: usize,
    /// `[rows, Dh]`, scaled, with the content bias.
    q: Vec<f32>,
    /// `[rows, Dh]`, scaled, with the position bias.
    q_position: Vec<f32>,
    /// Keys that each row sees.
    counts: Vec<usize>,
    /// `[rows, most keys]`
    scores: Vec<f32>,
    /// One over the sum of each row's weights.
    inverse: Vec<f32>,
    /// `[rows, Dh]`
    out: Vec<f32>,
    acc: Box<Accumulators>,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            dh: 0,
            q: Vec::new(),
            q_position: Vec::new(),
            counts: Vec::new(),
            scores: Vec::new(),
            inverse: Vec::new(),
            out: Vec::new(),
            acc: Box::new([[[0.0; WIDTH]; BLOCK_ROWS]; MAX_PANELS]),
        }
    }
}

impl Block {
    /// Empties the block for heads of `dh` values.
    pub(super) fn start(&mut self, dh: usize) {
        self.dh = dh;
        self.q.clear();
        self.q_position.clear();
        self.counts.clear();
    }

    /// Adds a query that sees the first `count` keys, with its content and position biases.
    pub(super) fn push(
        &mut self,
        q: &[f32],
        biases: Option<(&[f32], &[f32])>,
        scale: f32,
        count: usize,
    ) {
        assert!(self.counts.len() < BLOCK_ROWS, "attention: block too long");
        match biases {
            None => self.q.extend(q.iter().map(|q| q * scale)),
            Some((u, v)) => {
                self.q.extend(q.iter().zip(u).map(|(q, u)| (q + u) * scale));
                let with_v = q.iter().zip(v).map(|(q, v)| (q + v) * scale);
                self.q_position.extend(with_v);
            }
        }
        self.counts.push(count);
    }

    /// Result `i`, in the order of pushing.
    pub(super) fn result(&self, i: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.out[i * self.dh..(i + 1) * self.dh]);
    }

    /// Computes all results.
    pub(super) fn attend(&mut self, isa: Isa, pages: &Pages<'_>, distances: Option<Distances<'_>>) {
        let keys = self.counts.iter().copied().max().unwrap_or(0);
        if self.scores.len() < self.counts.len() * keys {
            self.scores.resize(self.counts.len() * keys, 0.0);
        }
        self.content_scores(isa, pages, keys);
        if let Some(distances) = distances {
            self.position_scores(isa, distances, keys);
        }
        self.inverse.clear();
        let rows = self.scores.chunks_exact_mut(keys.max(1));
        for (row, &count) in rows.zip(&self.counts) {
            self.inverse.push(softmax(isa, row, count));
        }
        self.weighted_sums(isa, pages, keys);
    }

    /// `scores = q · k`
    fn content_scores(&mut self, isa: Isa, pages: &Pages<'_>, keys: usize) {
        for page in 0..keys.div_ceil(pages.size) {
            let first = page * pages.size;
            let end = (first + pages.size).min(keys);
            let panels = pages.keys(page).chunks_exact(self.dh * WIDTH);
            for (panel, start) in panels.zip((first..end).step_by(WIDTH)) {
                self.call(&self.q, 1).run(isa, panel, &mut self.acc);
                let width = WIDTH.min(end - start);
                for (row, acc) in self.acc[0][..self.counts.len()].iter().enumerate() {
                    self.scores[row * keys + start..][..width].copy_from_slice(&acc[..width]);
                }
            }
        }
    }

    /// `scores[i][j] += q_position[i] · p[j − i]`
    fn position_scores(&mut self, isa: Isa, d: Distances<'_>, keys: usize) {
        let rows = self.counts.len();
        // Position of distance j − i for the block's last query and first key, and for its first query and last key.
        let low = d.last - (d.first_query + rows - 1);
        let high = d.last - d.first_query + keys - 1;
        for panel in low / WIDTH..=high / WIDTH {
            let positions = &d.positions[panel * self.dh * WIDTH..][..self.dh * WIDTH];
            self.call(&self.q_position, 1)
                .run(isa, positions, &mut self.acc);
            for (row, acc) in self.acc[0][..rows].iter().enumerate() {
                let scores = &mut self.scores[row * keys..(row + 1) * keys];
                // Key of the panel's first column.
                let first = (panel * WIDTH + d.first_query + row) as isize - d.last as isize;
                let skip = (-first).max(0) as usize;
                let start = first.max(0) as usize;
                if skip < WIDTH && start < keys {
                    for (score, acc) in scores[start..].iter_mut().zip(&acc[skip..]) {
                        *score += acc;
                    }
                }
            }
        }
    }

    /// `out = Σ weight · v`, divided by the sum of the weights.
    fn weighted_sums(&mut self, isa: Isa, pages: &Pages<'_>, keys: usize) {
        let (rows, dh) = (self.counts.len(), self.dh);
        self.out.resize(rows * dh, 0.0);
        let panels = dh.div_ceil(WIDTH);
        for first in (0..panels).step_by(MAX_PANELS) {
            let count = MAX_PANELS.min(panels - first);
            for page in 0..keys.div_ceil(pages.size) {
                let start = page * pages.size;
                let call = Call {
                    a: &self.scores[start..],
                    row_stride: keys,
                    rows,
                    depth: pages.size.min(keys - start),
                    panel_stride: pages.size * WIDTH,
                    panels: count,
                    fresh: page == 0,
                };
                let values = &pages.values(page)[first * pages.size * WIDTH..];
                call.run(isa, values, &mut self.acc);
            }
            for row in 0..rows {
                let out = &mut self.out[row * dh..(row + 1) * dh];
                for (panel, out) in out[first * WIDTH..]
                    .chunks_mut(WIDTH)
                    .take(count)
                    .enumerate()
                {
                    for (out, acc) in out.iter_mut().zip(&self.acc[panel][row]) {
                        *out = acc * self.inverse[row];
                    }
                }
            }
        }
    }

    /// A product of all queries with panels of depth `Dh`.
    fn call<'a>(&self, q: &'a [f32], panels: usize) -> Call<'a> {
        Call {
            a: q,
            row_stride: self.dh,
            rows: self.counts.len(),
            depth: self.dh,
            panel_stride: self.dh * WIDTH,
            panels,
            fresh: true,
        }
    }
}

/// Partial sums of [`softmax`]: their number fixes the order of additions.
const LANES: usize = 16;

per_isa! {
    /// `row = exp(row − max)` over the first `count` scores, 0 behind them; returns one over the sum.
    fn softmax<FMA>(row: &mut [f32], count: usize) -> f32 {
        let (seen, hidden) = row.split_at_mut(count);
        hidden.fill(0.0);
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (blocks, tail) = seen.as_chunks::<LANES>();
        for block in blocks {
            for j in 0..LANES {
                lanes[j] = if block[j] > lanes[j] { block[j] } else { lanes[j] };
            }
        }
        let max = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |m, &v| m.max(v));
        let mut sums = [0.0f32; LANES];
        let (blocks, tail) = seen.as_chunks_mut::<LANES>();
        for block in blocks {
            for j in 0..LANES {
                block[j] = exp::<FMA>(block[j] - max);
                sums[j] += block[j];
            }
        }
        for (sum, v) in sums.iter_mut().zip(tail) {
            *v = exp::<FMA>(*v - max);
            *sum += *v;
        }
        1.0 / sums.iter().sum::<f32>()
    }
}
