//! Activations and epilogues with their operands as plain slices: what the ops hand to the loops.

use super::Cpu;
use crate::backend::{Act, Epilogue};

/// An [`Act`] on the host.
#[derive(Clone, Copy, Debug)]
pub enum Activation<'a> {
    Relu,
    Gelu,
    GeluTanh,
    Silu,
    Mish,
    Elu,
    Tanh,
    Sigmoid,
    Abs,
    LeakyRelu(f32),
    /// One α per channel.
    Snake(&'a [f32]),
}

impl<'a> From<Act<'a, Cpu>> for Activation<'a> {
    fn from(act: Act<'a, Cpu>) -> Self {
        match act {
            Act::Relu => Self::Relu,
            Act::Gelu => Self::Gelu,
            Act::GeluTanh => Self::GeluTanh,
            Act::Silu => Self::Silu,
            Act::Mish => Self::Mish,
            Act::Elu => Self::Elu,
            Act::Tanh => Self::Tanh,
            Act::Sigmoid => Self::Sigmoid,
            Act::Abs => Self::Abs,
            Act::LeakyRelu(slope) => Self::LeakyRelu(slope),
            Act::Snake(alpha) => Self::Snake(alpha.data()),
        }
    }
}

impl Activation<'_> {
    /// Panics when a per-channel parameter does not have `channels` values.
    pub(crate) fn check(self, op: &str, channels: usize) -> Self {
        if let Self::Snake(alpha) = self {
            assert!(
                alpha.len() == channels,
                "{op}: {} values of alpha for {channels} channels",
                alpha.len()
            );
        }
        self
    }
}

/// An [`Epilogue`] on the host.
#[derive(Clone, Copy, Debug)]
pub enum Store<'a> {
    Set,
    Act(Activation<'a>),
    /// The other addend, of the shape of the output.
    Add(&'a [f32]),
    Accumulate,
    AccumulateScaled(f32),
    SiluMul,
}

impl<'a> Store<'a> {
    /// Takes the operands out of an epilogue of an output of shape `out`.
    pub(crate) fn new(op: &str, ep: Epilogue<'a, Cpu>, out: (usize, usize)) -> Self {
        match ep {
            Epilogue::None => Self::Set,
            Epilogue::Act(act) => Self::Act(Activation::from(act).check(op, out.1)),
            Epilogue::Add(r) => {
                assert!(
                    r.shape() == out,
                    "{op}: cannot add {:?} to {out:?}",
                    r.shape()
                );
                Self::Add(r.data())
            }
            Epilogue::Accumulate => Self::Accumulate,
            Epilogue::AccumulateScaled(s) => Self::AccumulateScaled(s),
            Epilogue::SiluMul => Self::SiluMul,
        }
    }
}

/// Runs `$fixed!(act)` with the variant of `$act` spelled out, so that the choice is made outside the loop that `$fixed` writes; `$snake` where it
/// is Snake.
macro_rules! for_each_activation {
    ($act:expr, $fixed:ident, $snake:expr) => {{
        use $crate::cpu::Activation as A;
        match $act {
            A::Relu => $fixed!(A::Relu),
            A::Abs => $fixed!(A::Abs),
            A::Gelu => $fixed!(A::Gelu),
            A::GeluTanh => $fixed!(A::GeluTanh),
            A::Silu => $fixed!(A::Silu),
            A::Mish => $fixed!(A::Mish),
            A::Elu => $fixed!(A::Elu),
            A::Tanh => $fixed!(A::Tanh),
            A::Sigmoid => $fixed!(A::Sigmoid),
            A::LeakyRelu(slope) => $fixed!(A::LeakyRelu(slope)),
            A::Snake(alpha) => $snake(alpha),
        }
    }};
}
pub(crate) use for_each_activation;
