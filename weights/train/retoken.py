#!/usr/bin/env python3
"""After tokens have changed their meaning: a flow and a language model that know those of before learn the new ones from where they are.

    retoken.py --model ../tiny --data DATA --out FOLDER

Reads some speech with the tokenizer of MODEL. What each token of DATA/tokens.pt is in the table of an exported part becomes the mean
of what the old tokens are that stand in its place, by how often they do. Writes FOLDER/flow.pt and FOLDER/llm.pt, for `--begin FOLDER`.
"""
import argparse
import pathlib
import random

import torch

from tinyvoice.config import DIMS
from tinyvoice.corpus import Corpus, trained_on, with_features
from tinyvoice.models.speech_tokenizer import SpeechTokenizer
from tinyvoice.onnx_export import TOKENIZER_FILE, tokenizer_state

RARE = 0.01     # times that every pair is counted beside those that came


@torch.inference_mode()
def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", type=pathlib.Path, required=True)
    args.add_argument("--data", type=pathlib.Path, required=True)
    args.add_argument("--out", type=pathlib.Path, required=True)
    args.add_argument("--utterances", type=int, default=1500)
    args = args.parse_args()
    torch.set_num_threads(1)
    before = SpeechTokenizer(DIMS.tokenizer).eval()
    before.load_state_dict(tokenizer_state(args.model / TOKENIZER_FILE))
    tokens = torch.load(args.data / "tokens.pt", weights_only=True)["tokens"]
    corpus = Corpus(args.data / "audio", keep=trained_on, tokens=tokens, shards=with_features(args.data / "audio"))
    codebook = DIMS.tokenizer.codebook
    together = torch.full((codebook, codebook), RARE)
    for row in random.Random(0).sample(corpus.rows, min(args.utterances, len(corpus.rows))):
        feats = corpus.padded_features([row], "log", 0.0, "cpu")
        old = before(feats, torch.tensor([feats.shape[2]], dtype=torch.int32))[0].long()
        pairs = codebook * tokens[row["key"]].long() + old[:len(tokens[row["key"]])]
        together += torch.bincount(pairs, minlength=codebook ** 2).view(codebook, codebook)
    share = together / together.sum(1, keepdim=True)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, tables in (("flow", ["input_embedding.weight"]),
                         ("llm", ["speech_embedding.weight", "llm_decoder.weight", "llm_decoder.bias"])):
        state = torch.load(args.model / f"{name}.pt", map_location="cpu", weights_only=True)
        for key in tables:
            old = state[key].float()
            state[key] = torch.cat([share @ old[:codebook], old[codebook:]])
        if name == "llm":
            often, were = together.sum(1), together.sum(0)
            state["llm_decoder.bias"][:codebook] += (often / (share @ were)).log().clamp(-3, 3)
        torch.save(state, args.out / f"{name}.pt")


if __name__ == "__main__":
    main()
