//! The compiled kernels, one image per file of `kernels/`, as the build script left them.

/// `(file stem, image)` of each file of kernels.
pub type Images = &'static [(&'static str, &'static [u8])];

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
