//! PyTorch's `.pt` files: a zip of stored storages and a pickle that says where each tensor lies.

use std::collections::BTreeMap;
use std::ops::Range;

use super::bytes::Bytes;
use super::error::{Fault, Problem};
use super::pickle::{Id, Object, Pickle, TensorRef};
use super::tensors::{Entry, TensorFile};
use super::zip;

/// Most tensors of a file; the official `flow.pt` has 1121.
const MAX_TENSORS: usize = 1 << 20;
/// Deepest nesting of dictionaries.
const MAX_DEPTH: usize = 4;

/// Reads a `.pt` file. Nested dictionaries join their keys by dots; what is not a tensor (an epoch number) is left out.
///
/// # Errors
/// When the archive or its pickle is malformed, cut off, or holds more than plain tensors.
pub fn read(name: &str, bytes: Bytes) -> Result<TensorFile, Problem> {
    let entries = table(bytes.as_slice()).map_err(|fault| fault.of(name))?;
    TensorFile::new(name, bytes, entries)
}

fn table(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Fault> {
    let files = zip::entries(bytes)?;
    let is_root = |name: &str| {
        name.strip_suffix("/data.pkl")
            .is_some_and(|p| !p.contains('/'))
    };
    let (name, pickle) = files
        .iter()
        .find(|(name, _)| is_root(name))
        .ok_or_else(|| Fault::format("no data.pkl in the archive: not written by torch.save"))?;
    let root = &name[..name.len() - "data.pkl".len()];
    if let Some(order) = files.get(&format!("{root}byteorder"))
        && &bytes[order.clone()] != b"little"
    {
        return Err(Fault::format("big-endian values are not supported"));
    }
    let pickle = Pickle::read(&bytes[pickle.clone()])?;
    let mut table = Table {
        pickle: &pickle,
        files: &files,
        root,
        entries: BTreeMap::new(),
        visits: 0,
    };
    match pickle.get(pickle.root()) {
        Object::Dict(items) => table.add("", items, 0)?,
        _ => return Err(Fault::format("not a dictionary of tensors")),
    }
    Ok(table.entries)
}

struct Table<'a> {
    pickle: &'a Pickle<'a>,
    files: &'a BTreeMap<String, Range<usize>>,
    root: &'a str,
    entries: BTreeMap<String, Entry>,
    visits: usize,
}

impl Table<'_> {
    fn add(&mut self, prefix: &str, items: &[(Id, Id)], depth: usize) -> Result<(), Fault> {
        for &(key, value) in items {
            self.visits += 1;
            if depth > MAX_DEPTH || self.visits > MAX_TENSORS {
                return Err(Fault::format("too deeply nested, or too many tensors"));
            }
            let Object::Str(key) = self.pickle.get(key) else {
                continue;
            };
            let name = match prefix {
                "" => (*key).to_string(),
                _ => format!("{prefix}.{key}"),
            };
            match self.pickle.get(value) {
                Object::Tensor(tensor) => {
                    let entry = self.entry(&name, tensor)?;
                    self.entries.insert(name, entry);
                }
                Object::Dict(items) => self.add(&name, items, depth + 1)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(&self, name: &str, tensor: &TensorRef<'_>) -> Result<Entry, Fault> {
        let path = format!("{}data/{}", self.root, tensor.storage);
        let storage = self
            .files
            .get(&path)
            .ok_or_else(|| Fault::format(format!("storage {path} of tensor {name} is missing")))?;
        let mut entry = Entry {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            strides: Some(tensor.strides.clone()),
            offset: 0,
        };
        let size = tensor.dtype.size();
        let start = tensor.offset.checked_mul(size);
        let end = start
            .zip(entry.extent())
            .and_then(|(s, e)| s.checked_add(e));
        match start.zip(end) {
            Some((start, end)) if end <= storage.len() => entry.offset = storage.start + start,
            _ => {
                let message = format!(
                    "tensor {name} reaches beyond its storage of {} bytes",
                    storage.len()
                );
                return Err(Fault::format(message));
            }
        }
        if is_contiguous(&tensor.shape, &tensor.strides) {
            entry.strides = None;
        }
        Ok(entry)
    }
}

/// Whether the strides are those of a row-major tensor (dimensions of one value may have any).
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.iter().zip(strides).rev().all(|(&d, &s)| {
        let fits = d == 1 || s == expected;
        expected = expected.saturating_mul(d);
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::super::zip::tests::archive;
    use super::*;

    /// Pickle of `{"w": tensor}` over storage `0` of floats.
    fn pickle(offset: u8, shape: [u8; 2], strides: [u8; 2]) -> Vec<u8> {
        let mut p = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
            .to_vec();
        p.extend(b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ");
        p.extend([b'K', offset, b'K', shape[0], b'K', shape[1], 0x86]);
        p.extend([b'K', strides[0], b'K', strides[1], 0x86]);
        p.extend(b"\x89ccollections\nOrderedDict\n)RtRs.");
        p
    }

    fn open(pickle: &[u8]) -> Result<TensorFile, Problem> {
        let storage: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let bytes = archive(&[("m/data.pkl", pickle), ("m/data/0", &storage)]);
        read("m.pt", Bytes::Owned(bytes))
    }

    #[test]
    fn reads_contiguous_and_strided_tensors() {
        let f = open(&pickle(0, [2, 3], [3, 1])).unwrap();
        assert_eq!(f.entries()["w"].strides, None);
        let f = open(&pickle(1, [2, 2], [1, 2])).unwrap();
        let w = f.root().weight("w", &[2, 2]);
        assert_eq!(w.to_f32().as_ref(), &[1.0, 3.0, 2.0, 4.0]);
    }

    #[test]
    fn tensors_beyond_their_storage_are_refused() {
        for (offset, shape, strides) in [
            (1, [2, 3], [3, 1]),
            (0, [2, 3], [4, 1]),
            (0, [7, 1], [1, 1]),
        ] {
            let error = open(&pickle(offset, shape, strides)).unwrap_err();
            assert!(error.to_string().contains("beyond"), "{error}");
        }
    }

    #[test]
    fn foreign_files_are_named_for_what_they_lack() {
        let error = read("m.pt", Bytes::Owned(b"hello".to_vec())).unwrap_err();
        assert!(error.to_string().contains("zip"), "{error}");
        let bytes = archive(&[("m/other", b"x")]);
        let error = read("m.pt", Bytes::Owned(bytes)).unwrap_err();
        assert!(error.to_string().contains("data.pkl"), "{error}");
        let error = open(b"].").unwrap_err();
        assert!(error.to_string().contains("dictionary"), "{error}");
    }
}
