//! Ops of the prompt encoders (speech tokenizer, CAM++) that no other model needs. They run once per voice, on the CPU only.

use super::{Cpu, check_shape};
use crate::backend::{Dense, Epilogue, Memory, Result, Weight};
use crate::tensor::Tensor;

/// Time rows whose patches are laid out at once by [`Cpu::conv2d`].
const PATCH_ROWS: usize = 32;

/// A packed 2-D convolution over frequency and time, the same padding on both sides.
pub struct CpuConv2d {
    w: super::CpuLinear,
    ci: usize,
    co: usize,
    /// Kernel in frequency and in time.
    kernel: [usize; 2],
    /// Stride in frequency; in time it is 1.
    stride: usize,
}

impl CpuConv2d {
    /// Output frequencies of an input of `f` frequencies.
    fn output_freqs(&self, f: usize) -> usize {
        (f + 2 * (self.kernel[0] / 2)).saturating_sub(self.kernel[0]) / self.stride + 1
    }

    /// Output columns of an input of `cols` columns.
    pub fn output_cols(&self, cols: usize) -> usize {
        self.output_freqs(cols / self.ci) * self.co
    }
}

impl Cpu {
    /// Packs a PyTorch `Conv2d` over `[B, Ci, F, T]`: `w [Co, Ci, Kf, Kt]`, `bias [Co]`, stride `(stride, 1)`.
    pub fn pack_conv2d(
        &self,
        w: &Weight<'_>,
        bias: Option<&Weight<'_>>,
        stride: usize,
    ) -> Result<CpuConv2d> {
        check_shape!("pack_conv2d", w.shape.len(), 4);
        let [co, ci, kf, kt] = [w.shape[0], w.shape[1], w.shape[2], w.shape[3]];
        let values = w.to_f32();
        let mut rows = Vec::with_capacity(values.len());
        for o in 0..co {
            for t in 0..kt {
                for f in 0..kf {
                    rows.extend((0..ci).map(|c| values[((o * ci + c) * kf + f) * kt + t]));
                }
            }
        }
        let w = Weight::f32(&[co, kt * kf * ci], rows);
        Ok(CpuConv2d {
            w: self.pack_linear(&w, bias)?,
            ci,
            co,
            kernel: [kf, kt],
            stride,
        })
    }

    /// `x [T, F · Ci]` → `out [T, F' · Co]`, the channels of a frequency side by side.
    pub fn conv2d(
        &self,
        x: &Tensor<Cpu>,
        w: &CpuConv2d,
        ep: impl Fn(&mut f32),
        out: &mut Tensor<Cpu>,
    ) -> Result<()> {
        let freqs = x.cols() / w.ci;
        let out_freqs = w.output_freqs(freqs);
        check_shape!("conv2d", x.cols(), freqs * w.ci);
        check_shape!("conv2d", out.shape(), (x.rows(), out_freqs * w.co));
        let [kf, kt] = w.kernel;
        let width = kt * kf * w.ci;
        let (mut patches, mut y) = (self.alloc(0, 0)?, self.alloc(0, 0)?);
        let mut start = 0;
        while start < x.rows() {
            let end = (start + PATCH_ROWS).min(x.rows());
            let rows = (end - start) * out_freqs;
            self.resize(&mut patches, rows, width)?;
            self.resize(&mut y, rows, w.co)?;
            for (i, patch) in patches.data_mut().chunks_exact_mut(width).enumerate() {
                let (t, f) = (start + i / out_freqs, i % out_freqs);
                for (dt, taps) in patch.chunks_exact_mut(kf * w.ci).enumerate() {
                    gather(x, (t + dt).checked_sub(kt / 2), f * w.stride, w, taps);
                }
            }
            self.linear(&patches, &w.w, Epilogue::None, &mut y)?;
            let to = &mut out.data_mut()[start * out_freqs * w.co..end * out_freqs * w.co];
            to.copy_from_slice(y.data());
            to.iter_mut().for_each(&ep);
            start = end;
        }
        Ok(())
    }

    /// `out = max(x · scale + shift, 0)` on the first columns of `x`: `x [T, ≥ C]`, `scale, shift [C]`, `out [T, C]`.
    pub fn scale_shift_relu(
        &self,
        x: &Tensor<Cpu>,
        scale: &[f32],
        shift: &[f32],
        out: &mut Tensor<Cpu>,
    ) {
        check_shape!("scale_shift_relu", out.shape(), (x.rows(), scale.len()));
        let cols = x.cols();
        let rows = x.data().chunks_exact(cols);
        for (to, from) in out.data_mut().chunks_exact_mut(scale.len()).zip(rows) {
            for (c, (y, x)) in to.iter_mut().zip(from).enumerate() {
                *y = (x * scale[c] + shift[c]).max(0.0);
            }
        }
    }

