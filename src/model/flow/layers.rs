//! Loading helpers and the norm that the encoder and the estimator share.

use crate::backend::{Act, Backend, Fidelity, Result};
use crate::checkpoint::Scope;
use crate::tensor::Tensor;

/// `torch.nn.LayerNorm` over `C` channels.
pub(super) struct LayerNorm<B: Backend> {
    /// `[1, C]`
    weight: Tensor<B>,
    /// `[1, C]`
    bias: Tensor<B>,
    eps: f32,
}

impl<B: Backend> LayerNorm<B> {
    pub(super) fn load(backend: &B, scope: &Scope<'_>, channels: usize, eps: f32) -> Result<Self> {
        let row = |name| {
            let w = scope.weight(name, &[channels]);
            backend.tensor(1, channels, &w.to_f32())
        };
        Ok(Self {
            weight: row("weight")?,
            bias: row("bias")?,
            eps,
        })
    }

    /// `out = act(scale · norm(x))`, `x, out [N, C]`.
    pub(super) fn forward(
        &self,
        backend: &B,
        x: &Tensor<B>,
        scale: f32,
        act: Option<Act<'_, B>>,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        backend.layer_norm(x, &self.weight, &self.bias, self.eps, scale, act, out)
    }
}

/// `torch.nn.Linear(input, output)` with a bias.
pub(super) fn linear<B: Backend>(
    backend: &B,
    scope: &Scope<'_>,
    input: usize,
    output: usize,
) -> Result<B::Linear> {
    let w = scope.weight("weight", &[output, input]);
    let bias = scope.weight("bias", &[output]);
    backend.pack_linear(&w, Some(&bias))
}

/// A `torch.nn.Conv1d(input, output, 1)` with a bias, which is a linear layer over channels-last rows.
pub(super) fn pointwise<B: Backend>(
    backend: &B,
    scope: &Scope<'_>,
    input: usize,
    output: usize,
) -> Result<B::Linear> {
    let mut w = scope.weight("weight", &[output, input, 1]);
    w.shape.pop();
    let bias = scope.weight("bias", &[output]);
    backend.pack_linear(&w, Some(&bias))
}

/// `torch.nn.Conv1d(input, output, kernel)` with a bias.
pub(super) fn conv1d<B: Backend>(
    backend: &B,
    scope: &Scope<'_>,
    input: usize,
    output: usize,
    kernel: usize,
) -> Result<B::Conv1d> {
    let w = scope.weight("weight", &[output, input, kernel]);
    let bias = scope.weight("bias", &[output]);
    backend.pack_conv1d(&w, Some(&bias), 1, Fidelity::Usual)
}
