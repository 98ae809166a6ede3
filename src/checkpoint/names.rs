//! Readable names for the weights of an exported graph.
//!
//! The exporter numbers most weights (`onnx::MatMul_760`), stores linear layers transposed and folds batch norms into
//! convolutions. Each weight is named after the module that consumes it and its position there, as S3Tokenizer's
//! `onnx2torch` does: input 1 of `/blocks.0/attn/query/MatMul` is `blocks.0.attn.query.weight`.

use std::collections::{BTreeMap, BTreeSet};

use super::bytes::Bytes;
use super::error::{Fault, Problem};
use super::onnx::{Graph, Node};
use super::tensors::{Dtype, Entry, TensorFile};

/// Opens an ONNX file as named tensors, with what `describe` makes of its graph.
///
/// # Errors
/// When it is not a complete ONNX model, two weights claim one name, or `describe` fails.
pub fn read<C>(
    name: &str,
    bytes: Bytes,
    describe: impl FnOnce(&Graph<'_>, &BTreeMap<String, Entry>) -> Result<C, Fault>,
) -> Result<(TensorFile, C), Problem> {
    let (entries, description) = Graph::read(bytes.as_slice())
        .and_then(|graph| {
            let entries = table(&graph)?;
            let description = describe(&graph, &entries)?;
            Ok((entries, description))
        })
        .map_err(|fault| fault.of(name))?;
    Ok((TensorFile::new(name, bytes, entries)?, description))
}

/// All weights of a graph by readable name. What no layer consumes keeps its own name, for the report of unexpected tensors.
pub(super) fn table(graph: &Graph<'_>) -> Result<BTreeMap<String, Entry>, Fault> {
    let mut table = BTreeMap::new();
    let mut used = BTreeSet::new();
    let consumers = consumers(graph);
    for node in &graph.nodes {
        for (position, input) in node.inputs.iter().enumerate() {
            let Some(entry) = graph.initializers.get(input).filter(|e| is_weight(e)) else {
                continue;
            };
            let Some(suffix) = suffix(node, position, entry) else {
                continue;
            };
            used.insert(*input);
            let name = match readable(input) {
                Some(name) => name.to_string(),
                None => format!("{}.{suffix}", module(graph, &consumers, node)),
            };
            let mut entry = entry.clone();
            if is_transposed(node, &entry) {
                let (rows, cols) = (entry.shape[0], entry.shape[1]);
                entry.shape = vec![cols, rows];
                entry.strides = Some(vec![1, cols]);
            }
            if table.insert(name.clone(), entry).is_some() {
                return Err(Fault::format(format!(
                    "two weights of the graph are {name}"
                )));
            }
        }
    }
    for (name, entry) in &graph.initializers {
        if is_weight(entry) && !used.contains(name) {
            table.insert((*name).to_string(), entry.clone());
        }
    }
    Ok(table)
}

/// The nodes that read each value.
fn consumers<'g, 'a>(graph: &'g Graph<'a>) -> BTreeMap<&'a str, Vec<&'g Node<'a>>> {
    let mut consumers = BTreeMap::<_, Vec<_>>::new();
    for node in &graph.nodes {
        for input in &node.inputs {
            consumers.entry(*input).or_default().push(node);
        }
    }
    consumers
}

/// Constants of shapes and scales are not weights.
fn is_weight(entry: &Entry) -> bool {
    let float = matches!(
        entry.dtype,
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64
    );
    float && !entry.shape.is_empty() && entry.count() > Some(1)
}

