#!/usr/bin/env python3
"""Step 12: train the language model (text -> speech tokens).

Half of the rows are two utterances joined, which is what a prompt looks like, a third of these of two speakers, so that the
tokens of a strange prompt do no harm, and the first of them as the tokenizer hears it, mistakes and all, where that is known: what a
prompt says is never told; a twelfth are several short ones; a tenth have an instruction before the text, which is to
be obeyed in silence; a share `--mixed` of the rows long enough are laid out for text streaming. Merges of the text are dropped at random so that rare words are seen spelt, and some
sentences are in capitals.
`--simple` leaves all that out and the long sentences too: short rows align text and speech soonest, so on a CPU a run
begins with it, and with `--speakers heart`. Where the teacher told its durations, helper losses guide two attention heads
to the text token that is spoken and ask the hidden state for its phonemes. `--spelling` rows a step are sentences whose
phonemes are to be written: how words are read is learnt from all of the text, spoken or not.

    train_llm.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M] [--simple SECONDS]
"""
import functools
import random

import torch

from tinyvoice.alignment import FRAMES_PER_TOKEN, spoken_text, text_of_phonemes, unstressed
from tinyvoice.bpe import Bpe
from tinyvoice.config import DIMS
from tinyvoice.corpus import Corpus, trained_on
from tinyvoice.models.llm import SpeechLm
from tinyvoice.models.speller import Speller
from tinyvoice.muon import Muon
from tinyvoice.phonetic import sound_of
from tinyvoice.teachers import SILENCE
from tinyvoice.training import Run, arguments, autocast, clipped_step, setup

BPE_DROPOUT = 0.1
INSTRUCTED, JOINED, SEVERAL = 0.1, 0.5, 0.08     # shares of the rows
STRANGER = 0.33       # share of the joined rows
HEARD = 0.6           # share of the joined rows
SHORT_TOKENS = 50     # speech tokens of an utterance that may be one of several: 2 s
CAPITALS = 0.04
INSTRUCTION_TOKENS = 25
MAX_PHONEMES = 90
MAX_TOKENS = 600      # speech tokens of a joined row: 24 s
ADAM_PACE = 0.3       # with Muon: rate of what AdamW steps, as a share of Muon's
GUIDE_WEIGHT, SOUND_WEIGHT, SPELLING_WEIGHT = 0.3, 0.5, 1.0


def phonemes_of(path, split=None):
    """Phonemes by sentence, of one split or of all."""
    rows = (line.rstrip("\n").split("\t") for line in path.open(encoding="utf-8"))
    return {text: phonemes for name, text, phonemes in rows if split in (None, name)}


class Reader:
    """Utterances as (text ids, speech ids, hints, given): the hints say for each speech token which text token it speaks and the
    phonemes of its two frames, [S, 3], or None where the teacher did not tell; given are the speech ids that are to be read, those of
    `heard` where that is asked for."""

    def __init__(self, data, tokens, heard):
        self.heard, self.bpe, self.tokens, self.phonemes = heard, Bpe.load(data / "bpe"), tokens, phonemes_of(data / "text.tsv")
        alphabet = sorted({c for phonemes in self.phonemes.values() for c in phonemes} | {SILENCE})
        self.sounds = {c: i for i, c in enumerate(alphabet)}
        self.sentences = list(phonemes_of(data / "text.tsv", "train").items())

    def spelling(self, count):
        """`count` sentences as (text ids, phoneme ids, which text token each phoneme belongs to)."""
        rows = []
        while len(rows) < count:
            words, phonemes = random.choice(self.sentences)
            words = words.upper() if random.random() < CAPITALS else words
            text = self.bpe.encode(words, random, BPE_DROPOUT if random.random() < 0.5 else 0.0)
            phonemes = unstressed(phonemes)
            places = text_of_phonemes(words, phonemes, self.bpe.lengths(text))
            if places is not None and len(places) <= MAX_PHONEMES:
                rows.append((text, [self.sounds[c] for c in phonemes], places))
        return rows

    def __call__(self, row, dropout, heard=False):
        words = row["text"].upper() if random.random() < CAPITALS else row["text"]
        text = self.bpe.encode(words, random, dropout)
        speech = self.tokens[row["key"]].tolist()
        places, hints = None, None
        if "frames" in row:
            places = spoken_text(words, self.phonemes[row["text"]], row["frames"], self.bpe.lengths(text))
        if places is not None:
            sounds = torch.tensor([self.sounds[c] for c in row["frames"]]).unflatten(0, (-1, FRAMES_PER_TOKEN))
            hints = torch.cat([torch.tensor(places)[:, None], sounds], dim=1)
        return text, speech, hints, self.heard[row["key"]].tolist() if heard else speech


def moved(hints, count):
    """Hints of a text that stands `count` text tokens later."""
    return hints + torch.tensor([count, 0, 0])


