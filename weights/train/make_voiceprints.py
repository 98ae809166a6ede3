#!/usr/bin/env python3
"""Step 7: what a public speaker encoder hears in some utterances of each speaker; the geometry that ours learns.

    make_voiceprints.py --data DATA [--workers 2]

Resemblyzer (arXiv 1710.10467, Apache-2.0) learnt from thousands of people which voices are alike; our corpus is a few people in many
disguises, and cannot teach that. Its weights come with the package `resemblyzer`, of which nothing else is needed. Output:
DATA/voiceprints.pt: `prints`, {utterance key: float16 [256], of unit length}, and the space of the embeddings that are learnt from
them: `centre` [256], the mean of all speakers, and `directions` [192, 256], the principal ones of their means. What it holds already
is kept.
"""
import argparse
import importlib.util
import multiprocessing
import os
import pathlib
import zlib

import torch
import torch.nn.functional as F
from torch import nn

from tinyvoice.audio import resample_batch, slaney_filters
from tinyvoice.config import PROMPT_RATE, SAMPLE_RATE, SPK_DIM
from tinyvoice.corpus import Corpus, some, trained_on

EACH = 8                                  # utterances of a speaker
WINDOW, HOP, BINS = 400, 160, 40          # samples, samples: of the spectrum at 16 kHz
FRAMES, STEP = 160, 77                    # of one partial utterance, and from one to the next
LOUDNESS = 10 ** (-30 / 20)               # RMS, at least


class Listener(nn.Module):
    """16 kHz wave [N] -> unit vector [256], the mean over overlapping 1.6 s."""

    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(BINS, 256, 3, batch_first=True), nn.Linear(256, 256)
        found = importlib.util.find_spec("resemblyzer")
        if found is None:
            raise ModuleNotFoundError("the package resemblyzer is missing: pip install --no-deps -r requirements-alone.txt")
        state = torch.load(pathlib.Path(found.origin).parent / "pretrained.pt", map_location="cpu", weights_only=True)
        self.load_state_dict({k: v for k, v in state["model_state"].items() if not k.startswith("similarity")})
        self.register_buffer("filters", slaney_filters(PROMPT_RATE, WINDOW, BINS, 0, PROMPT_RATE / 2), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, audio):
        audio = audio * max(1.0, LOUDNESS / float(audio.square().mean().sqrt().clamp(min=1e-5)))
        spectrum = torch.stft(audio, WINDOW, HOP, WINDOW, self.window, pad_mode="constant", return_complex=True).abs().square()
        mel = (self.filters @ spectrum).T
        mel = F.pad(mel, (0, 0, 0, max(0, FRAMES - len(mel))))
        parts = torch.stack([mel[start:start + FRAMES] for start in range(0, len(mel) - FRAMES + 1, STEP)])
        out = F.normalize(torch.relu(self.linear(self.lstm(parts)[1][0][-1])), dim=1)
        return F.normalize(out.mean(0), dim=0)


@torch.inference_mode()
def hear(job):
    folder, shard, keys = job
    torch.set_num_threads(1)
    listener, out = Listener().eval(), {}
    corpus = Corpus(folder, split=None, shards=[shard])
    for row in corpus.rows:
        if row["key"] in keys:
            low = resample_batch(corpus.audio(row)[None], SAMPLE_RATE, PROMPT_RATE)[0]
            out[row["key"]] = listener(low).half()
    return out


def speaker_means(rows, prints):
    """{speaker: the mean of its voiceprints, of unit length}, in order of names."""
    heard = {}
    for row in rows:
        if row["key"] in prints:
            heard.setdefault(row["speaker"], []).append(prints[row["key"]].float())
    return {name: F.normalize(torch.stack(heard[name]).mean(0), dim=0) for name in sorted(heard)}


def space(rows, prints):
    """`centre` and `directions` of the speakers' means; of fewer than 192 speakers the last directions are zero."""
    means = torch.stack(list(speaker_means(rows, prints).values()))
    centre = means.mean(0)
    directions = torch.linalg.svd(means - centre, full_matrices=False)[2][:SPK_DIM]
    return {"centre": centre, "directions": F.pad(directions, (0, 0, 0, SPK_DIM - len(directions)))}


def placed(voiceprint, stored):
    """Where in that space a voiceprint lies: [..., 256] -> unit vector [..., 192]."""
    return F.normalize((voiceprint - stored["centre"]) @ stored["directions"].T, dim=-1)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=pathlib.Path, required=True)
    args.add_argument("--workers", type=int, default=os.cpu_count())
    args = args.parse_args()
    path = args.data / "voiceprints.pt"
    stored = torch.load(path, weights_only=True) if path.exists() else {"prints": {}}
    prints = stored["prints"]
    corpus = Corpus(args.data / "audio", split=None)
    by_chance = sorted(corpus.rows, key=lambda row: zlib.crc32(row["key"].encode()))
    jobs = {}
    for row in some(EACH, by_chance, prints):
        jobs.setdefault(corpus.names[row["shard"]], set()).add(row["key"])
    jobs = [(args.data / "audio", shard, keys) for shard, keys in jobs.items()]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for heard in pool.imap_unordered(hear, jobs, chunksize=8):
            prints.update(heard)
    if "centre" not in stored:
        stored.update(space([row for row in corpus.rows if trained_on(row["speaker"])], prints))
    part = args.data / "voiceprints.part"
    torch.save(stored, part)
    part.replace(path)
    print(f"{len(prints)} voiceprints")


if __name__ == "__main__":
    main()
