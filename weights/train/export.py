#!/usr/bin/env python3
"""Step 13: write the trained parts as a model folder of the official layout.

    export.py --data DATA --ckpt CKPT --out ../tiny [--parts flow,speaker,voices]

Averaged weights in float16 (of the two ONNX files the large ones); the named voices are the mean embeddings of their
speakers; README.md is the model card. Fails when the folder would be larger than 24 MiB. With `--parts` only these parts
are written, into a folder that is there, whose card must then be completed by hand.
"""
import argparse
import json
import pathlib
import string

import torch

from tinyvoice.bpe import Bpe
from tinyvoice.card import write_card
from tinyvoice.config import DIMS, GAIN
from tinyvoice.corpus import Corpus
from tinyvoice.models.flow import Flow
from tinyvoice.models.hift import HiftGenerator, louder
from tinyvoice.models.llm import SpeechLm
from tinyvoice.models.speaker import SpeakerEncoder
from tinyvoice.models.speech_tokenizer import SpeechTokenizer
from tinyvoice.onnx_export import export_speaker, export_tokenizer
from tinyvoice.teachers import Speaker, write_wav
from tinyvoice.training import averaged_state

VOICES = {"pretrained_voice_001": "heart", "pretrained_voice_002": "heart@0.88^0.72", "pretrained_voice_003": "heart@0.84",
          "pretrained_voice_004": "heart@1.14"}
PROMPT_SPEAKER = "nezumi@0.9"      # never trained on
PROMPT_TEXT = "The small boat drifted past the lighthouse while the children waved."
LIMIT = 24 * 2 ** 20


def half(state):
    return {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}


def loaded(model, ckpt, name):
    model.load_state_dict(averaged_state(ckpt, name))
    return model.eval()


def write_yaml(path):
    flow, hift, llm = DIMS.flow, DIMS.hift, DIMS.llm
    template = string.Template((pathlib.Path(__file__).parent / "tinyvoice/cosyvoice2.yaml.in").read_text())
    path.write_text(template.substitute(
        llm_hidden=llm.hidden, codebook=DIMS.tokenizer.codebook, chunk=flow.chunk, flow_dim=flow.dim,
        flow_heads=flow.heads, flow_linear=flow.linear, flow_blocks=flow.blocks, est_channels=flow.channels,
        est_head_dim=flow.est_head_dim, est_blocks=flow.est_blocks, est_mid=flow.est_mid, est_heads=flow.est_heads, cfg_rate=flow.cfg_rate,
        hift_base=hift.base, hift_harmonics=hift.harmonics, hift_rates=list(hift.rates), hift_kernels=list(hift.kernels),
        hift_n_fft=hift.n_fft, hift_hop=hift.hop, hift_res_kernels=list(hift.res_kernels),
        hift_res_dilations=[list(hift.res_dilations)] * len(hift.res_kernels), hift_source_kernels=list(hift.source_kernels),
        hift_source_dilations=[list(hift.res_dilations)] * len(hift.source_kernels),
        hift_f0_channels=hift.f0_channels))


def write_qwen(folder, data):
    """Tokenizer files and config.json of the language model."""
    llm, bpe = DIMS.llm, Bpe.load(data / "bpe")
    bpe.save(folder)
    end = len(bpe.vocab)
    config = {"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": end,
              "eos_token_id": end + 2, "hidden_act": "silu", "hidden_size": llm.hidden, "initializer_range": 0.02,
              "intermediate_size": llm.mlp, "max_position_embeddings": 32768, "max_window_layers": llm.layers,
              "model_type": "qwen2", "num_attention_heads": llm.heads, "num_hidden_layers": llm.layers,
              "num_key_value_heads": llm.kv_heads, "rms_norm_eps": llm.eps, "rope_theta": llm.rope_theta,
              "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "float16", "use_cache": True,
              "use_sliding_window": False, "vocab_size": llm.text_vocab}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def mean_embedding(corpus, stored, speaker):
    keys = [row["key"] for row in corpus.rows if row["speaker"] == speaker and row["key"] in stored]
    if not keys:
        raise SystemExit(f"no speech of {speaker}: make_audio.py must include it")
    return torch.stack([stored[k].float() for k in keys]).mean(0, keepdim=True)


