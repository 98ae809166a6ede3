//! What queries, keys and values are multiplied as.

use super::super::Isa;
#[cfg(target_arch = "x86_64")]
use super::super::gemm::{
    Ahead, Bf16, Side, Single, TILE_DEPTH, Widened, interleave, round_to_bf16, run_avx512,
    run_tiles,
};
use super::super::gemm::{Call, Target, WIDTH};
#[cfg(target_arch = "x86_64")]
use super::super::isa::Level;

/// What a value of f32 becomes before it is multiplied.
pub(super) trait Rounded: bytemuck::Pod + Default {
    /// `out = x`, rounded; the rest of `out` is zero.
    fn round(isa: Isa, x: &[f32], out: &mut [Self]);
}

impl Rounded for f32 {
    fn round(_isa: Isa, x: &[f32], out: &mut [f32]) {
        let (values, rest) = out.split_at_mut(x.len());
        values.copy_from_slice(x);
        rest.fill(0.0);
    }
}

/// The bits of bf16.
#[cfg(target_arch = "x86_64")]
impl Rounded for u16 {
    fn round(isa: Isa, x: &[f32], out: &mut [u16]) {
        round_to_bf16(isa, x, out);
        out[x.len()..].fill(0);
    }
}

/// A way to multiply: queries and weights of a softmax on the left, panels of keys and of values on the right.
pub(super) trait Operands {
    /// A value on the left.
    type Left: Rounded;
    /// A value of a panel.
    type Right: bytemuck::Pod + Default;
    /// Of what a product sums over, so many values lie side by side on both sides.
    const STEP: usize;
    /// What a product sums over is filled up with zeros to a multiple of this.
    const WHOLE: usize = Self::STEP;

    /// `out (+)= a b`, panels by themselves; `next` are those that will come after them.
    fn multiply(
        isa: Isa,
        call: &Call<'_, Self::Left>,
        b: &[&[Self::Right]],
        next: &[&[Self::Right]],
        out: Target<'_>,
    );

    /// Place of row `k` and column `j` in a panel of 16 columns.
    fn place(k: usize, j: usize) -> usize {
        (k / Self::STEP * WIDTH + j) * Self::STEP + k % Self::STEP
    }

    /// `panel [depth][16]` of 16 `columns [16][depth]`.
    fn lay_columns(_isa: Isa, columns: &[Self::Right], panel: &mut [Self::Right]) {
        for (j, column) in columns.chunks_exact(columns.len() / WIDTH).enumerate() {
            for (k, &v) in column.iter().enumerate() {
                panel[Self::place(k, j)] = v;
            }
        }
    }

    /// The [`Operands::STEP`] rows of a panel that lie side by side in `line`, of `rows [STEP][16]`, `stride` values apart.
    fn lay_rows(rows: &[Self::Right], stride: usize, line: &mut [Self::Right]) {
        for (k, row) in rows.chunks(stride).enumerate() {
            for (j, &v) in row[..WIDTH].iter().enumerate() {
                line[Self::place(k, j)] = v;
            }
        }
    }
}

/// f32 by f32.
pub(super) struct Exact;

impl Operands for Exact {
    type Left = f32;
    type Right = f32;
    const STEP: usize = 1;

    fn multiply(isa: Isa, call: &Call<'_>, b: &[&[f32]], next: &[&[f32]], out: Target<'_>) {
        #[cfg(target_arch = "x86_64")]
        if isa.level() == Level::Avx512 {
            return run_avx512::<Single>(isa, call, None, Side::scattered(b, next), out);
        }
        let _ = next;
        panel_by_panel(call, b, out, |call, b, out| call.run(isa, b, out));
    }
}

/// f32 by bf16 that is widened a row at a time; columns lie as in panels of weights that are.
pub(super) struct WidenedRows;

impl Operands for WidenedRows {
    type Left = f32;
    type Right = u16;
    const STEP: usize = 1;

    fn multiply(isa: Isa, call: &Call<'_>, b: &[&[u16]], _next: &[&[u16]], out: Target<'_>) {
        panel_by_panel(call, b, out, |call, b, out| call.run(isa, b, out));
    }

