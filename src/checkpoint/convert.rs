//! Writes a checkpoint in our own layout: weight norms folded, linear layers upright, large weights in the wanted type.
//!
//! Tensors pass through one at a time in blocks of rows, so that memory stays small whatever the model's size.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use half::bf16;

use super::Checkpoint;
use super::converted::{self, Header};
use super::error::{CheckpointError, Result};
use super::safetensors::{self, Planned};
use super::tensors::{Dtype, Entry, TensorFile};
use crate::backend::Weight;
use crate::backend::weight::WeightData;

/// Values that are converted at a time.
const BLOCK: usize = 1 << 18;
/// Values that are read before their mapped pages are given back.
const RELEASE: usize = 1 << 23;
/// The tied text head of `llm.pt`: a copy of the text embedding that speech never needs.
const TEXT_HEAD: &str = "llm.model.lm_head.weight";
const NORM_G: &str = "parametrizations.weight.original0";
const NORM_V: &str = "parametrizations.weight.original1";

/// How the large weights of the language model and the flow are stored. Vectors, the vocoder (its phase adds up over
/// seconds), CAM++ and the speech tokenizer (its tokens are rounded values) stay f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    F32,
    Bf16,
    /// Linear layers as int8 with one scale per row, the other matrices as bf16.
    Int8,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    fn dtype(self, file: &str, tensor: &str, shape: &[usize]) -> Dtype {
        let large = matches!(file, "llm.safetensors" | "flow.safetensors")
            && shape.len() >= 2
            && tensor.ends_with(".weight");
        let linear = shape.len() == 2 && !tensor.contains("embed");
        match self {
            Self::Int8 if large && linear => Dtype::I8,
            Self::Int8 | Self::Bf16 if large => Dtype::Bf16,
            _ => Dtype::F32,
        }
    }
}

/// Writes `checkpoint` to the folder `out`, which is made. Every file appears whole or not at all.
///
/// # Errors
/// When the operating system refuses a file.
pub fn convert(checkpoint: &Checkpoint, target: Target, out: &Path) -> Result<()> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| CheckpointError::Io { path, source }
    };
    std::fs::create_dir_all(out).map_err(io(out))?;
    for (name, file) in converted::names(&checkpoint.files) {
        let path = out.join(name);
        let tensors = plan(name, file, target);
        let write = |out: &mut dyn Write| safetensors::write(out, &tensors);
        replace(&path, write).map_err(io(&path))?;
        file.release();
    }
    copy_tokenizer(&checkpoint.tokenizer_dir(), &out.join(converted::TOKENIZER))?;
    let header = Header::new(target.name(), checkpoint.config.clone());
    let path = out.join(converted::CONFIG);
    let json = serde_json::to_vec_pretty(&header)
        .map_err(io::Error::from)
        .map_err(io(&path))?;
    replace(&path, |out| out.write_all(&json)).map_err(io(&path))
}

fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| CheckpointError::Io { path, source }
    };
    std::fs::create_dir_all(to).map_err(io(to))?;
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        let path = from.join(name);
        if path.exists() {
            std::fs::copy(&path, to.join(name)).map_err(io(&path))?;
        }
    }
    Ok(())
}

/// Writes a file under another name first.
fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
    write(&mut out)?;
    out.into_inner()?.sync_all()?;
    std::fs::rename(&partial, path)
}

/// What is to be written for the tensors of a file.
fn plan<'a>(name: &str, file: &'a TensorFile, target: Target) -> Vec<Planned<'a>> {
    let mut planned = Vec::new();
    for (tensor, entry) in file.entries() {
        let scale_of = tensor
            .strip_suffix(".scale")
            .and_then(|t| file.entries().get(t));
        if tensor == TEXT_HEAD
            || tensor.ends_with(NORM_G)
            || tensor.ends_with(".weight_g")
            || scale_of.is_some_and(|e| e.dtype == Dtype::I8)
        {
            continue;
        }
        let norm = [NORM_V, "weight_v"]
            .iter()
            .find_map(|v| tensor.strip_suffix(v)?.strip_suffix('.'));
        if let Some(module) = norm {
            planned.push(folded(file, module, &entry.shape));
            continue;
        }
        match (entry.dtype, target.dtype(name, tensor, &entry.shape)) {
            (Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::U8 | Dtype::Bool, _) => {
                planned.push(integers(file, tensor, entry));
            }
            (_, Dtype::I8) => planned.extend(quantized(file, tensor, entry)),
            (_, dtype) => planned.push(cast(file, tensor, entry, dtype)),
        }
    }
    planned
}

