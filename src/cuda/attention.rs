//! Attention over the paged cache and inside sequences.
//!
//! bf16 keys and values whose heads are a multiple of 8 and at most 128 go to the tensor cores, all others to plain kernels. Which way is taken depends on
//! the cache or on the tensors' kinds alone, never on the number of rows.

use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;

use super::abi::{AttentionParams, PagedParams, RopeParams};
use super::buffer::{Bytes, Dtype, NO_MAT};
use super::launch::{Kernel, Shape};
use super::{Cuda, abi};
use crate::backend::{Attention, AttnPlan, KvShape, Masks, RelPos, Result, check_shape};
use crate::tensor::{Segments, Tensor};

const ROPE_STORE_KV: Kernel = Kernel::new("paged_attention", "rope_store_kv");
const PAGED_PLAIN: Kernel = Kernel::new("paged_attention", "paged_plain");
const ATTENTION_PLAIN: Kernel = Kernel::new("attention", "attention_plain");
const ATTENTION_HOPPER: Kernel = Kernel::new("attention_hopper", "attention_hopper_64");

const ROPE_THREADS: u32 = 128;
const THREADS: u32 = 128;
const WARP: u32 = 32;
const WARPS: usize = 4;
/// Query rows of a warp.
const FRAGMENT_ROWS: usize = 16;
/// Keys of a tile.
const TILE: usize = 64;
/// Positions of a split of the cache.
const SPLIT: usize = WARPS * TILE;
/// f32 values of a row of a warp's band of relative positions.
const BAND_STRIDE: usize = TILE + FRAGMENT_ROWS + 4;
/// Heads of the kernel for Hopper, and its tiles of keys and values.
const HOPPER_DH: usize = 64;
const HOPPER_SHARED: usize = 4 * TILE * HOPPER_DH * 2;
/// Tiles of relative positions.
const POSITION_TILES: usize = 3;

/// The tensor core kernels for heads of up to `dh` values.
struct Tensored {
    dh: usize,
    decode: Kernel,
    prefill: Kernel,
    attention: Kernel,
    relative: Kernel,
}

impl Tensored {
    const fn new(dh: usize, paged: [&'static str; 2], flow: [&'static str; 2]) -> Self {
        Self {
            dh,
            decode: Kernel::new("paged_attention", paged[0]),
            prefill: Kernel::new("paged_attention", paged[1]),
            attention: Kernel::new("attention", flow[0]),
            relative: Kernel::new("attention", flow[1]),
        }
    }

    /// Bytes of a tile in shared memory.
    fn tile(&self) -> usize {
        TILE * (self.dh + 8) * 2
    }

    fn decode_shared(&self) -> usize {
        2 * WARPS * self.tile()
    }

    fn prefill_shared(&self) -> usize {
        4 * self.tile() + WARPS * FRAGMENT_ROWS * self.dh * 4
    }

    fn attention_shared(&self, relative: bool) -> usize {
        let positions = POSITION_TILES * self.tile() + WARPS * FRAGMENT_ROWS * BAND_STRIDE * 4;
        4 * self.tile() + if relative { positions } else { 0 }
    }
}

static TENSORED: [Tensored; 3] = [
    Tensored::new(
        32,
        ["paged_decode_32", "paged_prefill_32"],
        ["attention_32", "attention_relative_32"],
    ),
    Tensored::new(
        64,
        ["paged_decode_64", "paged_prefill_64"],
        ["attention_64", "attention_relative_64"],
    ),
    Tensored::new(
        128,
        ["paged_decode_128", "paged_prefill_128"],
        ["attention_128", "attention_relative_128"],
    ),
];

/// The narrowest kernels for heads of `dh` values, where there are any.
fn tensored(dh: usize) -> Option<&'static Tensored> {
    TENSORED.iter().find(|t| dh.is_multiple_of(8) && dh <= t.dh)
}

/// Bytes of shared memory of a warp of the plain kernels.
fn plain_shared(dh: usize) -> usize {
    (3 * dh + WARP as usize) * 4
}

