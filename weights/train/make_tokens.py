#!/usr/bin/env python3
"""Step 8: speech tokens and speaker embeddings of the whole corpus, from the trained tokenizer and speaker encoder.

    make_tokens.py --data DATA --ckpt CKPT [--device cuda]

Output: DATA/tokens.pt with, per utterance key, its tokens (int16) and, of some utterances of each speaker, the embedding
(float16 [192]). With `--add` the utterances that it holds already are kept as they are.

Tokens tell of who speaks: of the tokens of utterances that are read as others might have said them, a third stay what they were with
the bundled tokenizer, two thirds with one that was trained to say the same of both. The language model speaks in the tokens of the main voice, so a flow that learns from each speaker's own tokens hears the
speaker there and not in the embedding. Each utterance of a speaker with less than three hours of speech therefore has, as
`warped`, the tokens of what it would be had others said it at the same time; of the other speakers one in three has one such reading.
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

from tinyvoice.audio import fbank_16k, resample_batch, warp
from tinyvoice.config import DIMS, PROMPT_RATE, SAMPLE_RATE
from tinyvoice.corpus import Corpus, with_features
from tinyvoice.models.speaker import SpeakerEncoder
from tinyvoice.models.speech_tokenizer import SpeechTokenizer
from tinyvoice.training import averaged_state

SAMPLES_PER_TOKEN = 960
BATCH = 64
WARPS, LEAST, MOST = 2, 0.75, 1.4      # of each utterance; moved by so much
EMBEDDED = 80                          # utterances of each speaker
MANY_HOURS, FEW = 3, 3                 # of a speaker with so many hours one batch in so many


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
    args.add_argument("--no-embeddings", action="store_true", help="tokens alone: enough for the language model and the flow's encoder")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer, encoder = SpeechTokenizer(DIMS.tokenizer), SpeakerEncoder(DIMS.speaker)
    for model, name in ((tokenizer, "tokenizer"), (encoder, "speaker")):
        if model is encoder and args.no_embeddings:
            continue
        model.load_state_dict(averaged_state(args.ckpt, name))
        model.to(args.device).eval()
    tokens, embeddings, warped, used = {}, {}, {}, torch.zeros(DIMS.tokenizer.codebook, dtype=torch.long)
    corpus = Corpus(args.data / "audio", split=None, shards=with_features(args.data / "audio"))
    if args.add:
        stored = torch.load(args.data / "tokens.pt", weights_only=True)
        tokens, embeddings, warped = stored["tokens"], stored["embeddings"], stored.get("warped", {})
    hours = collections.Counter()
    for row in corpus.rows:
        hours[row["speaker"]] += row["length"] / SAMPLE_RATE / 3600
    known = collections.Counter(row["speaker"] for row in corpus.rows if row["key"] in embeddings)
    for rows in batches([row for row in corpus.by_length if row["key"] not in tokens]):
        feats = corpus.padded_features(rows, "log", 0.0, args.device)
        lengths = torch.full((len(rows),), feats.shape[2], dtype=torch.int32, device=args.device)
        ids = tokenizer(feats, lengths)[:, :rows[0]["length"] // SAMPLES_PER_TOKEN].cpu()
        many = hours[rows[0]["speaker"]] >= MANY_HOURS
        if not many or zlib.crc32(rows[0]["key"].encode()) % FEW == 0:
            moved = [tokenizer(warp(feats, ratio), lengths)[:, :ids.shape[1]].cpu() for ratio in ratios(rows[0])[:1 if many else WARPS]]
            warped.update((row["key"], [other[i].short() for other in moved]) for i, row in enumerate(rows))
        tokens.update((row["key"], ids[i].short()) for i, row in enumerate(rows))
        used += torch.bincount(ids.flatten().long(), minlength=len(used))
    # some of each speaker, of every length: the speaker encoder takes longer than the tokenizer
    for row in sorted(corpus.rows, key=lambda row: zlib.crc32(row["key"].encode())):
        if not args.no_embeddings and known[row["speaker"]] < EMBEDDED and row["key"] not in embeddings:
            low = resample_batch(corpus.audio(row)[None].to(args.device), SAMPLE_RATE, PROMPT_RATE)
            embeddings[row["key"]] = encoder(fbank_16k(low))[0].cpu().half()
            known[row["speaker"]] += 1
    part = args.data / "tokens.part"
    torch.save({"tokens": tokens, "embeddings": embeddings, "warped": warped}, part)
    part.replace(args.data / "tokens.pt")
    share = used[used > 0].float() / used.sum()
    print(f"{len(tokens)} utterances, {int((used > 0).sum())} of {len(used)} ids used, "
          f"entropy {float(-(share * share.log2()).sum()):.2f} bits")


if __name__ == "__main__":
    main()
