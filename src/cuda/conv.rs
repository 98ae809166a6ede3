//! Convolutions on the device. Kernels: `kernels/conv.cu`, which says in what order they add up.

use super::abi;
use super::buffer::Bytes;
use super::epilogue::{epilogue_params, optional_act};
use super::launch::{Kernel, Shape};
use super::memory::saturated;
use super::{Cuda, Precision};
use crate::backend::{
    Act, Conv, ConvGeom, Epilogue, Fidelity, Padding, Result, Weight, check_shape,
};
use crate::tensor::{Segments, Tensor};

const F32: Kernel = Kernel::new("conv", "conv_f32");
const EXACT: Kernel = Kernel::new("conv", "conv_exact");
const GROUPED: Kernel = Kernel::new("conv", "conv_grouped");

/// Output channels of packed weights are a multiple of it: the widest tile that is never left out.
const COLUMNS: usize = 64;
/// Input channels that the tensor-core kernel holds at a time.
const CHUNK: usize = abi::CONV_CHUNK as usize;
/// Steps of the tensor-core kernel's ring of weights.
const STAGES: usize = 4;
/// Shared memory of a block that every device of compute capability 8.0 and later has.
const SHARED_LIMIT: usize = 99 << 10;
const GROUPED_THREADS: usize = 256;

/// A tile of the tensor-core kernels, of bf16 and of f16 operands: rows and columns of a block, and of its warps.
struct Tile {
    kernel: Kernel,
    signal: Kernel,
    rows: usize,
    columns: usize,
    warps: usize,
    warp_columns: usize,
}

/// Largest first; all give the same bits.
const TILES: [Tile; 3] = [
    Tile {
        kernel: Kernel::new("conv", "conv_mma_128x128"),
        signal: Kernel::new("conv", "conv_mma_128x128_f16"),
        rows: 128,
        columns: 128,
        warps: 8,
        warp_columns: 64,
    },
    Tile {
        kernel: Kernel::new("conv", "conv_mma_128x64"),
        signal: Kernel::new("conv", "conv_mma_128x64_f16"),
        rows: 128,
        columns: 64,
        warps: 8,
        warp_columns: 32,
    },
    Tile {
        kernel: Kernel::new("conv", "conv_mma_64x64"),
        signal: Kernel::new("conv", "conv_mma_64x64_f16"),
        rows: 64,
        columns: 64,
        warps: 4,
        warp_columns: 32,
    },
];

/// Which kernel a weight is packed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Tensor cores, bf16.
    Tensor,
    /// Tensor cores, f16.
    Signal,
    F32,
    Exact,
    Grouped,
}

/// Shape of a weight, in the form in which all kernels take it.
#[derive(Clone, Copy, Debug)]
struct Dims {
    ci: usize,
    co: usize,
    taps: usize,
    groups: usize,
    phases: usize,
}

/// A weight as its kernel reads it.
struct Packed {
    kind: Kind,
    dims: Dims,
    columns: usize,
    weights: Bytes,
    bias: Bytes,
}

/// A packed convolution.
pub struct CudaConv1d {
    packed: Packed,
}

/// A packed transposed convolution: one convolution per phase of the output, all of as many taps; zeros where a phase has fewer.
pub struct CudaConvT1d {
    packed: Packed,
    taps: usize,
    padding: usize,
}

/// Where the taps of a convolution are: see `ConvParams`.
#[derive(Clone, Copy)]
struct Place {
    stride: usize,
    dilation: usize,
    shift: usize,
    back: usize,
    reflect: bool,
}

/// What a convolution reads and writes.
struct Operands<'a> {
    x: &'a Tensor<Cuda>,
    segments: &'a Segments<Cuda>,
    out: &'a mut Tensor<Cuda>,
    out_segments: &'a Segments<Cuda>,
    pre: abi::ActParams,
    epilogue: abi::EpilogueParams,
}

impl Conv for Cuda {
    type Conv1d = CudaConv1d;
    type ConvT1d = CudaConvT1d;

