//! Packed weights: panels of 16 output channels, `[M / 16][K][16]` in f32, `[M / 16][K / 2][16][2]` in int8, 16-bit integers or pairs of bf16,
//! `[M / 16][K / 4][16][4]` in int8 where AVX-512 or tile registers multiply them.
//!
//! One step of the inner loop reads one row of a panel, so a panel is read from front to back once, whatever the number of input rows.

use half::bf16;

use super::fixed;
use super::integers::SEGMENT;
use crate::backend::Result;
#[cfg(target_arch = "x86_64")]
use crate::cpu::isa::Level;
use crate::cpu::pages::Lines;
use crate::cpu::{Isa, WeightPrecision, out_of_memory};

/// Output channels of a panel.
pub(crate) const WIDTH: usize = 16;
/// Largest int8 magnitude in use: symmetric, so that −128 never occurs.
const INT8_MAX: f32 = 127.0;
/// What is added to a weight of `Stored::Int8Fours`.
pub(super) const ADDED: u8 = 128;
/// The depth of fours is a multiple of this: a step of tile registers.
#[cfg(target_arch = "x86_64")]
pub(super) const FOURS_DEPTH: usize = 64;

/// Values of all panels.
///
/// Rows of integers come in pairs, since they are multiplied and added in pairs, and so do rows of bf16; past an odd depth the second row is zero.
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    #[cfg(target_arch = "x86_64")]
    Pairs(&'a [u16]),
    /// Pairs of the high parts of a panel, then of the low ones.
    #[cfg(target_arch = "x86_64")]
    Split(&'a [u16]),
    I8(&'a [i8]),
    I16(&'a [i16]),
    /// Fours of int8, each with 128 added.
    #[cfg(target_arch = "x86_64")]
    Fours(&'a [u8]),
}

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    /// As integers of 16 bits ([`fixed`]).
    Fixed,
    #[cfg(target_arch = "x86_64")]
    Bf16Pairs,
    /// As sums of two bf16, sixteen bits and more of each value, for tile registers.
    #[cfg(target_arch = "x86_64")]
    Bf16Split,
    Int8,
    /// Four rows together and 128 added, so that bytes are without sign, as AVX-512 multiplies them by bytes with one; of a depth rounded up to [`FOURS_DEPTH`].
    #[cfg(target_arch = "x86_64")]
    Int8Fours,
}

impl Stored {
    /// How the kernels of `isa` want weights of linear layers.
    pub(crate) fn linear(isa: Isa, precision: WeightPrecision) -> Self {
        match precision {
            WeightPrecision::F32 => Self::F32,
            #[cfg(target_arch = "x86_64")]
            WeightPrecision::Bf16 if isa.multiplies_bf16() => Self::Bf16Pairs,
            WeightPrecision::Bf16 => Self::Fixed,
            #[cfg(target_arch = "x86_64")]
            WeightPrecision::Int8 if isa.level() == Level::Avx512 => Self::Int8Fours,
            WeightPrecision::Int8 => Self::Int8,
        }
    }

    /// The same of convolutions whose errors are heard as noise: with tile registers three products of bf16 are faster than one of f32, and with AVX-512 two of
    /// 16-bit integers.
    pub(crate) fn signal(isa: Isa, precision: WeightPrecision) -> Self {
        match precision {
            #[cfg(target_arch = "x86_64")]
            WeightPrecision::Bf16 | WeightPrecision::Int8 if isa.has_tiles() => Self::Bf16Split,
            #[cfg(target_arch = "x86_64")]
            WeightPrecision::Bf16 | WeightPrecision::Int8 if isa.level() == Level::Avx512 => {
                Self::Fixed
            }
            _ => Self::F32,
        }
    }

    /// Whether a channel has a scale.
    fn is_scaled(self) -> bool {
        match self {
            Self::Int8 | Self::Fixed => true,
            #[cfg(target_arch = "x86_64")]
            Self::Int8Fours => true,
            _ => false,
        }
    }

    /// The same of convolutions whose results need not be exact: pairs of bf16 where they are faster and linear layers are rounded too.
    pub(crate) fn convolution(isa: Isa, precision: WeightPrecision) -> Self {
        match precision {
            #[cfg(target_arch = "x86_64")]
            WeightPrecision::Bf16 | WeightPrecision::Int8 if isa.multiplies_bf16() => {
                Self::Bf16Pairs
            }
            _ => Self::signal(isa, precision),
        }
    }

    /// Bytes of a value.
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Fixed => 2,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16Pairs => 2,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16Split => 4,
            Self::Int8 => 1,
            #[cfg(target_arch = "x86_64")]
            Self::Int8Fours => 1,
        }
    }

    /// Depth of the panels of a matrix of depth `k`.
    fn depth(self, k: usize) -> usize {
        match self {
            Self::F32 => k,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16Pairs | Self::Bf16Split => k.next_multiple_of(2),
            Self::Int8 | Self::Fixed => k.next_multiple_of(2),
            #[cfg(target_arch = "x86_64")]
            Self::Int8Fours => k.next_multiple_of(FOURS_DEPTH),
        }
    }
}

/// What a row source says of the row it has written.
pub(crate) enum Row {
    /// The values themselves.
    Values,
    /// Integers from −127 to 127 that stand for themselves times the scale.
    Quantised(f32),
}

/// A packed `[M, K]` matrix.
pub(crate) struct Panels {
    lines: Lines,
    stored: Stored,
    /// One per packed channel of integers.
    pub(crate) scale: Vec<f32>,
    pub(crate) k: usize,
    pub(crate) count: usize,
}

impl Panels {
    /// Packs `count` panels. `fill(channel, row)` writes packed channel `channel` to `row [K]`, or returns `None` for a channel that only pads.
    pub(crate) fn pack(
        count: usize,
        k: usize,
        stored: Stored,
        mut fill: impl FnMut(usize, &mut [f32]) -> Option<Row>,
    ) -> Result<Self> {
        let bytes = count * stored.depth(k) * WIDTH * stored.bytes();
        let mut panels = Self {
            lines: Lines::zeroed(bytes).map_err(|_| out_of_memory("weights", bytes))?,
            stored,
            scale: match stored.is_scaled() {
                true => vec![1.0; count * WIDTH],
                false => Vec::new(),
            },
            k,
            count,
        };
        #[cfg(target_arch = "x86_64")]
        if stored == Stored::Int8Fours {
            bytemuck::cast_slice_mut::<_, u8>(&mut panels.lines).fill(ADDED);
        }
        let mut row = vec![0.0; k];
        for channel in 0..count * WIDTH {
            if let Some(kind) = fill(channel, &mut row) {
                panels.store(channel, &mut row, kind);
            }
        }
        Ok(panels)
    }

    /// Puts one channel into its column of its panel.
    fn store(&mut self, channel: usize, row: &mut [f32], kind: Row) {
        let (panel, column) = (channel / WIDTH, channel % WIDTH);
        let first = panel * self.panel_values();
        if let (Row::Quantised(scale), false) = (&kind, self.stored.is_scaled()) {
            row.iter_mut().for_each(|v| *v *= scale);
        }
        match self.stored {
            Stored::F32 => {
                let values: &mut [f32] = bytemuck::cast_slice_mut(&mut self.lines);
                for (k, &v) in row.iter().enumerate() {
                    values[first + k * WIDTH + column] = v;
                }
            }
            Stored::Fixed => {
                self.scale[channel] = match kind {
                    Row::Quantised(scale) => scale,
                    Row::Values => fixed::round_channel(row, SEGMENT),
                };
                let values: &mut [i16] = bytemuck::cast_slice_mut(&mut self.lines);
                for (k, &v) in row.iter().enumerate() {
                    values[first + 2 * (k / 2 * WIDTH + column) + k % 2] = v as i16;
                }
            }
            #[cfg(target_arch = "x86_64")]
            Stored::Bf16Pairs => {
                let values: &mut [u16] = bytemuck::cast_slice_mut(&mut self.lines);
                for (k, &v) in row.iter().enumerate() {
                    let place = 2 * (k / 2 * WIDTH + column) + k % 2;
                    values[first + place] = bf16::from_f32(v).to_bits();
                }
            }
            #[cfg(target_arch = "x86_64")]
            Stored::Bf16Split => {
                let (first, low) = (2 * first, self.panel_values());
                let values: &mut [u16] = bytemuck::cast_slice_mut(&mut self.lines);
                for (k, &v) in row.iter().enumerate() {
                    let place = first + 2 * (k / 2 * WIDTH + column) + k % 2;
                    let high = bf16::from_f32(v);
                    values[place] = high.to_bits();
                    values[place + low] = bf16::from_f32(v - high.to_f32()).to_bits();
                }
            }
            Stored::Int8 => self.store_int8(channel, row, kind, (2, 0)),
            #[cfg(target_arch = "x86_64")]
            Stored::Int8Fours => self.store_int8(channel, row, kind, (4, ADDED)),
        }
    }

    /// The same as int8, `together` rows of a panel side by side, plus `added`.
    fn store_int8(
        &mut self,
        channel: usize,
        row: &mut [f32],
        kind: Row,
        (together, added): (usize, u8),
    ) {
        let first = channel / WIDTH * self.panel_values();
        let scale = match kind {
            Row::Quantised(scale) => scale,
            Row::Values => {
                let max = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let scale = if max > 0.0 { max / INT8_MAX } else { 1.0 };
                row.iter_mut()
                    .for_each(|v| *v = (*v / scale).round_ties_even());
                scale
            }
        };
        self.scale[channel] = scale;
        let values: &mut [u8] = bytemuck::cast_slice_mut(&mut self.lines);
        for (k, &v) in row.iter().enumerate() {
            let line = (k / together * WIDTH + channel % WIDTH) * together;
            values[first + line + k % together] = (v as i8 as u8).wrapping_add(added);
        }
    }

    /// Values of a panel, with what pads it.
    pub(super) fn panel_values(&self) -> usize {
        self.stored.depth(self.k) * WIDTH
    }

    /// Bytes of a panel.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn panel_bytes(&self) -> usize {
        self.panel_values() * self.stored.bytes()
    }

    /// All panels from `panel` on.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn bytes_from(&self, panel: usize) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[panel * self.panel_bytes()..]
    }

    /// All panels, one after the other.
    pub(crate) fn values(&self) -> Values<'_> {
        let n = self.count * self.panel_values();
        match self.stored {
            Stored::F32 => Values::F32(&bytemuck::cast_slice(&self.lines)[..n]),
            Stored::Fixed => Values::I16(&bytemuck::cast_slice(&self.lines)[..n]),
            #[cfg(target_arch = "x86_64")]
            Stored::Bf16Pairs => Values::Pairs(&bytemuck::cast_slice(&self.lines)[..n]),
            #[cfg(target_arch = "x86_64")]
            Stored::Bf16Split => Values::Split(&bytemuck::cast_slice(&self.lines)[..2 * n]),
            Stored::Int8 => Values::I8(&bytemuck::cast_slice(&self.lines)[..n]),
            #[cfg(target_arch = "x86_64")]
            Stored::Int8Fours => Values::Fours(&bytemuck::cast_slice(&self.lines)[..n]),
        }
    }

    /// Bytes of the weights.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(self.scale.as_slice())
    }
}
