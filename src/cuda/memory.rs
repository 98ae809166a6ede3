//! Allocation, copies and lookups on the device.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, PinnedHostSlice, result};

use super::Cuda;
use super::abi;
use super::buffer::{Buffer, Bytes, Dtype, IdBuffer};
use super::device::driver_error;
use super::launch::{Kernel, Shape};
use crate::backend::{Memory, Result, Weight, check_shape};
use crate::tensor::{Ids, Segments, Tensor};

const COPY_ROWS: Kernel = Kernel::new("memory", "copy_rows");
const INTERPOLATE: Kernel = Kernel::new("memory", "interpolate_rows");
const EMBED: Kernel = Kernel::new("memory", "embed");

const THREADS: u32 = 256;
/// Blocks of a kernel that walks over all values with a stride.
const STRIDED_BLOCKS: usize = 2048;
/// Pinned bytes through which the host's values go to the device.
const STAGING_BYTES: usize = 8 << 20;

/// Blocks for `count` values, one thread each up to a limit.
fn strided(count: usize) -> Shape {
    Shape::blocks(
        count.div_ceil(THREADS as usize).min(STRIDED_BLOCKS),
        THREADS,
    )
}

/// A pinned ring: copies to the device return at once, and the host's values may change right after.
pub(super) struct Staging {
    device: String,
    stream: Arc<CudaStream>,
    ring: Mutex<Ring>,
}

struct Ring {
    pinned: PinnedHostSlice<u8>,
    next: usize,
}

impl Staging {
    pub(super) fn new(
        device: &str,
        context: Arc<CudaContext>,
        stream: Arc<CudaStream>,
    ) -> Result<Self> {
        // SAFETY: the bytes are written before they are read; not write-combined, so that they may be read too.
        let pinned = unsafe { context.alloc_pinned_with_flags::<u8>(STAGING_BYTES, 0) }
            .map_err(|e| driver_error(device, "allocating pinned memory", e))?;
        Ok(Self {
            device: device.to_owned(),
            stream,
            ring: Mutex::new(Ring { pinned, next: 0 }),
        })
    }

    /// Copies bytes to the device in the stream's order.
    ///
    /// # Safety
    /// `src.len()` bytes at `address` are ours to write.
    pub(super) unsafe fn upload(&self, src: &[u8], address: u64) -> Result<()> {
        let fail = |e| driver_error(&self.device, "copying to the device", e);
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        for piece in src.chunks(STAGING_BYTES) {
            if ring.next + piece.len() > STAGING_BYTES {
                // All copies out of the ring so far have to be over before it is written again.
                self.stream.synchronize().map_err(fail)?;
                ring.next = 0;
            }
            let from = ring.next;
            let pinned = ring.pinned.as_mut_slice().map_err(fail)?;
            let staged = &mut pinned[from..from + piece.len()];
            staged.copy_from_slice(piece);
            self.stream.context().bind_to_thread().map_err(fail)?;
            // SAFETY: the caller's promise; the pinned bytes stay as they are until the ring comes around.
            unsafe {
                result::memcpy_htod_async(address + done as u64, staged, self.stream.cu_stream())
            }
            .map_err(fail)?;
            // Copies start on whole cache lines.
            ring.next = (from + piece.len()).next_multiple_of(64);
            done += piece.len();
        }
        Ok(())
    }
}

impl Cuda {
    /// Zeroed bytes on the device.
    pub(super) fn bytes(&self, len: usize, what: &'static str) -> Result<Bytes> {
        if len > 0 {
            self.launcher.flush()?;
        }
        Bytes::zeroed(self.device_name(), &self.stream, len, what)
    }

    /// Copies bytes to the device in the order of all that was asked for.
    ///
    /// # Safety
    /// `src.len()` bytes at `address` are ours to write.
    pub(super) unsafe fn to_device(&self, src: &[u8], address: u64) -> Result<()> {
        if src.is_empty() {
            return Ok(());
        }
        self.launcher.flush()?;
        // SAFETY: the caller's promise.
        unsafe { self.staging.upload(src, address) }
    }

