//! Packed weights of linear layers, and which kernel multiplies by them.
//!
//! A row's bytes must not depend on its batch, and floating-point sums depend on their order. So what orders a weight's sums is chosen when it is
//! packed, from its shape alone, and the number of rows chooses only among kernels that keep to that order:
//!
//! | weight | order of a sum | kernels |
//! |---|---|---|
//! | f32, or f32 activations, or rows of no whole 16 bytes | one chain over k | `gemm_f32` |
//! | bf16 of at least [`STREAMED`] values | mma.sync over segments of k, which are then added | `gemv_*` up to 16 rows, `gemm_small_split` for few tiles, `gemm_{small,large}_segmented` |
//! | bf16, smaller, on Hopper | wgmma over k | `gemm_hopper_*` |
//! | bf16, smaller | mma.sync over k | `gemm_small`, `gemm_large` |
//!
//! Reading a large weight is what a decode step's time goes to, and its segments are what keeps enough reads under way. That all tiles of
//! mma.sync add up alike rests on one assumption about the chip: an element of a fragment depends on its row of A, its column of B and its
//! accumulator, not on where in the fragment it is.

use half::bf16;

use super::buffer::{Bytes, Dtype};
use super::launch::{Kernel, Shape};
use super::{Cuda, Precision, abi};
use crate::backend::Result;
use crate::tensor::Tensor;

/// Values from which on a weight's sums are segmented.
const STREAMED: usize = 1 << 19;
/// Warps of a `gemv_*` block, one per segment.
const SEGMENTS: usize = 8;
/// Packed rows and columns are padded to a multiple of it.
const PADDING: usize = 64;
/// Rows that the `gemv_*` kernels take.
const GEMV_ROWS: usize = 16;
/// Rows of a TMA box of both operands of `gemm_hopper_*`.
const HOPPER_BOX: u32 = 64;
/// Threads of a block of `gemm_hopper_*`.
const HOPPER_THREADS: u32 = 384;

const SMALL: Tile = Tile {
    side: 64,
    threads: 128,
    shared: 64 << 10,
};
const LARGE: Tile = Tile {
    side: 128,
    threads: 256,
    shared: 128 * 136 * 4,
};

/// A square tile of `kernels/gemm.cu`.
struct Tile {
    side: usize,
    threads: u32,
    shared: usize,
}

const fn gemm(name: &'static str) -> Kernel {
    Kernel::new("gemm", name)
}

/// A weight `[rows, cols]` on the device, padded with zeros, with its biases.
pub(super) struct PackedMatrix {
    values: Bytes,
    bias: Bytes,
    dtype: Dtype,
    /// Without padding.
    rows: usize,
    padded: (usize, usize),
    segment: usize,
    gated: bool,
    /// For TMA, where the weight is multiplied on Hopper's instructions.
    map: Option<abi::TensorMapBits>,
}

/// Columns of a segment of a bf16 weight.
fn segment((rows, cols): (usize, usize)) -> usize {
    if rows * cols < STREAMED {
        return cols;
    }
    (cols / PADDING).div_ceil(SEGMENTS) * PADDING
}

impl PackedMatrix {
    /// Packs `rows` rows of `cols` values and their biases: `fill(row, values)` writes a row and returns its bias. `gated` rows alternate, eight
    /// gates and their eight ups.
    pub(super) fn new(
        cuda: &Cuda,
        (rows, cols): (usize, usize),
        gated: bool,
        mut fill: impl FnMut(usize, &mut [f32]) -> f32,
    ) -> Result<Self> {
        let padded = (
            rows.next_multiple_of(PADDING),
            cols.next_multiple_of(PADDING),
        );
        let dtype = cuda.options.precision.dtype();
        let mut bias = vec![0.0f32; padded.0];
        let mut row = vec![0.0f32; padded.1];
        let mut each = |mut put: Box<dyn FnMut(&[f32]) + '_>| {
            for (r, bias) in bias.iter_mut().enumerate().take(rows) {
                *bias = fill(r, &mut row[..cols]);
                put(&row);
            }
        };
        let count = padded.0 * padded.1;
        let values = match cuda.options.precision {
            Precision::F32 => {
                let mut values: Vec<f32> = Vec::with_capacity(count);
                each(Box::new(|row| values.extend_from_slice(row)));
                values.resize(count, 0.0);
                cuda.bytes_of(&values, "a weight")?
            }
            Precision::Bf16 => {
                let mut values: Vec<bf16> = Vec::with_capacity(count);
                each(Box::new(|row| {
                    values.extend(row.iter().map(|&v| bf16::from_f32(v)))
                }));
                values.resize(count, bf16::ZERO);
                cuda.bytes_of(&values, "a weight")?
            }
        };
        let segment = match cuda.options.precision {
            Precision::F32 => padded.1,
            Precision::Bf16 => segment(padded),
        };
        if segment < padded.1 {
            // Here, so that a product allocates nothing.
            cuda.shared_tiles()?;
        }
        let on_hopper = dtype == Dtype::Bf16 && segment == padded.1 && cuda.is_hopper();
        let map = on_hopper
            .then(|| cuda.tensor_map(values.address(), padded, HOPPER_BOX))
            .transpose()?;
        Ok(Self {
            values,
            bias: cuda.bytes_of(&bias, "a bias")?,
            dtype,
            rows,
            padded,
            segment,
            gated,
            map,
        })
    }

    fn params(&self) -> abi::PackedWeight {
        abi::PackedWeight {
            data: self.values.address(),
            bias: self.bias.address(),
            rows: self.padded.0 as i32,
            cols: self.padded.1 as i32,
            segment: self.segment as i32,
            dtype: self.dtype.code(),
            gated: self.gated.into(),
            reserved: 0,
        }
    }

    fn segments(&self) -> usize {
        self.padded.1.div_ceil(self.segment)
    }
}

