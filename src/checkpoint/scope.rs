//! How the models ask for weights: a path into a file of tensors.

use std::fmt::{Display, Write};

use super::error::Fault;
use super::tensors::TensorFile;
use crate::backend::Weight;

/// A module's place in a file: cheap to make and to pass on.
///
/// Nothing here fails: a tensor that is missing, mis-shaped or of a wrong type is noted in the file and zeros come back, so
/// that one error lists everything at the end.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    file: &'a TensorFile,
    prefix: String,
}

impl<'a> Scope<'a> {
    pub(super) fn new(file: &'a TensorFile) -> Self {
        Self {
            file,
            prefix: String::new(),
        }
    }

    /// The module `name` (or element number) below this one.
    pub fn at(&self, name: impl Display) -> Self {
        Self {
            file: self.file,
            prefix: self.path(name),
        }
    }

    /// Full name of something below this module.
    pub fn path(&self, name: impl Display) -> String {
        let mut path = self.prefix.clone();
        if !path.is_empty() {
            path.push('.');
        }
        write!(path, "{name}").expect("writing to a string cannot fail. This is a bug.");
        path
    }

    /// Whether the tensor `name` is there.
    pub fn has(&self, name: impl Display) -> bool {
        self.file.entries().contains_key(&self.path(name))
    }

    /// Shape of the tensor `name`, if it is there.
    pub fn shape(&self, name: impl Display) -> Option<Vec<usize>> {
        let entry = self.file.entries().get(&self.path(name))?;
        Some(entry.shape.clone())
    }

    /// Number of elements `name.0`, `name.1`, … of a list of modules.
    pub fn count(&self, name: impl Display) -> usize {
        let list = self.at(name);
        (0..)
            .take_while(|i| {
                let element = format!("{}.", list.path(i));
                let mut below = self.file.entries().range(element.clone()..);
                below.next().is_some_and(|(n, _)| n.starts_with(&element))
            })
            .count()
    }

    /// The tensor `name`, which must have this shape.
    pub fn weight(&self, name: impl Display, shape: &[usize]) -> Weight<'a> {
        self.file.weight(&self.path(name), shape)
    }

    /// The tensor `name` when it is there; then it must have this shape.
    pub fn optional(&self, name: impl Display, shape: &[usize]) -> Option<Weight<'a>> {
        let path = self.path(name);
        let present = self.file.entries().contains_key(&path);
        present.then(|| self.file.weight(&path, shape))
    }

    /// Declares the tensor `name` known and not needed.
    pub fn ignore(&self, name: impl Display) {
        self.file.mark(&self.path(name));
    }

    /// Notes that a value of the configuration does not agree with the tensors.
    pub fn complain(&self, key: impl Display, expected: impl Display, found: impl Display) {
        self.file
            .complain(Fault::config(self.path(key), expected, found));
    }

    /// The weight of a convolution under weight normalisation: `g · v / ‖v‖`, the norm over all but dimension 0, in either
    /// of PyTorch's spellings, or already folded.
    pub fn weight_norm(&self, shape: &[usize]) -> Weight<'a> {
        let (g, v) = if self.has("weight") {
            return self.weight("weight", shape);
        } else if self.has("weight_g") {
            ("weight_g", "weight_v")
        } else {
            (
                "parametrizations.weight.original0",
                "parametrizations.weight.original1",
            )
        };
        let rows = shape[0];
        let mut g_shape = vec![1; shape.len()];
        g_shape[0] = rows;
        let (g, v) = (self.weight(g, &g_shape), self.weight(v, shape));
        let (g, v) = (g.to_f32(), v.to_f32());
        let width = v.len().checked_div(rows).unwrap_or(0).max(1);
        let mut folded = Vec::with_capacity(v.len());
        for (row, g) in v.chunks(width).zip(g.iter()) {
            let norm = row
                .iter()
                .map(|&x| f64::from(x).powi(2))
                .sum::<f64>()
                .sqrt();
            // A row of zeros (a missing tensor) stays zero.
            let scale = if norm > 0.0 {
                f64::from(*g) / norm
            } else {
                0.0
            };
            folded.extend(row.iter().map(|&x| (f64::from(x) * scale) as f32));
        }
        Weight::f32(shape, folded)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::bytes::Bytes;
    use super::super::tensors::{Dtype, Entry};
    use super::*;

    fn file(tensors: &[(&str, &[usize], &[f32])]) -> TensorFile {
        let mut bytes = Vec::new();
        let mut entries = BTreeMap::new();
        for (name, shape, values) in tensors {
            let entry = Entry::new(Dtype::F32, shape.to_vec(), bytes.len());
            entries.insert(name.to_string(), entry);
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        TensorFile::new("hift.pt", Bytes::Owned(bytes), entries).unwrap()
    }

    #[test]
    fn weight_norm_folds_in_every_spelling() {
        let (g, v) = ([2.0, 5.0], [3.0, 4.0, 0.0, -1.0]);
        let expected = [1.2, 1.6, 0.0, -5.0];
        for (a, b) in [
            ("c.weight_g", "c.weight_v"),
            (
                "c.parametrizations.weight.original0",
                "c.parametrizations.weight.original1",
            ),
        ] {
            let f = file(&[(a, &[2, 1, 1], &g), (b, &[2, 1, 2], &v)]);
            let w = f.root().at("c").weight_norm(&[2, 1, 2]);
            assert_eq!(w.to_f32().as_ref(), &expected);
            assert_eq!(f.problems(), []);
        }
        let f = file(&[("c.weight", &[2, 1, 2], &expected)]);
        let w = f.root().at("c").weight_norm(&[2, 1, 2]);
        assert_eq!(w.to_f32().as_ref(), &expected);
    }

    #[test]
    fn lists_are_counted_by_their_elements() {
        let f = file(&[
            ("l.0.w", &[1], &[0.0]),
            ("l.1.w", &[1], &[0.0]),
            ("l.10.w", &[1], &[0.0]),
            ("l.3.w", &[1], &[0.0]),
        ]);
        assert_eq!(f.root().count("l"), 2);
        assert_eq!(f.root().count("m"), 0);
        assert!(f.root().at("l").has("10.w"));
    }
}
