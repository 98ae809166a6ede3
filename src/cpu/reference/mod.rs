//! What every op computes, as plainly as it can be written: scalar loops over row-major slices, sums in f64.
//!
//! The fast paths are tested against these functions, and they are what a new backend should read first.

pub mod attention;
pub mod conv;
pub mod dense;
pub mod norm;
pub mod sample;
pub mod vocoder;
