//! The paged cache of keys and values, and the rotary table.

use super::super::gemm::WIDTH;
#[cfg(target_arch = "x86_64")]
use super::super::isa::Level;
use super::super::isa::per_isa;
use super::super::reference::attention::rotary;
use super::super::{Buffer, Isa, WeightPrecision};
use super::operand::{Exact, Operands, WidenedRows};
use super::pages::Part;
use crate::backend::{KvShape, Result};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    F32,
    /// bf16, to be widened a row at a time.
    Bf16,
    /// bf16, to be widened two rows at a time.
    #[cfg(target_arch = "x86_64")]
    Bf16Pairs,
}

impl Kept {
    /// How attention on `isa` wants them beside such weights: the only place that decides it.
    fn new(isa: Isa, weights: WeightPrecision, shape: KvShape) -> Self {
        if weights.bytes_of_cached() == size_of::<f32>() {
            return Self::F32;
        }
        let _ = (isa, shape);
        #[cfg(target_arch = "x86_64")]
        if isa.level() == Level::Avx512
            && shape.head_dim.is_multiple_of(2)
            && shape.page_size.is_multiple_of(2)
        {
            return Self::Bf16Pairs;
        }
        Self::Bf16
    }
}

/// Keys and values of all layers, `[layers, pages, Hk]` blocks of
/// `[page_size / 16][Dh][16]` keys and `[Dh / 16][page_size][16]` values, rounded up, where pairs of rows are kept together if they are widened so.
pub struct KvCache {
    /// Numbers of f32, or each the place of two of bf16.
    keys: Buffer,
    values: Buffer,
    pub(super) kept: Kept,
    pub(super) shape: KvShape,
    /// A head on its way into the cache: rotated, and rounded.
    rotated: Vec<f32>,
    rounded: Vec<u16>,
}

/// Numbers of one page and head.
fn block_of(shape: KvShape, part: Part) -> usize {
    match part {
        Part::Keys => shape.page_size.next_multiple_of(WIDTH) * shape.head_dim,
        Part::Values => shape.head_dim.next_multiple_of(WIDTH) * shape.page_size,
    }
}

impl KvCache {
    pub(super) fn new(isa: Isa, weights: WeightPrecision, shape: KvShape) -> Result<Self> {
        let blocks = shape.layers * shape.pages * shape.kv_heads;
        // A block is a multiple of 16 numbers.
        let buffer = |part| {
            let bytes = blocks * block_of(shape, part) * weights.bytes_of_cached();
            Buffer::zeroed_huge(bytes / size_of::<f32>())
        };
        Ok(Self {
            keys: buffer(Part::Keys)?,
            values: buffer(Part::Values)?,
            kept: Kept::new(isa, weights, shape),
            shape,
            rotated: vec![0.0; shape.head_dim],
            rounded: vec![0; shape.head_dim],
        })
    }

    fn block(&self, layer: usize, page: usize, head: usize) -> usize {
        (layer * self.shape.pages + page) * self.shape.kv_heads + head
    }

    /// Keys or values of a page and head, as what they are kept as.
    pub(super) fn part<W: bytemuck::Pod>(
        &self,
        part: Part,
        layer: usize,
        page: usize,
        head: usize,
    ) -> &[W] {
        let (n, buffer) = match part {
            Part::Keys => (block_of(self.shape, part), &self.keys),
            Part::Values => (block_of(self.shape, part), &self.values),
        };
        &bytemuck::cast_slice(buffer.as_slice())[self.block(layer, page, head) * n..][..n]
    }

