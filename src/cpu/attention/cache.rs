//! The paged cache of keys and values, and the rotary table.

use super::super::Buffer;
use super::super::gemm::WIDTH;
use super::super::reference::attention::rotary;
use super::pages::Part;
use crate::backend::{KvShape, Result};

/// Keys and values of all layers, `[layers, pages, Hk]` blocks of
/// `[page_size / 16][Dh][16]` keys and `[Dh / 16][page_size][16]` values, rounded up.
pub struct KvCache {
    keys: Buffer,
    values: Buffer,
    pub(super) shape: KvShape,
}

impl KvCache {
    pub(super) fn new(shape: KvShape) -> Result<Self> {
        let blocks = shape.layers * shape.pages * shape.kv_heads;
        let mut cache = Self {
            keys: Buffer::default(),
            values: Buffer::default(),
            shape,
        };
        cache.keys = Buffer::zeroed_huge(blocks * cache.key_block())?;
        cache.values = Buffer::zeroed_huge(blocks * cache.value_block())?;
        Ok(cache)
    }

    /// Values of one page and head of keys.
    fn key_block(&self) -> usize {
        self.shape.page_size.next_multiple_of(WIDTH) * self.shape.head_dim
    }

    /// The same of values.
    fn value_block(&self) -> usize {
        self.shape.head_dim.next_multiple_of(WIDTH) * self.shape.page_size
    }

    fn block(&self, layer: usize, page: usize, head: usize) -> usize {
        (layer * self.shape.pages + page) * self.shape.kv_heads + head
    }

    /// Keys or values of a page and head.
    pub(super) fn part(&self, part: Part, layer: usize, page: usize, head: usize) -> &[f32] {
        let (values, n) = match part {
            Part::Keys => (&self.keys, self.key_block()),
            Part::Values => (&self.values, self.value_block()),
        };
        &values.as_slice()[self.block(layer, page, head) * n..][..n]
    }

    /// Stores one position: `keys, values [Hk · Dh]`, keys rotated.
    pub(super) fn store(
        &mut self,
        layer: usize,
        slot: usize,
        (keys, values): (&[f32], &[f32]),
        (cos, sin): (&[f32], &[f32]),
    ) {
        let (dh, size) = (self.shape.head_dim, self.shape.page_size);
        let (page, at) = (slot / size, slot % size);
        let half = dh / 2;
        for head in 0..self.shape.kv_heads {
            let block = self.block(layer, page, head);
            let first = block * self.key_block() + at / WIDTH * dh * WIDTH + at % WIDTH;
            let key = &keys[head * dh..(head + 1) * dh];
            let to = &mut self.keys.as_mut_slice()[first..];
            for i in 0..half {
                to[i * WIDTH] = key[i] * cos[i] - key[half + i] * sin[i];
                to[(half + i) * WIDTH] = key[half + i] * cos[i] + key[i] * sin[i];
            }
            let first = block * self.value_block() + at * WIDTH;
            let value = &values[head * dh..(head + 1) * dh];
            let to = &mut self.values.as_mut_slice()[first..];
            for (panel, value) in value.chunks(WIDTH).enumerate() {
                to[panel * size * WIDTH..][..value.len()].copy_from_slice(value);
            }
        }
    }
}

/// Rotates one head `[Dh]`, halves layout.
pub(super) fn rotate(head: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let (a, b) = head.split_at(head.len() / 2);
    let (low, high) = out.split_at_mut(a.len());
    for i in 0..a.len() {
        low[i] = a[i] * cos[i] - b[i] * sin[i];
        high[i] = b[i] * cos[i] + a[i] * sin[i];
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
