//! Attention of a block of queries of one head: scores, softmax, weighted sum.

use super::super::Isa;
use super::super::buffer::Reused;
use super::super::gemm::{Call, MAX_PANELS, Target, WIDTH};
use super::super::isa::per_isa;
use super::super::math::exp;
use super::Pages;
use super::operand::{Operands, Rounded};

/// Relative positions of a block whose rows are consecutive queries.
#[derive(Clone, Copy)]
pub(super) struct Distances<'a, W> {
    /// Packed `[(2T − 1) / 16][Dh][16]`, row `last + d` for distance `d`.
    pub(super) positions: &'a [W],
    /// Query of the block's first row.
    pub(super) first_query: usize,
    /// `T − 1`
    pub(super) last: usize,
}

/// Queries of a block and everything on the way to their results; the buffers grow once.
#[derive(Default)]
pub(super) struct Block<X> {
    /// Values of a head, and the same in whole steps and in whole panels.
    dh: usize,
    depth: usize,
    width: usize,
    /// `[rows, depth]`, scaled, with the content bias.
    q: Reused<X>,
    /// `[rows, depth]`, scaled, with the position bias.
    q_position: Reused<X>,
    /// One query on its way there.
    scaled: Vec<f32>,
    /// Keys that each row sees.
    counts: Vec<usize>,
    /// `[rows, most keys]`, rows padded so that the last panel fits.
    scores: Reused<f32>,
    /// `[rows, most keys]`, rows padded to whole steps.
    weights: Reused<X>,
    /// Scores by position of some panels, `[panel][rows][16]`.
    by_position: Reused<f32>,
    /// One over the sum of each row's weights.
    inverse: Vec<f32>,
    /// `[rows, width]`
    out: Reused<f32>,
}

impl<X: Rounded> Block<X> {
    /// Empties the block for heads of `dh` values.
    pub(super) fn start<O: Operands<Left = X>>(&mut self, dh: usize) {
        self.dh = dh;
        self.depth = dh.next_multiple_of(O::WHOLE);
        self.width = dh.next_multiple_of(WIDTH);
        self.counts.clear();
    }

    /// Adds a query that sees the first `count` keys, with its content and position biases.
    pub(super) fn push<O: Operands<Left = X>>(
        &mut self,
        isa: Isa,
        q: &[f32],
        biases: Option<(&[f32], &[f32])>,
        scale: f32,
        count: usize,
    ) {
        let (first, end) = (
            self.counts.len() * self.depth,
            (self.counts.len() + 1) * self.depth,
        );
        let add = |scaled: &[f32], to: &mut Reused<X>| {
            to.grow(end);
            X::round(isa, scaled, &mut to[first..end]);
        };
        self.scaled.clear();
        match biases {
            None => self.scaled.extend(q.iter().map(|q| q * scale)),
            Some((u, v)) => {
                let with_v = q.iter().zip(v).map(|(q, v)| (q + v) * scale);
                self.scaled.extend(with_v);
                add(&self.scaled, &mut self.q_position);
                self.scaled.clear();
                let with_u = q.iter().zip(u).map(|(q, u)| (q + u) * scale);
                self.scaled.extend(with_u);
            }
        }
        add(&self.scaled, &mut self.q);
        self.counts.push(count);
    }