/// Keys and values of all layers, `[layers, pages, Hk, page_size, Dh]` each, and what attention over them needs besides.
pub struct KvCache {
    shape: KvShape,
    dtype: Dtype,
    keys: Bytes,
    values: Bytes,
    tensored: Option<&'static Tensored>,
    /// Rotary frequencies `[Dh / 2]` for each base so far, by the bits of the base.
    frequencies: Mutex<Vec<(u32, Bytes)>>,
    partials: Mutex<Vec<Partials>>,
}

/// What the splits of a decoding step leave for each other.
struct Partials {
    /// Sums of rows and splits that there is room for, and counters.
    capacity: [usize; 2],
    sums: Bytes,
    stats: Bytes,
    arrived: Bytes,
}

impl KvCache {
    /// Bytes of the keys of a layer, and of its values.
    fn layer_bytes(&self) -> usize {
        let s = &self.shape;
        s.pages * s.kv_heads * s.page_size * s.head_dim * self.dtype.bytes()
    }

    /// Addresses of a layer's keys and values.
    fn layer(&self, layer: usize) -> [u64; 2] {
        assert!(
            layer < self.shape.layers,
            "layer {layer} of {}",
            self.shape.layers
        );
        let at = (layer * self.layer_bytes()) as u64;
        [self.keys.address() + at, self.values.address() + at]
    }

    fn frequencies(&self, cuda: &Cuda, theta: f32) -> Result<u64> {
        let mut known = (self.frequencies.lock()).unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = known.iter().find(|(bits, _)| *bits == theta.to_bits()) {
            return Ok(bytes.address());
        }
        let dh = self.shape.head_dim;
        let frequencies: Vec<f32> = (0..dh / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / dh as f32;
                (1.0 / f64::from(theta).powf(f64::from(exponent))) as f32
            })
            .collect();
        let bytes = cuda.bytes_of(&frequencies, "rotary frequencies")?;
        let address = bytes.address();
        known.push((theta.to_bits(), bytes));
        Ok(address)
    }

    /// Addresses of sums, their statistics and counters for `[splits of all rows, counters]`. Buffers that became too small stay: a captured
    /// graph may still use them.
    fn partials(&self, cuda: &Cuda, needed: [usize; 2]) -> Result<[u64; 3]> {
        let mut all = (self.partials.lock()).unwrap_or_else(PoisonError::into_inner);
        let fits = |p: &Partials| p.capacity[0] >= needed[0] && p.capacity[1] >= needed[1];
        if !all.last().is_some_and(fits) {
            let last = all.last().map_or([0, 0], |p| p.capacity);
            let capacity = [0, 1].map(|i| needed[i].max(2 * last[i]));
            let bytes = |len| cuda.bytes(len, "partial attention");
            all.push(Partials {
                capacity,
                sums: bytes(capacity[0] * self.shape.head_dim * 4)?,
                stats: bytes(capacity[0] * 2 * 4)?,
                arrived: bytes(capacity[1] * 4)?,
            });
        }
        let last = all
            .last()
            .expect("one was pushed if there was none. This is a bug.");
        Ok([&last.sums, &last.stats, &last.arrived].map(Bytes::address))
    }
}

impl Cuda {
    /// Shared memory that a block may have.
    fn block_shared(&self) -> Result<usize> {
        let limit = (self.context).attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
        let limit = limit.map_err(|e| self.error("reading an attribute", e))?;
        Ok(usize::try_from(limit).unwrap_or(0))
    }

    /// Runs the kernel for one new row and the one for several, each for the sequences that are its own.
    fn tensored_paged_attention(
        &self,
        kernels: &Tensored,
        plan: &AttnPlan<Self>,
        kv: &KvCache,
        mut params: PagedParams,
    ) -> Result<()> {
        let (sequences, kv_heads) = (plan.segments.count(), kv.shape.kv_heads);
        let group = params.group as usize;
        if plan.segments.lengths().any(|n| n == 1) {
            let splits = plan.max_context.div_ceil(SPLIT);
            let head_blocks = kv_heads * group.div_ceil(FRAGMENT_ROWS);
            if splits > 1 {
                let rows = sequences * kv_heads * group;
                let needed = [rows * splits, sequences * head_blocks];
                let [sums, stats, arrived] = kv.partials(self, needed)?;
                (params.partial_sums, params.partial_stats) = (sums, stats);
                params.arrived = arrived;
            }
            params.max_splits = splits as i32;
            let shape = Shape::grid([splits, head_blocks, sequences], THREADS)
                .shared(kernels.decode_shared());
            // SAFETY: shapes checked by the caller, room for all splits made above.
            unsafe { self.launcher.launch(kernels.decode, shape, &params) }?;
        }
        let longest = plan.segments.longest();
        if longest > 1 {
            let blocks = (longest * group).div_ceil(WARPS * FRAGMENT_ROWS);
            let shape = Shape::grid([blocks, kv_heads, sequences], THREADS)
                .shared(kernels.prefill_shared());
            // SAFETY: shapes checked by the caller.
            unsafe { self.launcher.launch(kernels.prefill, shape, &params) }?;
        }
        Ok(())
    }
}

