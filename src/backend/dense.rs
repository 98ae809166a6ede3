//! Matrix products with fused epilogues, and element-wise activations.

use super::{Memory, Result, Weight};
use crate::tensor::Tensor;

/// An element-wise function.
pub enum Act<'a, B: Memory> {
    Relu,
    /// `x Φ(x)` with the error function, as `torch.nn.GELU()`.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x σ(x)`, also called swish.
    Silu,
    Mish,
    Elu,
    Tanh,
    Sigmoid,
    Abs,
    LeakyRelu(f32),
    /// `x + sin²(αx) / (α + 1e-9)` with one α per channel, `[1, C]`.
    Snake(&'a Tensor<B>),
}

impl<B: Memory> Clone for Act<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Memory> Copy for Act<'_, B> {}

/// What happens to `y = x Wᵀ + b` before it is stored.
pub enum Epilogue<'a, B: Memory> {
    /// `out = y`
    None,
    /// `out = act(y)`
    Act(Act<'a, B>),
    /// `out = y + r`, `r` of the shape of `out`
    Add(&'a Tensor<B>),
    /// `out += y`
    Accumulate,
    /// `out += s · y`
    AccumulateScaled(f32),
    /// `out = silu(y_gate) · y_up`, for weights made by [`Dense::pack_gate_up`]
    SiluMul,
}

/// Linear layers.
pub trait Dense: Memory {
    /// A packed `[M, K]` weight with an optional bias `[M]`.
    type Linear: Send + Sync;

    /// Packs a PyTorch `Linear`: `w [M, K]`, `bias [M]`.
    fn pack_linear(&self, w: &Weight<'_>, bias: Option<&Weight<'_>>) -> Result<Self::Linear>;

    /// Packs several linears that read the same input as one: `[M1 + M2 + …, K]` (qkv). Where only some have a bias,
    /// the others get zeros.
    fn pack_linears(&self, parts: &[(&Weight<'_>, Option<&Weight<'_>>)]) -> Result<Self::Linear>;

    /// Packs the two halves of a gated MLP, `[M, K]` each, for [`Epilogue::SiluMul`].
    fn pack_gate_up(&self, gate: &Weight<'_>, up: &Weight<'_>) -> Result<Self::Linear>;

    /// `out = ep(x Wᵀ + b)`: `x [N, K]`, `out [N, M]` (`[N, M]` of one half for `SiluMul`).
    fn linear(
        &self,
        x: &Tensor<Self>,
        w: &Self::Linear,
        ep: Epilogue<'_, Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()>;

    /// Two layers, `out += down(act(up(x)))`: `x [N, K]`, `out [N, K']`. `hidden [N, M]` is for what lies between them, and afterwards holds anything.
    fn feed_forward(
        &self,
        x: &Tensor<Self>,
        up: &Self::Linear,
        act: Act<'_, Self>,
        down: &Self::Linear,
        hidden: &mut Tensor<Self>,
        out: &mut Tensor<Self>,
    ) -> Result<()> {
        self.linear(x, up, Epilogue::Act(act), hidden)?;
        self.linear(hidden, down, Epilogue::Accumulate, out)
    }

    /// `x = act(x)` in place.
    fn activate(&self, act: Act<'_, Self>, x: &mut Tensor<Self>) -> Result<()>;

    /// `y = a · x + b · y`, shapes equal.
    fn axpby(&self, a: f32, x: &Tensor<Self>, b: f32, y: &mut Tensor<Self>) -> Result<()>;
}