def joined(before, after):
    """Two utterances as one; the hints are known where both are. The second begins at once: the silence after the first is the pause,
    and after a prompt there shall be no other."""
    (text, speech, hints, given), (text2, speech2, hints2, given2) = before, after
    begin = next((at for at, token in enumerate(speech2) if sound_of(token)[0] != SILENCE), 0)
    speech2, hints2, given2 = speech2[begin:], None if hints2 is None else hints2[begin:], given2[begin:]
    known = hints is not None and hints2 is not None
    return text + text2, speech + speech2, torch.cat([hints, moved(hints2, len(text))]) if known else None, given + given2


def instructed(order, end_of_prompt, item):
    """The utterance after words that are not spoken."""
    text, speech, hints, given = item
    before = [*order[:INSTRUCTION_TOKENS], end_of_prompt]
    return before + text, speech, None if hints is None else moved(hints, len(before)), given


def main():
    parser = arguments(__doc__, steps=60_000, batch=64, lr=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--mixed", type=float, default=0.5)
    parser.add_argument("--simple", type=float, help="single utterances up to so many seconds only")
    parser.add_argument("--spelling", type=int, default=16)
    parser.add_argument("--speakers", default="", help="of these only, comma between")
    parser.add_argument("--muon", action="store_true", help="step the decoder's matrices by Muon")
    parser.add_argument("--helpers-first", type=int, default=0, metavar="STEPS",
                        help="with --begin: train the helpers alone so long")
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch = args.spelling = 2
    stored = torch.load(args.data / "tokens.pt", weights_only=True)
    tokens = stored["tokens"]
    read = Reader(args.data, tokens, stored["heard"])
    corpus = Corpus(args.data / "audio", keep=lambda s: trained_on(s) and (not args.speakers or s in args.speakers.split(",")),
                    longest=args.simple, tokens=tokens)
    by_speaker, heard, short = {}, {}, {}
    for row in corpus.rows:
        by_speaker.setdefault(row["speaker"], []).append(row)
        if row["key"] in read.heard:
            heard.setdefault(row["speaker"], []).append(row)
        if len(tokens[row["key"]]) <= SHORT_TOKENS:
            short.setdefault(row["speaker"], []).append(row)
    speakers = sorted(by_speaker)
    model = SpeechLm(DIMS.llm, DIMS.tokenizer.codebook, args.dropout).to(device)
    reader = torch.nn.Linear(DIMS.llm.hidden, FRAMES_PER_TOKEN * len(read.sounds)).to(device)
    speller = Speller(DIMS.llm.hidden, len(read.sounds)).to(device)
    matrices = [p for p in model.decoder.layers.parameters() if p.dim() > 1] if args.muon else []
    decayed = [p for p in model.parameters() if p.dim() > 1 and not any(p is matrix for matrix in matrices)]
    other = [p for p in model.parameters() if p.dim() < 2]
    helpers = [*reader.parameters(), *speller.parameters()]
    kind = functools.partial(Muon, matrices, pace=ADAM_PACE) if args.muon else torch.optim.AdamW
    optimizer = kind([{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}, {"params": helpers, "pace": 1.0}],
                     lr=args.lr, betas=(0.9, 0.98), weight_decay=0.1)
    run = Run("llm", args, {"model": model, "reader": reader, "speller": speller}, {"model": optimizer})
    for step in run.steps():
        model.requires_grad_(step >= args.helpers_first)
        rows = []
        for row in corpus.similar(args.batch):
            item = read(row, BPE_DROPOUT if random.random() < 0.5 else 0.0)
            kind = 1.0 if args.simple else random.random()
            if kind < INSTRUCTED:
                item = instructed(read.bpe.encode(random.choice(corpus.rows)["text"]), read.bpe.end_of_prompt, item)
            elif kind < INSTRUCTED + JOINED:
                speaker = random.choice(speakers) if random.random() < STRANGER else row["speaker"]
                as_heard = speaker in heard and random.random() < HEARD
                before = random.choice((heard if as_heard else by_speaker)[speaker])
                if len(item[1]) + len(tokens[before["key"]]) <= MAX_TOKENS:
                    item = joined(read(before, 0.0, as_heard), item)
            elif kind < INSTRUCTED + JOINED + SEVERAL and row["speaker"] in short:
                item = read(random.choice(short[row["speaker"]]), 0.0)
                for _ in range(random.randint(1, 3)):
                    item = joined(item, read(random.choice(short[row["speaker"]]), 0.0))
            rows.append(item)
        texts, speeches, hints, given = zip(*rows)
        with autocast(device):
            loss, right, guide, sound = model.loss(texts, speeches, 0.0 if args.simple else args.mixed, hints, reader, given)
            spelt, guided = speller.loss(model, read.spelling(args.spelling)) if args.spelling else (guide * 0, guide * 0)
        run.add(loss=loss, right=right, guide=guide, sound=sound, spelt=spelt, guided=guided)
        aids = GUIDE_WEIGHT * (guide + guided) + SOUND_WEIGHT * sound + SPELLING_WEIGHT * spelt
        clipped_step(loss + aids, optimizer, [*model.parameters(), *helpers])


if __name__ == "__main__":
    main()
