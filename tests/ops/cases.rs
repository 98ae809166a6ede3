//! Sizes that every sweep visits, and seeded values.

/// Numbers of rows around the kernels' tile heights: one, primes, a tile less one, a tile, a tile and one.
pub(crate) const ROWS: [usize; 9] = [1, 2, 3, 5, 6, 7, 13, 97, 200];

/// `(M, K)` of linear layers: around the panel width 16 and the depth block 256.
pub(crate) const LINEARS: [(usize, usize); 8] = [
    (1, 1),
    (15, 7),
    (16, 64),
    (17, 255),
    (61, 256),
    (64, 257),
    (96, 520),
    (131, 31),
];

/// Values in `[−1, 1)` that depend on the seed alone (SplitMix64).
pub(crate) fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (z >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
