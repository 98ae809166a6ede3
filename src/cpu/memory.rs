//! Allocation, copies and lookups in main memory.

use half::{bf16, f16};

use super::{Buffer, Cpu, check_shape, try_vec};
use crate::backend::weight::WeightData;
use crate::backend::{Memory, Result, Weight};
use crate::tensor::{Ids, Segments, Tensor};

/// Values of a lookup table as the checkpoint stores them.
enum Table {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    I8(Vec<i8>, Vec<f32>),
}

/// A lookup table `[V, C]`.
pub struct CpuEmbedding {
    table: Table,
    ids: usize,
    cols: usize,
}

impl CpuEmbedding {
    /// Writes row `id` to `out [C]`.
    fn lookup(&self, id: usize, out: &mut [f32]) {
        let row = id * self.cols..(id + 1) * self.cols;
        match &self.table {
            Table::F32(t) => out.copy_from_slice(&t[row]),
            Table::F16(t) => (out.iter_mut().zip(&t[row])).for_each(|(o, v)| *o = v.to_f32()),
            Table::Bf16(t) => (out.iter_mut().zip(&t[row])).for_each(|(o, v)| *o = v.to_f32()),
            Table::I8(t, scale) => {
                let s = scale[id];
                (out.iter_mut().zip(&t[row])).for_each(|(o, &q)| *o = f32::from(q) * s);
            }
        }
    }
}

/// A copy of `src` on the heap.
fn copy<T: Copy>(src: &[T], what: &'static str) -> Result<Vec<T>> {
    let mut v = try_vec(src.len(), what)?;
    v.extend_from_slice(src);
    Ok(v)
}

impl Memory for Cpu {
    /// Ops are done when they return.
    type Mark = ();

    fn mark(&self) -> Result<()> {
        Ok(())
    }

    fn is_reached(&self, (): &()) -> Result<bool> {
        Ok(true)
    }

    fn reach(&self, (): &()) -> Result<()> {
        Ok(())
    }

    type Buf = Buffer;
    type IdBuf = Vec<i32>;
    type Embedding = CpuEmbedding;

    fn alloc(&self, rows: usize, cols: usize) -> Result<Tensor<Self>> {
        Ok(Tensor::from_buf(Buffer::zeroed(rows * cols)?, rows, cols))
    }

    fn resize(&self, t: &mut Tensor<Self>, rows: usize, cols: usize) -> Result<()> {
        t.buf.grow(rows * cols)?;
        (t.rows, t.cols) = (rows, cols);
        Ok(())
    }

    fn upload(&self, src: &[f32], t: &mut Tensor<Self>) -> Result<()> {
        check_shape!("upload", src.len(), t.rows() * t.cols());
        t.data_mut().copy_from_slice(src);
        Ok(())
    }

    fn download(&self, t: &Tensor<Self>, dst: &mut Vec<f32>) -> Result<()> {
        dst.clear();
        dst.extend_from_slice(t.data());
        Ok(())
    }

    fn ids(&self, src: &[i32]) -> Result<Ids<Self>> {
        Ok(Ids::from_buf(copy(src, "ids")?, src.len()))
    }

    fn upload_ids(&self, src: &[i32], ids: &mut Ids<Self>) -> Result<()> {
        ids.buf.clear();
        ids.buf.extend_from_slice(src);
        ids.len = src.len();
        Ok(())
    }

    fn download_ids(&self, ids: &Ids<Self>, dst: &mut Vec<i32>) -> Result<()> {
        dst.clear();
        dst.extend_from_slice(ids.data());
        Ok(())
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
        let c = src.cols();
        dst.data_mut()[dst_row * c..(dst_row + rows) * c]
            .copy_from_slice(&src.data()[src_row * c..(src_row + rows) * c]);
        Ok(())
    }

    fn gather_rows(
        &self,
        src: &Tensor<Self>,
        rows: &Ids<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        check_shape!("gather_rows", out.shape(), (rows.len(), src.cols()));
        let c = src.cols().max(1);
        for (out, &i) in out.data_mut().chunks_exact_mut(c).zip(rows.data()) {
            out.copy_from_slice(src.row(i as usize));
        }
        Ok(())
    }

