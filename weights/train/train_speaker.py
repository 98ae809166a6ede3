#!/usr/bin/env python3
"""Step 8: train the speaker encoder to place every speaker where a public encoder hears it.

Crops of 1.5 to 3 s with random gain and noise. The embedding is to point where the speaker's mean voiceprint does
(`make_voiceprints.py`), so that near embeddings are speakers that sound alike, also of those that were never heard. A helper, not
exported, reads the speaker's profile, its mean mel and its median pitch, off the embedding.

    train_speaker.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M]
"""
import random

import torch
import torch.nn.functional as F
from torch import nn

from make_voiceprints import placed, speaker_means
from tinyvoice.audio import fbank_16k, resample_batch
from tinyvoice.config import DIMS, PROMPT_RATE, SAMPLE_RATE, SPK_DIM
from tinyvoice.corpus import Corpus, trained_on
from tinyvoice.models.speaker import SpeakerEncoder
from tinyvoice.training import Run, arguments, clipped_step, setup

PRINT_WEIGHT = 8.0
PROFILE_WEIGHT, PROFILE_ROWS = 1.0, 12


def crops(by_speaker, corpus, batch, device):
    """(audio [B, N] at 24 kHz, speaker index [B]); speakers are drawn evenly."""
    seconds = random.uniform(1.5, 3.0)
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
    """Mean mel of the frames with a pitch and median log2 f0 of each speaker, every column over all speakers at zero mean and unit
    variance: [speakers, 81]."""
    out = []
    for rows in by_speaker:
        f0, mel = (torch.cat([corpus.features(row, kind) for row in rows[:PROFILE_ROWS]]) for kind in ("f0", "mel"))
        f0 = f0[:, 0]
        out.append(torch.cat([mel[f0 > 0].mean(0), f0[f0 > 0].log2().median()[None]]))
    out = torch.stack(out)
    return (out - out.mean(0)) / out.std(0, correction=0).clamp(min=1e-3)


def main():
    parser = arguments(__doc__, steps=6000, batch=64, lr=2e-3)
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch = 4
    corpus = Corpus(args.data / "audio", keep=trained_on)
    stored = torch.load(args.data / "voiceprints.pt", weights_only=True)
    means = speaker_means(corpus.rows, stored["prints"])
    names = list(means)
    by_speaker = [[row for row in corpus.rows if row["speaker"] == name] for name in names]
    wanted = profiles(by_speaker, corpus).clone().to(device)
    targets = placed(torch.stack(list(means.values())), stored).to(device)
    model = SpeakerEncoder(DIMS.speaker).to(device)
    profile = nn.Linear(SPK_DIM, wanted.shape[1]).to(device)
    parameters = [*model.parameters(), *profile.parameters()]
    optimizer = torch.optim.AdamW(parameters, args.lr, weight_decay=0.05)
    run = Run("speaker", args, {"model": model, "profile": profile}, {"all": optimizer}, decay=0.99)
    for _ in run.steps():
        audio, labels = crops(by_speaker, corpus, args.batch, device)
        embedding = F.normalize(model(fbank_16k(resample_batch(audio, SAMPLE_RATE, PROMPT_RATE))), dim=1)
        apart = 1 - (embedding * targets[labels]).sum(1).mean()
        sketch = F.mse_loss(profile(SPK_DIM ** 0.5 * embedding), wanted[labels])
        nearest = (embedding @ targets.T).argmax(1)
        run.add(apart=apart, right=(nearest == labels).float().mean(), profile=sketch)
        clipped_step(PRINT_WEIGHT * apart + PROFILE_WEIGHT * sketch, optimizer, parameters, 5.0)


if __name__ == "__main__":
    main()