    fn pack_conv1d(
        &self,
        w: &Weight<'_>,
        bias: Option<&Weight<'_>>,
        groups: usize,
        fidelity: Fidelity,
    ) -> Result<CudaConv1d> {
        let kind = match (self.options.precision, fidelity) {
            (_, Fidelity::Exact) => {
                check_shape!("pack_conv1d", groups, 1);
                Kind::Exact
            }
            _ if groups > 1 => Kind::Grouped,
            (Precision::F32, _) => Kind::F32,
            (Precision::Bf16, Fidelity::Usual) => Kind::Tensor,
            (Precision::Bf16, Fidelity::Signal) => Kind::Signal,
        };
        self.pack_plain(kind, w, bias, groups)
    }

    fn pack_conv_transpose1d(
        &self,
        w: &Weight<'_>,
        bias: Option<&Weight<'_>>,
        stride: usize,
        padding: usize,
    ) -> Result<CudaConvT1d> {
        check_shape!("pack_conv_transpose1d", w.shape.len(), 3);
        let (ci, co, taps) = (w.shape[0], w.shape[1], w.shape[2]);
        let values = w.to_f32();
        let dims = Dims {
            ci,
            co,
            taps: taps.div_ceil(stride),
            groups: 1,
            phases: stride,
        };
        let kind = match self.options.precision {
            Precision::Bf16 => Kind::Signal,
            Precision::F32 => Kind::F32,
        };
        // Input row r reaches output row r · stride + t − padding: the taps of a phase are `first + stride · j`; the last reads the earliest row.
        let value = |phase: usize, tap: usize, c: usize, o: usize| {
            let t = (phase + padding) % stride + stride * (dims.taps - 1 - tap);
            if t < taps {
                values[(c * co + o) * taps + t]
            } else {
                0.0
            }
        };
        Ok(CudaConvT1d {
            packed: self.pack(kind, dims, value, bias)?,
            taps,
            padding,
        })
    }

    fn conv1d(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        w: &CudaConv1d,
        geom: ConvGeom,
        pre: Option<Act<'_, Self>>,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()> {
        let dims = w.packed.dims;
        check_shape!("conv1d", x.shape(), (segments.total(), dims.ci));
        check_shape!("conv1d", out.shape(), (out_segments.total(), dims.co));
        check_shape!("conv1d", matches!(ep, Epilogue::SiluMul), false);
        check_shape!("conv1d", segments.count(), out_segments.count());
        for (from, to) in segments.lengths().zip(out_segments.lengths()) {
            check_shape!("conv1d", to, geom.output_rows(from, dims.taps));
        }
        let place = Place {
            stride: geom.stride,
            dilation: geom.dilation,
            shift: 0,
            back: geom.left,
            reflect: geom.padding == Padding::Reflect,
        };
        let operands = Operands {
            pre: optional_act("conv1d", pre, dims.ci),
            epilogue: epilogue_params("conv1d", ep, out.shape()),
            x,
            segments,
            out,
            out_segments,
        };
        self.convolve(&w.packed, place, operands)
    }

    fn conv_transpose1d(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        w: &CudaConvT1d,
        pre: Option<Act<'_, Self>>,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()> {
        let dims = w.packed.dims;
        check_shape!("conv_transpose1d", x.shape(), (segments.total(), dims.ci));
        check_shape!(
            "conv_transpose1d",
            out.shape(),
            (out_segments.total(), dims.co)
        );
        check_shape!("conv_transpose1d", matches!(ep, Epilogue::SiluMul), false);
        check_shape!("conv_transpose1d", segments.count(), out_segments.count());
        for (from, to) in segments.lengths().zip(out_segments.lengths()) {
            let expected = match from {
                0 => 0,
                rows => ((rows - 1) * dims.phases + w.taps).saturating_sub(2 * w.padding),
            };
            check_shape!("conv_transpose1d", to, expected);
        }
        let place = Place {
            stride: 1,
            dilation: 1,
            shift: w.padding,
            back: dims.taps - 1,
            reflect: false,
        };
        let operands = Operands {
            pre: optional_act("conv_transpose1d", pre, dims.ci),
            epilogue: epilogue_params("conv_transpose1d", ep, out.shape()),
            x,
            segments,
            out,
            out_segments,
        };
        self.convolve(&w.packed, place, operands)
    }
}

