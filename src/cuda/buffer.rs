//! Device storage of tensors and ids.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DriverError};

use super::Cuda;
use super::abi;
use super::device::driver_error;
use crate::backend::{BackendError, Result};
use crate::tensor::{Ids, Tensor};

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl Dtype {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }

    pub(super) fn code(self) -> i32 {
        match self {
            Dtype::F32 => abi::DTYPE_F32 as i32,
            Dtype::Bf16 => abi::DTYPE_BF16 as i32,
            Dtype::F16 => abi::DTYPE_F16 as i32,
        }
    }
}

/// Bytes on the device; none when empty.
#[derive(Default)]
pub(super) struct Bytes {
    slice: Option<cudarc::driver::CudaSlice<u8>>,
    address: u64,
}

impl Bytes {
    /// `len` zeroed bytes.
    pub(super) fn zeroed(
        device: &str,
        stream: &Arc<CudaStream>,
        len: usize,
        what: &'static str,
    ) -> Result<Self> {
        if len == 0 {
            return Ok(Self::default());
        }
        let slice = stream
            .alloc_zeros::<u8>(len)
            .map_err(|e| allocation_error(device, what, len, e))?;
        let address = slice.device_ptr(stream).0;
        Ok(Self {
            slice: Some(slice),
            address,
        })
    }

    /// Device address, 0 when empty.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> usize {
        self.slice
            .as_ref()
            .map_or(0, cudarc::driver::CudaSlice::len)
    }
}

fn allocation_error(
    device: &str,
    what: &'static str,
    bytes: usize,
    error: DriverError,
) -> BackendError {
    use cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    if error.0 == CUDA_ERROR_OUT_OF_MEMORY {
        return BackendError::OutOfMemory {
            device: device.to_owned(),
            what,
            bytes,
        };
    }
    driver_error(device, "allocating memory", error)
}

/// Storage of a [`Tensor`].
pub struct Buffer {
    pub(super) bytes: Bytes,
    pub(super) dtype: Dtype,
}

/// Storage of [`Ids`].
pub struct IdBuffer {
    pub(super) bytes: Bytes,
}

impl Tensor<Cuda> {
    /// As kernels take it.
    pub(super) fn mat(&self) -> abi::Mat {
        abi::Mat {
            data: self.buf.bytes.address(),
            rows: self.rows as i32,
            cols: self.cols as i32,
            dtype: self.buf.dtype.code(),
            reserved: 0,
        }
    }

    /// How its values are stored.
    pub fn dtype(&self) -> Dtype {
        self.buf.dtype
    }
}

impl Ids<Cuda> {
    /// Device address of the first id.
    pub(super) fn address(&self) -> u64 {
        self.buf.bytes.address()
    }
}

/// The operand that is not there.
pub(super) const NO_MAT: abi::Mat = abi::Mat {
    data: 0,
    rows: 0,
    cols: 0,
    dtype: 0,
    reserved: 0,
};
