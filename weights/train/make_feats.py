#!/usr/bin/env python3
"""Step 3: the features of all speech, once, for the trainers that read each utterance many times.

    make_feats.py --data DATA [--workers 2]

For each shard NAME of DATA/audio: NAME.mel.f16 [50 Hz, 80] (`mel_24k`), NAME.log.f16 [100 Hz, 128] (`log_mel_16k`, its floor set
by utterance) and NAME.f0.f16 [50 Hz] (what the teacher told, or else `pitch`). Shards that have them are skipped.
"""
import argparse
import multiprocessing
import os
import pathlib

import numpy as np
import torch

from tinyvoice.audio import log_mel_16k, mel_24k, pitch, resample_batch
from tinyvoice.config import PROMPT_RATE, SAMPLE_RATE
from tinyvoice.corpus import FEATURES, Corpus


@torch.inference_mode()
def make(job):
    folder, name = job
    torch.set_num_threads(1)
    corpus = Corpus(folder, split=None, shards=[name])
    parts = {kind: (folder / f".{name}.{kind}.f16").open("wb") for kind in FEATURES}
    for row in corpus.rows:       # in the order of the audio
        audio = corpus.audio(row)[None]
        mel = mel_24k(audio)[0].T
        low = resample_batch(audio, SAMPLE_RATE, PROMPT_RATE)
        f0 = torch.tensor(row["f0"]) if "f0" in row else pitch(audio)[0]
        for kind, values in (("mel", mel), ("log", log_mel_16k(low)[0].T), ("f0", f0)):
            parts[kind].write(values.contiguous().numpy().astype(np.float16).tobytes())
    for kind, part in parts.items():
        part.close()
        (folder / f".{name}.{kind}.f16").rename(folder / f"{name}.{kind}.f16")
    return name


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=pathlib.Path, required=True)
    args.add_argument("--workers", type=int, default=os.cpu_count())
    args = args.parse_args()
    folder = args.data / "audio"
    names = [path.stem for path in sorted(folder.glob("[!.]*.jsonl"))]
    missing = [(folder, name) for name in names if not all((folder / f"{name}.{kind}.f16").exists() for kind in FEATURES)]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for name in pool.imap_unordered(make, missing):
            print(name, flush=True)


if __name__ == "__main__":
    main()
