#!/usr/bin/env python3
"""Step 6: train the speech tokenizer.

A token says a phoneme and a little more (`tinyvoice/phonetic.py`). The tokenizer learns to hear that where
the teacher told it; every sound weighs the same, however short. So that it does not matter who speaks, each utterance is heard
twice, as it is and as others might have said it at the same time (frequencies moved, spectrum tilted, a little noise). A
helper that names the sounds from the last hidden state is not exported; `make_tokens.py` aligns with it the speech of those
teachers that tell nothing.

    train_tokenizer.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M]
"""
import math
import random

import torch
import torch.nn.functional as F

from tinyvoice.alignment import evenly
from tinyvoice.audio import warp
from tinyvoice.config import DIMS
from tinyvoice.corpus import Corpus, trained_on, with_features
from tinyvoice.models.speech_tokenizer import SpeechTokenizer
from tinyvoice.phonetic import DIGITS, SOUNDS, digits_of, sound_of, spoken_tokens
from tinyvoice.teachers import SILENCE
from tinyvoice.training import Run, arguments, autocast, clipped_step, setup

SAMPLES_PER_TOKEN = 960
LEAST, MOST = 0.7, 1.43             # frequencies are moved by so much
TILTS, TILT, NOISE = 4, 0.08, 0.02  # cosines over the bins; in units of 40 dB
TESTED, TEST_STEPS = 32, 250        # held-out utterances whose sounds are read, every so many steps
SHARPNESS = 8.0                     # of the two thresholds of a dimension
SOUND_DIGITS, DETAIL_WEIGHT, NAME_WEIGHT = 4, 0.5, 0.5


def as_others(feats):
    """Log-mel features as other speakers and microphones might have given: [B, 128, T] -> [B, 128, T]."""
    moved = torch.cat([warp(row[None], math.exp(random.uniform(math.log(LEAST), math.log(MOST)))) for row in feats])
    place = (torch.arange(feats.shape[1], device=feats.device) + 0.5) / feats.shape[1]
    curves = torch.cos(math.pi * place * torch.arange(1, TILTS + 1, device=feats.device)[:, None])
    tilt = TILT * torch.randn(len(feats), TILTS, device=feats.device) @ curves
    return moved + tilt[..., None] + NOISE * torch.randn_like(moved)


def wanted(rows, told):
    """Of the rows, padded: digits of their tokens [B, T, 6], index of their sounds [B, T], weight of each token [B, T], 0 outside."""
    count = max(len(told[row["key"]]) for row in rows)
    digits = torch.ones(len(rows), count, DIGITS, dtype=torch.long)
    names, weights = torch.zeros(len(rows), count, dtype=torch.long), torch.zeros(len(rows), count)
    for i, tokens in enumerate(told[row["key"]].tolist() for row in rows):
        sounds = [sound_of(token) for token in tokens]
        digits[i, :len(tokens)] = torch.tensor([digits_of(token) for token in tokens])
        names[i, :len(tokens)] = torch.tensor([SOUNDS.index(sound) for sound in sounds])
        weights[i, :len(tokens)] = torch.tensor(evenly([SILENCE if sound[0] == SILENCE else sound for sound in sounds]))
    return digits, names, weights


def digit_losses(bounded, digits, weights):
    """How badly the values before rounding [B, T, 6] say the digits, as two thresholds a dimension: (of the sounds, each token by its
    weight; of the rest, all tokens alike)."""
    above = torch.stack([SHARPNESS * (bounded + 0.5), SHARPNESS * (bounded - 0.5)], dim=-1)
    target = torch.stack([digits > 0, digits > 1], dim=-1).to(bounded.dtype)
    entropy = F.binary_cross_entropy_with_logits(above, target, reduction="none").sum(-1)
    inside = (weights > 0).to(bounded.dtype)
    sound = (entropy[..., :SOUND_DIGITS].sum(-1) * weights).sum() / weights.sum()
    return sound, (entropy[..., SOUND_DIGITS:].sum(-1) * inside).sum() / inside.sum()