/// What blocks that share a tile exchange: partial sums, and counters that are zero between launches.
pub(super) struct SharedTiles {
    partial: Bytes,
    counters: Bytes,
}

impl SharedTiles {
    pub(super) fn new(cuda: &Cuda) -> Result<Self> {
        let tiles = cuda.most_shared_tiles();
        let tile = SMALL.side * SMALL.side * SEGMENTS * size_of::<f32>();
        Ok(Self {
            partial: cuda.bytes(tiles * tile, "partial sums")?,
            counters: cuda.bytes(tiles * size_of::<i32>(), "counters")?,
        })
    }
}

impl Cuda {
    /// Up to how many tiles a product has its tiles' segments spread over blocks: below it, most multiprocessors would be idle.
    fn most_shared_tiles(&self) -> usize {
        self.multiprocessors().div_ceil(2)
    }

    fn shared_tiles(&self) -> Result<&SharedTiles> {
        if let Some(made) = self.shared_tiles.get() {
            return Ok(made);
        }
        let made = SharedTiles::new(self)?;
        Ok(self.shared_tiles.get_or_init(|| made))
    }

    /// `out = epilogue(x wᵀ + bias)`; the caller has checked the shapes.
    pub(super) fn multiply(
        &self,
        x: &Tensor<Self>,
        w: &PackedMatrix,
        epilogue: abi::EpilogueParams,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        if x.rows() == 0 {
            return Ok(());
        }
        let params = abi::GemmParams {
            x: x.mat(),
            out: out.mat(),
            weight: w.params(),
            epilogue,
            partial: 0,
            counters: 0,
        };
        let whole = x.dtype() == Dtype::Bf16 && x.cols().is_multiple_of(8);
        match &w.map {
            _ if w.dtype == Dtype::F32 || !whole => self.multiply_f32(w, &params),
            Some(map) => self.multiply_hopper(x, w, *map, params),
            None if w.segments() > 1 => self.multiply_segmented(x.rows(), w, params),
            None => {
                let (large, tile) = self.tile(x.rows(), w.rows);
                let kernel = gemm(if large { "gemm_large" } else { "gemm_small" });
                self.launch_gemm(kernel, tiles(&tile, x.rows(), w.rows, 1), &params)
            }
        }
    }

    /// Whether large tiles fill the device, and the tile.
    fn tile(&self, n: usize, rows: usize) -> (bool, Tile) {
        let large = n.div_ceil(LARGE.side) * rows.div_ceil(LARGE.side) >= self.multiprocessors();
        (large, if large { LARGE } else { SMALL })
    }

    fn launch_gemm<P: Copy>(&self, kernel: Kernel, shape: Shape, params: &P) -> Result<()> {
        // SAFETY: `params` is the struct of the kernels of this family; `multiply`'s caller has checked the shapes.
        unsafe { self.launcher.launch(kernel, shape, params) }
    }

    fn multiply_f32(&self, w: &PackedMatrix, params: &abi::GemmParams) -> Result<()> {
        let grid = [
            w.rows.div_ceil(64),
            (params.x.rows as usize).div_ceil(64),
            1,
        ];
        let kernel = Kernel::new("gemm_f32", "gemm_f32");
        self.launch_gemm(kernel, Shape::grid(grid, 256), params)
    }

