#!/usr/bin/env python3
"""Step 7: speech tokens and speaker embeddings of the whole corpus, from the trained tokenizer and speaker encoder.

    make_tokens.py --data DATA --ckpt CKPT [--device cuda]

Output: DATA/tokens.pt with, per utterance key, its tokens (int16) and its embedding (float16 [192]).
"""
import argparse
import pathlib

import torch

from tinyvoice.audio import fbank_16k, log_mel_16k, resample_batch
from tinyvoice.config import DIMS, PROMPT_RATE, SAMPLE_RATE
from tinyvoice.corpus import Corpus
from tinyvoice.models.speaker import SpeakerEncoder
from tinyvoice.models.speech_tokenizer import SpeechTokenizer
from tinyvoice.training import averaged_state

SAMPLES_PER_TOKEN = 960


@torch.inference_mode()
def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=pathlib.Path, required=True)
    args.add_argument("--ckpt", type=pathlib.Path, required=True)
    args.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args.add_argument("--threads", type=int, default=1)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer, encoder = SpeechTokenizer(DIMS.tokenizer), SpeakerEncoder(DIMS.speaker)
    for model, name in ((tokenizer, "tokenizer"), (encoder, "speaker")):
        model.load_state_dict(averaged_state(args.ckpt, name))
        model.to(args.device).eval()
    tokens, embeddings, used = {}, {}, torch.zeros(DIMS.tokenizer.codebook, dtype=torch.long)
    corpus = Corpus(args.data / "audio", split=None)
    for row in corpus.rows:
        audio = corpus.audio(row)[None].to(args.device)
        low = resample_batch(audio, SAMPLE_RATE, PROMPT_RATE)
        feats = log_mel_16k(low)
        length = torch.tensor([feats.shape[2]], dtype=torch.int32, device=args.device)
        ids = tokenizer(feats, length)[0, :row["length"] // SAMPLES_PER_TOKEN].cpu()
        tokens[row["key"]] = ids.short()
        embeddings[row["key"]] = encoder(fbank_16k(low))[0].cpu().half()
        used += torch.bincount(ids.long(), minlength=len(used))
    torch.save({"tokens": tokens, "embeddings": embeddings}, args.data / "tokens.pt")
    share = used[used > 0].float() / used.sum()
    print(f"{len(tokens)} utterances, {int((used > 0).sum())} of {len(used)} ids used, "
          f"entropy {float(-(share * share.log2()).sum()):.2f} bits")


if __name__ == "__main__":
    main()