    /// The bytes of `src` on the device.
    pub(super) fn bytes_of<T: bytemuck::NoUninit>(
        &self,
        src: &[T],
        what: &'static str,
    ) -> Result<Bytes> {
        let src: &[u8] = bytemuck::cast_slice(src);
        let bytes = self.bytes(src.len(), what)?;
        // SAFETY: the allocation is as long as `src`.
        unsafe { self.to_device(src, bytes.address()) }?;
        Ok(bytes)
    }

    /// Graphs that are kept, and how often one was launched in place of its kernels.
    pub fn graph_counts(&self) -> (usize, u64) {
        self.launcher.graph_counts()
    }

    /// A zeroed tensor of the given dtype.
    pub(super) fn alloc_as(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<Tensor<Self>> {
        let bytes = self.bytes(rows * cols * dtype.bytes(), "a tensor")?;
        Ok(Tensor::from_buf(Buffer { bytes, dtype }, rows, cols))
    }

    /// Replaces `bytes` by at least `len` bytes, a little more than needed, so that growing sequences do not reallocate each time.
    pub(super) fn grow(&self, bytes: &mut Bytes, len: usize, what: &'static str) -> Result<()> {
        if bytes.len() < len {
            // What is held back may still want the old bytes.
            self.launcher.flush()?;
            // Freed in the stream's order: what still reads the old bytes comes first.
            *bytes = Bytes::default();
            *bytes = self.bytes(len + len / 8, what)?;
        }
        Ok(())
    }

    /// Reads bytes back after everything that was asked for before.
    pub(super) fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &self,
        address: u64,
        dst: &mut [T],
    ) -> Result<()> {
        if dst.is_empty() {
            return Ok(());
        }
        self.launcher.flush()?;
        let fail = |e| self.error("copying from the device", e);
        self.context.bind_to_thread().map_err(fail)?;
        // SAFETY: callers pass an allocation of ours that holds at least `dst`; the copy is over before `dst` is used.
        unsafe { result::memcpy_dtoh_async(dst, address, self.stream.cu_stream()) }
            .map_err(fail)?;
        self.synchronize()
    }

    fn copy(&self, params: &abi::CopyRowsParams) -> Result<()> {
        let count = params.rows as usize * params.src.cols as usize;
        // SAFETY: the callers below check the shapes.
        unsafe { self.launcher.launch(COPY_ROWS, strided(count), params) }
    }
}

impl Memory for Cuda {
    type Mark = CudaEvent;

    fn mark(&self) -> Result<CudaEvent> {
        self.launcher.flush()?;
        let fail = |e| self.error("marking a point of the stream", e);
        let event = self.context.new_event(None).map_err(fail)?;
        event.record(&self.stream).map_err(fail)?;
        Ok(event)
    }

    fn is_reached(&self, mark: &CudaEvent) -> Result<bool> {
        mark.try_is_complete()
            .map_err(|e| self.error("asking for a point of the stream", e))
    }

    fn reach(&self, mark: &CudaEvent) -> Result<()> {
        mark.synchronize()
            .map_err(|e| self.error("waiting for a point of the stream", e))
    }

    type Buf = Buffer;
    type IdBuf = IdBuffer;
    type Embedding = CudaEmbedding;

    fn synchronize(&self) -> Result<()> {
        self.launcher.flush()?;
        self.stream
            .synchronize()
            .map_err(|e| self.error("waiting for the stream", e))
    }

    fn recorded(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.launcher.record(work)
    }

    fn alloc(&self, rows: usize, cols: usize) -> Result<Tensor<Self>> {
        self.alloc_as(self.options.precision.dtype(), rows, cols)
    }

    fn alloc_f32(&self, rows: usize, cols: usize) -> Result<Tensor<Self>> {
        self.alloc_as(Dtype::F32, rows, cols)
    }

    fn alloc_signal(&self, rows: usize, cols: usize) -> Result<Tensor<Self>> {
        self.alloc_as(self.options.precision.signal_dtype(), rows, cols)
    }

