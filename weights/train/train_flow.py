#!/usr/bin/env python3
"""Step 8: train the flow (tokens, speaker embedding and a part of the mel -> mel).

    train_flow.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M]
"""
import random

import torch
import torch.nn.functional as F

from tinyvoice.audio import mel_24k
from tinyvoice.config import DIMS
from tinyvoice.corpus import Corpus
from tinyvoice.models.flow import Flow
from tinyvoice.training import Run, arguments, autocast, clipped_step, setup

HELD_OUT = ("alpha+kumo", "nezumi@0.9")
PRIOR_WEIGHT = 0.2     # helper loss that ties mu to the mel


class Embeddings:
    """Speaker embedding for an utterance: its own, another's of the same speaker, or the speaker's mean."""

    def __init__(self, rows, embeddings):
        self.own, self.keys, self.means = embeddings, {}, {}
        for row in rows:
            self.keys.setdefault(row["speaker"], []).append(row["key"])
        for speaker, keys in self.keys.items():
            self.means[speaker] = torch.stack([embeddings[k].float() for k in keys]).mean(0)

    def draw(self, row):
        chance = random.random()
        if chance < 0.4:
            return self.own[row["key"]].float()
        if chance < 0.7:
            return self.own[random.choice(self.keys[row["speaker"]])].float()
        return self.means[row["speaker"]]


def main():
    parser = arguments(__doc__, steps=60_000, batch=48, lr=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch = 2
    stored = torch.load(args.data / "tokens.pt", weights_only=True)
    tokens = stored["tokens"]
    corpus = Corpus(args.data / "audio", keep=lambda s: s not in HELD_OUT, tokens=stored["embeddings"])
    speakers = Embeddings(corpus.rows, stored["embeddings"])
    model = Flow(DIMS.flow, DIMS.tokenizer.codebook, args.dropout).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    run = Run("flow", args, {"model": model}, {"model": optimizer})
    for _ in run.steps():
        rows = corpus.similar(args.batch)
        audio, _ = corpus.padded(rows, device)
        mel = mel_24k(audio)
        ids = [tokens[row["key"]].long() for row in rows]
        lengths = torch.tensor([len(i) for i in ids], device=device)
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
        mel = F.pad(mel, (0, 2 * padded.shape[1] - mel.shape[2]), value=-11.5)
        embedding = torch.stack([speakers.draw(row) for row in rows]).to(device)
        with autocast(device):
            loss, prior = model.loss(padded, lengths, mel, embedding)
        run.add(loss=loss, prior=prior)
        clipped_step(loss + PRIOR_WEIGHT * prior, optimizer, model.parameters())


if __name__ == "__main__":
    main()
