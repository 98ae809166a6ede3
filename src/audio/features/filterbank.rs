//! Triangular mel filters, computed as librosa and Kaldi do.

/// Filters over the bins of a power spectrum; each stores only the bins that it covers.
#[derive(Clone, Debug)]
pub struct Filterbank {
    filters: Vec<(usize, Vec<f32>)>,
    bins: usize,
}

impl Filterbank {
    /// Filters of `weight(filter, bin)`.
    fn new(count: usize, bins: usize, weight: impl Fn(usize, usize) -> f64) -> Self {
        let filters = (0..count)
            .map(|m| {
                let row: Vec<f32> = (0..bins).map(|k| weight(m, k) as f32).collect();
                let start = row.iter().position(|&w| w != 0.0).unwrap_or(0);
                let end = row.iter().rposition(|&w| w != 0.0).map_or(start, |e| e + 1);
                (start, row[start..end].to_vec())
            })
            .collect();
        Self { filters, bins }
    }

    /// Number of filters.
    pub fn len(&self) -> usize {
        self.filters.len()
    }

    /// Whether there is no filter.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// The energies of a spectrum of at least as many bins as the filters cover.
    pub fn apply<'a>(&'a self, spectrum: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
        self.filters.iter().map(move |(start, weights)| {
            weights
                .iter()
                .zip(&spectrum[*start..])
                .map(|(&w, &s)| f64::from(w) * s)
                .sum()
        })
    }

    /// All weights, `[filters, bins]`.
    pub fn dense(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.filters.len() * self.bins];
        for (row, (start, weights)) in out.chunks_mut(self.bins.max(1)).zip(&self.filters) {
            row[*start..*start + weights.len()].copy_from_slice(weights);
        }
        out
    }
}

/// `librosa.filters.mel` with its defaults (Slaney's scale and area normalisation): `count` filters from `min_hz` to
/// `max_hz` over `fft / 2 + 1` bins.
pub fn slaney_filterbank(
    rate_hz: u32,
    fft: usize,
    count: usize,
    min_hz: f64,
    max_hz: f64,
) -> Filterbank {
    let (low, high) = (slaney_mel(min_hz), slaney_mel(max_hz));
    let step = (high - low) / (count + 1) as f64;
    let edges: Vec<f64> = (0..count + 2)
        .map(|i| slaney_hz(low + step * i as f64))
        .collect();
    let bin_hz = f64::from(rate_hz) / fft as f64;
    Filterbank::new(count, fft / 2 + 1, |m, k| {
        let hz = k as f64 * bin_hz;
        let rise = (hz - edges[m]) / (edges[m + 1] - edges[m]);
        let fall = (edges[m + 2] - hz) / (edges[m + 2] - edges[m + 1]);
        let area = 2.0 / (edges[m + 2] - edges[m]);
        // librosa rounds the triangle to f32 before it scales it.
        f64::from(rise.min(fall).max(0.0) as f32) * area
    })
}

/// Slaney's scale is linear below this frequency.
const SLANEY_LINEAR_HZ: f64 = 1000.0;
/// Hertz per mel in the linear part.
const SLANEY_HZ_PER_MEL: f64 = 200.0 / 3.0;

/// Natural logarithm of the frequency ratio of one mel in the logarithmic part.
fn slaney_log_step() -> f64 {
    6.4f64.ln() / 27.0
}

fn slaney_mel(hz: f64) -> f64 {
    if hz < SLANEY_LINEAR_HZ {
        hz / SLANEY_HZ_PER_MEL
    } else {
        SLANEY_LINEAR_HZ / SLANEY_HZ_PER_MEL + (hz / SLANEY_LINEAR_HZ).ln() / slaney_log_step()
    }
}

fn slaney_hz(mel: f64) -> f64 {
    let linear = SLANEY_LINEAR_HZ / SLANEY_HZ_PER_MEL;
    if mel < linear {
        mel * SLANEY_HZ_PER_MEL
    } else {
        SLANEY_LINEAR_HZ * ((mel - linear) * slaney_log_step()).exp()
    }
}

/// Kaldi's filters: triangles that are linear in mel, over `fft / 2` bins (the Nyquist bin has no weight).
pub fn kaldi_filterbank(
    rate_hz: u32,
    fft: usize,
    count: usize,
    min_hz: f64,
    max_hz: f64,
) -> Filterbank {
    // torchaudio computes the edges and the bins in f32, and its low filters are narrow enough for that to show.
    let mel = |hz: f64| 1127.0 * (1.0 + hz / 700.0).ln();
    let low = mel(min_hz);
    let step = (mel(max_hz) - low) / (count + 1) as f64;
    let edge = |i: usize| low as f32 + i as f32 * step as f32;
    let bin_hz = rate_hz as f32 / fft as f32;
    Filterbank::new(count, fft / 2, |m, k| {
        let (left, centre, right) = (edge(m), edge(m + 1), edge(m + 2));
        let at = 1127.0 * (1.0 + bin_hz * k as f32 / 700.0).ln();
        let rise = (at - left) / (centre - left);
        let fall = (right - at) / (right - centre);
        f64::from(rise.min(fall).max(0.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slaney_scale_inverts() {
        for hz in [0.0, 440.0, 999.0, 1000.0, 7999.0] {
            assert!((slaney_hz(slaney_mel(hz)) - hz).abs() < 1e-9 * (1.0 + hz));
        }
    }

    #[test]
    fn slaney_filters_have_unit_area_in_hertz() {
        let bank = slaney_filterbank(24_000, 1920, 80, 0.0, 8000.0);
        let flat = vec![1.0; 961];
        for energy in bank.apply(&flat).skip(20) {
            assert!((energy * 12.5 - 1.0).abs() < 0.02, "{energy}");
        }
    }
}