    fn resize(&self, t: &mut Tensor<Self>, rows: usize, cols: usize) -> Result<()> {
        let len = rows * cols * t.buf.dtype.bytes();
        self.grow(&mut t.buf.bytes, len, "a tensor")?;
        (t.rows, t.cols) = (rows, cols);
        Ok(())
    }

    fn upload(&self, src: &[f32], t: &mut Tensor<Self>) -> Result<()> {
        check_shape!("upload", src.len(), t.rows() * t.cols());
        let address = t.buf.bytes.address();
        match t.buf.dtype {
            // SAFETY: the tensor holds `src.len()` values of this dtype.
            Dtype::F32 => unsafe { self.to_device(bytemuck::cast_slice(src), address) },
            Dtype::Bf16 => {
                let rounded: Vec<half::bf16> =
                    src.iter().map(|&v| half::bf16::from_f32(v)).collect();
                // SAFETY: as above.
                unsafe { self.to_device(bytemuck::cast_slice(&rounded), address) }
            }
            Dtype::F16 => {
                let rounded: Vec<half::f16> = src.iter().map(|&v| saturated(v)).collect();
                // SAFETY: as above.
                unsafe { self.to_device(bytemuck::cast_slice(&rounded), address) }
            }
        }
    }

    fn download(&self, t: &Tensor<Self>, dst: &mut Vec<f32>) -> Result<()> {
        let count = t.rows() * t.cols();
        dst.clear();
        dst.resize(count, 0.0);
        match t.buf.dtype {
            Dtype::F32 => self.read(t.buf.bytes.address(), dst),
            Dtype::Bf16 => {
                let mut values = vec![half::bf16::ZERO; count];
                self.read(t.buf.bytes.address(), &mut values)?;
                (dst.iter_mut().zip(&values)).for_each(|(d, v)| *d = v.to_f32());
                Ok(())
            }
            Dtype::F16 => {
                let mut values = vec![half::f16::ZERO; count];
                self.read(t.buf.bytes.address(), &mut values)?;
                (dst.iter_mut().zip(&values)).for_each(|(d, v)| *d = v.to_f32());
                Ok(())
            }
        }
    }

    fn ids(&self, src: &[i32]) -> Result<Ids<Self>> {
        let bytes = self.bytes_of(src, "ids")?;
        Ok(Ids::from_buf(IdBuffer { bytes }, src.len()))
    }

    fn upload_ids(&self, src: &[i32], ids: &mut Ids<Self>) -> Result<()> {
        self.grow(&mut ids.buf.bytes, size_of_val(src), "ids")?;
        ids.len = src.len();
        // SAFETY: there is room for `src` now.
        unsafe {
            self.staging
                .upload(bytemuck::cast_slice(src), ids.address())
        }
    }

    fn download_ids(&self, ids: &Ids<Self>, dst: &mut Vec<i32>) -> Result<()> {
        dst.clear();
        dst.resize(ids.len(), 0);
        self.read(ids.address(), dst)
    }

    fn copy_rows(
        &self,
        src: &Tensor<Self>,
        src_row: usize,
        dst: &mut Tensor<Self>,
        dst_row: usize,
        rows: usize,
    ) -> Result<()> {
        check_shape!("copy_rows", src.cols(), dst.cols());
        assert!(
            src_row + rows <= src.rows() && dst_row + rows <= dst.rows(),
            "copy_rows: {rows} rows from {src_row} of {} to {dst_row} of {}",
            src.rows(),
            dst.rows()
        );
        self.copy(&abi::CopyRowsParams {
            rows: rows as i32,
            src_row: src_row as i32,
            dst_row: dst_row as i32,
            ..copy_of(src, dst)
        })
    }

    fn gather_rows(
        &self,
        src: &Tensor<Self>,
        rows: &Ids<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        check_shape!("gather_rows", out.shape(), (rows.len(), src.cols()));
        self.copy(&abi::CopyRowsParams {
            rows: rows.len() as i32,
            ids: rows.address(),
            ..copy_of(src, out)
        })
    }

