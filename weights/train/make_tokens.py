#!/usr/bin/env python3
"""Step 7: speech tokens and speaker embeddings of the whole corpus, from the trained tokenizer and speaker encoder.

    make_tokens.py --data DATA --ckpt CKPT [--device cuda]

Output: DATA/tokens.pt with, per utterance key, its tokens (int16) and its embedding (float16 [192]). With `--add` the
utterances that it holds already are kept as they are.
"""
import argparse
import itertools
import pathlib

import torch

from tinyvoice.audio import fbank_16k, log_mel_16k, resample_batch
from tinyvoice.config import DIMS, PROMPT_RATE, SAMPLE_RATE
from tinyvoice.corpus import Corpus
from tinyvoice.models.speaker import SpeakerEncoder
from tinyvoice.models.speech_tokenizer import SpeechTokenizer
from tinyvoice.training import averaged_state

SAMPLES_PER_TOKEN = 960
BATCH = 64


def batches(rows):
    """Runs of rows of exactly one length: nothing is padded, so a row's tokens do not depend on its batch."""
    for _, group in itertools.groupby(rows, key=lambda row: row["length"]):
        group = list(group)
        yield from (group[i:i + BATCH] for i in range(0, len(group), BATCH))


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
    tokens, embeddings, used = {}, {}, torch.zeros(DIMS.tokenizer.codebook, dtype=torch.long)
    corpus = Corpus(args.data / "audio", split=None)
    if args.add:
        stored = torch.load(args.data / "tokens.pt", weights_only=True)
        tokens, embeddings = stored["tokens"], stored["embeddings"]
    for rows in batches([row for row in corpus.by_length if row["key"] not in tokens]):
        audio, _ = corpus.padded(rows, args.device)
        low = resample_batch(audio, SAMPLE_RATE, PROMPT_RATE)
        feats = log_mel_16k(low)
        lengths = torch.full((len(rows),), feats.shape[2], dtype=torch.int32, device=args.device)
        ids = tokenizer(feats, lengths)[:, :rows[0]["length"] // SAMPLES_PER_TOKEN].cpu()
        spoken_by = encoder(fbank_16k(low)).cpu().half()
        for i, row in enumerate(rows):
            tokens[row["key"]], embeddings[row["key"]] = ids[i].short(), spoken_by[i].clone()
        used += torch.bincount(ids.flatten().long(), minlength=len(used))
    part = args.data / "tokens.part"
    torch.save({"tokens": tokens, "embeddings": embeddings}, part)
    part.replace(args.data / "tokens.pt")
    share = used[used > 0].float() / used.sum()
    print(f"{len(tokens)} utterances, {int((used > 0).sum())} of {len(used)} ids used, "
          f"entropy {float(-(share * share.log2()).sum()):.2f} bits")


if __name__ == "__main__":
    main()
