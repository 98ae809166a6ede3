//! Blending the overlap of two streamed chunks.
//!
//! In: the head of a new chunk and the withheld tail of the one before; out: the head blended in place. The window is a Hamming
//! window whose halves sum to 1.08, not 1, and the arithmetic is f64: both as CosyVoice `utils/common.py: fade_in_out`.

use std::f64::consts::PI;

/// The fade of an overlap of `n` samples: rising half of a Hamming window of `2n`, then its falling half.
#[derive(Clone, Debug)]
pub struct CrossFade {
    window: Vec<f64>,
}

impl CrossFade {
    /// A fade over `overlap` samples.
    pub fn new(overlap: usize) -> Self {
        let last = (2 * overlap).saturating_sub(1).max(1) as f64;
        let window = (0..2 * overlap)
            .map(|i| 0.54 - 0.46 * (2.0 * PI * i as f64 / last).cos())
            .collect();
        Self { window }
    }

    /// Samples of the overlap.
    pub fn overlap(&self) -> usize {
        self.window.len() / 2
    }

    /// The whole window `[2 · overlap]`.
    pub fn window(&self) -> &[f64] {
        &self.window
    }

    /// Blends the last `overlap` samples of `before` into the first `overlap` samples of `chunk`. Where one of them is
    /// shorter, only what both have is blended, aligned at the start of the overlap.
    pub fn blend(&self, before: &[f32], chunk: &mut [f32]) {
        let n = self.overlap();
        let (rise, fall) = self.window.split_at(n);
        let tail = &before[before.len().saturating_sub(n)..];
        for (i, (new, &old)) in chunk.iter_mut().zip(tail).enumerate() {
            *new = (f64::from(*new) * rise[i] + f64::from(old) * fall[i]) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_sum_to_1_08_and_only_the_overlap_changes() {
        const OVERLAP: usize = 500;
        let fade = CrossFade::new(OVERLAP);
        let mut chunk = [1.0; OVERLAP + 2];
        let mut before = [1.0; OVERLAP + 1];
        before[0] = 9.0;
        fade.blend(&before, &mut chunk);
        // The window is symmetric, not periodic: its halves sum to 1.08 up to the slope of one step.
        for v in &chunk[..OVERLAP] {
            assert!((v - 1.08).abs() < 0.005, "{v}");
        }
        assert_eq!(chunk[OVERLAP..], [1.0, 1.0]);
        assert!((fade.window()[0] - 0.08).abs() < 1e-12);
    }

    #[test]
    fn short_chunks_do_not_panic() {
        let fade = CrossFade::new(4);
        let mut chunk = [1.0; 2];
        fade.blend(&[1.0; 8], &mut chunk);
        fade.blend(&[], &mut chunk);
        CrossFade::new(0).blend(&[1.0], &mut chunk);
    }
}
