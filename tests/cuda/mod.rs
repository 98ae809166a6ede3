//! The CUDA backend against the CPU one, op by op, in both precisions.
//!
//! The kernels run on the emulated driver (`tests/cuda-emulator`), on the CPU and through the same calls as on a device; with
//! `CUDA_TESTS=device` they run on device 0 of the real driver instead. The checking flavour of the emulator, which looks for data races and
//! accesses out of bounds, runs all of this again in a process of its own.

mod abi;
mod attention;
mod conv;
mod dense;
mod flow;
mod graph;
mod memory;
mod models;
mod norm;
mod sample;
mod selftest;
mod vocoder;

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cosyvoice::cpu::{Cpu, CpuOptions, WeightPrecision};
use cosyvoice::cuda::{Cuda, CudaOptions, Images, Precision};

use crate::support::emulator;
use crate::support::metrics::nmse;

/// Bounds on the NMSE against the CPU's f32 result.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) f32: f64,
    pub(crate) bf16: f64,
}

/// Copies change nothing in f32, and round once in bf16.
pub(crate) const COPY: Bounds = Bounds {
    f32: 0.0,
    bf16: 1e-5,
};

/// The device for one test at a time.
pub(crate) struct Device {
    cuda: Cuda,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Device {
    type Target = Cuda;

    fn deref(&self) -> &Cuda {
        &self.cuda
    }
}

impl Device {
    /// The same device as one without Hopper's instructions runs.
    pub(crate) fn without_hopper(self) -> Self {
        Self {
            cuda: self.cuda.without_hopper(),
            ..self
        }
    }

    /// The device itself, for what owns its backend; no other test gets it as long as the guard lives.
    pub(crate) fn into_parts(self) -> (Cuda, MutexGuard<'static, ()>) {
        (self.cuda, self._turn)
    }
}

/// The right to use devices; none, and a line that says so, where the emulator cannot be built.
pub(crate) fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    emulator::ready().then_some(turn)
}

/// Opens an emulated device, or a real one where `CUDA_TESTS=device`.
pub(crate) fn open(ordinal: usize, precision: Precision) -> cosyvoice::backend::Result<Cuda> {
    let options = CudaOptions { ordinal, precision };
    if emulator::on_device() {
        Cuda::open(options)
    } else {
        Cuda::open_with(options, emulated())
    }
}

/// Opens the first device when it is this test's turn.
pub(crate) fn device(precision: Precision) -> Option<Device> {
    let turn = turn()?;
    Some(Device {
        cuda: open(0, precision).unwrap_or_else(|e| panic!("{e}")),
        _turn: turn,
    })
}

/// The emulator has all kernels in it and takes any image.
fn emulated() -> Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let kernels = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
        let images = std::fs::read_dir(kernels)
            .expect("the kernels' folder")
            .map(|e| e.expect("an entry").path())
            .filter(|p| p.extension().is_some_and(|e| e == "cu"))
            .map(|p| {
                let stem = p.file_stem().expect("a name").to_string_lossy();
                let stem: &'static str = Box::leak(stem.into_owned().into_boxed_str());
                (stem, &b"emulated"[..])
            })
            .collect::<Vec<_>>();
        Box::leak(images.into_boxed_slice())
    })
}

/// The CPU with f32 weights, which decides.
pub(crate) fn cpu() -> Cpu {
    Cpu::new(CpuOptions {
        threads: 1,
        weights: WeightPrecision::F32,
    })
}

/// Compares one result with the CPU's.
pub(crate) fn compare(
    what: &str,
    precision: Precision,
    bounds: Bounds,
    actual: &[f32],
    expected: &[f32],
) {
    let bound = match precision {
        Precision::F32 => bounds.f32,
        Precision::Bf16 => bounds.bf16,
    };
    let error = nmse(actual, expected);
    assert!(
        error <= bound,
        "{what}, {precision:?}: NMSE {error:e} > {bound:e}"
    );
}

/// `agree!("what", BOUNDS, |b| values)`: runs the expression, a `Vec<f32>`, on the CPU and on the device in both precisions, and compares.
macro_rules! agree {
    ($what:expr, $bounds:expr, |$b:ident| $body:expr) => {{
        let expected: Vec<f32> = {
            let $b = &$crate::cuda::cpu();
            $body
        };
        for precision in [
            cosyvoice::cuda::Precision::F32,
            cosyvoice::cuda::Precision::Bf16,
        ] {
            if let Some(device) = $crate::cuda::device(precision) {
                let actual: Vec<f32> = {
                    let $b = &*device;
                    $body
                };
                $crate::cuda::compare(
                    &format!("{}", $what),
                    precision,
                    $bounds,
                    &actual,
                    &expected,
                );
            }
        }
    }};
}
pub(crate) use agree;

/// The values of a tensor.
pub(crate) fn values<B: cosyvoice::backend::Memory>(
    backend: &B,
    tensor: &cosyvoice::tensor::Tensor<B>,
) -> Vec<f32> {
    let mut values = Vec::new();
    backend.download(tensor, &mut values).expect("a download");
    values
}