def misread(said, heard):
    """Edit distance of two sequences, over the length of the first."""
    before = list(range(len(heard) + 1))
    for i, a in enumerate(said, 1):
        row = [i]
        for j, b in enumerate(heard, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
        before = row
    return before[-1] / max(1, len(said))


def collapsed(tokens):
    """Phonemes of tokens, each once for its run, without silence and without what has no meaning."""
    sounds = [(sound_of(token) or SILENCE)[0] for token in tokens]
    return [a for a, before in zip(sounds, [SILENCE, *sounds]) if a not in (SILENCE, before)]


@torch.no_grad()
def held_out_error(model, corpus, device):
    """Share of the phonemes of held-out utterances that are not heard."""
    total = 0.0
    for row in corpus.rows:
        feats = corpus.padded_features([row], "log", 0.0, device)
        heard = model(feats, torch.tensor([feats.shape[2]], dtype=torch.int32, device=device))[0].tolist()
        total += misread(collapsed(spoken_tokens(row)), collapsed(heard))
    return torch.tensor(total / len(corpus.rows))


def main():
    parser = arguments(__doc__, steps=40_000, batch=48, lr=1e-3)
    parser.add_argument("--shares", default="", help="SPEAKER=SHARE of the utterances, comma between; the others share the rest")
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch = 2
    shares = {name: float(share) for name, share in (item.split("=") for item in args.shares.split(",") if item)}
    told = torch.load(args.data / "tokens.pt", weights_only=True)["tokens"]
    shards = with_features(args.data / "audio")
    corpus = Corpus(args.data / "audio", keep=trained_on, tokens=told, shards=shards)
    test = Corpus(args.data / "audio", None, lambda name: name == "heart", tokens=told, shards=shards)
    test.rows = [row for row in test.rows if row["split"] == "test"][:TESTED]
    model = SpeechTokenizer(DIMS.tokenizer).to(device)
    names = torch.nn.Linear(DIMS.tokenizer.state, len(SOUNDS)).to(device)
    parameters = [*model.parameters(), *names.parameters()]
    optimizer = torch.optim.AdamW(parameters, args.lr, betas=(0.9, 0.98))
    run = Run("tokenizer", args, {"model": model, "names": names}, {"both": optimizer})
    for step in run.steps():
        if step % TEST_STEPS == 0 and test.rows:
            run.add(misread=held_out_error(model, test, device))
        rows = corpus.shared(args.batch, shares) if shares else corpus.similar(args.batch)
        lengths = torch.tensor([row["length"] // SAMPLES_PER_TOKEN for row in rows], device=device)
        feats = corpus.padded_features(rows, "log", 0.0, device)
        digits, sounds, weights = (torch.cat([x, x]).to(device) for x in wanted(rows, told))
        with autocast(device):
            hidden, _ = model.encoder(torch.cat([feats, as_others(feats)]), (4 * torch.cat([lengths, lengths])).int())
            hidden = hidden[:, :digits.shape[1]]
            bounded, named = model.quantizer.bounded(hidden), names(hidden).float()
        sound, detail = digit_losses(bounded, digits, weights)
        name = (F.cross_entropy(named.transpose(1, 2), sounds, reduction="none") * weights).sum() / weights.sum()
        exact = ((bounded.round() + 1 == digits)[..., :SOUND_DIGITS].all(-1) * weights).sum() / weights.sum()
        near = ((bounded.round() + 1 == digits)[..., SOUND_DIGITS:].all(-1)[weights > 0]).float().mean()
        run.add(sound=sound, detail=detail, name=name, exact=exact, near=near)
        clipped_step(sound + DETAIL_WEIGHT * detail + NAME_WEIGHT * name, optimizer, parameters)


if __name__ == "__main__":
    main()
