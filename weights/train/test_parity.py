#!/usr/bin/env python3
"""The modules trained here compute what the official PyTorch code computes.

Loads the parity kit's checkpoint (random weights, small dims, golden tensors recorded from the official code) into our
modules and compares. The kit is found at $PARITY_KIT, else at tests/fixtures/micro-kit of this repository.

    python -m unittest test_parity
"""
import json
import math
import os
import pathlib
import re
import tempfile
import unittest

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from tinyvoice import audio, onnx_export
from tinyvoice.config import FlowDims, HiftDims, LlmDims, SpeakerDims, TokenizerDims
from tinyvoice.models.flow import Flow, fixed_noise
from tinyvoice.models.hift import HiftGenerator
from tinyvoice.models.llm import SpeechLm
from tinyvoice.models.speaker import SpeakerEncoder
from tinyvoice.models.speech_tokenizer import SpeechTokenizer

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
KIT = pathlib.Path(os.environ.get("PARITY_KIT", REPOSITORY / "tests/fixtures/micro-kit"))


def golden(name):
    path = KIT / "golden" / f"{name}.safetensors"
    if not path.exists():      # the kit of this repository holds what the engine's tests need
        raise unittest.SkipTest(f"SKIPPED: {KIT} has no {path.name}; name a whole kit in PARITY_KIT")
    return load_file(path)


def checkpoint(name):
    return torch.load(KIT / "micro" / name, map_location="cpu", weights_only=True)


def layers_under(state, prefix):
    """Number of consecutive integer children of `prefix`."""
    return 1 + max(int(k[len(prefix):].split(".")[0]) for k in state if k.startswith(prefix))


def onnx_graph(name):
    return onnx.load(KIT / "micro" / name).graph


def head_dim(graph):
    """Width of the speech tokenizer's heads: that of its rotary table [positions, width, cosine and sine]."""
    shapes = [tuple(a.t.dims) for n in graph.node if n.op_type == "Constant" for a in n.attribute]
    return next(s[1] for s in shapes if len(s) == 3 and s[2] == 2)


def onnx_weights(graph):
    """{node name: [its initializers in order]}"""
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    return {n.name: [tensors[i] for i in n.input if i in tensors] for n in graph.node}


