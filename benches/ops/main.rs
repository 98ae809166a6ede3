//! Ops at the official sizes, in GFLOP/s or GB/s and as a share of what this machine was measured to reach:
//! `cargo bench --bench ops [filter]`, with `BENCH_DEVICE=cuda` on the first GPU.

mod dense;
mod others;

use cosyvoice::cpu::{Cpu, CpuOptions, Peaks, WeightPrecision};
use cosyvoice::cuda::{Cuda, CudaOptions, PeakWork};
use criterion::Criterion;

/// The backend under test and the machine's limits.
struct Bench {
    cpu: Cpu,
    peaks: Peaks,
}

impl Bench {
    fn new(weights: WeightPrecision) -> Self {
        let cpu = Cpu::new(CpuOptions {
            threads: 0,
            weights,
        });
        let peaks = cpu.measure_peaks().expect("half a gigabyte of memory");
        Self { cpu, peaks }
    }

    /// What products with the weights of `cpu` reach at most.
    fn product_flops_per_s(&self) -> f64 {
        match self.cpu.options().weights {
            WeightPrecision::F32 => self.peaks.f32_flops_per_s,
            WeightPrecision::Bf16 => self.peaks.bf16_flops_per_s,
            WeightPrecision::Int8 => self.peaks.int8_flops_per_s,
        }
    }

    /// Prints the best of some runs of `op` against a limit, then lets criterion time it.
    fn run(&self, c: &mut Criterion, name: &str, work: Work, mut op: impl FnMut(&Cpu)) {
        let mut best = f64::INFINITY;
        for _ in 0..20 {
            let start = std::time::Instant::now();
            op(&self.cpu);
            best = best.min(start.elapsed().as_secs_f64());
        }
        let (amount, limit, unit) = match work {
            Work::Flops(n) => (n, self.product_flops_per_s(), "GFLOP/s"),
            Work::Bytes(n) => (n, self.peaks.read_bytes_per_s, "GB/s"),
        };
        let rate = amount / best;
        eprintln!(
            "{name}: {:.1} {unit}, {:.0} % of the peak, {:.3} ms (best of 20)",
            rate / 1e9,
            100.0 * rate / limit,
            best * 1e3
        );
        c.bench_function(name, |b| b.iter(|| op(&self.cpu)));
    }
}

/// What an op has to do at least.
enum Work {
    Flops(f64),
    Bytes(f64),
}

fn main() {
    let mut c = Criterion::default()
        .sample_size(20)
        .measurement_time(std::time::Duration::from_secs(2))
        .warm_up_time(std::time::Duration::from_millis(300))
        .configure_from_args();
    if std::env::var("BENCH_DEVICE").is_ok_and(|device| device == "cuda") {
        on_cuda(&mut c);
    } else {
        dense::all(&mut c);
        on_cpu(&mut c);
    }
    c.final_summary();
}

fn on_cpu(c: &mut Criterion) {
    let Bench { cpu, peaks } = Bench::new(WeightPrecision::F32);
    let limits = others::Limits {
        read_bytes_per_s: peaks.read_bytes_per_s,
        flops_per_s: peaks.f32_flops_per_s,
    };
    let cached = cpu.options().weights.bytes_of_cached();
    others::all(c, &cpu, (size_of::<f32>(), cached), &limits);
}

fn on_cuda(c: &mut Criterion) {
    let cuda = Cuda::open(CudaOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let peaks = (cuda.measure_peaks(PeakWork::default())).unwrap_or_else(|e| panic!("{e}"));
    let limits = others::Limits {
        read_bytes_per_s: peaks.read_bytes_per_s,
        flops_per_s: peaks.mma_flops_per_s,
    };
    others::all(c, &cuda, (size_of::<u16>(), size_of::<u16>()), &limits);
}