/// A convolution under weight norm, folded.
fn folded<'a>(file: &'a TensorFile, module: &str, shape: &[usize]) -> Planned<'a> {
    let scope = file.root().at(module);
    let shape = shape.to_vec();
    Planned {
        name: format!("{module}.weight"),
        dtype: Dtype::F32,
        shape: shape.clone(),
        write: Box::new(move |out| floats(out, file, &scope.weight_norm(&shape), Dtype::F32)),
    }
}

fn cast<'a>(file: &'a TensorFile, tensor: &'a str, entry: &Entry, dtype: Dtype) -> Planned<'a> {
    Planned {
        name: tensor.to_string(),
        dtype,
        shape: entry.shape.clone(),
        write: Box::new(move |out| floats(out, file, &peek(file, tensor)?, dtype)),
    }
}

/// A linear layer as int8, and its scales.
fn quantized<'a>(file: &'a TensorFile, tensor: &'a str, entry: &Entry) -> [Planned<'a>; 2] {
    let (rows, cols) = (entry.shape[0], entry.shape[1]);
    let scales = move || -> io::Result<Vec<f32>> {
        let weight = peek(file, tensor)?;
        let mut scales = Vec::with_capacity(rows);
        for_rows(file, &weight, cols, |row| {
            let peak = row.iter().fold(0f32, |m, x| m.max(x.abs()));
            scales.push(if peak > 0.0 { peak / 127.0 } else { 1.0 });
            Ok(())
        })?;
        Ok(scales)
    };
    let values = Planned {
        name: tensor.to_string(),
        dtype: Dtype::I8,
        shape: entry.shape.clone(),
        write: Box::new(move |out| {
            let scales = scales()?;
            let mut scales = scales.iter();
            for_rows(file, &peek(file, tensor)?, cols, |row| {
                let scale = scales.next().copied().unwrap_or(1.0);
                let q: Vec<u8> = row
                    .iter()
                    .map(|x| (x / scale).round() as i8 as u8)
                    .collect();
                out.write_all(&q)
            })
        }),
    };
    let scales = Planned {
        name: format!("{tensor}.scale"),
        dtype: Dtype::F32,
        shape: vec![rows],
        write: Box::new(move |out| out.write_all(bytemuck::cast_slice(&scales()?))),
    };
    [values, scales]
}

/// Integers of stored speakers.
fn integers<'a>(file: &'a TensorFile, tensor: &'a str, entry: &Entry) -> Planned<'a> {
    Planned {
        name: tensor.to_string(),
        dtype: Dtype::I64,
        shape: entry.shape.clone(),
        write: Box::new(move |out| {
            let values = file.integers(tensor).unwrap_or_default();
            out.write_all(bytemuck::cast_slice(&values))
        }),
    }
}

fn peek<'a>(file: &'a TensorFile, tensor: &str) -> io::Result<Weight<'a>> {
    let missing = || io::Error::other(format!("{tensor} cannot be read"));
    file.peek(tensor).ok_or_else(missing)
}

/// Writes values as f32 or bf16.
fn floats(
    out: &mut dyn Write,
    file: &TensorFile,
    weight: &Weight<'_>,
    dtype: Dtype,
) -> io::Result<()> {
    for_rows(file, weight, BLOCK, |block| match dtype {
        Dtype::Bf16 => {
            let narrow: Vec<bf16> = block.iter().map(|&x| bf16::from_f32(x)).collect();
            out.write_all(bytemuck::cast_slice(&narrow))
        }
        _ => out.write_all(bytemuck::cast_slice(block)),
    })
}

/// Hands over `width` values at a time (fewer at the end) as f32, and gives back the pages that were read.
fn for_rows(
    file: &TensorFile,
    weight: &Weight<'_>,
    width: usize,
    mut each: impl FnMut(&[f32]) -> io::Result<()>,
) -> io::Result<()> {
    let width = width.max(1);
    let mut read = 0;
    let each = |block: &[f32]| {
        read += block.len();
        if read >= RELEASE {
            read = 0;
            file.release();
        }
        each(block)
    };
    match &weight.data {
        WeightData::F32(values) => values.chunks(width).try_for_each(each),
        WeightData::Bf16(values) => widened(values, width, |x| x.to_f32(), each),
        WeightData::F16(values) => widened(values, width, |x| x.to_f32(), each),
        WeightData::I8 { .. } => weight.to_f32().chunks(width).try_for_each(each),
    }?;
    file.release();
    Ok(())
}

fn widened<T: Copy>(
    values: &[T],
    width: usize,
    widen: impl Fn(T) -> f32,
    mut each: impl FnMut(&[f32]) -> io::Result<()>,
) -> io::Result<()> {
    values.chunks(width).try_for_each(|block| {
        let wide: Vec<f32> = block.iter().map(|&x| widen(x)).collect();
        each(&wide)
    })
}
