//! Blocks of rows that are rounded to integers and lie word by word, for AVX-512: all rows' first 32 bits, then all rows' next.
//!
//! In: rows of f32. Out: the 16 sums of each row and panel, as [`Rows`](super::integers::Rows) has them, to the bit. Neighbours are multiplied together from any row on,
//! so the rows that a tap of a convolution reads are those of the tap before, a few places on.

use std::ops::Range;

use super::integers::{SEGMENT, Whole};
use super::panels::Values;
use super::words_avx512::{Kernel, Start};
use super::{Accumulators, Input, Isa, Job, MAX_PANELS, WIDTH, avx512, kinds};

/// Bytes of the panels that all tiles of a block take turns at: they stay in the first-level cache.
const TURN_BYTES: usize = 32 * 1024;

/// Fewest rows of a layer that are taken word by word, four whole tiles: as few as sequences decode together read weights from memory, ahead of which other
/// tiles fetch. Between 17 and 24 it was not measured.
const LEAST_ROWS: usize = 24;

/// Weights that AVX-512 multiplies integers by.
pub(super) type Weight<V> = <<V as Whole>::Kind as kinds::Kind>::W;

/// A block of rows of either integers.
#[derive(Default)]
pub(super) struct Rows {
    words: Words<i16>,
    bytes: Words<i8>,
}

/// A block of rows; the buffers grow once.
#[derive(Default)]
pub(super) struct Words<V: Whole> {
    /// Which block of which product this is.
    name: Option<(u64, usize)>,
    /// `[stretches][words of a stretch][pitch]`
    values: Vec<V::Word>,
    /// `[stretches][pitch]`
    scales: Vec<f32>,
    /// What the sums with weights that have something added begin with, `[stretches][pitch]`.
    offsets: Vec<i32>,
    /// Places for rows.
    pitch: usize,
    /// Words of a stretch.
    words: usize,
    /// What is multiplied, in the order of the panels' depth.
    starts: Vec<Start>,
}

impl<V: Whole> Words<V> {
    /// Values of a word.
    const WORD: usize = 4 / size_of::<V>();

    /// Whether the block called `name` is what is here already; from now on it is.
    pub(super) fn is(&mut self, name: (u64, usize)) -> bool {
        self.name.replace(name) == Some(name)
    }

    /// Makes room for `stretches` stretches of at most `length` values of `rows` rows.
    pub(super) fn begin(&mut self, rows: usize, stretches: usize, length: usize) {
        // An odd number of cache lines from a word of a row to its next, so that these spread over the whole cache.
        self.pitch = (rows.div_ceil(WIDTH) | 1) * WIDTH;
        self.words = length.div_ceil(Self::WORD);
        self.starts.clear();
        let places = stretches * self.pitch;
        if self.values.len() < places * self.words {
            self.values
                .resize(places * self.words, bytemuck::Zeroable::zeroed());
        }
        if self.scales.len() < places {
            self.scales.resize(places, 0.0);
            self.offsets.resize(places, 0);
        }
    }

    /// Rounds stretch `i` of at most 16 rows from `first` on, the first `length` values of each row of `x`, which are `stride` values apart.
    pub(super) fn round(
        &mut self,
        isa: Isa,
        i: usize,
        (first, rows): (usize, usize),
        (x, stride): (&[f32], usize),
        length: usize,
    ) {
        let place = i * self.pitch + first;
        let scales = &mut self.scales[place..place + rows];
        let offsets = &mut self.offsets[place..place + rows];
        let out = &mut self.values[i * self.words * self.pitch + first..];
        V::round_rows(
            isa,
            (x, stride),
            length,
            (scales, offsets),
            (out, self.pitch),
        );
    }

    /// Has the next `depth` weights of all panels multiplied by stretch `i` from row `row` on.
    pub(super) fn then(&mut self, i: usize, row: usize, depth: usize) {
        self.starts.push(Start {
            word: i * self.words * self.pitch + row,
            scale: i * self.pitch + row,
            steps: depth.div_ceil(Self::WORD),
        });
    }

