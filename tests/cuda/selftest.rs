//! The emulated driver's own tests: a right kernel passes in every order, planted faults are found and named.
//!
//! What only the checking flavour can see is asserted in a child process that `planted_faults_are_found` starts.

use std::sync::{Arc, MutexGuard};

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use half::bf16;

use super::turn;
use crate::support::emulator::{self, Copies, Order};

#[repr(C)]
#[derive(Clone, Copy)]
struct Gemm {
    a: u64,
    b: u64,
    c: u64,
    m: i32,
    n: i32,
    k: i32,
    bug: i32,
}
// SAFETY: plain numbers, laid out as in the kernel.
unsafe impl DeviceRepr for Gemm {}

/// A device of the emulator, set back to its defaults at the end.
struct Rig {
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        emulator::schedule(Order::Forward, 1, Copies::Lazy);
        emulator::take_report();
    }
}

impl Rig {
    /// None on a real device, which has no such kernels, or where the emulator cannot be built.
    fn new() -> Option<Self> {
        let turn = turn()?;
        if emulator::on_device() {
            return None;
        }
        let context = CudaContext::new(0).unwrap();
        // SAFETY: no slice exists yet.
        unsafe { context.disable_event_tracking() };
        Some(Self {
            stream: context.new_stream().unwrap(),
            context,
            _turn: turn,
        })
    }

    fn launch(&self, name: &str, grid: (u32, u32), threads: u32, shared: u32, p: &Gemm) {
        let module = self.context.load_module(Ptx::from_binary(vec![0])).unwrap();
        let f = module.load_function(name).unwrap();
        let config = LaunchConfig {
            grid_dim: (grid.0, grid.1, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: shared,
        };
        let mut b = self.stream.launch_builder(&f);
        b.arg(p);
        // SAFETY: a kernel of the emulator and its parameters; a fault of it is what the test wants to see reported.
        unsafe { b.launch(config) }.unwrap();
    }

    fn upload<T: DeviceRepr>(&self, values: &[T]) -> (CudaSlice<T>, u64) {
        let slice = self.stream.clone_htod(values).unwrap();
        let address = slice.device_ptr(&self.stream).0;
        (slice, address)
    }

    fn values(&self, slice: &CudaSlice<f32>) -> Vec<f32> {
        self.stream.clone_dtoh(slice).unwrap()
    }
}

/// Every schedule that a test is repeated under.
fn schedules() -> Vec<(Order, u64, Copies)> {
    let mut all = vec![
        (Order::Forward, 1, Copies::Eager),
        (Order::Forward, 1, Copies::Lazy),
        (Order::Reverse, 1, Copies::Lazy),
    ];
    all.extend((1..4).map(|seed| (Order::Random, seed, Copies::Random)));
    all
}

fn seeded(n: usize, seed: u32) -> Vec<bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((state >> 24) as f32 / 128.0 - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

/// `C[m][n] = A[m][k] B[n][k]^T`.
fn product(a: &[bf16], b: &[bf16], m: usize, n: usize, k: usize) -> Vec<f32> {
    let dot = |i: usize, j: usize| -> f32 {
        (0..k)
            .map(|q| a[i * k + q].to_f32() * b[j * k + q].to_f32())
            .sum()
    };
    (0..m * n).map(|i| dot(i / n, i % n)).collect()
}

fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        // NaN, the mark of what never arrived, is not close.
        assert!((a - e).abs() <= 1e-3, "{what}: [{i}] is {a}, not {e}");
    }
}

const M: usize = 100;
const N: usize = 72;
const K: usize = 256;

fn mma_product(rig: &Rig, bug: i32) -> Result<Vec<f32>, String> {
    let ((_a, a), (_b, b)) = (rig.upload(&seeded(M * K, 1)), rig.upload(&seeded(N * K, 2)));
    let (slice, c) = rig.upload(&vec![0f32; M * N]);
    let (m, n, k) = (M as i32, N as i32, K as i32);
    let p = Gemm {
        a,
        b,
        c,
        m,
        n,
        k,
        bug,
    };
    rig.launch("selftest_gemm_mma", (2, 2), 128, 2 * 2 * 64 * 40 * 2, &p);
    emulator::take_report().map_or_else(|| Ok(rig.values(&slice)), Err)
}

#[test]
fn a_product_agrees_with_a_loop_in_every_order() {
    let Some(rig) = Rig::new() else { return };
    let expected = product(&seeded(M * K, 1), &seeded(N * K, 2), M, N, K);
    for (order, seed, copies) in schedules() {
        emulator::schedule(order, seed, copies);
        let what = format!("{order:?} {seed} {copies:?}");
        assert_close(&what, &mma_product(&rig, 0).unwrap(), &expected);
    }
}

#[test]
fn planted_faults_are_found() {
    if !emulator::checking() {
        emulator::run_checked("cuda::selftest::");
        return;
    }
    let Some(rig) = Rig::new() else { return };
    for (order, seed, copies) in schedules() {
        emulator::schedule(order, seed, copies);
        for (what, bug) in [
            ("cp.async not waited for", 1),
            ("buffer reused too early", 2),
        ] {
            let what = format!("{what}, {order:?} {seed} {copies:?}");
            let Err(report) = mma_product(&rig, bug) else {
                panic!("{what} was missed")
            };
            assert!(
                report.contains("[kernel selftest_gemm_mma block ("),
                "{what}: {report}"
            );
            assert!(report.contains(") thread "), "{what}: {report}");
        }
    }
}