    fn upsample_rows(&self, x: &Tensor<Self>, factor: usize, out: &mut Tensor<Self>) -> Result<()> {
        check_shape!("upsample_rows", out.shape(), (x.rows() * factor, x.cols()));
        self.copy(&abi::CopyRowsParams {
            rows: out.rows() as i32,
            repeat: factor as i32,
            ..copy_of(x, out)
        })
    }

    fn concat_cols(&self, parts: &[&Tensor<Self>], out: &mut Tensor<Self>) -> Result<()> {
        let cols: usize = parts.iter().map(|p| p.cols()).sum();
        check_shape!("concat_cols", out.cols(), cols);
        let mut first = 0;
        for part in parts {
            check_shape!("concat_cols", part.rows(), out.rows());
            self.copy(&abi::CopyRowsParams {
                rows: part.rows() as i32,
                dst_col: first as i32,
                ..copy_of(part, out)
            })?;
            first += part.cols();
        }
        Ok(())
    }

    fn interpolate_rows(
        &self,
        x: &Tensor<Self>,
        segments: &Segments<Self>,
        out: &mut Tensor<Self>,
        out_segments: &Segments<Self>,
    ) -> Result<()> {
        check_shape!("interpolate_rows", x.rows(), segments.total());
        check_shape!("interpolate_rows", segments.count(), out_segments.count());
        check_shape!(
            "interpolate_rows",
            out.shape(),
            (out_segments.total(), x.cols())
        );
        let params = abi::InterpolateParams {
            x: x.mat(),
            out: out.mat(),
            offsets: segments.device().address(),
            out_offsets: out_segments.device().address(),
            segments: segments.count() as i32,
            reserved: 0,
        };
        // SAFETY: shapes checked above.
        unsafe {
            self.launcher
                .launch(INTERPOLATE, Shape::blocks(out.rows(), THREADS), &params)
        }
    }

    fn pack_embedding(&self, w: &Weight<'_>) -> Result<CudaEmbedding> {
        check_shape!("pack_embedding", w.shape.len(), 2);
        let mut table = self.alloc(w.shape[0], w.shape[1])?;
        self.upload(&w.to_f32(), &mut table)?;
        Ok(CudaEmbedding { table })
    }

    fn embed(
        &self,
        tables: &[&CudaEmbedding],
        which: &Ids<Self>,
        ids: &Ids<Self>,
        drawn: Option<&Ids<Self>>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        check_shape!("embed", which.len(), ids.len());
        check_shape!("embed", out.rows(), ids.len());
        assert!(
            tables.len() <= abi::EMBED_TABLES as usize,
            "embed: {} tables",
            tables.len()
        );
        let mut params = abi::EmbedParams {
            out: out.mat(),
            which: which.address(),
            ids: ids.address(),
            drawn: drawn.map_or(0, Ids::address),
            drawn_count: drawn.map_or(0, Ids::len) as i32,
            table_count: tables.len() as i32,
            ..Default::default()
        };
        for (slot, table) in params.tables.iter_mut().zip(tables) {
            check_shape!("embed", table.table.cols(), out.cols());
            *slot = table.table.mat();
        }
        // SAFETY: shapes checked above; the kernel checks the ids.
        unsafe {
            self.launcher
                .launch(EMBED, Shape::blocks(out.rows(), THREADS), &params)
        }
    }
}

/// The nearest finite f16, as the kernels round.
pub(super) fn saturated(v: f32) -> half::f16 {
    let limit = half::f16::MAX.to_f32();
    half::f16::from_f32(v.clamp(-limit, limit))
}

/// A copy of all of `src`'s columns, row by row.
fn copy_of(src: &Tensor<Cuda>, dst: &Tensor<Cuda>) -> abi::CopyRowsParams {
    abi::CopyRowsParams {
        src: src.mat(),
        dst: dst.mat(),
        repeat: 1,
        ..Default::default()
    }
}

/// A lookup table `[V, C]` in the backend's precision.
pub struct CudaEmbedding {
    table: Tensor<Cuda>,
}
