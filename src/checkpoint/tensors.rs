//! A file of named tensors, whatever its format: a table of entries over mapped bytes.
//!
//! Reading is lazy and, where the file stores contiguous aligned values, without a copy. The file remembers what was asked
//! of it: [`TensorFile::problems`] reports everything missing, mis-shaped or left over at once.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Mutex;

use bytemuck::Pod;
use half::{bf16, f16};

use super::bytes::Bytes;
use super::error::{Fault, Problem};
use super::random;
use super::scope::Scope;
use crate::backend::weight::{Weight, WeightData};

/// Mapped bytes of weights handed out before their pages are given back: enough for a few packed at a time.
const RESIDENT_BYTES: usize = 64 << 20;

/// Element types of the formats that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The name that PyTorch gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::Bool => "bool",
        }
    }
}

/// Where a tensor lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Strides in values; `None` is row-major.
    pub strides: Option<Vec<usize>>,
    /// First byte in the file.
    pub offset: usize,
}

impl Entry {
    /// A row-major tensor.
    pub fn new(dtype: Dtype, shape: Vec<usize>, offset: usize) -> Self {
        Self {
            dtype,
            shape,
            strides: None,
            offset,
        }
    }

    /// Number of values; `None` when it does not fit.
    pub fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// Bytes from the first value to the end of the last; `None` when that does not fit.
    pub fn extent(&self) -> Option<usize> {
        let count = self.count()?;
        let values = match &self.strides {
            _ if count == 0 => 0,
            None => count,
            Some(strides) => {
                let last = self
                    .shape
                    .iter()
                    .zip(strides)
                    .try_fold(0usize, |n, (&d, &s)| n.checked_add((d - 1).checked_mul(s)?))?;
                last.checked_add(1)?
            }
        };
        values.checked_mul(self.dtype.size())
    }

    /// The bytes of the tensor when they lie inside a file of `len` bytes and it does not claim more values than the file can hold.
    fn range(&self, len: usize) -> Option<Range<usize>> {
        let end = self.offset.checked_add(self.extent()?)?;
        let dense = self.count()?.checked_mul(self.dtype.size())?;
        (end <= len && dense <= len).then_some(self.offset..end)
    }
}

#[derive(Debug, Default)]
struct Ledger {
    used: BTreeSet<String>,
    problems: Vec<Problem>,
    /// Byte ranges handed out and not yet released, oldest first, and their total.
    resident: VecDeque<Range<usize>>,
    resident_bytes: usize,
}

/// Named tensors of one file.
#[derive(Debug)]
pub struct TensorFile {
    name: String,
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
    ledger: Mutex<Ledger>,
}

impl TensorFile {
    /// Joins a table and the bytes that it points into.
    ///
    /// # Errors
    /// When an entry points outside the bytes (the file is cut off).
    pub fn new(
        name: impl Into<String>,
        bytes: Bytes,
        entries: BTreeMap<String, Entry>,
    ) -> Result<Self, Problem> {
        let name = name.into();
        if !matches!(bytes, Bytes::Absent) {
            let len = bytes.as_slice().len();
            if let Some((tensor, _)) = entries.iter().find(|(_, e)| e.range(len).is_none()) {
                let fault =
                    Fault::format(format!("tensor {tensor} reaches beyond the {len} bytes"));
                return Err(fault.of(name));
            }
        }
        Ok(Self {
            name,
            bytes,
            entries,
            ledger: Mutex::default(),
        })
    }

    /// A file that holds whatever is asked of it, with seeded random values: for benchmarks.
    pub fn random(name: impl Into<String>, seed: u64) -> Self {
        Self {
            name: name.into(),
            bytes: Bytes::Random(seed),
            entries: BTreeMap::new(),
            ledger: Mutex::default(),
        }
    }

    /// Name of the file within the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All tensors by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The same tensors under other names.
    #[must_use]
    pub fn rename(mut self, name: impl Fn(&str) -> String) -> Self {
        let old = std::mem::take(&mut self.entries);
        self.entries = old.into_iter().map(|(n, e)| (name(&n), e)).collect();
        self
    }