impl Attention for Cuda {
    type KvCache = KvCache;

    fn alloc_kv(&self, shape: KvShape) -> Result<KvCache> {
        check_shape!("alloc_kv", shape.head_dim % 2, 0);
        let dtype = self.options().precision.dtype();
        let limit = self.block_shared()?;
        let mut kv = KvCache {
            shape,
            dtype,
            keys: Bytes::default(),
            values: Bytes::default(),
            tensored: tensored(shape.head_dim)
                .filter(|_| dtype == Dtype::Bf16)
                .filter(|t| t.decode_shared().max(t.prefill_shared()) <= limit),
            frequencies: Mutex::default(),
            partials: Mutex::default(),
        };
        let bytes = shape.layers * kv.layer_bytes();
        kv.keys = self.bytes(bytes, "cached keys")?;
        kv.values = self.bytes(bytes, "cached values")?;
        Ok(kv)
    }

    fn rope_store_kv(
        &self,
        qkv: &Tensor<Self>,
        plan: &AttnPlan<Self>,
        theta: f32,
        kv: &mut KvCache,
        layer: usize,
        q: &mut Tensor<Self>,
    ) -> Result<()> {
        let KvShape {
            page_size,
            kv_heads,
            head_dim,
            ..
        } = kv.shape;
        check_shape!(
            "rope_store_kv",
            qkv.shape(),
            (plan.positions.len(), q.cols() + 2 * kv_heads * head_dim)
        );
        check_shape!("rope_store_kv", q.rows(), qkv.rows());
        check_shape!("rope_store_kv", q.cols() % head_dim, 0);
        let [keys, values] = kv.layer(layer);
        let params = RopeParams {
            qkv: qkv.mat(),
            q: q.mat(),
            keys,
            values,
            positions: plan.positions.address(),
            slots: plan.slots.address(),
            frequencies: kv.frequencies(self, theta)?,
            cache_dtype: kv.dtype.code(),
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
            page_size: page_size as i32,
        };
        let shape = Shape::blocks(qkv.rows(), ROPE_THREADS).shared(head_dim * 4);
        // SAFETY: shapes checked above; a plan's slots are of pages that the caller owns.
        unsafe { self.launcher.launch(ROPE_STORE_KV, shape, &params) }
    }

    fn paged_attention(
        &self,
        q: &Tensor<Self>,
        kv: &KvCache,
        layer: usize,
        plan: &AttnPlan<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        let (dh, kv_heads) = (kv.shape.head_dim, kv.shape.kv_heads);
        check_shape!("paged_attention", out.shape(), q.shape());
        check_shape!("paged_attention", q.rows(), plan.positions.len());
        check_shape!("paged_attention", q.cols() % (dh * kv_heads), 0);
        let [keys, values] = kv.layer(layer);
        let params = PagedParams {
            q: q.mat(),
            out: out.mat(),
            keys,
            values,
            offsets: plan.segments.device().address(),
            positions: plan.positions.address(),
            context: plan.context_len.address(),
            block_table: plan.block_table.address(),
            cache_dtype: kv.dtype.code(),
            sequences: plan.segments.count() as i32,
            max_pages: plan.max_pages as i32,
            kv_heads: kv_heads as i32,
            group: (q.cols() / dh / kv_heads) as i32,
            head_dim: dh as i32,
            page_size: kv.shape.page_size as i32,
            scale: 1.0 / (dh as f32).sqrt(),
            ..Default::default()
        };
        if let Some(kernels) = kv.tensored {
            return self.tensored_paged_attention(kernels, plan, kv, params);
        }
        let shape = Shape::blocks(q.rows() * q.cols() / dh, WARP).shared(plain_shared(dh));
        // SAFETY: shapes checked above; a plan's pages are the caller's.
        unsafe { self.launcher.launch(PAGED_PLAIN, shape, &params) }
    }

