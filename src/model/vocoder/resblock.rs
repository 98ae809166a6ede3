//! Residual block of the generator: dilated convolutions with snake activations.
//!
//! In: `x [N, C]`. Out: `x` plus what the convolutions add, `[N, C]`. Reference: `ResBlock` (`cosyvoice/hifigan/generator.py`).

use super::vector;
use crate::backend::{Act, Backend, ConvGeom, Epilogue, Fidelity, Result};
use crate::checkpoint::Scope;
use crate::tensor::{Segments, Tensor};

/// `x += conv(snake(conv_dilated(snake(x))))`, once per dilation.
pub(super) struct ResBlock<B: Backend> {
    layers: Vec<Layer<B>>,
}

struct Layer<B: Backend> {
    snakes: [Tensor<B>; 2],
    convs: [B::Conv1d; 2],
    geoms: [ConvGeom; 2],
}

impl<B: Backend> ResBlock<B> {
    pub(super) fn load(
        backend: &B,
        scope: &Scope<'_>,
        channels: usize,
        kernel: usize,
        dilations: &[usize],
    ) -> Result<Self> {
        let conv = |list: &str, i: usize| {
            let conv = scope.at(list).at(i);
            let w = conv.weight_norm(&[channels, channels, kernel]);
            backend.pack_conv1d(
                &w,
                Some(&conv.weight("bias", &[channels])),
                1,
                Fidelity::Signal,
            )
        };
        let snake =
            |list: &str, i: usize| vector(backend, &scope.at(list).at(i), "alpha", &[channels]);
        let layers = dilations.iter().enumerate().map(|(i, &dilation)| {
            Ok(Layer {
                snakes: [snake("activations1", i)?, snake("activations2", i)?],
                convs: [conv("convs1", i)?, conv("convs2", i)?],
                geoms: [ConvGeom::same(kernel, dilation), ConvGeom::same(kernel, 1)],
            })
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// Leaves the result in `out`, of the shape of `x`; `t` is scratch.
    pub(super) fn run(
        &self,
        backend: &B,
        x: &Tensor<B>,
        segments: &Segments<B>,
        t: &mut Tensor<B>,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        backend.resize(out, x.rows(), x.cols())?;
        let Some((first, rest)) = self.layers.split_first() else {
            return backend.copy_rows(x, 0, out, 0, x.rows());
        };
        first.branch(backend, x, segments, t)?;
        first.close(backend, segments, t, Epilogue::Add(x), out)?;
        self.add_all(backend, rest, segments, t, out)
    }

    /// The same, replacing `x` by the result.
    pub(super) fn run_in_place(
        &self,
        backend: &B,
        segments: &Segments<B>,
        t: &mut Tensor<B>,
        x: &mut Tensor<B>,
    ) -> Result<()> {
        self.add_all(backend, &self.layers, segments, t, x)
    }

    fn add_all(
        &self,
        backend: &B,
        layers: &[Layer<B>],
        segments: &Segments<B>,
        t: &mut Tensor<B>,
        x: &mut Tensor<B>,
    ) -> Result<()> {
        for layer in layers {
            layer.branch(backend, x, segments, t)?;
            layer.close(backend, segments, t, Epilogue::Accumulate, x)?;
        }
        Ok(())
    }
}

impl<B: Backend> Layer<B> {
    /// First half: `t = conv_dilated(snake(x))`.
    fn branch(
        &self,
        backend: &B,
        x: &Tensor<B>,
        segments: &Segments<B>,
        t: &mut Tensor<B>,
    ) -> Result<()> {
        backend.resize(t, x.rows(), x.cols())?;
        let ([conv, _], [geom, _], [snake, _]) = (&self.convs, self.geoms, &self.snakes);
        let pre = Some(Act::Snake(snake));
        backend.conv1d(x, segments, conv, geom, pre, Epilogue::None, t, segments)
    }

    /// Second half: `ep(conv(snake(t)))`.
    fn close(
        &self,
        backend: &B,
        segments: &Segments<B>,
        t: &Tensor<B>,
        ep: Epilogue<'_, B>,
        out: &mut Tensor<B>,
    ) -> Result<()> {
        let ([_, conv], [_, geom], [_, snake]) = (&self.convs, self.geoms, &self.snakes);
        let pre = Some(Act::Snake(snake));
        backend.conv1d(t, segments, conv, geom, pre, ep, out, segments)
    }
}