    /// The file's tensors from the top.
    pub fn root(&self) -> Scope<'_> {
        Scope::new(self)
    }

    /// Everything that was asked for in vain, and every tensor that nobody asked for.
    pub fn problems(&self) -> Vec<Problem> {
        let ledger = self.ledger();
        let mut problems = ledger.problems.clone();
        for (tensor, entry) in &self.entries {
            if !ledger.used.contains(tensor) {
                let fault = Fault::TensorUnexpected {
                    tensor: tensor.clone(),
                    found: entry.shape.clone(),
                };
                problems.push(fault.of(&self.name));
            }
        }
        problems
    }

    /// Whether anything was asked for.
    pub fn touched(&self) -> bool {
        let ledger = self.ledger();
        !ledger.used.is_empty() || !ledger.problems.is_empty()
    }

    /// Gives all mapped pages back to the operating system; later reads fault them in again.
    pub fn release(&self) {
        let mut ledger = self.ledger();
        ledger.resident.clear();
        ledger.resident_bytes = 0;
        self.bytes.release(0..usize::MAX);
    }

    /// A tensor as weight, without a check of its shape and without a note in the ledger; `None` when it is not there or not floating-point.
    pub fn peek(&self, tensor: &str) -> Option<Weight<'_>> {
        let entry = self.entries.get(tensor)?;
        let data = self.data(tensor, entry)?;
        Some(Weight {
            shape: entry.shape.clone(),
            data,
        })
    }

    /// A tensor of integers; `None` when it is not there or holds something else.
    pub fn integers(&self, tensor: &str) -> Option<Vec<i64>> {
        let entry = self.entries.get(tensor)?;
        Some(match entry.dtype {
            Dtype::I64 => self.values::<i64>(entry).into_owned(),
            Dtype::I32 => self
                .values::<i32>(entry)
                .iter()
                .map(|&v| v.into())
                .collect(),
            Dtype::I16 => self
                .values::<i16>(entry)
                .iter()
                .map(|&v| v.into())
                .collect(),
            Dtype::U8 | Dtype::Bool => self.values::<u8>(entry).iter().map(|&v| v.into()).collect(),
            _ => return None,
        })
    }

    /// Marks a tensor as known.
    pub(super) fn mark(&self, tensor: &str) {
        self.ledger().used.insert(tensor.to_string());
    }

    /// Notes a problem with a tensor.
    pub(super) fn complain(&self, fault: Fault) {
        self.ledger().problems.push(fault.of(&self.name));
    }

    /// A tensor of a known shape; problems are noted and zeros come back.
    pub(super) fn weight(&self, tensor: &str, shape: &[usize]) -> Weight<'_> {
        if let Bytes::Random(seed) = self.bytes {
            return random::weight(seed, tensor, shape);
        }
        self.mark(tensor);
        let zeros = || Weight::f32(shape, vec![0.0; shape.iter().product()]);
        let Some(entry) = self.entries.get(tensor) else {
            self.complain(Fault::TensorMissing {
                tensor: tensor.to_string(),
                expected: shape.to_vec(),
            });
            return zeros();
        };
        if entry.shape != shape {
            self.complain(Fault::TensorShape {
                tensor: tensor.to_string(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
            return zeros();
        }
        self.hand_out(entry);
        let Some(data) = self.data(tensor, entry) else {
            self.complain(Fault::TensorDtype {
                tensor: tensor.to_string(),
                found: entry.dtype.name().to_string(),
            });
            return zeros();
        };
        Weight {
            shape: shape.to_vec(),
            data,
        }
    }

    fn data(&self, tensor: &str, entry: &Entry) -> Option<WeightData<'_>> {
        if matches!(self.bytes, Bytes::Absent) {
            return Some(WeightData::F32(vec![0.0; entry.count()?].into()));
        }
        Some(match entry.dtype {
            Dtype::F32 => WeightData::F32(self.values(entry)),
            Dtype::F16 => WeightData::F16(self.values::<f16>(entry)),
            Dtype::Bf16 => WeightData::Bf16(self.values::<bf16>(entry)),
            Dtype::F64 => {
                let wide = self.values::<f64>(entry);
                WeightData::F32(wide.iter().map(|&x| x as f32).collect())
            }
            Dtype::I8 => {
                let name = format!("{tensor}.scale");
                let scale = self.entries.get(&name)?;
                self.mark(&name);
                if scale.dtype != Dtype::F32 || scale.count() != entry.shape.first().copied() {
                    return None;
                }
                WeightData::I8 {
                    q: self.values(entry),
                    scale: self.values(scale),
                }
            }
            _ => return None,
        })
    }

    /// Values in row-major order, borrowed when they are stored so.
    fn values<T: Pod>(&self, entry: &Entry) -> Cow<'_, [T]> {
        let bytes = self.bytes.as_slice();
        let range = entry
            .range(bytes.len())
            .expect("entries were checked when the file was opened. This is a bug.");
        let bytes = &bytes[range];
        match &entry.strides {
            None => match bytemuck::try_cast_slice(bytes) {
                Ok(values) => Cow::Borrowed(values),
                Err(_) => bytes
                    .chunks_exact(size_of::<T>())
                    .map(bytemuck::pod_read_unaligned)
                    .collect(),
            },
            Some(strides) => {
                let mut out = Vec::with_capacity(entry.count().unwrap_or(0));
                if !bytes.is_empty() {
                    gather(bytes, &entry.shape, strides, 0, &mut out);
                }
                Cow::Owned(out)
            }
        }
    }

    /// Books a tensor's pages, and gives back those of the tensors handed out longest ago.
    fn hand_out(&self, entry: &Entry) {
        let Some(range) = entry.range(self.bytes.as_slice().len()) else {
            return;
        };
        let mut ledger = self.ledger();
        ledger.resident_bytes += range.len();
        ledger.resident.push_back(range);
        while ledger.resident_bytes > RESIDENT_BYTES && ledger.resident.len() > 1 {
            if let Some(old) = ledger.resident.pop_front() {
                ledger.resident_bytes -= old.len();
                self.bytes.release(old);
            }
        }
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Appends the values of a strided tensor in row-major order, starting `at` values in.
fn gather<T: Pod>(bytes: &[u8], shape: &[usize], strides: &[usize], at: usize, out: &mut Vec<T>) {
    let Some((&rows, shape)) = shape.split_first() else {
        let size = size_of::<T>();
        out.push(bytemuck::pod_read_unaligned(
            &bytes[at * size..(at + 1) * size],
        ));
        return;
    };
    for row in 0..rows {
        gather(bytes, shape, &strides[1..], at + row * strides[0], out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: Vec<u8>, entries: &[(&str, Entry)]) -> Result<TensorFile, Problem> {
        let entries = entries
            .iter()
            .map(|(n, e)| (n.to_string(), e.clone()))
            .collect();
        TensorFile::new("a.pt", Bytes::Owned(bytes), entries)
    }

    fn f32_bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn strided_and_unaligned_tensors_read_in_row_major_order() {
        let mut bytes = vec![7];
        bytes.extend(f32_bytes(&[0., 1., 2., 3., 4., 5.]));
        let transposed = Entry {
            dtype: Dtype::F32,
            shape: vec![3, 2],
            strides: Some(vec![1, 3]),
            offset: 1,
        };
        let plain = Entry::new(Dtype::F32, vec![2, 3], 1);
        let f = file(bytes, &[("t", transposed), ("p", plain)]).unwrap();
        let t = f.root().weight("t", &[3, 2]);
        assert_eq!(t.to_f32().as_ref(), &[0., 3., 1., 4., 2., 5.]);
        let p = f.root().weight("p", &[2, 3]);
        assert_eq!(p.to_f32().as_ref(), &[0., 1., 2., 3., 4., 5.]);
        assert_eq!(f.problems(), []);
    }

    #[test]
    fn tensors_outside_the_bytes_are_refused() {
        let e = |shape: &[usize], strides: Option<Vec<usize>>, offset| Entry {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            strides,
            offset,
        };
        for entry in [
            e(&[3], None, 0),
            e(&[2], None, 1),
            e(&[usize::MAX, 2], None, 0),
            e(&[2], Some(vec![usize::MAX]), 0),
            e(&[1 << 40], Some(vec![0]), 0),
            e(&[2], None, usize::MAX),
        ] {
            assert!(
                file(vec![0; 8], &[("x", entry.clone())]).is_err(),
                "{entry:?}"
            );
        }
        assert!(file(vec![0; 8], &[("x", e(&[0, 9], None, 0))]).is_ok());
    }

    #[test]
    fn all_problems_are_listed_at_once() {
        let f = file(
            vec![0; 8],
            &[
                ("a", Entry::new(Dtype::F32, vec![2], 0)),
                ("b", Entry::new(Dtype::I32, vec![2], 0)),
                ("c", Entry::new(Dtype::F32, vec![2], 0)),
            ],
        )
        .unwrap();
        let root = f.root();
        assert_eq!(root.weight("a", &[3]).shape, [3]);
        root.weight("b", &[2]);
        root.at("x").weight("y", &[1]);
        let text: Vec<String> = f.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "a.pt: tensor a: expected [3], found [2]",
                "a.pt: tensor b: expected floating-point values, found int32",
                "a.pt: tensor x.y: expected [1], found nothing",
                "a.pt: tensor c: unexpected, found [2]",
            ]
        );
    }

    #[test]
    fn int8_needs_its_scales() {
        let mut bytes = f32_bytes(&[0.5, 2.0]);
        bytes.extend([1u8, 2, 255, 4]);
        let q = Entry::new(Dtype::I8, vec![2, 2], 8);
        let scale = Entry::new(Dtype::F32, vec![2], 0);
        let f = file(bytes.clone(), &[("w", q.clone()), ("w.scale", scale)]).unwrap();
        assert_eq!(
            f.root().weight("w", &[2, 2]).to_f32().as_ref(),
            &[0.5, 1.0, -2.0, 8.0]
        );
        assert_eq!(f.problems(), []);
        let f = file(bytes, &[("w", q)]).unwrap();
        f.root().weight("w", &[2, 2]);
        assert_eq!(f.problems().len(), 1);
    }
}