    /// Stores one position: `keys, values [Hk · Dh]`, keys to be rotated. Positions of a sequence come in order: the one behind an even one may lose its
    /// values.
    pub(super) fn store(
        &mut self,
        isa: Isa,
        (layer, slot): (usize, usize),
        (keys, values): (&[f32], &[f32]),
        (cos, sin): (&[f32], &[f32]),
    ) {
        let (dh, size) = (self.shape.head_dim, self.shape.page_size);
        let (page, at) = (slot / size, slot % size);
        let heads = keys.chunks_exact(dh).zip(values.chunks_exact(dh));
        for (head, (key, value)) in heads.enumerate() {
            let block = self.block(layer, page, head);
            let key_panel = block * block_of(self.shape, Part::Keys) + at / WIDTH * dh * WIDTH;
            let value_block = block * block_of(self.shape, Part::Values);
            let (keys, values) = (self.keys.as_mut_slice(), self.values.as_mut_slice());
            let (rotated, rounded) = (&mut self.rotated, &mut self.rounded);
            rotate(isa, key, cos, sin, rotated);
            match self.kept {
                Kept::F32 => {
                    let keys = &mut keys[key_panel..];
                    for (i, &v) in rotated.iter().enumerate() {
                        keys[Exact::place(i, at % WIDTH)] = v;
                    }
                    let values = &mut values[value_block..];
                    for (panel, value) in value.chunks(WIDTH).enumerate() {
                        values[(panel * size + at) * WIDTH..][..value.len()].copy_from_slice(value);
                    }
                }
                Kept::Bf16 => {
                    let keys: &mut [u16] = &mut bytemuck::cast_slice_mut(keys)[key_panel..];
                    round(isa, rotated, rounded);
                    for (i, &v) in rounded.iter().enumerate() {
                        keys[WidenedRows::place(i, at % WIDTH)] = v;
                    }
                    let values: &mut [u16] = &mut bytemuck::cast_slice_mut(values)[value_block..];
                    round(isa, value, rounded);
                    for (panel, value) in rounded.chunks(WIDTH).enumerate() {
                        let values = &mut values[panel * size * WIDTH..];
                        for (j, &v) in value.iter().enumerate() {
                            values[WidenedRows::place(at, j)] = v;
                        }
                    }
                }
                #[cfg(target_arch = "x86_64")]
                Kept::Bf16Pairs => {
                    // A pair is a word, its first row the low half.
                    let keys: &mut [u32] = &mut bytemuck::cast_slice_mut(keys)[key_panel / 2..];
                    round(isa, rotated, rounded);
                    let words = keys[at % WIDTH..].iter_mut().step_by(WIDTH);
                    for (word, pair) in words.zip(rounded.as_chunks::<2>().0) {
                        *word = u32::from(pair[0]) | u32::from(pair[1]) << 16;
                    }
                    let values: &mut [u32] =
                        &mut bytemuck::cast_slice_mut(values)[value_block / 2..];
                    round(isa, value, rounded);
                    for (panel, value) in rounded.chunks(WIDTH).enumerate() {
                        let words = &mut values[(panel * size / 2 + at / 2) * WIDTH..];
                        for (word, &v) in words.iter_mut().zip(value) {
                            // The other half is of a position that is yet to come. Whoever had the page before may have left there what is
                            // not finite, and a product by a weight of zero would show it.
                            *word = match at % 2 {
                                0 => u32::from(v),
                                _ => *word & 0xffff | u32::from(v) << 16,
                            };
                        }
                    }
                }
            }
        }
    }
}

per_isa! {
    /// `out = bf16(x)` to the nearest, of two the even one; the same on every instruction set.
    fn round<FMA>(x: &[f32], out: &mut [u16]) {
        for (out, v) in out.iter_mut().zip(x) {
            let bits = v.to_bits();
            let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
            // What is not a number stays so.
            let bits = if v.is_nan() { bits | 0x0040_0000 } else { nearest };
            *out = (bits >> 16) as u16;
        }
    }
}

per_isa! {
    /// Rotates one head `[Dh]`, halves layout.
    pub(super) fn rotate<FMA>(head: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
        let (a, b) = head.split_at(head.len() / 2);
        let (low, high) = out.split_at_mut(a.len());
        // Lengths that the compiler sees to be equal.
        let (b, cos, sin) = (&b[..a.len()], &cos[..a.len()], &sin[..a.len()]);
        let high = &mut high[..a.len()];
        for i in 0..a.len() {
            low[i] = a[i] * cos[i] - b[i] * sin[i];
            high[i] = b[i] * cos[i] + a[i] * sin[i];
        }
    }
}

/// Cosines and sines of every position so far.
#[derive(Default)]
pub(crate) struct Rotary {
    theta: f32,
    half: usize,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// Makes the table reach `positions` positions; another `theta` or `head_dim` starts it anew.
    pub(super) fn reach(&mut self, theta: f32, head_dim: usize, positions: usize) {
        if (theta, head_dim / 2) != (self.theta, self.half) {
            *self = Self {
                theta,
                half: head_dim / 2,
                ..Self::default()
            };
        }
        for position in self.positions..positions {
            let (cos, sin) = rotary(position, theta, head_dim);
            self.cos.extend(cos);
            self.sin.extend(sin);
        }
        self.positions = self.positions.max(positions);
    }

    /// `[Dh / 2]` each.
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn rounding_is_to_the_nearest_and_of_two_to_the_even_one() {
        // Every exponent and sign, with ends of a mantissa that lie on, beside and between bf16 values.
        let ends = [
            0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_8000, 0x7f_8000, 0x7f_ffff,
        ];
        let bits = (0..512).flat_map(|high| ends.map(|low| high << 23 | low));
        let x: Vec<f32> = bits.map(f32::from_bits).collect();
        let expected: Vec<u16> = x.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
        for isa in Isa::available() {
            let mut out = vec![0; x.len()];
            round(isa, &x, &mut out);
            assert!(out == expected, "{}", isa.name());
        }
    }

    #[test]
    fn the_cache_takes_the_bytes_that_are_counted() {
        let shape = KvShape {
            layers: 3,
            pages: 7,
            page_size: 16,
            kv_heads: 2,
            head_dim: 64,
        };
        for (weights, bytes) in [
            (WeightPrecision::F32, 4),
            (WeightPrecision::Bf16, 2),
            (WeightPrecision::Int8, 2),
        ] {
            assert_eq!(weights.bytes_of_cached(), bytes);
            for isa in Isa::available() {
                let cache = KvCache::new(isa, weights, shape).expect("memory");
                let taken = [&cache.keys, &cache.values].map(|b| size_of_val(b.as_slice()));
                let counted = shape.values_per_page() * shape.pages * bytes;
                assert_eq!(taken.iter().sum::<usize>(), counted, "{}", isa.name());
            }
        }
    }
}