    /// Result `i`, in the order of pushing.
    pub(super) fn result(&self, i: usize, out: &mut [f32]) {
        let sums = &self.out[i * self.width..];
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum * self.inverse[i];
        }
    }

    /// Computes all results.
    pub(super) fn attend<O: Operands<Left = X>>(
        &mut self,
        isa: Isa,
        pages: &Pages<'_, O::Right>,
        distances: Option<Distances<'_, O::Right>>,
    ) {
        let (rows, keys) = (
            self.counts.len(),
            self.counts.iter().copied().max().unwrap_or(0),
        );
        // A page's last panel may reach past its keys, over what the next page brings or into the padding.
        let stride = keys.next_multiple_of(WIDTH) + WIDTH;
        self.scores.grow(rows * stride);
        self.content_scores::<O>(isa, pages, (keys, stride));
        if let Some(distances) = distances {
            self.position_scores::<O>(isa, distances, (keys, stride));
        }
        let padded = keys.next_multiple_of(O::WHOLE);
        self.weights.grow(rows * padded);
        self.inverse.clear();
        for (row, &count) in self.counts.iter().enumerate() {
            let scores = &mut self.scores[row * stride..][..keys.next_multiple_of(LANES)];
            self.inverse.push(softmax(isa, scores, count));
            let scores = &scores[..keys];
            X::round(isa, scores, &mut self.weights[row * padded..][..padded]);
        }
        self.weighted_sums::<O>(isa, pages, (keys, padded));
    }

    /// `scores = q · k`
    fn content_scores<O: Operands<Left = X>>(
        &mut self,
        isa: Isa,
        pages: &Pages<'_, O::Right>,
        (keys, stride): (usize, usize),
    ) {
        let panels_of_page = pages.size.div_ceil(WIDTH);
        // Key of a panel's first column.
        let first = |i: usize| i / panels_of_page * pages.size + i % panels_of_page * WIDTH;
        // Where pages end inside panels, the columns of two of them do not follow each other.
        let whole = keys <= pages.size || pages.size.is_multiple_of(WIDTH);
        let at_once = if whole { MAX_PANELS } else { 1 };
        let size = self.depth * WIDTH;
        let some = |start: usize| {
            let mut panels: [&[O::Right]; MAX_PANELS] = [&[]; MAX_PANELS];
            let mut count = 0;
            while count < at_once && first(start + count) < keys {
                let (page, panel) = (
                    (start + count) / panels_of_page,
                    (start + count) % panels_of_page,
                );
                panels[count] = &pages.keys(page)[panel * size..][..size];
                count += 1;
            }
            (panels, count)
        };
        let last = keys.div_ceil(pages.size).saturating_sub(1);
        let (mut start, mut now) = (0, some(0));
        while now.1 > 0 {
            let (next, (panels, count)) = (some(start + now.1), now);
            let out = Target {
                values: &mut self.scores[first(start)..],
                row_stride: stride,
                panel_stride: WIDTH,
            };
            let call = query_call(&self.q[..self.counts.len() * self.depth], self.depth, count);
            // After the last keys come the first values: a page of them is as long as a panel of keys where pages are of 16 positions.
            let first_values = || std::array::from_fn(|page| pages.values(page.min(last)));
            let (ahead, count_ahead) = match next {
                (_, 0) => (first_values(), MAX_PANELS),
                next => next,
            };
            O::multiply(isa, &call, &panels[..count], &ahead[..count_ahead], out);
            (start, now) = (start + count, next);
        }
    }

    /// `scores[i][j] += q_position[i] · p[j − i]`
    fn position_scores<O: Operands<Left = X>>(
        &mut self,
        isa: Isa,
        d: Distances<'_, O::Right>,
        (keys, stride): (usize, usize),
    ) {
        let rows = self.counts.len();
        // Position of distance j − i for the block's last query and first key, and for its first query and last key.
        let low = d.last - (d.first_query + rows - 1);
        let high = d.last - d.first_query + keys - 1;
        let (low, end) = (low / WIDTH, high / WIDTH + 1);
        let panel_stride = rows * WIDTH;
        self.by_position.grow(MAX_PANELS * panel_stride);
        for first in (low..end).step_by(MAX_PANELS) {
            let count = MAX_PANELS.min(end - first);
            let positions = &d.positions[first * self.depth * WIDTH..];
            let panels = some_panels(positions, count, self.depth * WIDTH);
            let out = Target {
                values: &mut self.by_position,
                row_stride: WIDTH,
                panel_stride,
            };
            let call = query_call(&self.q_position[..rows * self.depth], self.depth, count);
            O::multiply(isa, &call, &panels[..count], &[], out);
            for (i, sums) in self.by_position.chunks_exact(WIDTH).enumerate() {
                let (panel, row) = (first + i / rows, i % rows);
                if i / rows == count {
                    break;
                }
                let scores = &mut self.scores[row * stride..][..keys];
                // Key of the panel's first column.
                let key = (panel * WIDTH + d.first_query + row) as isize - d.last as isize;
                let skip = (-key).max(0) as usize;
                let start = key.max(0) as usize;
                if skip < WIDTH && start < keys {
                    for (score, sum) in scores[start..].iter_mut().zip(&sums[skip..]) {
                        *score += sum;
                    }
                }
            }
        }
    }

    /// `out = Σ weight · v`, yet to be divided by the sum of the weights.
    fn weighted_sums<O: Operands<Left = X>>(
        &mut self,
        isa: Isa,
        pages: &Pages<'_, O::Right>,
        (keys, stride): (usize, usize),
    ) {
        let rows = self.counts.len();
        let panels = self.width / WIDTH;
        self.out.grow(rows * self.width);
        for first in (0..panels).step_by(MAX_PANELS) {
            let count = MAX_PANELS.min(panels - first);
            let size = pages.size.next_multiple_of(O::WHOLE) * WIDTH;
            let panels_of =
                |page: usize| some_panels(&pages.values(page)[first * size..], count, size);
            let last = keys.div_ceil(pages.size).saturating_sub(1);
            for page in 0..keys.div_ceil(pages.size) {
                let start = page * pages.size;
                let call = Call {
                    a: &self.weights[start..rows * stride],
                    row_stride: stride,
                    rows,
                    depth: pages.size.min(keys - start),
                    panel_stride: size,
                    panels: count,
                    fresh: page == 0,
                };
                let out = Target {
                    values: &mut self.out[first * WIDTH..],
                    row_stride: self.width,
                    panel_stride: WIDTH,
                };
                let (now, next) = (panels_of(page), panels_of((page + PAGES_AHEAD).min(last)));
                O::multiply(isa, &call, &now[..count], &next[..count], out);
            }
        }
    }
}

