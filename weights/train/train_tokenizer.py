#!/usr/bin/env python3
"""Step 5: train the speech tokenizer.

The quantised codes must tell a small decoder the phonemes (frame by frame where the teacher tells them, else by CTC),
the mel of the utterance given its mean and deviation over time, and the pitch relative to its mean: content and prosody,
not timbre. So that they do not tell who speaks either, each utterance is read twice, as it is and as others might have said it at
the same time (frequencies moved, spectrum tilted, a little noise): both must tell the same, in the same codes. Only the
tokenizer is exported.

    train_tokenizer.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M]
"""
import math
import random

import torch
import torch.nn.functional as F
from torch import nn

from tinyvoice.alignment import evenly
from tinyvoice.audio import warp
from tinyvoice.config import DIMS, MEL_BINS
from tinyvoice.corpus import Corpus, trained_on, with_features
from tinyvoice.models.speech_tokenizer import SpeechTokenizer
from tinyvoice.training import Run, arguments, autocast, clipped_step, setup

UNSPOKEN = set(" ˈˌ.,;:!?—…\"“”()")
SAMPLES_PER_TOKEN = 960
LEAST, MOST = 0.7, 1.43             # frequencies are moved by so much
TILTS, TILT, NOISE = 4, 0.08, 0.02  # cosines over the bins; in units of 40 dB
TESTED, TEST_STEPS = 32, 250        # held-out utterances whose phonemes are read, every so many steps
SILENT = -11.5                      # log mel
FRAME_WEIGHT, CTC_WEIGHT, MEL_WEIGHT, PITCH_WEIGHT, SAME_WEIGHT, NEAR_WEIGHT = 3.0, 0.5, 0.7, 0.5, 2.0, 0.2


def phoneme_table(path):
    """({text: phoneme ids}, {phoneme: id}); id 0 is CTC's blank, and the silence of frames."""
    spoken = {}
    for line in path.open(encoding="utf-8"):
        _, text, phonemes = line.rstrip("\n").split("\t")
        spoken[text] = [c for c in phonemes if c not in UNSPOKEN]
    alphabet = sorted({c for phonemes in spoken.values() for c in phonemes})
    ids = {c: i + 1 for i, c in enumerate(alphabet)}
    return {text: [ids[c] for c in phonemes] for text, phonemes in spoken.items()}, ids


class ConvBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.depth = nn.LayerNorm(width), nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.depth(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(self.up(y)))


class CodeReader(nn.Module):
    """codes [B, T, dims] at 25 Hz -> phoneme logits [B, T, P] for CTC and [B, P, 2T] of the frames, mel [B, 80, 2T],
    (voiced logit, pitch) [B, 2, 2T]."""

    def __init__(self, code_dims, phonemes, width=192):
        super().__init__()
        self.enter = nn.Linear(code_dims, width)
        self.shared = nn.Sequential(ConvBlock(width), ConvBlock(width), ConvBlock(width))
        self.phonemes, self.frames = nn.Linear(width, phonemes), nn.Linear(width, 2 * phonemes)
        self.timbre = nn.Linear(2 * MEL_BINS, width)
        self.fine = nn.Sequential(ConvBlock(width), ConvBlock(width), nn.LayerNorm(width))
        self.mel, self.pitch = nn.Linear(width, 2 * MEL_BINS), nn.Linear(width, 4)

    def forward(self, codes, timbre):
        """timbre: mean and deviation of the mel over time, [B, 160]."""
        shared = self.shared(self.enter(codes))
        fine = self.fine(shared + self.timbre(timbre)[:, None])
        frames = lambda x: x.unflatten(2, (2, -1)).flatten(1, 2).transpose(1, 2)
        return self.phonemes(shared), frames(self.frames(shared)), frames(self.mel(fine)), frames(self.pitch(fine))


def timbre_of(mel, inside):
    """Mean and deviation over the frames inside: mel [B, 80, T], inside [B, T] -> [B, 160]."""
    weight = inside[:, None] / inside.sum(1)[:, None, None]
    mean = (mel * weight).sum(2)
    return torch.cat([mean, (((mel - mean[..., None]) ** 2) * weight).sum(2).sqrt()], dim=1)


def pitch_loss(predicted, f0, inside):
    """Voicing cross entropy plus L1 of log2 f0 about the utterance's mean, on frames inside [B, T]."""
    voiced = (f0 > 0) & inside
    entropy = F.binary_cross_entropy_with_logits(predicted[:, 0], voiced.float(), reduction="none")[inside].mean()
    octaves = torch.log2(f0.clamp(min=50.0))
    mean = (octaves * voiced).sum(1, keepdim=True) / voiced.sum(1, keepdim=True).clamp(min=1)
    return entropy + 4 * ((predicted[:, 1] - (octaves - mean)).abs() * voiced).sum() / voiced.sum().clamp(min=1)


def phoneme_losses(rows, tokens, phonemes, ids, by_token, by_frame):
    """(cross entropy of the frames whose phonemes are known, CTC of the other rows, each 0 where there are none)."""
    known = [i for i, row in enumerate(rows) if "frames" in row]
    other = [i for i, row in enumerate(rows) if "frames" not in row]
    frame = ctc = by_token.sum() * 0
    if known:
        target = torch.full((len(known), by_frame.shape[2]), -1)
        weight = torch.zeros(target.shape)
        for i, line in enumerate(rows[i]["frames"] for i in known):
            target[i, :len(line)] = torch.tensor([ids.get(c, 0) for c in line])
            weight[i, :len(line)] = torch.tensor(evenly(line))
        entropy = F.cross_entropy(by_frame[known].float(), target.to(by_frame.device), ignore_index=-1, reduction="none")
        frame = (entropy * weight.to(entropy.device)).sum() / weight.sum()
    if other:
        targets = [torch.tensor(phonemes[rows[i]["text"]]) for i in other]
        ctc = F.ctc_loss(by_token[other].float().log_softmax(-1).transpose(0, 1), torch.cat(targets).to(by_token.device),
                         tokens[other], torch.tensor([len(t) for t in targets], device=by_token.device),
                         zero_infinity=True)
    return frame, ctc


