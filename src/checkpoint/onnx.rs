//! ONNX files without a runtime: a walk over the protobuf that yields nodes, attributes and where the tensors lie.
//!
//! Field numbers after `onnx.proto3` (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto). Only what weights and
//! their consumers need is read; subgraphs and external data are not.

use std::collections::BTreeMap;
use std::ops::Range;

use super::error::Fault;
use super::tensors::{Dtype, Entry};

/// One operation.
#[derive(Clone, Debug, Default)]
pub struct Node<'a> {
    /// Path of the PyTorch module that it came from, such as `/blocks.0/attn/query/MatMul`.
    pub name: &'a str,
    pub op: &'a str,
    pub inputs: Vec<&'a str>,
    pub outputs: Vec<&'a str>,
    pub attributes: BTreeMap<&'a str, Attribute>,
}

/// The value of an attribute; kinds that nothing here reads are left out.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Tensor(Entry),
}

/// A graph: nodes in order, initializers by name.
#[derive(Clone, Debug, Default)]
pub struct Graph<'a> {
    pub nodes: Vec<Node<'a>>,
    pub initializers: BTreeMap<&'a str, Entry>,
    bytes: &'a [u8],
}

impl<'a> Graph<'a> {
    /// Walks a model file.
    ///
    /// # Errors
    /// When the bytes are not an ONNX model, are cut off, or keep their tensors elsewhere.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Fault> {
        let broken = |what: String| Fault::format(format!("not a complete ONNX model: {what}"));
        let walker = Walker {
            bytes,
            range: 0..bytes.len(),
        };
        let mut graph = Self {
            bytes,
            ..Self::default()
        };
        let mut found = false;
        for field in walker {
            if let (7, Value::Bytes(range)) = field.map_err(broken)? {
                graph.read_graph(walker_at(bytes, range)).map_err(broken)?;
                found = true;
            }
        }
        if !found {
            return Err(broken("no graph".into()));
        }
        graph.see_through_casts();
        Ok(graph)
    }

    /// Files converted to half precision keep a weight as float16 behind a `Cast` to what the layer computes in: the layer is
    /// made to read the weight itself.
    fn see_through_casts(&mut self) {
        let stored = |n: &Node<'a>| {
            let (&weight, &value) = (n.inputs.first()?, n.outputs.first()?);
            let dtype = self.initializers.get(weight)?.dtype;
            let float = matches!(dtype, Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64);
            (n.op == "Cast" && float).then_some((value, weight))
        };
        let casts: BTreeMap<_, _> = self.nodes.iter().filter_map(stored).collect();
        self.nodes
            .retain(|n| !n.outputs.iter().any(|o| casts.contains_key(o)));
        for input in self.nodes.iter_mut().flat_map(|n| &mut n.inputs) {
            *input = casts.get(input).unwrap_or(input);
        }
    }

    /// The node of operation `op` that makes the value `output`.
    pub fn producer(&self, output: &str) -> Option<&Node<'a>> {
        self.nodes.iter().find(|n| n.outputs.contains(&output))
    }

    /// Integers of the constant `name`, be it an initializer or the output of a `Constant` node.
    pub fn constant(&self, name: &str) -> Option<Vec<i64>> {
        let entry = match self.initializers.get(name) {
            Some(entry) => entry,
            None => match self.producer(name)?.attributes.get("value")? {
                Attribute::Tensor(entry) => entry,
                _ => return None,
            },
        };
        let end = entry.offset.checked_add(entry.extent()?)?;
        let bytes = self.bytes.get(entry.offset..end)?;
        (entry.dtype == Dtype::I64).then(|| {
            let values = bytes.chunks_exact(8);
            values.map(bytemuck::pod_read_unaligned).collect()
        })
    }

    fn read_graph(&mut self, walker: Walker<'a>) -> Step<()> {
        let bytes = walker.bytes;
        for field in walker {
            match field? {
                (1, Value::Bytes(range)) => self.nodes.push(read_node(walker_at(bytes, range))?),
                (5, Value::Bytes(range)) => {
                    let (name, entry) = read_tensor(walker_at(bytes, range))?;
                    if let Some(entry) = entry {
                        self.initializers.insert(name, entry);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Node<'_> {
    /// The first of an integer attribute's values.
    pub fn int(&self, attribute: &str) -> Option<i64> {
        match self.attributes.get(attribute)? {
            Attribute::Int(value) => Some(*value),
            Attribute::Ints(values) => values.first().copied(),
            _ => None,
        }
    }

    /// A float attribute.
    pub fn float(&self, attribute: &str) -> Option<f32> {
        match self.attributes.get(attribute)? {
            Attribute::Float(value) => Some(*value),
            _ => None,
        }
    }
}

fn read_node<'a>(walker: Walker<'a>) -> Step<Node<'a>> {
    let mut node = Node::default();
    let bytes = walker.bytes;
    for field in walker {
        match field? {
            (1, Value::Bytes(range)) => node.inputs.push(text(bytes, range)?),
            (2, Value::Bytes(range)) => node.outputs.push(text(bytes, range)?),
            (3, Value::Bytes(range)) => node.name = text(bytes, range)?,
            (4, Value::Bytes(range)) => node.op = text(bytes, range)?,
            (5, Value::Bytes(range)) => {
                if let (name, Some(value)) = read_attribute(walker_at(bytes, range))? {
                    node.attributes.insert(name, value);
                }
            }
            _ => {}
        }
    }
    Ok(node)
}

fn read_attribute<'a>(walker: Walker<'a>) -> Step<(&'a str, Option<Attribute>)> {
    let (mut name, mut value, mut ints) = ("", None, Vec::new());
    let bytes = walker.bytes;
    for field in walker {
        match field? {
            (1, Value::Bytes(range)) => name = text(bytes, range)?,
            (2, Value::Fixed32(bits)) => value = Some(Attribute::Float(f32::from_bits(bits))),
            (3, Value::Int(int)) => value = Some(Attribute::Int(int as i64)),
            (5, Value::Bytes(range)) => {
                value = read_tensor(walker_at(bytes, range))?
                    .1
                    .map(Attribute::Tensor);
            }
            (8, int) => extend(bytes, int, &mut ints)?,
            _ => {}
        }
    }
    if !ints.is_empty() {
        let ints = ints.into_iter().map(|i| i as i64).collect();
        value = Some(Attribute::Ints(ints));
    }
    Ok((name, value))
}

/// A tensor's name and place; no place for element types that are not numbers.
fn read_tensor<'a>(walker: Walker<'a>) -> Step<(&'a str, Option<Entry>)> {
    let (mut name, mut dims, mut data_type, mut data) = ("", Vec::new(), 0, None);
    let bytes = walker.bytes;
    for field in walker {
        match field? {
            (1, dim) => extend(bytes, dim, &mut dims)?,
            (2, Value::Int(int)) => data_type = int,
            // raw_data, or one of the packed lists that have the same layout: float_data, double_data.
            (9 | 4 | 10, Value::Bytes(range)) if !range.is_empty() => data = Some(range),
            (8, Value::Bytes(range)) => name = text(bytes, range)?,
            (14, Value::Int(1)) => return Err(format!("tensor {name} lies in another file")),
            _ => {}
        }
    }
    let dtype = match data_type {
        1 => Dtype::F32,
        2 => Dtype::U8,
        3 => Dtype::I8,
        6 => Dtype::I32,
        7 => Dtype::I64,
        9 => Dtype::Bool,
        10 => Dtype::F16,
        11 => Dtype::F64,
        16 => Dtype::Bf16,
        _ => return Ok((name, None)),
    };
    let shape: Option<Vec<usize>> = dims.into_iter().map(|d| usize::try_from(d).ok()).collect();
    let shape = shape.filter(|shape| shape.len() <= 8);
    let shape = shape.ok_or_else(|| format!("tensor {name} has impossible dimensions"))?;
    let range = data.unwrap_or_default();
    let entry = Entry::new(dtype, shape, range.start);
    // Integers may be spelled as varints instead; nothing here reads those.
    let fits = entry.extent() == Some(range.len());
    match fits {
        true => Ok((name, Some(entry))),
        false if matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64) => {
            let shape = &entry.shape;
            Err(format!(
                "tensor {name} of {shape:?} has {} bytes",
                range.len()
            ))
        }
        false => Ok((name, None)),
    }
}

