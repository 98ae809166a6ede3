//! Safetensors: reading in place, writing as a stream.

use std::collections::BTreeMap;
use std::io::{self, Write};

use safetensors::SafeTensors;

use super::bytes::Bytes;
use super::error::{Fault, Problem};
use super::tensors::{Dtype, Entry, TensorFile};

/// Opens a safetensors file.
///
/// # Errors
/// When its header is malformed, or does not fit the length of the file.
pub fn read(name: &str, bytes: Bytes) -> Result<TensorFile, Problem> {
    let entries = table(bytes.as_slice()).map_err(|fault| fault.of(name))?;
    TensorFile::new(name, bytes, entries)
}

fn table(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Fault> {
    let broken = |e| Fault::format(format!("not a complete safetensors file: {e}"));
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let mut entries = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            safetensors::Dtype::F64 => Dtype::F64,
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            safetensors::Dtype::I64 => Dtype::I64,
            safetensors::Dtype::I32 => Dtype::I32,
            safetensors::Dtype::I16 => Dtype::I16,
            safetensors::Dtype::I8 => Dtype::I8,
            safetensors::Dtype::U8 => Dtype::U8,
            safetensors::Dtype::BOOL => Dtype::Bool,
            other => {
                let found = format!("{other:?}");
                return Err(Fault::TensorDtype {
                    tensor: name,
                    found,
                });
            }
        };
        let offset = 8 + header + info.data_offsets.0;
        entries.insert(name, Entry::new(dtype, info.shape.clone(), offset));
    }
    Ok(entries)
}

/// A tensor that is still to be written.
pub struct Planned<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Writes the values, little-endian and row-major.
    pub write: Box<dyn Fn(&mut dyn Write) -> io::Result<()> + 'a>,
}

/// Writes a file of tensors one after the other; no tensor is held longer than its turn.
///
/// # Errors
/// When the operating system refuses a write.
pub fn write(out: &mut dyn Write, tensors: &[Planned<'_>]) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.shape.iter().product::<usize>() * tensor.dtype.size();
        let info = serde_json::json!({
            "dtype": tag(tensor.dtype),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        header.insert(tensor.name.clone(), info);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    // Spaces up to a multiple of 64 keep the values aligned in the mapped file.
    header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.iter().try_for_each(|tensor| (tensor.write)(out))
}

fn tag(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "F64",
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::Bf16 => "BF16",
        Dtype::I64 => "I64",
        Dtype::I32 => "I32",
        Dtype::I16 => "I16",
        Dtype::I8 => "I8",
        Dtype::U8 => "U8",
        Dtype::Bool => "BOOL",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let values =
            |values: Vec<u8>| Box::new(move |out: &mut dyn Write| out.write_all(&values)) as Box<_>;
        let mut bytes = Vec::new();
        let tensors = [
            Planned {
                name: "b".into(),
                dtype: Dtype::F32,
                shape: vec![2],
                write: values([1f32.to_le_bytes(), 2f32.to_le_bytes()].concat()),
            },
            Planned {
                name: "a.scale".into(),
                dtype: Dtype::I64,
                shape: vec![],
                write: values(7i64.to_le_bytes().to_vec()),
            },
        ];
        write(&mut bytes, &tensors).unwrap();
        bytes
    }

    #[test]
    fn reads_what_it_writes_and_so_does_the_reference_crate() {
        let bytes = sample();
        let reference = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(reference.tensor("b").unwrap().shape(), [2]);
        let file = read("x.safetensors", Bytes::Owned(bytes)).unwrap();
        assert_eq!(file.root().weight("b", &[2]).to_f32().as_ref(), &[1., 2.]);
        assert_eq!(file.integers("a.scale"), Some(vec![7]));
        assert_eq!(file.entries()["b"].offset % 64, 0);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = sample();
        for len in 0..bytes.len() {
            let cut = Bytes::Owned(bytes[..len].to_vec());
            assert!(read("x.safetensors", cut).is_err(), "{len} bytes");
        }
    }
}
