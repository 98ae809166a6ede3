//! `cosyvoice inspect`: what a checkpoint holds — modules, shapes, types, parameters — and whether it can be used.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::model::resolve_model_dir;
use crate::checkpoint::{Checkpoint, Layout, TensorFile};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint folder, official or converted. Without it the bundled voice.
    #[arg(long, env = "MODEL_DIR", value_name = "DIR")]
    model: Option<PathBuf>,
    /// Everything as JSON: configuration, files, tensors
    #[arg(long)]
    json: bool,
}

/// Writes the report to standard output.
///
/// # Errors
/// When the checkpoint cannot be used: the error lists everything that is wrong with it.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(resolve_model_dir(args.model.as_deref())?)?;
    let mut out = io::stdout().lock();
    let written = match args.json {
        true => serde_json::to_writer_pretty(&mut out, &json(&checkpoint))
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
        false => table(&checkpoint, &mut out),
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output")
        }
        _ => Ok(()),
    }
}

fn json(checkpoint: &Checkpoint) -> Value {
    let files: Vec<Value> = checkpoint
        .files()
        .map(|file| {
            let tensors = file.entries().iter().map(|(name, entry)| {
                json!({ "name": name, "shape": entry.shape, "dtype": entry.dtype.name() })
            });
            json!({
                "file": file.name(),
                "parameters": parameters(file),
                "tensors": tensors.collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "layout": layout(checkpoint),
        "parameters": checkpoint.files().map(parameters).sum::<usize>(),
        "config": checkpoint.config(),
        "files": files,
    })
}

fn layout(checkpoint: &Checkpoint) -> &'static str {
    match checkpoint.layout() {
        Layout::Official => "official",
        Layout::Converted => "converted",
    }
}

/// Values of a file, without the scales of int8 weights.
fn parameters(file: &TensorFile) -> usize {
    let tensors = file
        .entries()
        .iter()
        .filter(|(name, _)| !name.ends_with(".scale"));
    tensors.filter_map(|(_, entry)| entry.count()).sum()
}

fn table(checkpoint: &Checkpoint, out: &mut dyn Write) -> io::Result<()> {
    let config = checkpoint.config();
    let dir = checkpoint.dir().display();
    writeln!(
        out,
        "{dir}: {} layout, {} Hz",
        layout(checkpoint),
        config.sample_rate
    )?;
    for file in checkpoint.files() {
        let rows = rows(file);
        let count = grouped(parameters(file));
        writeln!(
            out,
            "\n{}: {} tensors, {count} parameters",
            file.name(),
            file.entries().len()
        )?;
        let width = rows.iter().map(|row| row.module.len()).max().unwrap_or(0);
        for row in &rows {
            let shape = format!("{:?}", row.shape);
            writeln!(
                out,
                "  {:width$}  {shape:>18}  {:8}  {:>4} x {:>13}",
                row.module,
                row.dtype,
                row.count,
                grouped(row.parameters),
            )?;
        }
    }
    let total = checkpoint.files().map(parameters).sum();
    writeln!(out, "\n{} parameters in all", grouped(total))
}

/// Tensors of one shape in all elements of a list of modules.
#[derive(Debug, PartialEq)]
struct Row {
    /// Path with `*` for the numbers of elements.
    module: String,
    shape: Vec<usize>,
    dtype: &'static str,
    count: usize,
    /// Values of one tensor.
    parameters: usize,
}

fn rows(file: &TensorFile) -> Vec<Row> {
    let mut groups = BTreeMap::<_, usize>::new();
    for (name, entry) in file.entries() {
        let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let parts = name.split('.').map(|p| if is_number(p) { "*" } else { p });
        let module = parts.collect::<Vec<_>>().join(".");
        *groups
            .entry((module, &entry.shape, entry.dtype.name()))
            .or_default() += 1;
    }
    let row = |((module, shape, dtype), count): ((String, &Vec<usize>, _), _)| Row {
        module,
        shape: shape.clone(),
        dtype,
        count,
        parameters: shape.iter().product(),
    };
    groups.into_iter().map(row).collect()
}

/// `1234567` → `1,234,567`
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Bytes, Dtype, Entry};

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (n, expected) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1234567, "1,234,567"),
        ] {
            assert_eq!(grouped(n), expected);
        }
    }

    #[test]
    fn layers_of_one_shape_are_one_row() {
        let entry = |shape: &[usize]| Entry::new(Dtype::F32, shape.to_vec(), 0);
        let entries = [
            ("l.0.w", entry(&[2, 3])),
            ("l.1.w", entry(&[2, 3])),
            ("l.2.w", entry(&[4, 3])),
        ];
        let entries = entries.map(|(n, e)| (n.to_string(), e)).into();
        let file = TensorFile::new("x.pt", Bytes::Absent, entries).unwrap();
        let rows = rows(&file);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].module.as_str(), rows[0].count), ("l.*.w", 2));
        assert_eq!(parameters(&file), 24);
    }
}
