//! The emulated driver's own tests: right kernels pass in every order, planted faults are found and named, graphs and streams
//! keep their promises.
//!
//! What only the checking flavour can see is asserted in a child process that `planted_faults_are_found` starts.

use std::sync::{Arc, MutexGuard};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig,
    PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;
use half::bf16;

use super::turn;
use crate::support::emulator::{self, Copies, Order, Streams};

#[repr(C)]
#[derive(Clone, Copy)]
struct SelfTest {
    x: u64,
    y: u64,
    z: u64,
    n: i32,
    bug: i32,
}
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
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Tiles(sys::CUtensorMap);
#[repr(C)]
#[derive(Clone, Copy)]
struct HopperGemm {
    a: Tiles,
    b: Tiles,
    c: u64,
    m: i32,
    n: i32,
    k: i32,
    bug: i32,
}
#[repr(C)]
#[derive(Clone, Copy)]
struct TileCopy {
    from: Tiles,
    to: Tiles,
    bug: i32,
}
// SAFETY: plain numbers, laid out as in selftest.h and the kernels.
unsafe impl DeviceRepr for SelfTest {}
// SAFETY: as above.
unsafe impl DeviceRepr for Gemm {}
// SAFETY: as above.
unsafe impl DeviceRepr for HopperGemm {}
// SAFETY: as above.
unsafe impl DeviceRepr for TileCopy {}

/// A device of the emulator, set back to its defaults at the end.
struct Rig {
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        emulator::streams(Streams::Eager, 1);
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

    fn kernel(&self, name: &str, shared: u32) -> CudaFunction {
        let module = self.context.load_module(Ptx::from_binary(vec![0])).unwrap();
        let f = module.load_function(name).unwrap();
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        f.set_attribute(limit, shared as i32).unwrap();
        f
    }