    /// Makes room for `rows` rows of a layer's input of `depth` values, [`SEGMENT`] by [`SEGMENT`].
    pub(super) fn begin_layer(&mut self, rows: usize, depth: usize) {
        self.begin(rows, depth.div_ceil(SEGMENT), SEGMENT);
        let padded = depth.next_multiple_of(V::DEPTH);
        for (i, done) in (0..depth).step_by(SEGMENT).enumerate() {
            self.then(i, 0, SEGMENT.min(padded - done));
        }
    }

    /// Rounds `rows` rows of the only tap of `x`, from `x.values[first]` on, unless the block called `name` is what is here already.
    pub(super) fn load(
        &mut self,
        isa: Isa,
        name: (u64, usize),
        x: &Input<'_>,
        (first, rows): (usize, usize),
    ) {
        if self.is(name) {
            return;
        }
        self.begin_layer(rows, x.depth);
        // Rows from front to back, as the CPU fetches them ahead.
        for row in (0..rows).step_by(WIDTH) {
            for (i, done) in (0..x.depth).step_by(SEGMENT).enumerate() {
                let values = &x.values[first + row * x.row_stride + done..];
                let (these, length) = (WIDTH.min(rows - row), SEGMENT.min(x.depth - done));
                self.round(isa, i, (row, these), (values, x.row_stride), length);
            }
        }
    }

    /// The scales of a row, and how far apart those of its stretches are.
    pub(super) fn scales_of(&mut self, row: usize) -> (&mut [f32], usize) {
        (&mut self.scales[row..], self.pitch)
    }

    /// Takes stretch `i` of `rows` rows from `first` on that are rounded, each a [`SEGMENT`] after the one before.
    pub(super) fn lay(&mut self, isa: Isa, i: usize, (first, rows): (usize, usize), x: &[V]) {
        let x = (bytemuck::cast_slice(x), SEGMENT / Self::WORD);
        let out = &mut self.values[i * self.words * self.pitch + first..];
        avx512::interleave_apart(isa, x, (rows, self.words), (out, self.pitch));
    }

    /// `acc [panel][rows] = rows · panel` for at most [`MAX_PANELS`] panels of `size` weights.
    pub(super) fn multiply(
        &self,
        isa: Isa,
        rows: usize,
        (b, size, panels): (&[Weight<V>], usize, usize),
        acc: &mut Accumulators,
    ) {
        let turn = TURN_BYTES / (MAX_PANELS * WIDTH * 4 * self.words.max(1));
        let (mut first, mut left, mut fresh) = (0, self.starts.len(), true);
        for starts in self.starts.chunks(turn.max(1)) {
            let kernel = Kernel::<V> {
                words: &self.values,
                scales: &self.scales,
                offsets: &self.offsets,
                pitch: self.pitch,
                starts,
                fresh,
            };
            let weights = kernel.weights();
            left -= starts.len();
            // More of these panels, or else the panels after them.
            let next = if left > 0 {
                weights
            } else {
                panels * size - first
            };
            kernel.run(isa, rows, (&b[first..], size, panels), next, acc);
            first += weights;
            fresh = false;
        }
        if fresh {
            acc[..panels].as_flattened_mut().fill([0.0; WIDTH]);
        }
    }
}

