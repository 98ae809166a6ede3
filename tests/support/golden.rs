//! Reads the golden tensors of a parity kit.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// The kit's root: `PARITY_KIT`, else the one that is checked in. It holds `<model>/` and `golden/`.
pub(crate) fn kit() -> PathBuf {
    match std::env::var_os("PARITY_KIT") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/micro-kit"),
    }
}

/// The kit's checkpoint: the one folder that holds a `cosyvoice2.yaml`.
pub(crate) fn model_dir() -> PathBuf {
    let kit = kit();
    let entries = std::fs::read_dir(&kit).unwrap_or_else(|e| panic!("{}: {e}", kit.display()));
    entries
        .flatten()
        .map(|e| e.path())
        .find(|p| p.join("cosyvoice2.yaml").is_file())
        .unwrap_or_else(|| panic!("{}: no folder with a cosyvoice2.yaml", kit.display()))
}

/// A copy of the kit's checkpoint (links) in which one file is another.
pub(crate) fn model_with(file: &str, replacement: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary folder");
    let model = model_dir().canonicalize().expect("model folder");
    for entry in std::fs::read_dir(&model).expect("model folder").flatten() {
        if entry.file_name() != file {
            let link = dir.path().join(entry.file_name());
            std::os::unix::fs::symlink(entry.path(), link).expect("link");
        }
    }
    let replacement = replacement.canonicalize().expect("replacement");
    std::os::unix::fs::symlink(replacement, dir.path().join(file)).expect("link");
    dir
}

/// A golden file, `None` (with a loud note) when this kit is without it.
pub(crate) fn open(name: &str) -> Option<Golden> {
    let path = kit().join("golden").join(name);
    if !path.is_file() {
        eprintln!("SKIPPED: {} is not in this kit", path.display());
        return None;
    }
    Some(Golden::read(&path))
}

/// One golden safetensors file, decoded.
pub(crate) struct Golden {
    pub(crate) metadata: HashMap<String, String>,
    tensors: HashMap<String, (Vec<usize>, Dtype, Vec<u8>)>,
}

impl Golden {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, meta) = SafeTensors::read_metadata(&bytes).expect("golden header");
        let file = SafeTensors::deserialize(&bytes).expect("golden file");
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, v)| (name, (v.shape().to_vec(), v.dtype(), v.data().to_vec())))
            .collect();
        Self {
            metadata: meta.metadata().clone().unwrap_or_default(),
            tensors,
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn get(&self, name: &str) -> &(Vec<usize>, Dtype, Vec<u8>) {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("golden tensor {name} is missing"))
    }

    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.get(name).0
    }

    /// Values as f64, from f32, f64, i32 or i64.
    pub(crate) fn f64(&self, name: &str) -> Vec<f64> {
        let (_, dtype, data) = self.get(name);
        match dtype {
            Dtype::F32 => data
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            Dtype::F64 => data
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            Dtype::I32 => data
                .chunks_exact(4)
                .map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            Dtype::I64 => data
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
                .collect(),
            other => panic!("golden tensor {name}: unexpected dtype {other:?}"),
        }
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        self.f64(name).into_iter().map(|x| x as f32).collect()
    }

    pub(crate) fn i32(&self, name: &str) -> Vec<i32> {
        self.f64(name).into_iter().map(|x| x as i32).collect()
    }

    /// `[1, C, T]` (time last) as channels-last rows `[T, C]`.
    pub(crate) fn time_last(&self, name: &str) -> Vec<f32> {
        let shape = self.shape(name).to_vec();
        let (c, t) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        transpose(&self.f32(name), c, t)
    }
}

/// `[.., rows, cols]` → `[.., cols, rows]` for every leading index.
pub(crate) fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for block in x.chunks_exact(rows * cols) {
        for c in 0..cols {
            out.extend((0..rows).map(|r| block[r * cols + c]));
        }
    }
    out
}
