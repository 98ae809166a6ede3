//! Activations and epilogues as kernels take them.

use super::abi;
use super::buffer::NO_MAT;
use super::{Cuda, Dtype};
use crate::backend::{Act, Epilogue};

/// An activation over `channels` channels.
pub(super) fn act_params(op: &str, act: Act<'_, Cuda>, channels: usize) -> abi::ActParams {
    let kind = match act {
        Act::Relu => abi::ACT_RELU,
        Act::Gelu => abi::ACT_GELU,
        Act::GeluTanh => abi::ACT_GELU_TANH,
        Act::Silu => abi::ACT_SILU,
        Act::Mish => abi::ACT_MISH,
        Act::Elu => abi::ACT_ELU,
        Act::Tanh => abi::ACT_TANH,
        Act::Sigmoid => abi::ACT_SIGMOID,
        Act::Abs => abi::ACT_ABS,
        Act::LeakyRelu(_) => abi::ACT_LEAKY_RELU,
        Act::Snake(_) => abi::ACT_SNAKE,
    };
    let mut params = abi::ActParams {
        kind: kind as i32,
        ..Default::default()
    };
    match act {
        Act::LeakyRelu(slope) => params.slope = slope,
        Act::Snake(alpha) => {
            assert!(
                alpha.dtype() == Dtype::F32 && alpha.rows() * alpha.cols() == channels,
                "{op}: {:?} values of alpha, {:?}, for {channels} channels",
                alpha.shape(),
                alpha.dtype()
            );
            params.alpha = alpha.mat().data;
        }
        _ => {}
    }
    params
}

/// No activation, or one over `channels` channels.
pub(super) fn optional_act(
    op: &str,
    act: Option<Act<'_, Cuda>>,
    channels: usize,
) -> abi::ActParams {
    act.map_or_else(abi::ActParams::default, |act| act_params(op, act, channels))
}

/// The epilogue of an output of shape `out`.
pub(super) fn epilogue_params(
    op: &str,
    ep: Epilogue<'_, Cuda>,
    out: (usize, usize),
) -> abi::EpilogueParams {
    let mut params = abi::EpilogueParams {
        residual: NO_MAT,
        ..Default::default()
    };
    let kind = match ep {
        Epilogue::None => abi::EPILOGUE_NONE,
        Epilogue::Act(act) => {
            params.act = act_params(op, act, out.1);
            abi::EPILOGUE_ACT
        }
        Epilogue::Add(r) => {
            assert!(
                r.shape() == out,
                "{op}: cannot add {:?} to {out:?}",
                r.shape()
            );
            params.residual = r.mat();
            abi::EPILOGUE_ADD
        }
        Epilogue::Accumulate => abi::EPILOGUE_ACCUMULATE,
        Epilogue::AccumulateScaled(scale) => {
            params.scale = scale;
            abi::EPILOGUE_ACCUMULATE_SCALED
        }
        Epilogue::SiluMul => abi::EPILOGUE_SILU_MUL,
    };
    params.kind = kind as i32;
    params
}
