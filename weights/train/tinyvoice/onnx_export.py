"""ONNX files of the speech tokenizer and the speaker encoder, with the graph and the names of the official ones.

Both go through PyTorch's TorchScript exporter, as upstream's did; node and initializer names that upstream's module
tree spells differently are then renamed (see the tables of the engine's loader).
"""
import re
import warnings

import numpy as np
import onnx
import torch
from torch import nn

# our initializer -> the official file's
TOKENIZER_NAMES = {"encoder.conv1.weight": "onnx::Conv_2216", "encoder.conv1.bias": "onnx::Conv_2217",
                   "encoder.conv2.weight": "onnx::Conv_2218", "encoder.conv2.bias": "onnx::Conv_2219"}
TOKENIZER_FILE = "speech_tokenizer_v2.onnx"
PROJECTION = "onnx::MatMul_2536"


def _export(model, inputs, path, opset, names, axes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), inputs, str(path), opset_version=opset, input_names=names[:-1],
                          output_names=names[-1:], dynamic_axes=axes, dynamo=False)
    return onnx.load(path)


def _own_weights(graph):
    """Gives every layer its own initializers: the exporter shares equal ones through `Identity` nodes."""
    tensors = {t.name: t for t in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Identity" and n.input[0] in tensors]:
        copy = graph.initializer.add()
        copy.CopyFrom(tensors[node.input[0]])
        copy.name = node.output[0]
        graph.node.remove(node)


def _rename(graph, table):
    for tensor in graph.initializer:
        tensor.name = table.get(tensor.name, tensor.name)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = table.get(name, name)


def export_tokenizer(model, path):
    """speech_tokenizer_v2.onnx: feats [1, 128, T], feats_length int32 [1] -> indices int32 [1, T / 4]."""
    inputs = torch.randn(1, 128, 200), torch.tensor([200], dtype=torch.int32)
    proto = _export(model, inputs, path, 17, ["feats", "feats_length", "indices"],
                    {"feats": {2: "T"}, "indices": {1: "T4"}})
    graph, table = proto.graph, dict(TOKENIZER_NAMES)
    _own_weights(graph)
    for node in graph.node:
        if node.op_type == "MatMul" and "project_in" in node.name:
            table[node.input[1]] = PROJECTION
        node.name = node.name.replace("/quantizer/project_in", "/project_down")
        node.name = re.sub(r"^/encoder/(conv\d|blocks\.\d+)/", r"/\1/", node.name)
    _rename(graph, table)
    _halve(graph)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def tokenizer_state(path):
    """State dict of the speech tokenizer from a file of `export_tokenizer`. A matrix that the exporter left without a name is
    known by the bias that is added to its product; the keys, which have none, come after the queries."""
    graph = onnx.load(path).graph
    values = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).astype(np.float32)) for t in graph.initializer}
    whole = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in values}
    plain = lambda name: whole.get(name, name)
    ours = {official: name for name, official in TOKENIZER_NAMES.items()}
    state = {ours.get(name, name): value for name, value in values.items() if "MatMul" not in name}
    used_by = {name: node for node in graph.node for name in node.input}
    for node in graph.node:
        if node.op_type != "MatMul" or "MatMul" not in plain(node.input[1]):
            continue
        after = used_by[node.output[0]]
        bias = [plain(name) for name in after.input if plain(name).endswith(".bias")] if after.op_type == "Add" else []
        name = bias[0].replace(".bias", ".weight") if bias else re.sub(r"^/(encoder/)?", "encoder.", node.name)
        if not bias:
            name = re.sub(r"/MatMul.*", ".weight", name).replace("/", ".")
        state[name] = values[plain(node.input[1])].T.contiguous()
    return state


def _halve(graph):
    """Stores the large initializers as float16, each behind a `Cast`: half the file, the arithmetic stays float32."""
    kept = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= 512:
            whole = tensor.name + "_float32"
            for node in graph.node:
                for i, name in enumerate(node.input):
                    node.input[i] = whole if name == tensor.name else name
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), tensor.name))
            kept.append(onnx.helper.make_node("Cast", [tensor.name], [whole], whole, to=onnx.TensorProto.FLOAT))
    nodes = [*kept, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


class _SpeakerGraph(nn.Module):
    """The encoder with its input transposed as upstream's graph starts."""

    def __init__(self, encoder):
        super().__init__()
        self.head, self.xvector = encoder.head, encoder.xvector

    def forward(self, feats):
        return self.xvector(self.head(feats.permute(0, 2, 1)))


def export_speaker(model, path):
    """campplus.onnx: input [B, T, 80] -> output [B, 192]."""
    proto = _export(_SpeakerGraph(model), (torch.randn(1, 345, 80),), path, 13, ["input", "output"],
                    {"input": {0: "batch_size", 1: "frame_num"}, "output": {0: "batch_size"}})
    _own_weights(proto.graph)
    for node in proto.graph.node:       # as PyTorch divides: the tail window by its own length
        for attribute in node.attribute:
            if attribute.name == "count_include_pad":
                attribute.i = 0
    _halve(proto.graph)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