class Parity(unittest.TestCase):
    def close(self, got, want, tolerance):
        self.assertEqual(tuple(got.shape), tuple(want.shape))
        self.assertLess(float((got - want).abs().max()), tolerance)

    def test_features(self):
        for name in ("audio_prompt", "audio_prompt_odd"):
            want = golden(name)
            self.close(audio.mel_24k(want["wav_24k"]).transpose(1, 2), want["mel_24k"], 2e-4)
            self.close(audio.log_mel_16k(want["wav_16k"]), want["whisper_logmel"], 2e-4)
            self.close(audio.fbank_16k(want["wav_16k"])[0], want["kaldi_fbank_meannorm"], 5e-3)
            self.close(audio.resample_batch(want["wav_24k"], 24_000, 16_000), want["wav_16k"], 1e-6)

    def test_vocoder(self):
        state, want = checkpoint("hift.pt"), golden("hift_whole")
        model = HiftGenerator(HiftDims.of(KIT / "micro")).eval()
        model.load_state_dict(state)
        offset, pool = int(want["noise_off"]), golden("hift_noise")["pool"]
        noise = pool[(offset + torch.arange(int(want["noise_len"]))) % len(pool)][None]
        with torch.no_grad():
            self.close(model.f0_predictor(want["mel"]), want["f0"], 2e-3)
            self.close(model.source(want["f0"], noise), want["source"], 5e-4)
            self.close(model.decode(want["mel"], want["source"]), want["wav"], 1e-4)

    def flow(self):
        state = checkpoint("flow.pt")
        estimator = "decoder.estimator."
        width = state[estimator + "final_proj.weight"].shape[1]
        yaml = (KIT / "micro/cosyvoice2.yaml").read_text()
        heads, head_dim = (int(re.search(rf"{key}: (\d+)", yaml)[1]) for key in ("num_heads", "attention_head_dim"))
        dims = FlowDims(
            dim=state["input_embedding.weight"].shape[1], heads=state["encoder.encoders.0.self_attn.pos_bias_u"].shape[0],
            linear=state["encoder.encoders.0.feed_forward.w_1.bias"].numel(),
            blocks=layers_under(state, "encoder.encoders."), channels=width, est_heads=heads, est_head_dim=head_dim,
            est_blocks=layers_under(state, estimator + "down_blocks.0.1."),
            est_mid=layers_under(state, estimator + "mid_blocks."), cfg_rate=float(re.search(r"inference_cfg_rate: (\S+)", yaml)[1]))
        model = Flow(dims, state["input_embedding.weight"].shape[0]).eval()
        model.load_state_dict(state)
        return model

    def test_flow(self):
        model, noise = self.flow(), fixed_noise()
        head = golden("flow_noise")["rand_noise_head"]
        self.close(noise[:, :, :head.shape[2]], head, 1e-6)
        for name in ("flow_sft", "flow_prompt", "flow_nostream_chunk", "flow_stream_chunk", "flow_stream_final"):
            want = golden(name)
            streaming, finalize = bool(want["streaming"]), bool(want["finalize"])
            token = torch.cat([want["prompt_token"], want["token"]], dim=1)
            with torch.no_grad():
                mu = model.encode(token, torch.tensor([token.shape[1]]), streaming, finalize)
            self.close(mu.transpose(1, 2), want["mu"], 1e-4)
            mel = model.synthesize(want["token"], want["embedding"], want["prompt_token"], want["prompt_feat"],
                                   streaming, finalize, noise)
            self.close(mel, want["mel"], 1e-3)

    def test_llm(self):
        state = checkpoint("llm.pt")
        state.pop("llm.model.lm_head.weight")
        decoder = "llm.model.model."
        hidden = state["llm_embedding.weight"].shape[1]
        config = json.loads((KIT / "micro/CosyVoice-BlankEN/config.json").read_text())
        dims = LlmDims(hidden=hidden, layers=layers_under(state, decoder + "layers."), heads=config["num_attention_heads"],
                       kv_heads=config["num_key_value_heads"], mlp=config["intermediate_size"],
                       text_vocab=state[decoder + "embed_tokens.weight"].shape[0], rope_theta=config["rope_theta"],
                       eps=config["rms_norm_eps"])
        model = SpeechLm(dims, state["llm_decoder.bias"].numel() - 3).eval()
        model.load_state_dict(state)
        for name in ("llm_sft", "llm_zero_shot", "llm_instruct2"):
            want = golden(name)
            text = torch.cat([want["prompt_text"], want["text"]], dim=1)[0]
            with torch.no_grad():
                x = model.embed(text, want["prompt_speech_token"][0])[None]
                self.close(x, want["lm_input"], 1e-6)
                caches = [{} for _ in model.decoder.layers]
                hidden = model.decoder(x, caches)
                self.close(hidden, want["norm_out"], 1e-4)
                logp = [torch.log_softmax(model.llm_decoder(hidden[0, -1]), -1)]
                for step, token in enumerate(want["forced_tokens"]):
                    hidden = model.decoder(model.speech_embedding(token[None])[None], caches, x.shape[1] + step)
                    logp.append(torch.log_softmax(model.llm_decoder(hidden[0, -1]), -1))
                self.close(torch.stack(logp), want["logp"], 1e-3)

    def test_speech_tokenizer(self):
        graph = onnx_graph("speech_tokenizer_v2.onnx")
        nodes = onnx_weights(graph)
        state, blocks = {}, 0
        put = lambda key, node, kinds: state.update(
            {f"{key}.{kind}": (t.T if "MatMul" in node and kind == "weight" else t).contiguous()
             for kind, t in zip(kinds, nodes[node])})
        for conv in ("conv1", "conv2"):
            put(f"encoder.{conv}", f"/{conv}/Conv", ("weight", "bias"))
        while f"/blocks.{blocks}/attn/query/MatMul" in nodes:
            ours, theirs = f"encoder.blocks.{blocks}", f"/blocks.{blocks}"
            for part in ("attn/query", "attn/key", "attn/value", "attn/out", "mlp/mlp.0", "mlp/mlp.2"):
                key = f"{ours}.{part.replace('mlp/', '').replace('/', '.')}"
                put(key, f"{theirs}/{part}/MatMul", ("weight",))
                if f"{theirs}/{part}/Add" in nodes:
                    put(key, f"{theirs}/{part}/Add", ("bias",))
            put(f"{ours}.attn.fsmn_block", f"{theirs}/attn/fsmn_block/Conv", ("weight",))
            for norm in ("attn_ln", "mlp_ln"):
                put(f"{ours}.{norm}", f"{theirs}/{norm}/LayerNormalization", ("weight", "bias"))
            blocks += 1
        put("quantizer.project_in", "/project_down/MatMul", ("weight",))
        put("quantizer.project_in", "/project_down/Add", ("bias",))
        width = state["encoder.conv1.bias"].numel()
        model = SpeechTokenizer(TokenizerDims(state=width, heads=width // head_dim(graph), blocks=blocks,
                                              fsq_dims=state["quantizer.project_in.bias"].numel())).eval()
        model.load_state_dict(state)
        for name in ("audio_prompt", "audio_prompt_odd"):
            want = golden(name)
            feats = want["whisper_logmel"]
            with torch.no_grad():
                hidden, _ = model.encoder(feats, torch.tensor([feats.shape[2]], dtype=torch.int32))
                self.close(hidden, want["s3_encoder_hidden"], 1e-3)
                ids = model(feats, torch.tensor([feats.shape[2]], dtype=torch.int32))
            self.assertTrue(torch.equal(ids, want["speech_token"]))

    def test_speaker_encoder(self):
        graph = onnx_graph("campplus.onnx")
        nodes = onnx_weights(graph)
        tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        local = tensors["xvector.block1.tdnnd1.cam_layer.linear_local.weight"]
        growth, bottleneck = local.shape[0], local.shape[1] // local.shape[0]
        layers = tuple(sum(f".block{b}." in n and n.endswith(".linear_local.weight") for n in tensors) for b in (1, 2, 3))
        dims = SpeakerDims(init_channels=tensors["xvector.transit1.linear.weight"].shape[1] - layers[0] * growth, growth=growth,
                           bottleneck=bottleneck, layers=layers, head_channels=nodes["/head/conv1/Conv"][0].shape[0])
        model = SpeakerEncoder(dims)
        state = model.state_dict()
        for key in state:       # neutral batch norms, then every tensor the graph kept, then the folded convolutions
            if key.endswith("running_var"):
                state[key] = torch.full_like(state[key], 1 - 1e-5)
        state.update({k: v for k, v in tensors.items() if k in state})
        for node, weights in nodes.items():
            if node.endswith("/Conv") and len(weights) == 2 and not node.rsplit("/", 2)[1].startswith(("linear1", "linear2")):
                self.unfold(state, node, weights)
            elif node.endswith("linear1/Conv") and "cam_layer" not in node:
                self.unfold(state, node, weights)
        model.load_state_dict(state)
        for name in ("audio_prompt", "audio_prompt_odd"):
            want = golden(name)
            with torch.no_grad():
                got = model.eval()(want["kaldi_fbank_meannorm"][None])
            self.close(got, want["spk_embedding"], 1e-3)

    @staticmethod
    def unfold(state, node, weights):
        """Puts a convolution with its batch norm folded in back into the pair."""
        key = node.strip("/").removesuffix("/Conv").replace("/", ".")
        for stage in ("layer1", "layer2"):
            key = key.replace(f"{stage}.{stage}.", f"{stage}.")
        key = key.replace("shortcut.shortcut.", "shortcut.")
        norm = {"conv1": "bn1", "conv2": "bn2"}.get(key.rsplit(".", 1)[1])
        if key.endswith("shortcut.0"):
            bias = key[:-1] + "1.bias"
        elif norm:
            bias = key.rsplit(".", 1)[0] + f".{norm}.bias"
        elif key.endswith("tdnn.linear"):
            bias = "xvector.tdnn.nonlinear.batchnorm.bias"
        elif key.endswith("transit3.linear"):
            bias = "xvector.out_nonlinear.batchnorm.bias"
        else:
            bias = key.removesuffix("linear1") + "nonlinear2.batchnorm.bias"
        assert f"{key}.weight" in state and bias in state, (node, key, bias)
        state[f"{key}.weight"], state[bias] = weights


