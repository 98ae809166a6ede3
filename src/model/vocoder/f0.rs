//! Fundamental frequency of each mel frame.
//!
//! In: `mel [N, mels]`. Out: `f0 [N, 1]` in Hz, not negative. Sums are exact: an error of 1e-6 here is heard in the phase. Reference: `ConvRNNF0Predictor` (`cosyvoice/hifigan/f0_predictor.py`).

use crate::backend::{Act, Backend, ConvGeom, Epilogue, Fidelity, Result};
use crate::checkpoint::Scope;
use crate::model::config::F0PredictorConfig;
use crate::tensor::{Segments, Tensor};

const KERNEL: usize = 3;

/// Convolutions with ELU, then a linear layer.
pub(super) struct F0Predictor<B: Backend> {
    convs: Vec<B::Conv1d>,
    classifier: B::Conv1d,
    channels: usize,
    outputs: usize,
}

impl<B: Backend> F0Predictor<B> {
    pub(super) fn load(backend: &B, scope: &Scope<'_>, config: &F0PredictorConfig) -> Result<Self> {
        let channels = config.cond_channels;
        let convs = (0..config.num_layers)
            .map(|i| {
                let input = if i == 0 { config.in_channels } else { channels };
                // Activations sit between the convolutions in the list.
                let conv = scope.at("condnet").at(2 * i);
                let w = conv.weight_norm(&[channels, input, KERNEL]);
                backend.pack_conv1d(
                    &w,
                    Some(&conv.weight("bias", &[channels])),
                    1,
                    Fidelity::Exact,
                )
            })
            .collect::<Result<_>>()?;
        let classifier = scope.at("classifier");
        let mut w = classifier.weight("weight", &[config.num_class, channels]);
        // A linear layer is a convolution of kernel 1.
        w.shape.push(1);
        let bias = classifier.weight("bias", &[config.num_class]);
        Ok(Self {
            convs,
            classifier: backend.pack_conv1d(&w, Some(&bias), 1, Fidelity::Exact)?,
            channels,
            outputs: config.num_class,
        })
    }

    /// `a` and `b` are scratch.
    pub(super) fn run<'a>(
        &self,
        backend: &B,
        mel: &Tensor<B>,
        segments: &Segments<B>,
        mut a: &'a mut Tensor<B>,
        mut b: &'a mut Tensor<B>,
        f0: &mut Tensor<B>,
    ) -> Result<()> {
        let geom = ConvGeom::same(KERNEL, 1);
        for (i, conv) in self.convs.iter().enumerate() {
            backend.resize(b, mel.rows(), self.channels)?;
            let x = if i == 0 { mel } else { &*a };
            let ep = Epilogue::Act(Act::Elu);
            backend.conv1d(x, segments, conv, geom, None, ep, b, segments)?;
            std::mem::swap(&mut a, &mut b);
        }
        backend.resize(f0, mel.rows(), self.outputs)?;
        let (geom, ep) = (ConvGeom::same(1, 1), Epilogue::Act(Act::Abs));
        backend.conv1d(a, segments, &self.classifier, geom, None, ep, f0, segments)
    }
}
