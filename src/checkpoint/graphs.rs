//! Options of CAM++ and of the speech tokenizer that only their ONNX graphs know: strides, dilations, heads, epsilons.

use std::collections::BTreeMap;

use super::error::Fault;
use super::names::path;
use super::onnx::{Graph, Node};
use super::tensors::Entry;
use crate::model::config::{DenseBlockConfig, SpeakerConfig, SpeechTokensConfig};

type Entries = BTreeMap<String, Entry>;

/// What `campplus.onnx` says of itself.
///
/// # Errors
/// When the graph is not that of CAM++.
pub(super) fn speaker(graph: &Graph<'_>, entries: &Entries) -> Result<SpeakerConfig, Fault> {
    let view = View { graph, entries };
    let mut head_strides = Vec::new();
    while let Some(stage) = view.stage(head_strides.len() + 1) {
        head_strides.push(stage);
    }
    let head_out_stride = view.stride("head.conv2")?;
    let mut blocks = Vec::new();
    while let Some(block) = view.dense_block(blocks.len() + 1)? {
        blocks.push(block);
    }
    let pool = view.op("AveragePool")?;
    let frequencies =
        view.dim("xvector.tdnn.linear.weight", 1)? / view.dim("head.conv2.weight", 0)?.max(1);
    let feat_dim = head_strides
        .iter()
        .flatten()
        .fold(frequencies.saturating_mul(head_out_stride), |f, &s| {
            f.saturating_mul(s)
        });
    Ok(SpeakerConfig {
        feat_dim,
        embedding: view.dim("xvector.dense.linear.weight", 0)?,
        head_strides,
        head_out_stride,
        tdnn_stride: view.stride("xvector.tdnn.linear")?,
        blocks,
        segment: positive(pool, "kernel_shape")?,
        count_include_pad: pool.int("count_include_pad") == Some(1),
        norm_eps: view
            .op("BatchNormalization")?
            .float("epsilon")
            .unwrap_or(1e-5),
    })
}

/// What `speech_tokenizer_v2.onnx` says of itself.
///
/// # Errors
/// When the graph is not that of the speech tokenizer.
pub(super) fn speech_tokens(
    graph: &Graph<'_>,
    entries: &Entries,
) -> Result<SpeechTokensConfig, Fault> {
    let view = View { graph, entries };
    let state = view.dim("conv1.weight", 0)?;
    let num_blocks = (0..)
        .take_while(|i| entries.contains_key(&format!("blocks.{i}.attn.query.weight")))
        .count();
    let kernel = view.dim("blocks.0.attn.fsmn_block.weight", 2)?;
    let before = kernel.saturating_sub(1) / 2;
    let eps = |name| Ok(view.node(name)?.float("epsilon").unwrap_or(1e-5));
    Ok(SpeechTokensConfig {
        num_mels: view.dim("conv1.weight", 1)?,
        state,
        num_heads: view.heads("blocks.0.attn", state)?,
        num_blocks,
        strides: vec![view.stride("conv1")?, view.stride("conv2")?],
        fsmn_padding: [before, kernel.saturating_sub(1 + before)],
        attn_norm_eps: eps("blocks.0.attn_ln")?,
        mlp_norm_eps: eps("blocks.0.mlp_ln")?,
        rope_theta: 10_000.0,
        fsq_levels: 3,
        fsq_digits: view.dim("quantizer.project_in.weight", 0)?,
    })
}

/// Look-ups whose failure is a fault of the file.
struct View<'g> {
    graph: &'g Graph<'g>,
    entries: &'g Entries,
}

impl View<'_> {
    fn dim(&self, tensor: &str, axis: usize) -> Result<usize, Fault> {
        let entry = self.entries.get(tensor);
        entry
            .and_then(|e| e.shape.get(axis).copied())
            .ok_or_else(|| Fault::TensorMissing {
                tensor: tensor.to_string(),
                expected: Vec::new(),
            })
    }

    /// The layer of a module: the one node below it that carries weights.
    fn layer(&self, module: &str) -> Option<&Node<'_>> {
        let layer = |n: &&Node<'_>| matches!(n.op, "Conv" | "LayerNormalization" | "MatMul");
        let mut nodes = self.graph.nodes.iter().filter(layer);
        nodes.find(|n| path(n.name) == module)
    }

    fn node(&self, module: &str) -> Result<&Node<'_>, Fault> {
        self.layer(module)
            .ok_or_else(|| Fault::format(format!("the graph has no layer {module}")))
    }

    fn op(&self, op: &str) -> Result<&Node<'_>, Fault> {
        let node = self.graph.nodes.iter().find(|n| n.op == op);
        node.ok_or_else(|| Fault::format(format!("the graph has no {op}")))
    }

    fn stride(&self, module: &str) -> Result<usize, Fault> {
        positive(self.node(module)?, "strides")
    }

    /// Frequency strides of the residual blocks of a stage of the 2-D head.
    fn stage(&self, stage: usize) -> Option<Vec<usize>> {
        let strides: Vec<usize> = (0..)
            .map_while(|block| {
                self.stride(&format!("head.layer{stage}.{block}.conv1"))
                    .ok()
            })
            .collect();
        (!strides.is_empty()).then_some(strides)
    }

    fn dense_block(&self, block: usize) -> Result<Option<DenseBlockConfig>, Fault> {
        let layer = |l: usize| format!("xvector.block{block}.tdnnd{l}.cam_layer.linear_local");
        let layers = (1..)
            .take_while(|&l| self.entries.contains_key(&format!("{}.weight", layer(l))))
            .count();
        if layers == 0 {
            return Ok(None);
        }
        let dilation = positive(self.node(&layer(1))?, "dilations")?;
        Ok(Some(DenseBlockConfig { layers, dilation }))
    }

    /// Heads of an attention module: the constant in the shape that its query is reshaped to, `[batch, time, heads, −1]`.
    fn heads(&self, attention: &str, state: usize) -> Result<usize, Fault> {
        let inside = |n: &&Node<'_>| n.op == "Reshape" && path(n.name) == attention;
        let reshapes = self.graph.nodes.iter().filter(inside);
        let shapes = reshapes.filter_map(|n| self.graph.producer(n.inputs.get(1)?));
        let heads = shapes
            .filter(|shape| shape.op == "Concat" && shape.inputs.len() == 4)
            .flat_map(|shape| &shape.inputs)
            .filter_map(|input| self.graph.constant(input))
            .filter_map(|values| usize::try_from(*values.first()?).ok())
            .find(|&heads| heads > 0 && state.is_multiple_of(heads));
        heads.ok_or_else(|| {
            Fault::format(format!("the graph does not say the heads of {attention}"))
        })
    }
}

fn positive(node: &Node<'_>, attribute: &str) -> Result<usize, Fault> {
    let value = match node.attributes.contains_key(attribute) {
        true => node.int(attribute),
        // The defaults of the operator.
        false if matches!(attribute, "strides" | "dilations") => Some(1),
        false => None,
    };
    let size = value
        .and_then(|v| usize::try_from(v).ok())
        .filter(|&v| v > 0);
    size.ok_or_else(|| {
        let found = value.map_or("nothing".to_string(), |v| v.to_string());
        Fault::config(
            format!("{} {attribute}", node.name),
            "a positive number",
            found,
        )
    })
}