    fn launch_on<P: DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        name: &str,
        grid: (u32, u32),
        threads: u32,
        shared: u32,
        p: &P,
    ) {
        let f = self.kernel(name, shared);
        let config = LaunchConfig {
            grid_dim: (grid.0, grid.1, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: shared,
        };
        let mut b = stream.launch_builder(&f);
        b.arg(p);
        // SAFETY: a kernel of the emulator and its parameters; a fault of it is what the test wants to see reported.
        unsafe { b.launch(config) }.unwrap();
    }

    fn launch<P: DeviceRepr>(
        &self,
        name: &str,
        grid: (u32, u32),
        threads: u32,
        shared: u32,
        p: &P,
    ) {
        self.launch_on(&self.stream, name, grid, threads, shared, p);
    }

    fn upload<T: DeviceRepr>(&self, values: &[T]) -> (CudaSlice<T>, u64) {
        let slice = self.stream.clone_htod(values).unwrap();
        let address = slice.device_ptr(&self.stream).0;
        (slice, address)
    }

    fn values(&self, slice: &CudaSlice<f32>) -> Vec<f32> {
        self.stream.clone_dtoh(slice).unwrap()
    }

    /// Launches a kernel on `x` and returns what it left in `y`, or the finding.
    fn run(
        &self,
        name: &str,
        blocks: u32,
        threads: u32,
        shared: u32,
        n: i32,
        bug: i32,
    ) -> Result<Vec<f32>, String> {
        let x: Vec<f32> = (0..256).map(|i| (i * i % 41) as f32).collect();
        let ((_x, x), (slice, y)) = (self.upload(&x), self.upload(&vec![0f32; n as usize]));
        let (_z, z) = self.upload(&[0u32; 4]);
        let p = SelfTest { x, y, z, n, bug };
        self.launch(name, (blocks, 1), threads, shared, &p);
        match emulator::take_report() {
            Some(report) => Err(report),
            None => Ok(self.values(&slice)),
        }
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

fn tiles(
    address: u64,
    rows: usize,
    cols: usize,
    box_rows: u32,
    bytes: u64,
    box_cols: u32,
) -> Tiles {
    use sys::CUtensorMapDataType as Type;
    let (dims, pitch) = ([cols as u64, rows as u64], [cols as u64 * bytes]);
    let (tile, steps) = ([box_cols, box_rows], [1u32, 1]);
    let mut map = Tiles(sys::CUtensorMap { opaque: [0; 16] });
    let (data, swizzle) = if bytes == 2 {
        (
            Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        )
    } else {
        (
            Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        )
    };
    // SAFETY: the arrays have the rank's length and the address is a device allocation of this size.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map.0,
            data,
            2,
            address as *mut _,
            dims.as_ptr(),
            pitch.as_ptr(),
            tile.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    result.result().unwrap();
    map
}

fn wgmma_product(rig: &Rig, tile_n: usize, bug: i32) -> Result<Vec<f32>, String> {
    let ((_a, a), (_b, b)) = (rig.upload(&seeded(M * K, 1)), rig.upload(&seeded(N * K, 2)));
    let (slice, c) = rig.upload(&vec![0f32; M * N]);
    let p = HopperGemm {
        a: tiles(a, M, K, 128, 2, 64),
        b: tiles(b, N, K, tile_n as u32, 2, 64),
        c,
        m: M as i32,
        n: N as i32,
        k: K as i32,
        bug,
    };
    let shared = 3 * (128 + tile_n) * 64 * 2 + 6 * 8;
    let grid = (N.div_ceil(tile_n) as u32, 1);
    rig.launch(
        &format!("selftest_gemm_wgmma{tile_n}"),
        grid,
        384,
        shared as u32,
        &p,
    );
    emulator::take_report().map_or_else(|| Ok(rig.values(&slice)), Err)
}

fn tile_copy(rig: &Rig, bug: i32) -> Result<Vec<f32>, String> {
    let x: Vec<f32> = (0..8 * 100).map(|i| i as f32).collect();
    let ((_x, from), (slice, to)) = (rig.upload(&x), rig.upload(&vec![0f32; 800]));
    let p = TileCopy {
        from: tiles(from, 8, 100, 8, 4, 64),
        to: tiles(to, 8, 100, 8, 4, 64),
        bug,
    };
    rig.launch("selftest_tile", (2, 1), 64, 8 * 64 * 4 + 64, &p);
    emulator::take_report().map_or_else(|| Ok(rig.values(&slice)), Err)
}

#[test]
fn products_agree_with_a_loop_in_every_order() {
    let Some(rig) = Rig::new() else { return };
    let expected = product(&seeded(M * K, 1), &seeded(N * K, 2), M, N, K);
    for (order, seed, copies) in schedules() {
        emulator::schedule(order, seed, copies);
        let what = format!("{order:?} {seed} {copies:?}");
        assert_close(&what, &mma_product(&rig, 0).unwrap(), &expected);
        assert_close(&what, &wgmma_product(&rig, 64, 0).unwrap(), &expected);
        assert_close(&what, &wgmma_product(&rig, 256, 0).unwrap(), &expected);
    }
}

#[test]
fn operands_of_wgmma_come_from_registers_and_rows() {
    let Some(rig) = Rig::new() else { return };
    let (p, v) = (seeded(64 * 64, 3), seeded(64 * 128, 4));
    let turned: Vec<bf16> = (0..128 * 64).map(|i| v[i % 64 * 128 + i / 64]).collect();
    let ((_p, x), (_v, y)) = (rig.upload(&p), rig.upload(&v));
    let (out, z) = rig.upload(&vec![0f32; 64 * 128]);
    let params = |bug| SelfTest { x, y, z, n: 0, bug };
    rig.launch("selftest_wgmma_registers", (1, 1), 128, 16384, &params(0));
    assert_eq!(emulator::take_report(), None);
    assert_close("PV", &rig.values(&out), &product(&p, &turned, 64, 128, 64));
    if emulator::checking() {
        rig.launch("selftest_wgmma_registers", (1, 1), 128, 16384, &params(1));
        let report = emulator::take_report().expect("a proxy fence is missing");
        assert!(report.starts_with("PROXY"), "{report}");
    }
}

/// Kernel, blocks, threads, bytes of shared memory, floats of `y`.
const RIGHT: [(&str, u32, u32, u32, i32); 10] = [
    ("selftest_copy", 2, 64, 0, 100),
    ("selftest_vectors", 1, 32, 0, 32),
    ("selftest_limits", 1, 32, 128, 32),
    ("selftest_row_sums", 2, 128, 0, 64),
    ("selftest_swap", 1, 32, 0, 32),
    ("selftest_divergence", 1, 64, 0, 64),
    ("selftest_blocks", 3, 32, 0, 96),
    ("selftest_last_block", 5, 32, 0, 64),
    ("selftest_histogram", 1, 128, 0, 200),
    ("selftest_named_barriers", 1, 128, 0, 4 * 64),
];

#[test]
fn right_kernels_are_not_accused() {
    let Some(rig) = Rig::new() else { return };
    let mut first: Vec<Vec<f32>> = Vec::new();
    for (order, seed, copies) in schedules() {
        emulator::schedule(order, seed, copies);
        for (i, (name, blocks, threads, shared, n)) in RIGHT.into_iter().enumerate() {
            let n = if name == "selftest_named_barriers" {
                4
            } else {
                n
            };
            let y = run_sized(&rig, name, blocks, threads, shared, n, 0)
                .unwrap_or_else(|report| panic!("{order:?} {seed}: {report}"));
            if first.len() == i {
                first.push(y);
            } else {
                assert_eq!(y, first[i], "{name}: {order:?} {seed} {copies:?}");
            }
        }
        assert_eq!(tile_copy(&rig, 0).unwrap()[799], 800.0);
    }
    for (i, v) in first[0].iter().enumerate() {
        assert_eq!(*v, (i * i % 41) as f32, "selftest_copy");
    }
    assert_eq!(
        first[7][0],
        (0..5).map(|i| (i * i % 41) as f32).sum::<f32>()
    );
    assert_eq!(
        first[9][..64],
        (0..64).rev().map(|i| i as f32).collect::<Vec<_>>()
    );
}

/// `Rig::run` with room for what the kernel writes.
fn run_sized(
    rig: &Rig,
    name: &str,
    blocks: u32,
    threads: u32,
    shared: u32,
    n: i32,
    bug: i32,
) -> Result<Vec<f32>, String> {
    if name != "selftest_named_barriers" {
        return rig.run(name, blocks, threads, shared, n, bug);
    }
    let (slice, y) = rig.upload(&vec![0f32; 64 * n as usize]);
    let p = SelfTest {
        x: 0,
        y,
        z: 0,
        n,
        bug,
    };
    rig.launch(name, (blocks, 1), threads, shared, &p);
    emulator::take_report().map_or_else(|| Ok(rig.values(&slice)), Err)
}

/// Kernel, blocks, threads, shared bytes, n, bug, how the report begins.
const PLANTED: [(&str, u32, u32, u32, i32, i32, &str); 20] = [
    ("selftest_copy", 2, 64, 0, 100, 1, "OUT OF BOUNDS: read"),
    ("selftest_copy", 2, 64, 0, 100, 2, "UNINITIALISED"),
    ("selftest_copy", 2, 64, 0, 100, 3, "OUT OF BOUNDS: write"),
    ("selftest_vectors", 1, 32, 0, 32, 1, "MISALIGNED"),
    ("selftest_limits", 1, 32, 128, 32, 1, "OUT OF BOUNDS: write"),
    ("selftest_limits", 1, 32, 128, 32, 2, "OUT OF BOUNDS: index"),
    ("selftest_limits", 1, 32, 128, 32, 3, "SHIFT"),
    ("selftest_row_sums", 2, 128, 0, 64, 1, ""),
    ("selftest_row_sums", 2, 128, 0, 64, 2, "DATA RACE"),
    ("selftest_swap", 1, 32, 0, 32, 1, ""),
    (
        "selftest_divergence",
        1,
        64,
        0,
        64,
        1,
        "DEADLOCK: 40 threads",
    ),
    ("selftest_divergence", 1, 64, 0, 64, 2, ""),
    ("selftest_divergence", 1, 64, 0, 64, 3, "DIVERGENCE"),
    ("selftest_blocks", 3, 32, 0, 96, 1, "DATA RACE"),
    ("selftest_blocks", 3, 32, 0, 96, 2, "DATA RACE"),
    ("selftest_last_block", 5, 32, 0, 64, 1, "DATA RACE"),
    ("selftest_histogram", 1, 128, 0, 200, 1, "DATA RACE"),
    ("selftest_named_barriers", 1, 128, 0, 4, 1, ""),
    ("selftest_named_barriers", 1, 128, 0, 4, 2, ""),
    ("selftest_copy", 2, 64, 0, 100, 0, "none"),
];

#[test]
fn planted_faults_are_found() {
    if !emulator::checking() {
        emulator::run_checked("cuda::selftest::");
        return;
    }
    let Some(rig) = Rig::new() else { return };
    for (order, seed, copies) in schedules() {
        emulator::schedule(order, seed, copies);
        for (name, blocks, threads, shared, n, bug, begins) in PLANTED {
            let found = run_sized(&rig, name, blocks, threads, shared, n, bug);
            let what = format!("{name} bug {bug}, {order:?} {seed}");
            match found {
                Ok(_) => assert_eq!(begins, "none", "{what} was missed"),
                Err(report) => {
                    assert!(report.starts_with(begins), "{what}: {report}");
                    assert!(
                        report.contains(&format!("[kernel {name} block (")),
                        "{what}: {report}"
                    );
                    assert!(report.contains(") thread "), "{what}: {report}");
                }
            }
        }
        for (what, found) in [
            ("cp.async not waited for", mma_product(&rig, 1)),
            ("buffer reused too early", mma_product(&rig, 2)),
            ("stage not waited for", wgmma_product(&rig, 64, 1)),
            ("stage refilled too early", wgmma_product(&rig, 64, 2)),
            ("stage given back too early", wgmma_product(&rig, 64, 3)),
            ("tile not waited for", tile_copy(&rig, 1)),
            ("tile stored without a fence", tile_copy(&rig, 2)),
        ] {
            assert!(
                found.is_err(),
                "{what} was missed, {order:?} {seed} {copies:?}"
            );
        }
    }
}

#[test]
fn a_grid_barrier_holds_in_a_cooperative_launch() {
    let Some(rig) = Rig::new() else { return };
    let (slice, y) = rig.upload(&vec![0f32; 2 * 8 * 32]);
    let (_z, z) = rig.upload(&[0u32]);
    let f = rig.kernel("selftest_grid_barrier", 0);
    let p = SelfTest {
        x: 0,
        y,
        z,
        n: 0,
        bug: 0,
    };
    let mut b = rig.stream.launch_builder(&f);
    b.arg(&p);
    let config = LaunchConfig {
        grid_dim: (8, 1, 1),
        block_dim: (32, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the buffers are as large as the kernel's grid wants.
    unsafe { b.launch_cooperative(config) }.unwrap();
    assert_eq!(emulator::take_report(), None);
    let y = rig.values(&slice);
    for (i, v) in y[..256].iter().enumerate() {
        assert_eq!(*v, ((i / 32 + 1) % 8) as f32);
    }
}

/// Whether a copy on one stream sees what a kernel on another did before it, with or without an event between them.
fn second_stream_sees_the_first(rig: &Rig, ordered: bool, seed: u64) -> bool {
    emulator::streams(Streams::Eager, 1);
    let (slice, x) = rig.upload(&[1f32; 32]);
    let other = rig.context.new_stream().unwrap();
    emulator::streams(Streams::Deferred, seed);
    let p = SelfTest {
        x,
        y: 0,
        z: 0,
        n: 0,
        bug: 0,
    };
    let mut seen = rig.stream.clone_dtod(&slice).unwrap();
    rig.launch_on(&rig.stream, "selftest_dependent", (1, 1), 32, 0, &p);
    if ordered {
        other.join(&rig.stream).unwrap();
    }
    other.memcpy_dtod(&slice, &mut seen).unwrap();
    rig.stream.synchronize().unwrap();
    other.synchronize().unwrap();
    emulator::streams(Streams::Eager, 1);
    rig.values(&seen) == [2f32; 32]
}

#[test]
fn deferred_streams_find_a_missing_wait() {
    let Some(rig) = Rig::new() else { return };
    let seeds = 1..20;
    for seed in seeds.clone() {
        assert!(
            second_stream_sees_the_first(&rig, true, seed),
            "seed {seed}"
        );
    }
    let wrong = seeds
        .filter(|&seed| !second_stream_sees_the_first(&rig, false, seed))
        .count();
    assert!(wrong > 0, "no order of two unordered streams showed it");
}

#[test]
fn graphs_replay_what_was_captured() {
    let Some(rig) = Rig::new() else { return };
    let (slice, x) = rig.upload(&[1f32; 32]);
    let p = SelfTest {
        x,
        y: 0,
        z: 0,
        n: 0,
        bug: 0,
    };
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    rig.stream.begin_capture(mode).unwrap();
    let other = rig.stream.fork().unwrap();
    rig.launch_on(&other, "selftest_dependent", (1, 1), 32, 0, &p);
    rig.stream.join(&other).unwrap();
    rig.launch("selftest_dependent", (1, 1), 32, 0, &p);
    let flags = sys::CUgraphInstantiate_flags(0);
    let graph = rig.stream.end_capture(flags).unwrap().expect("a graph");
    assert_eq!(rig.values(&slice), [1f32; 32], "a capture runs nothing");
    for seed in 1..4 {
        emulator::streams(Streams::Deferred, seed);
        graph.launch().unwrap();
        rig.stream.synchronize().unwrap();
    }
    assert_eq!(rig.values(&slice), [64f32; 32]);
}