fn text(bytes: &[u8], range: Range<usize>) -> Step<&str> {
    std::str::from_utf8(&bytes[range]).map_err(|_| "name is not UTF-8".into())
}

/// Appends a repeated integer: one value, or a packed list of them.
fn extend(bytes: &[u8], value: Value, list: &mut Vec<u64>) -> Step<()> {
    match value {
        Value::Int(int) => list.push(int),
        Value::Bytes(range) => {
            let mut walker = walker_at(bytes, range);
            while !walker.range.is_empty() {
                list.push(walker.varint()?);
            }
        }
        Value::Fixed32(_) | Value::Fixed64 => return Err("malformed list".into()),
    }
    Ok(())
}

type Step<T> = Result<T, String>;

/// The payload of a field.
#[derive(Clone, Debug)]
enum Value {
    Int(u64),
    Fixed32(u32),
    Fixed64,
    /// Where a string, a message or a packed list lies in the file.
    Bytes(Range<usize>),
}

/// Iterates over the fields of one protobuf message. Ranges are absolute.
struct Walker<'a> {
    bytes: &'a [u8],
    range: Range<usize>,
}

fn walker_at(bytes: &[u8], range: Range<usize>) -> Walker<'_> {
    Walker { bytes, range }
}

impl Walker<'_> {
    fn varint(&mut self) -> Step<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let at = self.take(1)?.start;
            let byte = self.bytes[at];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("number of more than 64 bits".into())
    }

    fn take(&mut self, len: u64) -> Step<Range<usize>> {
        let len = usize::try_from(len).ok();
        let len = len.filter(|&len| len <= self.range.len());
        let start = self.range.start;
        let end = start + len.ok_or("unexpected end")?;
        self.range.start = end;
        Ok(start..end)
    }

    fn field(&mut self) -> Step<(u64, Value)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Int(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            5 => {
                let range = self.take(4)?;
                Value::Fixed32(bytemuck::pod_read_unaligned(&self.bytes[range]))
            }
            other => return Err(format!("wire type {other}")),
        };
        Ok((key >> 3, value))
    }
}