def as_others(feats):
    """Log-mel features as other speakers and microphones might have given: [B, 128, T] -> [B, 128, T]."""
    moved = torch.cat([warp(row[None], math.exp(random.uniform(math.log(LEAST), math.log(MOST)))) for row in feats])
    place = (torch.arange(feats.shape[1], device=feats.device) + 0.5) / feats.shape[1]
    curves = torch.cos(math.pi * place * torch.arange(1, TILTS + 1, device=feats.device)[:, None])
    tilt = TILT * torch.randn(len(feats), TILTS, device=feats.device) @ curves
    return moved + tilt[..., None] + NOISE * torch.randn_like(moved)


def misread(said, heard):
    """Edit distance of two strings of phonemes, over the length of the first."""
    before = list(range(len(heard) + 1))
    for i, a in enumerate(said, 1):
        row = [i]
        for j, b in enumerate(heard, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
        before = row
    return before[-1] / max(1, len(said))


def collapsed(frames):
    """Phoneme ids of frames, each once for its run, without silence."""
    return [a for a, before in zip(frames, [0, *frames]) if a and a != before]


@torch.no_grad()
def held_out_error(model, reader, corpus, ids, device):
    """Share of the phonemes of held-out utterances that are not read from their tokens."""
    total = 0.0
    for row in corpus.rows:
        feats = corpus.padded_features([row], "log", 0.0, device)
        hidden, _ = model.encoder(feats, torch.tensor([feats.shape[2]], dtype=torch.int32, device=device))
        frames = reader(model.quantizer.codes(hidden), torch.zeros(1, 2 * MEL_BINS, device=device))[1]
        total += misread(collapsed([ids.get(c, 0) for c in row["frames"]]), collapsed(frames[0].argmax(0).tolist()))
    return torch.tensor(total / len(corpus.rows))


def main():
    parser = arguments(__doc__, steps=40_000, batch=48, lr=1e-3)
    parser.add_argument("--shares", default="", help="SPEAKER=SHARE of the utterances, comma between; the others share the rest")
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch = 2
    shares = {name: float(share) for name, share in (item.split("=") for item in args.shares.split(",") if item)}
    corpus = Corpus(args.data / "audio", keep=trained_on, shards=with_features(args.data / "audio"))
    test = Corpus(args.data / "audio", None, lambda name: name == "heart", shards=with_features(args.data / "audio"))
    test.rows = [row for row in test.rows if row["split"] == "test" and "frames" in row][:TESTED]
    phonemes, ids = phoneme_table(args.data / "text.tsv")
    model = SpeechTokenizer(DIMS.tokenizer).to(device)
    reader = CodeReader(DIMS.tokenizer.fsq_dims, len(ids) + 1).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *reader.parameters()], args.lr, betas=(0.9, 0.98))
    run = Run("tokenizer", args, {"model": model, "reader": reader}, {"both": optimizer})
    for step in run.steps():
        if step % TEST_STEPS == 0 and test.rows:
            run.add(misread=held_out_error(model, reader, test, ids, device))
        rows = corpus.shared(args.batch, shares) if shares else corpus.similar(args.batch)
        tokens = torch.tensor([row["length"] // SAMPLES_PER_TOKEN for row in rows], device=device)
        feats, mel = (corpus.padded_features(rows, kind, value, device) for kind, value in (("log", 0.0), ("mel", SILENT)))
        f0 = corpus.padded_features(rows, "f0", 0.0, device)[:, 0]
        inside = torch.arange(mel.shape[2], device=device)[None] < 2 * tokens[:, None]
        timbre = timbre_of(mel, inside)
        twice = lambda x: torch.cat([x, x])
        with autocast(device):
            hidden, _ = model.encoder(torch.cat([feats, as_others(feats)]), (4 * twice(tokens)).int())
            bounded = model.quantizer.bounded(hidden)
            rounded = bounded.round().detach()
            by_token, by_frame, mel_hat, pitch_hat = reader(bounded + (rounded - bounded).detach(), twice(timbre))
        frame, ctc = phoneme_losses(rows + rows, twice(tokens), phonemes, ids, by_token, by_frame)
        mel_loss = ((mel_hat.float() - twice(mel)).abs() * twice(inside)[:, None]).sum() / (2 * inside.sum() * MEL_BINS)
        known = twice(~f0.isnan().any(1))
        f0_loss = pitch_loss(pitch_hat[known].float(), twice(f0)[known], twice(inside)[known]) if known.any() else frame * 0
        speech = inside[:, ::2]
        (own, other), (own_id, other_id) = bounded.chunk(2), rounded.chunk(2)
        same = (own - other).square().mean(-1)[speech].mean()
        near = (bounded - rounded).square().mean(-1)[twice(speech)].mean()
        equal = (own_id == other_id).all(-1)[speech].float().mean()
        run.add(frame=frame, ctc=ctc, mel=mel_loss, pitch=f0_loss, same=same, near=near, equal=equal)
        clipped_step(FRAME_WEIGHT * frame + CTC_WEIGHT * ctc + MEL_WEIGHT * mel_loss + PITCH_WEIGHT * f0_loss
                     + SAME_WEIGHT * same + NEAR_WEIGHT * near, optimizer, [*model.parameters(), *reader.parameters()])


if __name__ == "__main__":
    main()