    fn multiply_hopper(
        &self,
        x: &Tensor<Self>,
        w: &PackedMatrix,
        weight_map: abi::TensorMapBits,
        gemm: abi::GemmParams,
    ) -> Result<()> {
        let x_map = self.tensor_map(gemm.x.data, x.shape(), HOPPER_BOX)?;
        let (large, tile) = self.tile(x.rows(), w.rows);
        let (name, shared) = if large {
            ("gemm_hopper_large", abi::HOPPER_LARGE_SHARED)
        } else {
            ("gemm_hopper_small", abi::HOPPER_SMALL_SHARED)
        };
        let tiles = x.rows().div_ceil(tile.side) * w.rows.div_ceil(tile.side);
        let shape = Shape::blocks(tiles.min(self.multiprocessors()), HOPPER_THREADS)
            .shared(shared as usize);
        let kernel = Kernel::new("gemm_hopper", name);
        let params = abi::HopperGemmParams {
            x_map,
            weight_map,
            gemm,
            reserved: [0; 5],
        };
        self.launch_gemm(kernel, shape, &params)
    }

    fn multiply_segmented(
        &self,
        n: usize,
        w: &PackedMatrix,
        mut params: abi::GemmParams,
    ) -> Result<()> {
        if n <= GEMV_ROWS {
            let (kernel, cols, shared) = gemv(n, w, self.multiprocessors());
            let shape = Shape::blocks(w.rows.div_ceil(cols), 32 * w.segments() as u32)
                .shared(shared * w.segments());
            return self.launch_gemm(kernel, shape, &params);
        }
        let few = n.div_ceil(SMALL.side) * w.rows.div_ceil(SMALL.side);
        if few <= self.most_shared_tiles() {
            let shared = self.shared_tiles()?;
            params.partial = shared.partial.address();
            params.counters = shared.counters.address();
            let shape = tiles(&SMALL, n, w.rows, w.segments());
            return self.launch_gemm(gemm("gemm_small_split"), shape, &params);
        }
        let (large, tile) = self.tile(n, w.rows);
        let kernel = gemm(if large {
            "gemm_large_segmented"
        } else {
            "gemm_small_segmented"
        });
        self.launch_gemm(kernel, tiles(&tile, n, w.rows, 1), &params)
    }
}

/// The launch of a kernel of `kernels/gemm.cu`.
fn tiles(tile: &Tile, n: usize, rows: usize, blocks_per_tile: usize) -> Shape {
    let grid = [
        rows.div_ceil(tile.side),
        n.div_ceil(tile.side),
        blocks_per_tile,
    ];
    Shape::grid(grid, tile.threads).shared(tile.shared)
}

/// The kernel for `n` rows, the weight's rows of a block, and the shared memory of a warp: stages of 64 columns of both operands. Narrow blocks
/// where wide ones would leave multiprocessors idle; gates and ups need wide ones.
fn gemv(n: usize, w: &PackedMatrix, multiprocessors: usize) -> (Kernel, usize, usize) {
    let wide = w.gated || w.rows / 16 >= 2 * multiprocessors;
    let (name, rows, cols, stages) = match (n <= 8, wide) {
        (true, false) => ("gemv_8x8", 8, 8, 5),
        (true, true) => ("gemv_8x16", 8, 16, 4),
        (false, false) => ("gemv_16x8", 16, 8, 4),
        (false, true) => ("gemv_16x16", 16, 16, 3),
    };
    let kernel = Kernel::new("gemv", name);
    let stages = (w.segment / PADDING).min(stages);
    (kernel, cols, stages * (rows + cols) * PADDING * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_follow_the_weight_alone() {
        // The official model's attention output, MLP down and gate-up projections, and one of its flow's.
        for (shape, columns, count) in [
            ((896, 896), 128, 7),
            ((896, 4864), 640, 8),
            ((9728, 896), 128, 7),
            ((1536, 256), 256, 1),
        ] {
            let segment = segment(shape);
            assert_eq!(
                (segment, shape.1.div_ceil(segment)),
                (columns, count),
                "{shape:?}"
            );
        }
    }

    #[test]
    fn no_weight_has_more_segments_than_a_block_has_warps() {
        for cols in (64..20_000).step_by(64) {
            let segment = segment((STREAMED, cols));
            assert!(
                cols.div_ceil(segment) <= SEGMENTS && segment.is_multiple_of(PADDING),
                "{cols}"
            );
        }
    }
}
