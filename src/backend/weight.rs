//! A weight on its way from a checkpoint into a backend's packed layout.

use std::borrow::Cow;

use half::{bf16, f16};

/// Values of a weight as the file stores them, borrowed from the mapped file where possible.
#[derive(Clone, Debug)]
pub enum WeightData<'a> {
    F32(Cow<'a, [f32]>),
    F16(Cow<'a, [f16]>),
    Bf16(Cow<'a, [bf16]>),
    /// Symmetric int8: value `q * scale[row]`, one f32 scale per output row (dimension 0).
    I8 {
        q: Cow<'a, [i8]>,
        scale: Cow<'a, [f32]>,
    },
}

/// A row-major weight with PyTorch's shape: `Linear [M, K]`, `Conv1d [Co, Ci / groups, k]`,
/// `ConvTranspose1d [Ci, Co, k]`, `Embedding [V, C]`, vectors `[C]`.
#[derive(Clone, Debug)]
pub struct Weight<'a> {
    pub shape: Vec<usize>,
    pub data: WeightData<'a>,
}

impl<'a> Weight<'a> {
    /// A weight of f32 values.
    pub fn f32(shape: &[usize], values: impl Into<Cow<'a, [f32]>>) -> Self {
        let data = values.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "weight shape");
        Self {
            shape: shape.to_vec(),
            data: WeightData::F32(data),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the weight holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values as f32, borrowed when they are stored so.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match &self.data {
            WeightData::F32(v) => Cow::Borrowed(v.as_ref()),
            WeightData::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            WeightData::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
            WeightData::I8 { q, scale } => {
                let row = self.len().checked_div(scale.len()).unwrap_or(0).max(1);
                q.chunks(row)
                    .zip(scale.iter())
                    .flat_map(|(q, s)| q.iter().map(move |&q| f32::from(q) * s))
                    .collect()
            }
        }
    }
}