impl Job<'_> {
    /// Whether the kernel takes so many rows of a layer word by word: of integers, where it is faster.
    pub(super) fn takes_words(&self, isa: Isa, rows: usize) -> bool {
        let integers = matches!(self.w.panels.values(), Values::I16(_) | Values::Fours(_));
        isa.takes_rows_by_word() && integers && self.x.taps == 1 && rows >= LEAST_ROWS
    }

    /// All outputs of the block called `name` in some panels: rows of the input from `input` on, of the output from `row` on, and their number.
    pub(super) fn block_by_word(
        &self,
        isa: Isa,
        (x, acc): (&mut Rows, &mut Accumulators),
        name: (u64, usize),
        rows: (usize, usize, usize),
        panels: Range<usize>,
    ) {
        match self.w.panels.values() {
            Values::I16(b) => self.by_word(isa, (&mut x.words, acc), (name, b), rows, panels),
            Values::Fours(b) => self.by_word(isa, (&mut x.bytes, acc), (name, b), rows, panels),
            _ => unreachable!("weights that are not integers. This is a bug."),
        }
    }

    fn by_word<V: Whole>(
        &self,
        isa: Isa,
        (x, acc): (&mut Words<V>, &mut Accumulators),
        (name, b): ((u64, usize), &[Weight<V>]),
        (input, row, rows): (usize, usize, usize),
        panels: Range<usize>,
    ) {
        x.load(isa, name, &self.x, (input, rows));
        let size = self.w.panels.panel_values();
        for panel in panels.clone().step_by(MAX_PANELS) {
            let count = MAX_PANELS.min(panels.end - panel);
            if self.shared {
                self.expect_output(panel, count, (row, rows));
            }
            x.multiply(isa, rows, (&b[panel * size..], size, count), acc);
            self.finish(isa, acc, (panel, count), (row, rows));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::super::integers::Rows as InTurn;
    use super::super::panels::{Panels, Row, Stored};
    use super::*;

    fn values(n: usize, f: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * f).sin()).collect()
    }

    fn packed(stored: Stored, (panels, depth): (usize, usize)) -> Panels {
        let w = values(panels * WIDTH * depth, 0.71);
        let fill = |c: usize, row: &mut [f32]| {
            row.copy_from_slice(&w[c * depth..][..depth]);
            Some(Row::Values)
        };
        Panels::pack(panels, depth, stored, fill).unwrap()
    }

    /// Rows word by word have the sums of rows one after the other, multiplied without vector instructions.
    fn sums_agree<V: Whole>(
        isa: Isa,
        [wide, portable]: [Stored; 2],
        weights: impl Fn(&Panels) -> &[Weight<V>],
        plain: impl Fn(&Panels) -> &[V],
    ) {
        for (rows, depth) in [1, 5, 24, 31, 96]
            .into_iter()
            .flat_map(|rows| [1, 63, 128, 300, 1000].map(|depth| (rows, depth)))
        {
            let x = values(rows * depth, 0.37);
            let input = Input {
                values: &x,
                row_stride: depth,
                taps: 1,
                tap_stride: 0,
                depth,
            };
            for panels in 1..=MAX_PANELS {
                let [wide, portable] = [wide, portable].map(|s| packed(s, (panels, depth)));
                let mut acc = Box::new(super::super::Aligned::default());
                let mut by_word = Words::<V>::default();
                by_word.load(isa, (0, 0), &input, (0, rows));
                let b = (weights(&wide), wide.panel_values(), panels);
                by_word.multiply(isa, rows, b, &mut acc.0);

                let mut expected = Box::new(super::super::Aligned::default());
                let mut in_turn = InTurn::<V>::default();
                in_turn.load(Isa::PORTABLE, (0, 0), &input, 0, rows);
                let shape = (panels, portable.panel_values());
                in_turn.multiply(Isa::PORTABLE, plain(&portable), shape, &mut expected.0);
                for (acc, expected) in acc.0.iter().zip(&expected.0).take(panels) {
                    let [acc, expected] = [acc, expected].map(|a| a[..rows].as_flattened());
                    let bits = |a: &[f32]| a.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(acc), bits(expected), "{rows} rows of {depth}");
                }
            }
        }
    }

    #[test]
    fn sums_are_those_of_rows_in_turn() {
        let mut wide = Isa::available();
        wide.retain(|isa| isa.level() == Level::Avx512);
        if wide.is_empty() {
            eprintln!("SKIPPED: no AVX-512 on this machine");
        }
        for isa in wide {
            sums_agree::<i16>(isa, [Stored::Fixed; 2], i16s, i16s);
            sums_agree::<i8>(isa, [Stored::Int8Fours, Stored::Int8], fours, i8s);
        }
    }

    fn i16s(panels: &Panels) -> &[i16] {
        match panels.values() {
            Values::I16(b) => b,
            _ => panic!("not of 16 bits"),
        }
    }

    fn i8s(panels: &Panels) -> &[i8] {
        match panels.values() {
            Values::I8(b) => b,
            _ => panic!("not of 8 bits"),
        }
    }

    fn fours(panels: &Panels) -> &[u8] {
        match panels.values() {
            Values::Fours(b) => b,
            _ => panic!("not of fours"),
        }
    }
}