    fn upsample_rows(&self, x: &Tensor<Self>, factor: usize, out: &mut Tensor<Self>) -> Result<()> {
        check_shape!("upsample_rows", out.shape(), (x.rows() * factor, x.cols()));
        let c = x.cols().max(1);
        for (i, out) in out.data_mut().chunks_exact_mut(c).enumerate() {
            out.copy_from_slice(x.row(i / factor));
        }
        Ok(())
    }

    fn concat_cols(&self, parts: &[&Tensor<Self>], out: &mut Tensor<Self>) -> Result<()> {
        let cols: usize = parts.iter().map(|p| p.cols()).sum();
        check_shape!("concat_cols", out.cols(), cols);
        let mut first = 0;
        for part in parts {
            check_shape!("concat_cols", part.rows(), out.rows());
            for (i, row) in out.data_mut().chunks_exact_mut(cols.max(1)).enumerate() {
                row[first..first + part.cols()].copy_from_slice(part.row(i));
            }
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
        check_shape!(
            "interpolate_rows",
            out.shape(),
            (out_segments.total(), x.cols())
        );
        let c = x.cols();
        for b in 0..segments.count() {
            let (from, to) = (segments.range(b), out_segments.range(b));
            interpolate(
                &x.data()[from.start * c..from.end * c],
                &mut out.data_mut()[to.start * c..to.end * c],
                c,
            );
        }
        Ok(())
    }

    fn pack_embedding(&self, w: &Weight<'_>) -> Result<CpuEmbedding> {
        check_shape!("pack_embedding", w.shape.len(), 2);
        let what = "an embedding";
        let table = match &w.data {
            WeightData::F32(v) => Table::F32(copy(v, what)?),
            WeightData::F16(v) => Table::F16(copy(v, what)?),
            WeightData::Bf16(v) => Table::Bf16(copy(v, what)?),
            WeightData::I8 { q, scale } => Table::I8(copy(q, what)?, copy(scale, what)?),
        };
        Ok(CpuEmbedding {
            table,
            ids: w.shape[0],
            cols: w.shape[1],
        })
    }

    fn embed(
        &self,
        tables: &[&CpuEmbedding],
        which: &Ids<Self>,
        ids: &Ids<Self>,
        drawn: Option<&Ids<Self>>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        check_shape!("embed", which.len(), ids.len());
        check_shape!("embed", out.rows(), ids.len());
        let c = out.cols().max(1);
        let drawn = drawn.map_or(&[][..], Ids::data);
        let rows = out.data_mut().chunks_exact_mut(c);
        for (out, (&table, &id)) in rows.zip(which.data().iter().zip(ids.data())) {
            let table = tables[table as usize];
            check_shape!("embed", table.cols, out.len());
            // `!id` is -1 - id.
            let id = if id < 0 { drawn[!id as usize] } else { id };
            assert!(
                (0..table.ids as i32).contains(&id),
                "embed: id {id} of {}",
                table.ids
            );
            table.lookup(id as usize, out);
        }
        Ok(())
    }
}

/// `x [T, C]` → `out [T', C]` as `torch.nn.functional.interpolate(mode="linear", align_corners=False, size=T')`, with the fused
/// multiply-adds that its CPU kernel is compiled to.
fn interpolate(x: &[f32], out: &mut [f32], c: usize) {
    let (rows, out_rows) = (x.len() / c.max(1), out.len() / c.max(1));
    let scale = rows as f32 / out_rows as f32;
    for (i, out) in out.chunks_exact_mut(c.max(1)).enumerate() {
        let position = scale.mul_add(i as f32 + 0.5, -0.5).max(0.0);
        let low = (position as usize).min(rows - 1);
        let high = (low + 1).min(rows - 1);
        let weight = position - low as f32;
        for (j, out) in out.iter_mut().enumerate() {
            *out = (1.0 - weight).mul_add(x[low * c + j], weight * x[high * c + j]);
        }
    }
}