/// Values of `taps · channels · columns` weights of each phase, in the order in which the kernels read them.
fn ordered<T>(
    kind: Kind,
    dims: Dims,
    columns: usize,
    convert: impl Fn(f32) -> T,
    value: impl Fn(usize, usize, usize, usize) -> f32,
) -> Vec<T> {
    let channels = dims.ci / dims.groups;
    let get = |phase, tap, c, o| {
        convert(if c < channels && o < dims.co {
            value(phase, tap, c, o)
        } else {
            0.0
        })
    };
    let tensored = matches!(kind, Kind::Tensor | Kind::Signal);
    let padded = if tensored {
        channels.next_multiple_of(CHUNK)
    } else {
        channels
    };
    let mut packed = Vec::with_capacity(dims.phases * dims.taps * padded * columns);
    for phase in 0..dims.phases {
        if tensored {
            for chunk in (0..channels).step_by(CHUNK) {
                for tap in 0..dims.taps {
                    for o in 0..columns {
                        packed.extend((chunk..chunk + CHUNK).map(|c| get(phase, tap, c, o)));
                    }
                }
            }
        } else {
            for tap in 0..dims.taps {
                for c in 0..channels {
                    packed.extend((0..columns).map(|o| get(phase, tap, c, o)));
                }
            }
        }
    }
    packed
}

impl Cuda {
    /// Packs `w [Co, Ci / groups, k]`.
    fn pack_plain(
        &self,
        kind: Kind,
        w: &Weight<'_>,
        bias: Option<&Weight<'_>>,
        groups: usize,
    ) -> Result<CudaConv1d> {
        check_shape!("pack_conv1d", w.shape.len(), 3);
        let (co, channels, taps) = (w.shape[0], w.shape[1], w.shape[2]);
        check_shape!("pack_conv1d", co % groups, 0);
        let values = w.to_f32();
        let dims = Dims {
            ci: channels * groups,
            co,
            taps,
            groups,
            phases: 1,
        };
        let value = |_, tap: usize, c: usize, o: usize| values[(o * channels + c) * taps + tap];
        let packed = self.pack(kind, dims, value, bias)?;
        Ok(CudaConv1d { packed })
    }

    /// Packs the weight whose value at `(phase, tap, input channel of the group, output channel)` is given.
    fn pack(
        &self,
        kind: Kind,
        dims: Dims,
        value: impl Fn(usize, usize, usize, usize) -> f32,
        bias: Option<&Weight<'_>>,
    ) -> Result<Packed> {
        let columns = dims.co.next_multiple_of(COLUMNS);
        let mut padded = vec![0.0f32; columns];
        if let Some(bias) = bias {
            check_shape!("pack_conv1d", bias.len(), dims.co);
            padded[..dims.co].copy_from_slice(&bias.to_f32());
        }
        let weights = match kind {
            Kind::Tensor => {
                let packed = ordered(kind, dims, columns, half::bf16::from_f32, value);
                self.bytes_of(&packed, "a convolution")?
            }
            Kind::Signal => {
                let packed = ordered(kind, dims, columns, saturated, value);
                self.bytes_of(&packed, "a convolution")?
            }
            _ => self.bytes_of(&ordered(kind, dims, columns, |v| v, value), "a convolution")?,
        };
        Ok(Packed {
            kind,
            dims,
            columns,
            weights,
            bias: self.bytes_of(&padded, "a convolution")?,
        })
    }