def mean_of(state, other):
    """The mean of the weights of two runs, the second of which went on from the first: often better than either (arXiv 2203.05482)."""
    return {key: value if not value.is_floating_point() else (value + other[key].float()) / 2 for key, value in state.items()}


def export_llm(args):
    state = loaded(SpeechLm(DIMS.llm, DIMS.tokenizer.codebook), args.ckpt, "llm").state_dict()
    if args.llm_mean_with:
        state = mean_of(state, torch.load(args.llm_mean_with / "llm.pt", weights_only=True))
    llm = half(state)
    llm["llm.model.lm_head.weight"] = llm["llm.model.model.embed_tokens.weight"]     # tied: one storage, two names
    torch.save(llm, args.out / "llm.pt")


def export_flow(args):
    write_yaml(args.out / "cosyvoice2.yaml")      # for its rate of guidance
    torch.save(half(loaded(Flow(DIMS.flow, DIMS.tokenizer.codebook), args.ckpt, "flow").state_dict()), args.out / "flow.pt")


def export_vocoder(args):
    write_yaml(args.out / "cosyvoice2.yaml")      # the one there may be of another vocoder
    torch.save(half(louder(loaded(HiftGenerator(DIMS.hift), args.ckpt, "vocoder").state_dict(), GAIN)), args.out / "hift.pt")


def export_voices(args):
    corpus = Corpus(args.data / "audio")
    stored = torch.load(args.data / "tokens.pt", weights_only=True)["embeddings"]
    torch.save({name: {"embedding": mean_embedding(corpus, stored, speaker)} for name, speaker in VOICES.items()},
               args.out / "spk2info.pt")


EXPORTS = {
    "llm": export_llm, "flow": export_flow, "vocoder": export_vocoder, "voices": export_voices,
    "tokenizer": lambda args: export_tokenizer(loaded(SpeechTokenizer(DIMS.tokenizer), args.ckpt, "tokenizer"),
                                               args.out / "speech_tokenizer_v2.onnx"),
    "speaker": lambda args: export_speaker(loaded(SpeakerEncoder(DIMS.speaker), args.ckpt, "speaker"), args.out / "campplus.onnx"),
}


def write_rest(args):
    """What is no network: configuration, text tokenizer, prompt, card."""
    write_yaml(args.out / "cosyvoice2.yaml")
    write_qwen(args.out / "CosyVoice-BlankEN", args.data)
    write_wav(args.out / "prompt.wav", Speaker(PROMPT_SPEAKER).say(PROMPT_TEXT, 0)[0])
    (args.out / "prompt.txt").write_text(PROMPT_TEXT + "\n")
    write_card(args.out / "README.md", args.ckpt, args.data, VOICES, PROMPT_SPEAKER, Corpus(args.data / "audio").seconds())


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=pathlib.Path, required=True)
    args.add_argument("--ckpt", type=pathlib.Path, required=True)
    args.add_argument("--out", type=pathlib.Path, required=True)
    args.add_argument("--parts", help=f"of {','.join(EXPORTS)}, comma between")
    args.add_argument("--llm-mean-with", type=pathlib.Path, metavar="MODEL",
                      help="exported folder; the language model becomes the mean of its weights and those of CKPT")
    args = args.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    parts = args.parts.split(",") if args.parts else list(EXPORTS)
    if unknown := [name for name in parts if name not in EXPORTS]:
        raise SystemExit(f"--parts: {', '.join(unknown)} is none of {', '.join(EXPORTS)}")
    for name in parts:
        EXPORTS[name](args)
    if not args.parts:
        write_rest(args)
    size = 0
    for path in sorted(p for p in args.out.rglob("*") if p.is_file()):
        size += path.stat().st_size
        print(f"{path.stat().st_size:10,d} {path.relative_to(args.out)}")
    print(f"{size / 2 ** 20:.2f} MiB")
    if size > LIMIT:
        raise SystemExit("larger than 24 MiB")


if __name__ == "__main__":
    main()
