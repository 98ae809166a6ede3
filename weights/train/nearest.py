#!/usr/bin/env python3
"""Whom a clone sounds like: which of several speakers is nearest to each utterance by Resemblyzer.

    nearest.py CLONES/list.tsv --ref prompt=../tiny/prompt.wav --ref 001=OUT001/list.tsv --ref 002=OUT002/list.tsv

A reference is a wav, or a list as `evaluate.py` reads it, whose first eight utterances are averaged. Prints one JSON object:
how many utterances were nearest to each reference, and the mean cosine similarity to it. Packages: requirements-eval.txt.
"""
import argparse
import json
import pathlib

import numpy as np
from resemblyzer import VoiceEncoder, preprocess_wav

AVERAGED = 8


def waves(path):
    """The wav itself, or those of a list."""
    if path.suffix == ".wav":
        return [path]
    return [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("list", type=pathlib.Path)
    args.add_argument("--ref", action="append", required=True, metavar="NAME=PATH")
    args = args.parse_args()
    encoder = VoiceEncoder("cpu", verbose=False)
    embed = lambda path: encoder.embed_utterance(preprocess_wav(path))
    names, references = [], []
    for item in args.ref:
        name, separator, path = item.partition("=")
        if not separator:
            raise SystemExit(f"--ref {item}: NAME=PATH is expected")
        mean = np.mean([embed(wav) for wav in waves(pathlib.Path(path))[:AVERAGED]], axis=0)
        names.append(name)
        references.append(mean / np.linalg.norm(mean))
    cosine = np.array([embed(wav) for wav in waves(args.list)]) @ np.array(references).T
    nearest = np.bincount(cosine.argmax(1), minlength=len(names))
    print(json.dumps({name: {"nearest": int(n), "similarity": round(float(s), 3)}
                      for name, n, s in zip(names, nearest, cosine.mean(0))}))


if __name__ == "__main__":
    main()