/// Pages that values are fetched ahead: those of the first ones are fetched with the last keys. A page takes less time than memory takes to bring one.
const PAGES_AHEAD: usize = MAX_PANELS;

/// The first `count` panels of `size` values.
fn some_panels<T>(packed: &[T], count: usize, size: usize) -> [&[T]; MAX_PANELS] {
    std::array::from_fn(|p| &packed[p.min(count - 1) * size..][..size])
}

/// A product of queries `[rows, depth]` with panels of that depth.
fn query_call<T>(q: &[T], depth: usize, panels: usize) -> Call<'_, T> {
    Call {
        a: q,
        row_stride: depth,
        rows: q.len() / depth,
        depth,
        panel_stride: depth * WIDTH,
        panels,
        fresh: true,
    }
}

/// Partial sums of [`softmax`]: their number fixes the order of additions.
pub(super) const LANES: usize = 16;

/// All lanes as one, by halves.
#[inline(always)]
pub(super) fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for j in 0..width {
            lanes[j] = f(lanes[j], lanes[j + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest of the first `count` scores of a row of whole blocks of [`LANES`]; −∞ takes the place of the others.
#[inline(always)]
pub(super) fn largest_seen(row: &mut [f32], count: usize) -> f32 {
    row[count..].fill(f32::NEG_INFINITY);
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in row.as_chunks::<LANES>().0 {
        for j in 0..LANES {
            lanes[j] = larger(block[j], lanes[j]);
        }
    }
    fold(lanes, larger)
}

per_isa! {
    /// `row = exp(row − max)` over the first `count` scores, 0 behind them; returns one over the sum. The row is of whole blocks of [`LANES`].
    fn softmax<FMA>(row: &mut [f32], count: usize) -> f32 {
        let (seen, hidden) = row.split_at_mut(count.next_multiple_of(LANES));
        hidden.fill(0.0);
        let max = largest_seen(seen, count);
        let mut sums = [0.0f32; LANES];
        for block in seen.as_chunks_mut::<LANES>().0 {
            for j in 0..LANES {
                block[j] = exp::<FMA>(block[j] - max);
                sums[j] += block[j];
            }
        }
        1.0 / fold(sums, |a, b| a + b)
    }
}
