//! Seeded random weights that keep activations in a sensible range, so that a benchmark does the work of a real model.

use rayon::prelude::*;

use crate::backend::Weight;

/// Values that one task makes.
const BLOCK: usize = 1 << 16;

/// The weight `tensor`: norms and scales are one, biases zero, matrices uniform with the variance of their fan-in.
/// A function of seed, name and shape alone.
pub(super) fn weight(seed: u64, tensor: &str, shape: &[usize]) -> Weight<'static> {
    let count = shape.iter().product();
    let fan_in: usize = shape.iter().skip(1).product();
    let gain = ["weight", "weight_g", "weight.original0", "alpha"];
    let is_gain = gain.iter().any(|name| tensor.ends_with(name));
    if shape.len() < 2 || fan_in == 1 {
        return Weight::f32(shape, vec![if is_gain { 1.0 } else { 0.0 }; count]);
    }
    let name = tensor.bytes().fold(seed, |h, b| mix(h ^ u64::from(b)));
    let bound = (3.0 / fan_in as f32).sqrt();
    let mut values = vec![0.0; count];
    let blocks = values.par_chunks_mut(BLOCK).enumerate();
    blocks.for_each(|(block, values)| {
        for (i, value) in values.iter_mut().enumerate() {
            let bits = mix(name.wrapping_add((block * BLOCK + i) as u64)) >> 40;
            *value = (bits as f32 / (1u64 << 23) as f32 - 1.0) * bound;
        }
    });
    Weight::f32(shape, values)
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_have_the_variance_of_their_fan_in() {
        let w = weight(7, "a.weight", &[512, 128]);
        let values = w.to_f32();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 1e-3, "{mean}");
        assert!((variance * 128.0 - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn values_follow_from_seed_and_name() {
        let of = |seed, name| weight(seed, name, &[4, 4]).to_f32().into_owned();
        assert_eq!(of(1, "a"), of(1, "a"));
        assert_ne!(of(1, "a"), of(2, "a"));
        assert_ne!(of(1, "a"), of(1, "b"));
    }

    #[test]
    fn vectors_are_neutral() {
        assert_eq!(weight(1, "norm.weight", &[3]).to_f32().as_ref(), &[1.0; 3]);
        assert_eq!(weight(1, "norm.bias", &[3]).to_f32().as_ref(), &[0.0; 3]);
        let g = "conv.parametrizations.weight.original0";
        assert_eq!(weight(1, g, &[2, 1, 1]).to_f32().as_ref(), &[1.0; 2]);
    }
}