/// What an input of a layer is called in PyTorch.
fn suffix(node: &Node<'_>, position: usize, entry: &Entry) -> Option<&'static str> {
    match (node.op, position) {
        ("Conv" | "ConvTranspose" | "Gemm" | "LayerNormalization" | "BatchNormalization", 1) => {
            Some("weight")
        }
        ("Conv" | "ConvTranspose" | "Gemm" | "LayerNormalization" | "BatchNormalization", 2) => {
            Some("bias")
        }
        ("BatchNormalization", 3) => Some("running_mean"),
        ("BatchNormalization", 4) => Some("running_var"),
        ("MatMul", 1) if entry.shape.len() == 2 => Some("weight"),
        ("Add", _) if entry.shape.len() == 1 => Some("bias"),
        _ => None,
    }
}

fn is_transposed(node: &Node<'_>, entry: &Entry) -> bool {
    let linear = node.op == "MatMul" || (node.op == "Gemm" && node.int("transB") != Some(1));
    linear && entry.shape.len() == 2
}

/// The initializer's own name where the exporter kept the module's: it has a dot and no `onnx::`.
fn readable(name: &str) -> Option<&str> {
    let kept = name.contains('.') && !name.contains("::");
    kept.then(|| name.strip_prefix("encoder.").unwrap_or(name))
}

/// The module that a layer's node belongs to. A linear layer whose bias kept its name has that name.
fn module(
    graph: &Graph<'_>,
    consumers: &BTreeMap<&str, Vec<&Node<'_>>>,
    node: &Node<'_>,
) -> String {
    let bias = node.outputs.first().and_then(|output| {
        let add = consumers.get(output)?.iter().find(|n| n.op == "Add")?;
        let is_bias = |i: &&&str| graph.initializers.contains_key(**i);
        let bias = add.inputs.iter().find(is_bias)?;
        readable(bias)?.strip_suffix(".bias")
    });
    match bias {
        Some(module) if node.op == "MatMul" => module.to_string(),
        _ => path(node.name),
    }
}

/// `/head/layer1/layer1.0/conv1/Conv` → `head.layer1.0.conv1`: the operation goes, and so does a sequence's own name before
/// that of its element.
pub(super) fn path(node: &str) -> String {
    let parts: Vec<&str> = node.split('/').filter(|part| !part.is_empty()).collect();
    let modules = &parts[..parts.len().saturating_sub(1)];
    let kept: Vec<&str> = modules
        .iter()
        .enumerate()
        .filter(|(i, part)| {
            let next = modules.get(i + 1).and_then(|n| n.strip_prefix(**part));
            !next.is_some_and(|rest| rest.starts_with('.'))
        })
        .map(|(_, part)| *part)
        .collect();
    let joined = kept.join(".");
    joined
        .strip_prefix("encoder.")
        .unwrap_or(&joined)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::super::onnx::tests::{initializer, message, node};
    use super::*;

    fn open(parts: &[Vec<u8>]) -> Result<TensorFile, Problem> {
        let bytes = Bytes::Owned(message(7, &parts.concat()));
        Ok(read("m.onnx", bytes, |_, _| Ok(()))?.0)
    }

    #[test]
    fn weights_are_named_after_their_consumers() {
        let file = open(&[
            node(
                "MatMul",
                "/blocks.0/attn/query/MatMul",
                &["x", "onnx::MatMul_7"],
                "q",
            ),
            node(
                "Add",
                "/blocks.0/attn/query/Add",
                &["onnx::Add_6", "q"],
                "r",
            ),
            node(
                "MatMul",
                "/project_down/MatMul",
                &["r", "onnx::MatMul_9"],
                "s",
            ),
            node(
                "Add",
                "/project_down/Add",
                &["quantizer.project_in.bias", "s"],
                "t",
            ),
            node(
                "Conv",
                "/head/layer1/layer1.0/conv1/Conv",
                &["t", "onnx::Conv_1"],
                "u",
            ),
            initializer("onnx::MatMul_7", &[2, 3]),
            initializer("onnx::Add_6", &[3]),
            initializer("onnx::MatMul_9", &[3, 2]),
            initializer("quantizer.project_in.bias", &[2]),
            initializer("onnx::Conv_1", &[2, 1, 3, 3]),
            initializer("onnx::Mystery_2", &[2]),
        ])
        .unwrap();
        let names: Vec<&str> = file.entries().keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "blocks.0.attn.query.bias",
                "blocks.0.attn.query.weight",
                "head.layer1.0.conv1.weight",
                "onnx::Mystery_2",
                "quantizer.project_in.bias",
                "quantizer.project_in.weight",
            ]
        );
        let w = file
            .root()
            .at("blocks.0.attn.query")
            .weight("weight", &[3, 2]);
        assert_eq!(w.to_f32().as_ref(), &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn one_name_for_two_weights_is_an_error() {
        let error = open(&[
            node("MatMul", "/a/MatMul", &["x", "onnx::1"], "q"),
            node("MatMul", "/a/MatMul", &["x", "onnx::2"], "r"),
            initializer("onnx::1", &[2, 3]),
            initializer("onnx::2", &[2, 3]),
        ])
        .unwrap_err();
        assert!(error.to_string().contains("a.weight"), "{error}");
    }
}