    fn convolve(&self, w: &Packed, place: Place, operands: Operands<'_>) -> Result<()> {
        let Operands {
            x,
            segments,
            out,
            out_segments,
            pre,
            epilogue,
        } = operands;
        let mut params = abi::ConvParams {
            x: x.mat(),
            out: out.mat(),
            weights: w.weights.address(),
            bias: w.bias.address(),
            offsets: segments.device().address(),
            out_offsets: out_segments.device().address(),
            epilogue,
            pre,
            columns: w.columns as i32,
            taps: w.dims.taps as i32,
            stride: place.stride as i32,
            dilation: place.dilation as i32,
            phases: w.dims.phases as i32,
            shift: place.shift as i32,
            back: place.back as i32,
            reflect: i32::from(place.reflect),
            groups: w.dims.groups as i32,
            ..Default::default()
        };
        let longest = out_segments.longest().div_ceil(w.dims.phases);
        let tiles = |rows: usize, columns: usize| {
            [
                longest.div_ceil(rows),
                w.columns / columns * w.dims.phases,
                segments.count(),
            ]
        };
        let (kernel, shape) = match w.kind {
            Kind::F32 => (F32, Shape::grid(tiles(64, 64), 256)),
            Kind::Exact => (EXACT, Shape::grid(tiles(32, 32), 64)),
            Kind::Grouped => {
                let blocks = (longest * w.dims.co).div_ceil(GROUPED_THREADS);
                let grid = [blocks, 1, segments.count()];
                (GROUPED, Shape::grid(grid, GROUPED_THREADS as u32))
            }
            Kind::Tensor | Kind::Signal => {
                let tile = self.conv_tile(w, out_segments);
                let shared = input_tile(w, place, tile, &mut params);
                let grid = tiles(tile.rows, tile.columns);
                let threads = 32 * tile.warps as u32;
                let kernel = match w.kind {
                    Kind::Signal => tile.signal,
                    _ => tile.kernel,
                };
                (kernel, Shape::grid(grid, threads).shared(shared))
            }
        };
        // SAFETY: the callers check the shapes of the tensors; the weight was packed for this kernel.
        unsafe { self.launcher.launch(kernel, shape, &params) }
    }

    /// The largest tile that gives every multiprocessor a block, else the smallest.
    fn conv_tile(&self, w: &Packed, out_segments: &Segments<Self>) -> &'static Tile {
        let blocks = |tile: &Tile| {
            let rows = out_segments
                .lengths()
                .map(|n| n.div_ceil(w.dims.phases).div_ceil(tile.rows));
            rows.sum::<usize>() * (w.columns / tile.columns) * w.dims.phases
        };
        let [.., smallest] = &TILES;
        TILES
            .iter()
            .find(|t| w.columns.is_multiple_of(t.columns) && blocks(t) >= self.multiprocessors())
            .unwrap_or(smallest)
    }
}

/// Chooses how the tensor-core kernel reads its input, and returns the bytes of shared memory that it needs.
fn input_tile(w: &Packed, place: Place, tile: &Tile, params: &mut abi::ConvParams) -> usize {
    let shared = |rows: usize, taps: usize| {
        let steps = w.dims.ci.div_ceil(CHUNK) * w.dims.taps;
        let tiles = if steps > taps { 2 } else { 1 };
        let ring = (rows * tiles + STAGES * tile.columns) * CHUNK * size_of::<u16>();
        let sums = tile.warps * 16 * (tile.warp_columns + 8) * size_of::<f32>();
        ring.max(sums)
    };
    // One tile with its halo for all taps, unless they are too far apart or the rows between outputs are not read.
    let halo = tile.rows + (w.dims.taps - 1) * place.dilation;
    let windowed = place.stride == 1 && shared(halo, w.dims.taps) <= SHARED_LIMIT;
    params.windowed = i32::from(windowed);
    let (rows, taps) = if windowed {
        (halo, w.dims.taps)
    } else {
        (tile.rows, 1)
    };
    params.tile_rows = rows as i32;
    shared(rows, taps)
}
