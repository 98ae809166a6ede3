#!/usr/bin/env python3
"""Step 9: train the language model (text -> speech tokens).

Half of the rows are two utterances of one speaker joined, which is what a prompt looks like; half of the rows long
enough are laid out for text streaming. Merges of the text are dropped at random so that rare words are seen spelt.
`--simple` leaves both out and the long sentences too: short rows align text and speech soonest, so on a CPU a run begins with it.

    train_llm.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M] [--simple SECONDS]
"""
import random

import torch

from tinyvoice.bpe import Bpe
from tinyvoice.config import DIMS
from tinyvoice.corpus import Corpus
from tinyvoice.models.llm import SpeechLm
from tinyvoice.training import Run, arguments, autocast, clipped_step, setup

BPE_DROPOUT = 0.1
MAX_TOKENS = 600      # speech tokens of a joined row: 24 s


def main():
    parser = arguments(__doc__, steps=60_000, batch=64, lr=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--simple", type=float, help="single utterances up to so many seconds only")
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch = 2
    tokens = torch.load(args.data / "tokens.pt", weights_only=True)["tokens"]
    bpe = Bpe.load(args.data / "bpe")
    corpus = Corpus(args.data / "audio", longest=args.simple)
    by_speaker = {}
    for row in corpus.rows:
        by_speaker.setdefault(row["speaker"], []).append(row)
    model = SpeechLm(DIMS.llm, DIMS.tokenizer.codebook, args.dropout).to(device)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    other = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}],
                                  args.lr, betas=(0.9, 0.98))
    run = Run("llm", args, {"model": model}, {"model": optimizer})
    for _ in run.steps():
        texts, speeches = [], []
        for row in corpus.similar(args.batch):
            text = bpe.encode(row["text"], random, BPE_DROPOUT if random.random() < 0.5 else 0.0)
            speech = tokens[row["key"]].tolist()
            if not args.simple and random.random() < 0.5:
                before = random.choice(by_speaker[row["speaker"]])
                if len(speech) + len(tokens[before["key"]]) <= MAX_TOKENS:
                    text = bpe.encode(before["text"]) + text
                    speech = tokens[before["key"]].tolist() + speech
            texts.append(text)
            speeches.append(speech)
        with autocast(device):
            loss, right = model.loss(texts, speeches, mixed=0.0 if args.simple else 0.5)
        run.add(loss=loss, right=right)
        clipped_step(loss, optimizer, model.parameters())


if __name__ == "__main__":
    main()