class Export(unittest.TestCase):
    """The ONNX files say what the modules say."""

    def test_speech_tokenizer(self):
        torch.manual_seed(0)
        model = SpeechTokenizer(TokenizerDims(blocks=2)).eval()
        feats = torch.randn(1, 128, 271)
        length = torch.tensor([271], dtype=torch.int32)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = os.path.join(folder, "speech_tokenizer_v2.onnx")
            onnx_export.export_tokenizer(model, path)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            got = session.run(None, {"feats": feats.numpy(), "feats_length": length.numpy()})[0]
            want = model(feats, length).numpy()
            again = onnx_export.tokenizer_state(path)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(again.pop(name), value, rtol=1e-3, atol=1e-4, msg=name)
        self.assertEqual(again, {})
        self.assertEqual(got.shape, (1, math.ceil(math.ceil(271 / 2) / 2)))
        self.assertGreater(float(np.mean(got == want)), 0.98)

    def test_speaker_encoder(self):
        torch.manual_seed(0)
        model = SpeakerEncoder(SpeakerDims()).eval()
        feats = torch.randn(1, 345, 80)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = os.path.join(folder, "campplus.onnx")
            onnx_export.export_speaker(model, path)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            got = session.run(None, {"input": feats.numpy()})[0]
            want = model(feats).numpy()
        self.assertLess(float(np.abs(got - want).max()), 1e-3)


if __name__ == "__main__":
    unittest.main()
