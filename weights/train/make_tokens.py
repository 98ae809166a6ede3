#!/usr/bin/env python3
"""Step 7: speech tokens and speaker embeddings of the whole corpus, from the trained tokenizer and speaker encoder.

    make_tokens.py --data DATA --ckpt CKPT [--device cuda]

Output: DATA/tokens.pt with, per utterance key, its tokens (int16) and its embedding (float16 [192]). With `--add` the
utterances that it holds already are kept as they are.

Tokens tell much of who speaks: of the tokens of utterances whose frequencies are moved by a tenth to a third, a third stay what they
were. The language model speaks in the tokens of the main voice, so a flow that learns from each speaker's own tokens hears the
speaker there and not in the embedding. Each utterance of a speaker with less than three hours of speech therefore has, as
`warped`, the tokens of what it would be had others said it at the same time.
"""
import argparse
import collections
import itertools
import math
import pathlib
import random
import re
import zlib

import torch

from tinyvoice.audio import fbank_16k, log_mel_16k, resample_batch, warp
from tinyvoice.config import DIMS, PROMPT_RATE, SAMPLE_RATE
from tinyvoice.corpus import Corpus
from tinyvoice.models.speaker import SpeakerEncoder
from tinyvoice.models.speech_tokenizer import SpeechTokenizer
from tinyvoice.training import averaged_state

SAMPLES_PER_TOKEN = 960
BATCH = 64
WARPS, LEAST, MOST = 2, 0.75, 1.4      # of each utterance; moved by so much
MANY_HOURS = 3


def batches(rows):
    """Runs of rows of one speaker and exactly one length: nothing is padded, so a row's tokens do not depend on its batch."""
    kind = lambda row: (row["length"], row["speaker"])
    for _, group in itertools.groupby(sorted(rows, key=kind), key=kind):
        group = list(group)
        yield from (group[i:i + BATCH] for i in range(0, len(group), BATCH))


def ratios(row):
    """By how much the frequencies of a row, and of those read with it, are moved: at random, and for a pseudo-speaker back to
    whom it was made of."""
    rng = random.Random(zlib.crc32(row["key"].encode()))
    drawn = [math.exp(rng.uniform(math.log(LEAST), math.log(MOST))) for _ in range(WARPS)]
    base = re.split("[@~]", row["speaker"])
    return drawn if len(base) == 1 else [1 / float(base[1]), *drawn[1:]]


@torch.inference_mode()
def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=pathlib.Path, required=True)
    args.add_argument("--ckpt", type=pathlib.Path, required=True)
    args.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--add", action="store_true")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer, encoder = SpeechTokenizer(DIMS.tokenizer), SpeakerEncoder(DIMS.speaker)
    for model, name in ((tokenizer, "tokenizer"), (encoder, "speaker")):
        model.load_state_dict(averaged_state(args.ckpt, name))
        model.to(args.device).eval()
    tokens, embeddings, warped, used = {}, {}, {}, torch.zeros(DIMS.tokenizer.codebook, dtype=torch.long)
    corpus = Corpus(args.data / "audio", split=None)
    if args.add:
        stored = torch.load(args.data / "tokens.pt", weights_only=True)
        tokens, embeddings, warped = stored["tokens"], stored["embeddings"], stored.get("warped", {})
    hours = collections.Counter()
    for row in corpus.rows:
        hours[row["speaker"]] += row["length"] / SAMPLE_RATE / 3600
    for rows in batches([row for row in corpus.by_length if row["key"] not in tokens]):
        audio, _ = corpus.padded(rows, args.device)
        low = resample_batch(audio, SAMPLE_RATE, PROMPT_RATE)
        feats = log_mel_16k(low)
        lengths = torch.full((len(rows),), feats.shape[2], dtype=torch.int32, device=args.device)
        ids = tokenizer(feats, lengths)[:, :rows[0]["length"] // SAMPLES_PER_TOKEN].cpu()
        if hours[rows[0]["speaker"]] < MANY_HOURS:
            moved = [tokenizer(warp(feats, ratio), lengths)[:, :ids.shape[1]].cpu() for ratio in ratios(rows[0])]
            warped.update((row["key"], [other[i].short() for other in moved]) for i, row in enumerate(rows))
        spoken_by = encoder(fbank_16k(low)).cpu().half()
        for i, row in enumerate(rows):
            tokens[row["key"]], embeddings[row["key"]] = ids[i].short(), spoken_by[i].clone()
        used += torch.bincount(ids.flatten().long(), minlength=len(used))
    part = args.data / "tokens.part"
    torch.save({"tokens": tokens, "embeddings": embeddings, "warped": warped}, part)
    part.replace(args.data / "tokens.pt")
    share = used[used > 0].float() / used.sum()
    print(f"{len(tokens)} utterances, {int((used > 0).sum())} of {len(used)} ids used, "
          f"entropy {float(-(share * share.log2()).sum()):.2f} bits")


if __name__ == "__main__":
    main()
