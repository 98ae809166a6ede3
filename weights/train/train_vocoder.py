#!/usr/bin/env python3
"""Step 5: train the HiFT vocoder on crops of the teachers' speech.

Losses: multi-resolution STFT (log magnitude and spectral convergence), log-mel L1 at three resolutions, f0 L1 against
the pitch, and after `--gan-from` of the run least-squares adversarial and feature-matching losses. The
source is driven by the true f0 until then, by the predicted f0 (as at inference) from then on. What is voiced the autocorrelation
says; how high it is the teacher, where it told it: the autocorrelation takes low voices of long formants for an octave higher.
With `--only f0` the predictor of f0 learns alone, which is soon done when there are new speakers.

    train_vocoder.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M]
"""
import functools
import math
import random

import torch
import torch.nn.functional as F

from tinyvoice.audio import mel_24k, normal, pitch
from tinyvoice.config import DIMS, MEL_HOP
from tinyvoice.corpus import Corpus
from tinyvoice.models.discriminators import Discriminators, discriminator_loss, generator_losses
from tinyvoice.models.hift import HiftGenerator
from tinyvoice.muon import Muon
from tinyvoice.training import Run, arguments, autocast, clipped_step, setup

SPECTRA = ((512, 128), (1024, 256), (2048, 512))
MELS = ((1920, 480, 80, 8000.0), (1024, 256, 80, 12000.0), (512, 128, 40, 12000.0))    # n_fft, hop, bins, fmax
ADAM_PACE = 0.3     # with Muon: rate of what AdamW steps, as a share of Muon's
NARROW = ("slt", "rms", "awb", "kal16")     # 16 kHz teachers: nothing above 8 kHz to learn from


def crops(corpus, frames, batch, device, evenly=0.0):
    """Random crops and their f0: float32 [B, 480 * frames], [B, frames]; shorter utterances are padded with silence. `evenly`: the
    share of them whose speaker is drawn first, each as likely; the others are of utterances drawn from all."""
    length = frames * MEL_HOP
    out, told, known = torch.zeros(batch, length), torch.zeros(batch, frames), torch.zeros(batch, 1, dtype=torch.bool)
    for i in range(batch):
        row = corpus.of_any_speaker() if random.random() < evenly else random.choice(corpus.rows)
        start = random.randrange(0, max(1, row["length"] - length), MEL_HOP)
        piece = corpus.audio(row, start, length)
        out[i, :len(piece)] = piece
        if "f0" in row:
            hertz = torch.tensor(row["f0"][start // MEL_HOP:][:frames])
            told[i, :len(hertz)], known[i] = hertz, True
    out = (out * random.uniform(0.6, 1.1)).clamp(-0.98, 0.98)
    f0 = pitch(out)
    return out.to(device), torch.where(known & (f0 > 0), told, f0).to(device)


class Noise:
    """Standard normal noise of the source from a pool drawn once: on a CPU the drawing takes a tenth of a step."""

    def __init__(self, size, device):
        self.pool = torch.randn(2 * size, generator=torch.Generator().manual_seed(7)).to(device)

    def __call__(self, *shape):
        size = math.prod(shape)
        start = random.randrange(len(self.pool) - size + 1)
        return self.pool[start:start + size].view(shape)


def spectral_loss(fake, real):
    """Mean over resolutions of spectral convergence + log-magnitude L1, and of log-mel L1."""
    stft = mel = 0.0
    for n_fft, hop in SPECTRA:
        window = torch.hann_window(n_fft, device=fake.device)
        a, b = (torch.stft(x, n_fft, hop, window=window, return_complex=True).abs().clamp(min=1e-5) for x in (fake, real))
        stft = stft + torch.linalg.norm(b - a) / torch.linalg.norm(b) + F.l1_loss(a.log(), b.log())
    for n_fft, hop, bins, fmax in MELS:
        mel = mel + F.l1_loss(mel_24k(fake, n_fft, hop, bins, fmax), mel_24k(real, n_fft, hop, bins, fmax))
    return stft / len(SPECTRA), mel / len(MELS)


def convolutions(model):
    """What Muon steps: the directions of the weight-normalised convolutions. Not those that up-sample, which are kept interpolations,
    nor those of the predictor of f0, which has a loss of its own."""
    return [p for name, p in model.named_parameters()
            if name.endswith("weight.original1") and not name.startswith(("ups.", "f0_predictor."))]


def main():
    parser = arguments(__doc__, steps=60_000, batch=32, lr=4e-4)
    parser.add_argument("--frames", type=int, default=50, help="mel frames a crop")
    parser.add_argument("--gan-from", type=float, default=0.3, help="share of the run before the adversarial losses")
    parser.add_argument("--evenly", type=float, default=0.0, metavar="SHARE", help="of the crops: from speakers drawn evenly")
    parser.add_argument("--judged", type=int, help="crops a step that the discriminators see (all)")
    parser.add_argument("--slim-judges", action="store_true", help="few small discriminators, which a CPU can afford")
    parser.add_argument("--muon", action="store_true", help="step the generator's convolutions by Muon")
    parser.add_argument("--only", choices=["f0"], help="train this predictor alone, mostly with --begin")
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch, args.frames, args.gan_from = 2, 20, 0.5
    corpus = Corpus(args.data / "audio", keep=lambda s: s.partition("@")[0] not in NARROW)
    model, judges = HiftGenerator(DIMS.hift).to(device), Discriminators(args.slim_judges).to(device)
    matrices = convolutions(model) if args.muon else []
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    kind = functools.partial(Muon, matrices, pace=ADAM_PACE) if args.muon else torch.optim.AdamW
    optimizer = kind(others, lr=args.lr, betas=(0.8, 0.99), weight_decay=0.01)
    judge_optimizer = torch.optim.AdamW(judges.parameters(), args.lr, betas=(0.8, 0.99))
    if args.muon:
        judge_optimizer.param_groups[0]["pace"] = ADAM_PACE
    run = Run("vocoder", args, {"model": model, "judges": judges}, {"model": optimizer, "judges": judge_optimizer})
    shape = args.batch, args.frames * MEL_HOP, DIMS.hift.harmonics + 1
    noise = Noise(math.prod(shape), device)
    model.interpolate()
    for _ in run.steps():
        adversarial = run.progress() >= args.gan_from
        real, f0 = crops(corpus, args.frames, args.batch, device, args.evenly)
        mel = normal(mel_24k(real))
        predicted = model.f0_predictor(mel)
        f0_loss = F.l1_loss(predicted, f0)
        run.add(f0=f0_loss)
        if args.only:
            clipped_step(0.01 * f0_loss, optimizer, model.parameters(), 10.0)
            continue
        fake = model.decode(mel, model.source(predicted.detach() if adversarial else f0, noise(*shape)))
        stft_loss, mel_loss = spectral_loss(fake, real)
        loss = stft_loss + 5 * mel_loss + 0.01 * f0_loss
        run.add(stft=stft_loss, mel=mel_loss)
        if adversarial:
            shown, forged = real[:args.judged], fake[:args.judged]
            with autocast(device):
                judged = discriminator_loss(judges(shown), judges(forged.detach()))
            clipped_step(judged, judge_optimizer, judges.parameters(), 10.0)
            judges.requires_grad_(False)
            with autocast(device):
                cheat, match = generator_losses(judges(shown), judges(forged))
            judges.requires_grad_(True)
            loss = loss + 0.3 * cheat + match
            run.add(judged=judged, cheat=cheat, match=match)
        clipped_step(loss, optimizer, model.parameters(), 10.0)
        model.interpolate()


if __name__ == "__main__":
    main()