    fn attention(
        &self,
        qkv: &Tensor<Self>,
        heads: usize,
        segments: &Segments<Self>,
        queries: &Segments<Self>,
        rel: Option<RelPos<'_, Self>>,
        masks: &Masks<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        let d = out.cols();
        check_attention((qkv, out), heads, segments, queries, masks);
        let dh = d / heads;
        let mut params = AttentionParams {
            qkv: qkv.mat(),
            out: out.mat(),
            positions: NO_MAT,
            content_bias: NO_MAT,
            position_bias: NO_MAT,
            offsets: segments.device().address(),
            query_offsets: queries.device().address(),
            chunks: masks.device().address(),
            sequences: segments.count() as i32,
            heads: heads as i32,
            head_dim: dh as i32,
            center: 0,
            scale: 1.0 / (dh as f32).sqrt(),
            reserved: 0,
        };
        let bf16 = abi::DTYPE_BF16 as i32;
        let mut tensors = params.qkv.dtype == bf16;
        if let Some(rel) = &rel {
            check_positions(rel, d, segments);
            params.positions = rel.p.mat();
            params.content_bias = rel.u.mat();
            params.position_bias = rel.v.mat();
            params.center = rel.center as i32;
            tensors &= params.positions.dtype == bf16;
        }
        let limit = self.block_shared()?;
        let kernels =
            tensored(dh).filter(|t| tensors && t.attention_shared(rel.is_some()) <= limit);
        let Some(kernels) = kernels else {
            let shape = Shape::blocks(queries.total() * heads, WARP).shared(plain_shared(dh));
            // SAFETY: shapes checked above.
            return unsafe { self.launcher.launch(ATTENTION_PLAIN, shape, &params) };
        };
        let rows = WARPS * FRAGMENT_ROWS;
        let blocks = |rows| [queries.longest().div_ceil(rows), heads, segments.count()];
        if rel.is_none() && dh == HOPPER_DH && self.is_hopper() {
            let shape = Shape::grid(blocks(2 * rows), 2 * THREADS).shared(HOPPER_SHARED);
            // SAFETY: shapes checked above.
            return unsafe { self.launcher.launch(ATTENTION_HOPPER, shape, &params) };
        }
        let kernel = match &rel {
            Some(_) => kernels.relative,
            None => kernels.attention,
        };
        let shape =
            Shape::grid(blocks(rows), THREADS).shared(kernels.attention_shared(rel.is_some()));
        // SAFETY: shapes checked above.
        unsafe { self.launcher.launch(kernel, shape, &params) }
    }
}

fn check_attention(
    (qkv, out): (&Tensor<Cuda>, &Tensor<Cuda>),
    heads: usize,
    segments: &Segments<Cuda>,
    queries: &Segments<Cuda>,
    masks: &Masks<Cuda>,
) {
    let d = out.cols();
    check_shape!("attention", qkv.shape(), (segments.total(), 3 * d));
    check_shape!("attention", out.rows(), queries.total());
    check_shape!("attention", queries.count(), segments.count());
    check_shape!("attention", d % heads, 0);
    check_shape!("attention", masks.count(), segments.count());
    for (rows, wanted) in segments.lengths().zip(queries.lengths()) {
        assert!(wanted <= rows, "attention: {wanted} of {rows} rows");
    }
}

fn check_positions(rel: &RelPos<'_, Cuda>, d: usize, segments: &Segments<Cuda>) {
    check_shape!("attention", rel.p.shape(), (2 * rel.center + 1, d));
    check_shape!("attention", rel.u.shape(), (1, d));
    check_shape!("attention", rel.v.shape(), (1, d));
    assert!(
        segments.longest() <= rel.center + 1,
        "attention: {} rows with positions for {}",
        segments.longest(),
        rel.center + 1
    );
}
