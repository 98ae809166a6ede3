//! Named intermediates, kept for comparison with PyTorch (`--trace FILE.safetensors`, parity tests).

use std::collections::BTreeMap;
use std::sync::Mutex;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::Tensor;
use crate::backend::{Memory, Result};

/// One recorded tensor: row-major `[rows, cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedTensor {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
}

/// A sink for intermediates. Off, it costs one branch per record.
#[derive(Default)]
pub struct Trace {
    tensors: Option<Mutex<BTreeMap<String, TracedTensor>>>,
}

impl Trace {
    /// Records nothing.
    pub const fn off() -> Self {
        Self { tensors: None }
    }

    /// Keeps everything that is recorded.
    pub fn on() -> Self {
        Self {
            tensors: Some(Mutex::default()),
        }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.tensors.is_some()
    }

    /// Keeps a copy of `tensor` as `name` (dots separate modules, as in the checkpoint). A name that occurs
    /// again gets `#2`, `#3`, … appended.
    ///
    /// # Errors
    /// When the tensor cannot be read back from the device.
    pub fn record<B: Memory>(&self, backend: &B, name: &str, tensor: &Tensor<B>) -> Result<()> {
        if self.is_on() {
            let mut data = Vec::new();
            backend.download(tensor, &mut data)?;
            self.record_host(name, tensor.rows(), tensor.cols(), data);
        }
        Ok(())
    }

    /// The same for values that are on the host already.
    pub fn record_host(&self, name: &str, rows: usize, cols: usize, data: Vec<f32>) {
        let Some(tensors) = &self.tensors else { return };
        let mut tensors = tensors
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut key = name.to_owned();
        let mut n = 1;
        while tensors.contains_key(&key) {
            n += 1;
            key = format!("{name}#{n}");
        }
        tensors.insert(key, TracedTensor { rows, cols, data });
    }

    /// Writes everything recorded so far as a safetensors file of f32 tensors `[rows, cols]`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &std::path::Path) -> std::io::Result<()> {
        let Some(tensors) = &self.tensors else {
            return Ok(());
        };
        let tensors = tensors
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let views = tensors.iter().map(|(name, t)| {
            let bytes: &[u8] = bytemuck::cast_slice(&t.data);
            let view = TensorView::new(Dtype::F32, vec![t.rows, t.cols], bytes)
                .expect("a traced tensor holds rows times cols values. This is a bug.");
            (name, view)
        });
        safetensors::serialize_to_file(views, None, path).map_err(std::io::Error::other)
    }

    /// Everything recorded, by name.
    pub fn into_tensors(self) -> BTreeMap<String, TracedTensor> {
        self.tensors
            .map(|t| {
                t.into_inner()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
            })
            .unwrap_or_default()
    }
}
