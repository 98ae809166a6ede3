//! Every tensor of the published checkpoint has exactly one home in the models, and none is left over: the models' own load
//! code runs over the published lists of names and shapes, with zeros for values.
//!
//! `official_keys_realsize.json` lists `llm.pt`, `flow.pt` and `hift.pt`; `onnx_initializers_realsize.json` lists the
//! initializers of the two ONNX files as `[name, shape, operation, node, input, attributes]`, with the exporter's numbers.

use std::collections::BTreeMap;

use serde_json::Value;

use super::onnx::{Attribute, Graph, Node};
use super::tensors::{Dtype, Entry, TensorFile};
use super::{Bytes, graphs, names};
use crate::cpu::{Cpu, CpuOptions, WeightPrecision};
use crate::model::config::{ModelConfig, SpeakerConfig, SpeechTokensConfig};
use crate::model::flow::Flow;
use crate::model::llm::Llm;
use crate::model::speaker::SpeakerEncoder;
use crate::model::speech_tokens::SpeechTokenizer;
use crate::model::vocoder::Hift;

fn fixture(name: &str) -> Value {
    let dir = env!("CARGO_MANIFEST_DIR");
    let path = format!("{dir}/tests/fixtures/{name}");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap()
}

fn shape(value: &Value) -> Vec<usize> {
    serde_json::from_value(value.clone()).unwrap()
}

fn cpu() -> Cpu {
    Cpu::new(CpuOptions {
        weights: WeightPrecision::Int8,
        ..CpuOptions::default()
    })
}

/// The published table of a `.pt` file.
fn published(name: &str) -> TensorFile {
    let keys = fixture("official_keys_realsize.json");
    let keys = keys[name].as_object().unwrap();
    let entry = |(name, dims): (&String, &Value)| {
        let entry = Entry::new(Dtype::F32, shape(dims), 0);
        (name.clone(), entry)
    };
    TensorFile::new(name, Bytes::Absent, keys.iter().map(entry).collect()).unwrap()
}

fn assert_all_at_home(file: &TensorFile) {
    let problems: Vec<String> = file.problems().iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

fn config() -> ModelConfig {
    ModelConfig::preset("cosyvoice2-0.5b").unwrap()
}

#[test]
fn llm() {
    let file = published("llm.pt");
    Llm::load(&cpu(), &file.root(), &config().llm).unwrap();
    assert_all_at_home(&file);
}

#[test]
fn flow() {
    let file = published("flow.pt");
    Flow::load(&cpu(), &file.root(), &config().flow).unwrap();
    assert_all_at_home(&file);
}

#[test]
fn hift() {
    let file = published("hift.pt");
    Hift::load(&cpu(), &file.root(), &config().hift).unwrap();
    assert_all_at_home(&file);
}

/// Strings and nodes of a published ONNX table.
struct Table {
    rows: Vec<(String, Vec<usize>, String, String, usize, Value)>,
    outputs: Vec<[String; 2]>,
}

impl Table {
    fn read(file: &str) -> Self {
        let rows = fixture("onnx_initializers_realsize.json");
        let text = |v: &Value| v.as_str().unwrap().to_string();
        let row = |row: &Value| {
            let input = row[4].as_u64().unwrap() as usize;
            let dims = shape(&row[1]);
            (
                text(&row[0]),
                dims,
                text(&row[2]),
                text(&row[3]),
                input,
                row[5].clone(),
            )
        };
        let rows: Vec<_> = rows[file].as_array().unwrap().iter().map(row).collect();
        // A bias is added to what the product beside it makes.
        let outputs = |node: &str| [format!("{node}_out"), node.replace("/Add", "/MatMul_out")];
        let outputs = rows.iter().map(|row| outputs(&row.3)).collect();
        Self { rows, outputs }
    }

    fn graph(&self) -> Graph<'_> {
        let mut graph = Graph::default();
        for (row, outputs) in self.rows.iter().zip(&self.outputs) {
            let (name, shape, op, node_name, input, attributes) = row;
            let entry = Entry::new(Dtype::F32, shape.clone(), 0);
            assert!(
                graph.initializers.insert(name, entry).is_none(),
                "{name} twice"
            );
            if graph.nodes.last().is_none_or(|n| n.name != node_name) {
                graph.nodes.push(Node {
                    name: node_name,
                    op,
                    inputs: match op.as_str() {
                        "Add" => vec!["", &outputs[1]],
                        _ => vec![""],
                    },
                    outputs: vec![&outputs[0]],
                    attributes: BTreeMap::new(),
                });
            }
            let node = graph.nodes.last_mut().unwrap();
            node.inputs.resize(node.inputs.len().max(input + 1), "");
            node.inputs[*input] = name;
            for (key, value) in attributes.as_object().into_iter().flatten() {
                let ints: Vec<i64> = serde_json::from_value(value.clone()).unwrap();
                node.attributes.insert(key, Attribute::Ints(ints));
            }
        }
        graph
    }

    /// The file of readable names, and what `describe` reads from the graph.
    fn file<C>(
        &self,
        name: &str,
        extra: Option<Node<'_>>,
        describe: impl FnOnce(&Graph<'_>, &BTreeMap<String, Entry>) -> C,
    ) -> (TensorFile, C) {
        let mut graph = self.graph();
        let extra = extra.iter().cloned();
        graph.nodes.extend(extra);
        let entries = names::table(&graph).unwrap();
        let description = describe(&graph, &entries);
        (
            TensorFile::new(name, Bytes::Absent, entries).unwrap(),
            description,
        )
    }
}

#[test]
fn speech_tokenizer() {
    let name = "speech_tokenizer_v2.onnx";
    let (file, ()) = Table::read(name).file(name, None, |_, _| ());
    let config = SpeechTokensConfig {
        num_mels: 128,
        state: 1280,
        num_heads: 20,
        num_blocks: 6,
        strides: vec![2, 2],
        fsmn_padding: [15, 15],
        attn_norm_eps: 1e-6,
        mlp_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        fsq_levels: 3,
        fsq_digits: 8,
    };
    SpeechTokenizer::load(&cpu(), &file.root(), &config).unwrap();
    assert_all_at_home(&file);
}

#[test]
fn speaker_encoder() {
    let pool = Node {
        op: "AveragePool",
        attributes: BTreeMap::from([
            ("kernel_shape", Attribute::Ints(vec![100])),
            ("count_include_pad", Attribute::Int(1)),
        ]),
        ..Node::default()
    };
    let name = "campplus.onnx";
    let (file, config) = Table::read(name).file(name, Some(pool), |graph, entries| {
        graphs::speaker(graph, entries).unwrap()
    });
    let SpeakerConfig {
        feat_dim,
        embedding,
        head_strides,
        blocks,
        segment,
        count_include_pad,
        ..
    } = &config;
    assert_eq!((*feat_dim, *embedding), (80, 192));
    assert_eq!(*head_strides, [[2, 1], [2, 1]]);
    let blocks: Vec<_> = blocks.iter().map(|b| (b.layers, b.dilation)).collect();
    assert_eq!(blocks, [(12, 1), (24, 2), (16, 2)]);
    assert_eq!((*segment, *count_include_pad), (100, true));
    SpeakerEncoder::load(&cpu(), &file.root(), &config).unwrap();
    assert_all_at_home(&file);
}