    fn place(k: usize, j: usize) -> usize {
        k * WIDTH + j % (WIDTH / 2) * 2 + j / (WIDTH / 2)
    }
}

/// f32 by bf16 that is widened two rows at a time. Only for AVX-512.
#[cfg(target_arch = "x86_64")]
pub(super) struct WidenedPairs;

#[cfg(target_arch = "x86_64")]
impl Operands for WidenedPairs {
    type Left = f32;
    type Right = u16;
    const STEP: usize = 2;

    fn multiply(isa: Isa, call: &Call<'_>, b: &[&[u16]], next: &[&[u16]], out: Target<'_>) {
        run_avx512::<Widened>(isa, call, None, Side::scattered(b, next), out);
    }
}

/// bf16 by bf16, both as bits. Only for an [`Isa`] that multiplies them.
#[cfg(target_arch = "x86_64")]
pub(super) struct Pairs;

#[cfg(target_arch = "x86_64")]
impl Operands for Pairs {
    type Left = u16;
    type Right = u16;
    const STEP: usize = 2;

    fn multiply(isa: Isa, call: &Call<'_, u16>, b: &[&[u16]], next: &[&[u16]], out: Target<'_>) {
        run_avx512::<Bf16>(isa, call, None, Side::scattered(b, next), out);
    }

    fn lay_columns(isa: Isa, columns: &[u16], panel: &mut [u16]) {
        lay_pairs(isa, columns, panel);
    }

    fn lay_rows(rows: &[u16], stride: usize, line: &mut [u16]) {
        zip_pairs(rows, stride, line);
    }
}

/// The same in tile registers. Only for an [`Isa`] that has them.
#[cfg(target_arch = "x86_64")]
pub(super) struct Tiled;

#[cfg(target_arch = "x86_64")]
impl Operands for Tiled {
    type Left = u16;
    type Right = u16;
    const STEP: usize = 2;
    const WHOLE: usize = TILE_DEPTH;

    fn multiply(isa: Isa, call: &Call<'_, u16>, b: &[&[u16]], _next: &[&[u16]], out: Target<'_>) {
        let mut tiles = isa.tiles().expect("this CPU has tile registers");
        let depth = call.depth.next_multiple_of(Self::WHOLE);
        let call = Call { depth, ..*call };
        run_tiles(&mut tiles, &call, b, out, &mut Ahead::Nothing);
    }

    fn lay_columns(isa: Isa, columns: &[u16], panel: &mut [u16]) {
        lay_pairs(isa, columns, panel);
    }

    fn lay_rows(rows: &[u16], stride: usize, line: &mut [u16]) {
        zip_pairs(rows, stride, line);
    }
}

/// `panel [depth / 2][16][2]` of 16 `columns [16][depth]`, of an even depth.
#[cfg(target_arch = "x86_64")]
fn lay_pairs(isa: Isa, columns: &[u16], panel: &mut [u16]) {
    let (columns, panel) = (columns.as_chunks().0, panel.as_chunks_mut().0);
    interleave::<[u16; 2]>(isa, columns, columns.len() / WIDTH, WIDTH, panel);
}

/// `line [16][2]` of two rows of 16.
#[cfg(target_arch = "x86_64")]
fn zip_pairs(rows: &[u16], stride: usize, line: &mut [u16]) {
    let (first, second) = (&rows[..WIDTH], &rows[stride..stride + WIDTH]);
    let pairs = line.as_chunks_mut::<2>().0.iter_mut();
    for (pair, (&a, &b)) in pairs.zip(first.iter().zip(second)) {
        *pair = [a, b];
    }
}

/// Calls `run` for one panel after the other.
fn panel_by_panel<W>(
    call: &Call<'_>,
    b: &[&[W]],
    out: Target<'_>,
    run: impl Fn(&Call<'_>, &[W], Target<'_>),
) {
    let call = Call { panels: 1, ..*call };
    for (panel, b) in b.iter().enumerate() {
        let out = Target {
            values: &mut out.values[panel * out.panel_stride..],
            ..out
        };
        run(&call, b, out);
    }
}
