//! What queries, keys and values are multiplied as: f32, or bf16 where the CPU multiplies it in pairs.

use super::super::Isa;
#[cfg(target_arch = "x86_64")]
use super::super::gemm::{Bf16, Side, Single, round_to_bf16, run_avx512};
use super::super::gemm::{Call, Target, WIDTH};
#[cfg(target_arch = "x86_64")]
use super::super::isa::Level;

/// A value of an operand. Of what a product sums over, [`Operand::STEP`] values lie side by side in both operands.
pub(super) trait Operand: Copy + Default {
    const STEP: usize;

    /// `out = x`, rounded; the rest of `out` is zero.
    fn round(isa: Isa, x: &[f32], out: &mut [Self]);

    /// `out (+)= a b`, panels by themselves; `next` are those that will come after them.
    fn multiply(isa: Isa, call: &Call<'_, Self>, b: &[&[Self]], next: &[&[Self]], out: Target<'_>);

    /// Place of row `k` and column `j` in a panel of 16 columns.
    fn place(k: usize, j: usize) -> usize {
        (k / Self::STEP * WIDTH + j) * Self::STEP + k % Self::STEP
    }
}

impl Operand for f32 {
    const STEP: usize = 1;

    fn round(_isa: Isa, x: &[f32], out: &mut [f32]) {
        let (values, rest) = out.split_at_mut(x.len());
        values.copy_from_slice(x);
        rest.fill(0.0);
    }

    fn multiply(isa: Isa, call: &Call<'_>, b: &[&[f32]], next: &[&[f32]], out: Target<'_>) {
        #[cfg(target_arch = "x86_64")]
        if isa.level() == Level::Avx512 {
            return run_avx512::<Single>(isa, call, None, Side::scattered(b, next), out);
        }
        let _ = next;
        let call = Call { panels: 1, ..*call };
        for (panel, b) in b.iter().enumerate() {
            let out = Target {
                values: &mut out.values[panel * out.panel_stride..],
                ..out
            };
            call.run(isa, b, out);
        }
    }
}

/// The bits of a bf16. Only for an [`Isa`] that multiplies them.
#[cfg(target_arch = "x86_64")]
impl Operand for u16 {
    const STEP: usize = 2;

    fn round(isa: Isa, x: &[f32], out: &mut [u16]) {
        round_to_bf16(isa, x, out);
        out[x.len()..].fill(0);
    }

    fn multiply(isa: Isa, call: &Call<'_, u16>, b: &[&[u16]], next: &[&[u16]], out: Target<'_>) {
        run_avx512::<Bf16>(isa, call, None, Side::scattered(b, next), out);
    }
}
