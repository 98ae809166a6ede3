//! Descriptions of matrices for TMA, the copy engine of compute capability 9.0 and later.

use std::ffi::c_void;

use cudarc::driver::DriverError;
use cudarc::driver::sys::{self, CUresult};

use super::{Cuda, abi};
use crate::backend::Result;

/// Values of a box row: 128 bytes of bf16, the width of the swizzle that wgmma reads.
pub(super) const BOX_COLS: u32 = 64;

impl Cuda {
    /// A row-major bf16 matrix `[rows, cols]` at `address`, to be copied in boxes of `box_rows` rows and [`BOX_COLS`] columns. What lies outside
    /// of the matrix is read as zero. `cols` is a multiple of eight.
    ///
    /// # Errors
    /// What the driver reports: a shape or address that TMA cannot take.
    pub(super) fn tensor_map(
        &self,
        address: u64,
        (rows, cols): (usize, usize),
        box_rows: u32,
    ) -> Result<abi::TensorMapBits> {
        let mut map = abi::TensorMapBits::default();
        let (dims, pitch) = ([cols as u64, rows as u64], [2 * cols as u64]);
        // SAFETY: the map is 128 bytes aligned to 64, the arrays are as long as the rank says; the driver only encodes, nothing is read at `address`.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast::<sys::CUtensorMap>(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                address as *mut c_void,
                dims.as_ptr(),
                pitch.as_ptr(),
                [BOX_COLS, box_rows].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        match status {
            CUresult::CUDA_SUCCESS => Ok(map),
            error => Err(self.error("describing a matrix", DriverError(error))),
        }
    }
}
