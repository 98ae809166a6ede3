#!/usr/bin/env python3
"""Step 9: train the language model (text -> speech tokens).

Half of the rows are two utterances of one speaker joined, which is what a prompt looks like; a tenth have an instruction
before the text, which is to be obeyed in silence; a share `--mixed` of the rows long enough are laid out for text
streaming. Merges of the text are dropped at random so that rare words are seen spelt, and some sentences are in capitals.
`--simple` leaves all that out and the long sentences too: short rows align text and speech soonest, so on a CPU a run
begins with it, and with `--speakers heart`. Where the teacher told its durations, helper losses guide two attention heads
to the text token that is spoken and ask the hidden state for its phonemes.

    train_llm.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M] [--simple SECONDS]
"""
import random

import torch

from tinyvoice.alignment import FRAMES_PER_TOKEN, spoken_text
from tinyvoice.bpe import Bpe
from tinyvoice.config import DIMS
from tinyvoice.corpus import Corpus
from tinyvoice.models.llm import SpeechLm
from tinyvoice.teachers import SILENCE
from tinyvoice.training import Run, arguments, autocast, clipped_step, setup

BPE_DROPOUT = 0.1
INSTRUCTED, JOINED = 0.1, 0.5     # shares of the rows
CAPITALS = 0.04
INSTRUCTION_TOKENS = 25
MAX_TOKENS = 600      # speech tokens of a joined row: 24 s
GUIDE_WEIGHT, SOUND_WEIGHT = 0.3, 0.5


def phonemes_of(path):
    """Phonemes by sentence."""
    rows = (line.rstrip("\n").split("\t") for line in path.open(encoding="utf-8"))
    return {text: phonemes for _, text, phonemes in rows}


class Reader:
    """Utterances as (text ids, speech ids, hints): the hints say for each speech token which text token it speaks and the
    phonemes of its two frames, [S, 3], or None where the teacher did not tell."""

    def __init__(self, data, tokens):
        self.bpe, self.tokens, self.phonemes = Bpe.load(data / "bpe"), tokens, phonemes_of(data / "text.tsv")
        alphabet = sorted({c for phonemes in self.phonemes.values() for c in phonemes} | {SILENCE})
        self.sounds = {c: i for i, c in enumerate(alphabet)}

    def __call__(self, row, dropout):
        words = row["text"].upper() if random.random() < CAPITALS else row["text"]
        text = self.bpe.encode(words, random, dropout)
        speech = self.tokens[row["key"]].tolist()
        places, hints = None, None
        if "frames" in row:
            places = spoken_text(words, self.phonemes[row["text"]], row["frames"], self.bpe.lengths(text))
        if places is not None:
            sounds = torch.tensor([self.sounds[c] for c in row["frames"]]).unflatten(0, (-1, FRAMES_PER_TOKEN))
            hints = torch.cat([torch.tensor(places)[:, None], sounds], dim=1)
        return text, speech, hints


def moved(hints, count):
    """Hints of a text that stands `count` text tokens later."""
    return hints + torch.tensor([count, 0, 0])


def joined(before, after):
    """Two utterances as one; the hints are known where both are."""
    (text, speech, hints), (text2, speech2, hints2) = before, after
    known = hints is not None and hints2 is not None
    return text + text2, speech + speech2, torch.cat([hints, moved(hints2, len(text))]) if known else None


def instructed(order, end_of_prompt, item):
    """The utterance after words that are not spoken."""
    text, speech, hints = item
    before = [*order[:INSTRUCTION_TOKENS], end_of_prompt]
    return before + text, speech, None if hints is None else moved(hints, len(before))


def main():
    parser = arguments(__doc__, steps=60_000, batch=64, lr=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--mixed", type=float, default=0.5)
    parser.add_argument("--simple", type=float, help="single utterances up to so many seconds only")
    parser.add_argument("--speakers", default="", help="of these only, comma between")
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch = 2
    tokens = torch.load(args.data / "tokens.pt", weights_only=True)["tokens"]
    read = Reader(args.data, tokens)
    corpus = Corpus(args.data / "audio", keep=lambda s: not args.speakers or s in args.speakers.split(","),
                    longest=args.simple, tokens=tokens)
    by_speaker = {}
    for row in corpus.rows:
        by_speaker.setdefault(row["speaker"], []).append(row)
    model = SpeechLm(DIMS.llm, DIMS.tokenizer.codebook, args.dropout).to(device)
    reader = torch.nn.Linear(DIMS.llm.hidden, FRAMES_PER_TOKEN * len(read.sounds)).to(device)
    parameters = [*model.parameters(), *reader.parameters()]
    decayed = [p for p in parameters if p.dim() > 1]
    other = [p for p in parameters if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}],
                                  args.lr, betas=(0.9, 0.98))
    run = Run("llm", args, {"model": model, "reader": reader}, {"model": optimizer})
    for _ in run.steps():
        rows = []
        for row in corpus.similar(args.batch):
            item = read(row, BPE_DROPOUT if random.random() < 0.5 else 0.0)
            kind = 1.0 if args.simple else random.random()
            if kind < INSTRUCTED:
                item = instructed(read.bpe.encode(random.choice(corpus.rows)["text"]), read.bpe.end_of_prompt, item)
            elif kind < INSTRUCTED + JOINED:
                before = random.choice(by_speaker[row["speaker"]])
                if len(item[1]) + len(tokens[before["key"]]) <= MAX_TOKENS:
                    item = joined(read(before, 0.0), item)
            rows.append(item)
        texts, speeches, hints = zip(*rows)
        with autocast(device):
            loss, right, guide, sound = model.loss(texts, speeches, 0.0 if args.simple else args.mixed, hints, reader)
        run.add(loss=loss, right=right, guide=guide, sound=sound)
        clipped_step(loss + GUIDE_WEIGHT * guide + SOUND_WEIGHT * sound, optimizer, parameters)


if __name__ == "__main__":
    main()
