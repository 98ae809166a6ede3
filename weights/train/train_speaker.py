#!/usr/bin/env python3
"""Step 7: train the speaker encoder to tell the speakers and pseudo-speakers apart.

Crops of 2 to 4 s with random gain and noise; additive-margin softmax (arXiv 1801.05599) over speakers. A helper, not
exported, reads the speaker's profile, its mean mel and its median pitch, off the embedding: so that near embeddings are
speakers that sound alike, which is what the flow needs for one that it never heard.

    train_speaker.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M]
"""
import random

import torch
import torch.nn.functional as F
from torch import nn

from tinyvoice.audio import fbank_16k, mel_24k, pitch, resample_batch
from tinyvoice.config import DIMS, PROMPT_RATE, SAMPLE_RATE, SPK_DIM
from tinyvoice.corpus import Corpus, trained_on
from tinyvoice.models.speaker import SpeakerEncoder
from tinyvoice.training import Run, arguments, clipped_step, setup

MARGIN, SCALE = 0.2, 24.0
PROFILE_WEIGHT, PROFILE_ROWS = 2.0, 12


def crops(by_speaker, corpus, batch, device):
    """(audio [B, N] at 24 kHz, speaker index [B]); speakers are drawn evenly."""
    seconds = random.uniform(2.0, 4.0)
    length = int(seconds * SAMPLE_RATE) // 960 * 960
    out, labels = torch.zeros(batch, length), []
    for i in range(batch):
        label = random.randrange(len(by_speaker))
        row = random.choice(by_speaker[label])
        start = random.randrange(max(1, row["length"] - length))
        piece = corpus.audio(row, start, length)
        out[i, :len(piece)] = piece * random.uniform(0.3, 1.3)
        labels.append(label)
    noise = torch.randn_like(out) * 10 ** torch.empty(batch, 1).uniform_(-5.0, -2.3)
    return (out + noise).to(device), torch.tensor(labels, device=device)


@torch.inference_mode()
def profiles(by_speaker, corpus):
    """Mean mel of the voiced frames and median log2 f0 of each speaker, every column over all speakers at zero mean and unit
    variance: [speakers, 81]."""
    out = []
    for rows in by_speaker:
        audio, _ = corpus.padded(rows[:PROFILE_ROWS], "cpu")
        f0, mel = pitch(audio), mel_24k(audio).transpose(1, 2)
        out.append(torch.cat([mel[f0 > 0].mean(0), f0[f0 > 0].log2().median()[None]]))
    out = torch.stack(out)
    return (out - out.mean(0)) / out.std(0, correction=0).clamp(min=1e-3)


class Margin(nn.Module):
    """Cosine logits with an additive margin on the true class."""

    def __init__(self, speakers):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(speakers, SPK_DIM))

    def forward(self, embedding, labels):
        cosine = F.normalize(embedding) @ F.normalize(self.weight).T
        return SCALE * (cosine - MARGIN * F.one_hot(labels, cosine.shape[1])), cosine


def main():
    parser = arguments(__doc__, steps=6000, batch=64, lr=2e-3)
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch = 4
    corpus = Corpus(args.data / "audio", keep=trained_on)
    names = sorted({row["speaker"] for row in corpus.rows})
    by_speaker = [[row for row in corpus.rows if row["speaker"] == name] for name in names]
    wanted = profiles(by_speaker, corpus).clone().to(device)
    model, margin = SpeakerEncoder(DIMS.speaker).to(device), Margin(len(names)).to(device)
    profile = nn.Linear(SPK_DIM, wanted.shape[1]).to(device)
    parameters = [*model.parameters(), *margin.parameters(), *profile.parameters()]
    optimizer = torch.optim.AdamW(parameters, args.lr, weight_decay=0.05)
    run = Run("speaker", args, {"model": model, "margin": margin, "profile": profile}, {"all": optimizer}, decay=0.99)
    for _ in run.steps():
        audio, labels = crops(by_speaker, corpus, args.batch, device)
        embedding = model(fbank_16k(resample_batch(audio, SAMPLE_RATE, PROMPT_RATE)))
        logits, cosine = margin(embedding, labels)
        loss = F.cross_entropy(logits, labels)
        sketch = F.mse_loss(profile(SPK_DIM ** 0.5 * F.normalize(embedding)), wanted[labels])
        run.add(loss=loss, right=(cosine.argmax(1) == labels).float().mean(), profile=sketch)
        clipped_step(loss + PROFILE_WEIGHT * sketch, optimizer, parameters, 5.0)


if __name__ == "__main__":
    main()