impl Iterator for Walker<'_> {
    type Item = Step<(u64, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.range.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.range = 0..0;
        }
        Some(field)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A length-delimited field.
    pub(in super::super) fn message(field: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![field << 3 | 2];
        let mut len = payload.len();
        while len >= 0x80 {
            out.push(len as u8 | 0x80);
            len >>= 7;
        }
        out.push(len as u8);
        out.extend(payload);
        out
    }

    /// A node of one output.
    pub(in super::super) fn node(op: &str, name: &str, inputs: &[&str], output: &str) -> Vec<u8> {
        let mut body: Vec<u8> = inputs
            .iter()
            .flat_map(|i| message(1, i.as_bytes()))
            .collect();
        body.extend(message(2, output.as_bytes()));
        body.extend(message(3, name.as_bytes()));
        body.extend(message(4, op.as_bytes()));
        message(1, &body)
    }

    /// A float initializer whose values count up from zero.
    pub(in super::super) fn initializer(name: &str, dims: &[u8]) -> Vec<u8> {
        let mut body: Vec<u8> = dims.iter().flat_map(|&d| [1 << 3, d]).collect();
        body.extend([2 << 3, 1]);
        body.extend(message(8, name.as_bytes()));
        let count: usize = dims.iter().map(|&d| usize::from(d)).product();
        let values: Vec<u8> = (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect();
        body.extend(message(9, &values));
        message(5, &body)
    }

    #[test]
    fn finds_nodes_and_initializers() {
        let mut graph = node("MatMul", "/a/MatMul", &["x", "w"], "y");
        graph.extend(initializer("w", &[2, 3]));
        let model = message(7, &graph);
        let graph = Graph::read(&model).unwrap();
        assert_eq!(graph.nodes[0].inputs, ["x", "w"]);
        assert_eq!(graph.initializers["w"].shape, [2, 3]);
        assert!(graph.producer("y").is_some());
    }

    #[test]
    fn layers_read_weights_through_casts() {
        let mut graph = node("Cast", "w_float32", &["w"], "w_float32");
        graph.extend(node("Cast", "/a/Cast", &["x"], "z"));
        graph.extend(node("MatMul", "/a/MatMul", &["z", "w_float32"], "y"));
        graph.extend(initializer("w", &[2, 3]));
        let model = message(7, &graph);
        let graph = Graph::read(&model).unwrap();
        let ops: Vec<_> = graph.nodes.iter().map(|n| n.op).collect();
        assert_eq!(ops, ["Cast", "MatMul"]);
        assert_eq!(graph.nodes[1].inputs, ["z", "w"]);
    }

    #[test]
    fn truncations_are_errors_or_models_without_the_rest() {
        let mut graph = node("MatMul", "/a/MatMul", &["x", "w"], "y");
        graph.extend(initializer("w", &[2, 3]));
        let model = message(7, &graph);
        for len in 0..model.len() {
            assert!(Graph::read(&model[..len]).is_err(), "{len} bytes");
        }
        assert!(Graph::read(b"\x80\x02}.").is_err());
    }

    #[test]
    fn data_of_the_wrong_length_is_an_error() {
        let mut body = vec![1 << 3, 5, 2 << 3, 1];
        body.extend(message(9, &[0; 8]));
        let error = Graph::read(&message(7, &message(5, &body))).unwrap_err();
        assert!(error.to_string().contains("8 bytes"), "{error}");
    }
}