    /// Rotary embedding in the halves layout on columns `first .. first + heads · dim` of `x`, row `t` at position `t`.
    pub fn rotate_halves(
        &self,
        x: &mut Tensor<Cpu>,
        first: usize,
        heads: usize,
        dim: usize,
        theta: f32,
    ) {
        let cols = x.cols();
        let half = dim / 2;
        let freqs: Vec<f32> = (0..half)
            .map(|i| 1.0 / theta.powf(2.0 * i as f32 / dim as f32))
            .collect();
        for (t, row) in x.data_mut().chunks_exact_mut(cols).enumerate() {
            for (i, f) in freqs.iter().enumerate() {
                let (sin, cos) = f64::from(t as f32 * f).sin_cos();
                let (sin, cos) = (sin as f32, cos as f32);
                for head in row[first..first + heads * dim].chunks_exact_mut(dim) {
                    let (a, b) = (head[i], head[i + half]);
                    head[i] = a * cos - b * sin;
                    head[i + half] = b * cos + a * sin;
                }
            }
        }
    }
}

/// The inputs under one time tap of a patch whose first frequency tap lies at `f − Kf / 2`; zeros outside.
fn gather(x: &Tensor<Cpu>, t: Option<usize>, f: usize, w: &CpuConv2d, taps: &mut [f32]) {
    let Some(t) = t.filter(|&t| t < x.rows()) else {
        taps.fill(0.0);
        return;
    };
    let row = x.row(t);
    for (df, tap) in taps.chunks_exact_mut(w.ci).enumerate() {
        match (f + df).checked_sub(w.kernel[0] / 2) {
            Some(f) if (f + 1) * w.ci <= row.len() => {
                tap.copy_from_slice(&row[f * w.ci..(f + 1) * w.ci]);
            }
            _ => tap.fill(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuOptions;

    fn ramp(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// The definition, `[C, F, T]` layout.
    fn direct(
        x: &[f32],
        ci: usize,
        f: usize,
        t: usize,
        w: &[f32],
        co: usize,
        k: usize,
        s: usize,
    ) -> Vec<f32> {
        let fo = (f + 2 * (k / 2) - k) / s + 1;
        let mut out = vec![0.0; co * fo * t];
        for (n, y) in out.iter_mut().enumerate() {
            let (o, fi, ti) = (n / (fo * t), n / t % fo, n % t);
            for c in 0..ci {
                for (df, dt) in (0..k).flat_map(|a| (0..k).map(move |b| (a, b))) {
                    let (a, b) = (fi * s + df, ti + dt);
                    if a < k / 2 || b < k / 2 || a - k / 2 >= f || b - k / 2 >= t {
                        continue;
                    }
                    let v = x[(c * f + a - k / 2) * t + b - k / 2];
                    *y += v * w[((o * ci + c) * k + df) * k + dt];
                }
            }
        }
        out
    }

    #[test]
    fn conv2d_is_its_definition() {
        let cpu = Cpu::new(CpuOptions::default());
        for (ci, co, f, t, k, s) in [(1, 3, 7, 5, 3, 1), (2, 4, 8, 67, 3, 2), (3, 2, 5, 33, 1, 2)] {
            let (x, w) = (ramp(ci * f * t, 0.7), ramp(co * ci * k * k, 1.3));
            let expected = direct(&x, ci, f, t, &w, co, k, s);
            let packed = cpu
                .pack_conv2d(&Weight::f32(&[co, ci, k, k], w), None, s)
                .unwrap();
            let fo = packed.output_freqs(f);
            let rows: Vec<f32> = (0..t * f * ci)
                .map(|i| x[(i % ci * f + i / ci % f) * t + i / (f * ci)])
                .collect();
            let x = cpu.tensor(t, f * ci, &rows).unwrap();
            let mut out = cpu.alloc(t, fo * co).unwrap();
            cpu.conv2d(&x, &packed, |_| (), &mut out).unwrap();
            for (i, y) in out.data().iter().enumerate() {
                let e = expected[(i % co * fo + i / co % fo) * t + i / (fo * co)];
                assert!((y - e).abs() < 1e-5, "{ci} {co} {f} {t} {k} {s}: {y} {e}");
            }
        }
    }

    #[test]
    fn rotation_keeps_lengths_and_leaves_other_columns() {
        let cpu = Cpu::new(CpuOptions::default());
        let values = ramp(3 * 20, 0.9);
        let mut x = cpu.tensor(3, 20, &values).unwrap();
        cpu.rotate_halves(&mut x, 4, 2, 4, 10_000.0);
        assert_eq!(x.row(0), &values[..20]);
        for t in 1..3 {
            let (row, old) = (x.row(t), &values[t * 20..]);
            assert_eq!((&row[..4], &row[12..]), (&old[..4], &old[12..20]));
            for i in [4, 5, 8, 9] {
                let length = |r: &[f32]| r[i].hypot(r[i + 2]);
                assert!((length(row) - length(old)).abs() < 1e-6);
                assert_ne!(row[i], old[i]);
            }
        }
    }
}
