#!/usr/bin/env python3
"""Step 11: train the flow (tokens, speaker embedding and a part of the mel -> mel).

Two helper losses make the encoder say what is spoken: its mean must be near the mel, and where the teacher told the phoneme
of every frame a small reader must be able to tell it from that mean. `--only encoder` trains with these alone: half the
arithmetic, and a flow that has to refine an intelligible mean learns faster than one that waits for it, so on a CPU a run begins
with it and goes on with `--only estimator`, which keeps the encoder as it is.

With `--shares` the speakers it does not name are those that clones are learnt from: before their rows stands a prompt, which is another
utterance of the speaker with the tokens that the tokenizer hears of it, where they are stored: so it is when a recording is cloned, and
two of three of them are not those that are told. With `--doubt` the embedding of such a row is mixed with another speaker's, so that
the prompt is what tells who speaks: of a speaker who was never heard the embedding says little that the flow has learnt to read.

    train_flow.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M] [--only encoder|estimator]
"""
import functools
import random
import statistics

import torch
import torch.nn.functional as F

from tinyvoice.alignment import evenly
from tinyvoice.config import DIMS, MEL_BINS, SAMPLE_RATE, SPK_DIM, TOKEN_RATE
from tinyvoice.corpus import Corpus, trained_on, with_features
from tinyvoice.models.flow import Flow
from tinyvoice.muon import Muon
from tinyvoice.training import Run, arguments, autocast, clipped_step, setup

SILENT = -11.5     # log mel
TOKEN_SAMPLES = SAMPLE_RATE // TOKEN_RATE
LEAST_SPREAD, EVEN_SPREAD, MOST_DIRECTIONS = 0.03, 0.3, 32
PROMPT_TOKENS = 40, 125     # 1.6 to 5 s
LONGER = 1.1       # a row that is longer than the median of its batch by more than this is cut: more than a third of the work was padding
PRIOR_WEIGHT, SOUND_WEIGHT, READER_WIDTH = 1.0, 1.0, 256


class Embeddings:
    """Speaker embedding for an utterance: its own, another's of the same speaker, or the speaker's mean."""

    def __init__(self, rows, embeddings):
        self.own, self.keys, self.means = embeddings, {}, {}
        for row in rows:
            if row["key"] in embeddings:
                self.keys.setdefault(row["speaker"], []).append(row["key"])
        for speaker, keys in self.keys.items():
            self.means[speaker] = torch.stack([embeddings[k].float() for k in keys]).mean(0)

    def draw(self, row):
        chance = random.random()
        if chance < 0.4 and row["key"] in self.own:
            return self.own[row["key"]].float()
        if chance < 0.7:
            return self.own[random.choice(self.keys[row["speaker"]])].float()
        return self.means[row["speaker"]]

    def doubted(self, row, most):
        """An embedding that says who speaks less and less surely, up to `most`: mixed with the mean of any speaker."""
        share = random.random() * most
        other = self.means[random.choice(list(self.means))]
        return (1 - share) * F.normalize(self.draw(row), dim=0) + share * F.normalize(other, dim=0)


class Means:
    """What an encoder that stays as it is makes of the tokens of each utterance: a quarter of a step's time and more, spent once."""

    def __init__(self, model, tokens):
        self.model, self.tokens, self.kept = model, tokens, {}

    @torch.no_grad()
    def __call__(self, rows, streaming, device):
        """`mu` by the key of each row, [2L, 80] on the CPU."""
        missing = list({row["key"]: row for row in rows if (row["key"], streaming) not in self.kept}.values())
        if missing:
            ids = [self.tokens[row["key"]].long() for row in missing]
            lengths = torch.tensor([len(i) for i in ids], device=device)
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
            for row, mu, length in zip(missing, self.model.encode(padded, lengths, streaming), 2 * lengths):
                self.kept[row["key"], streaming] = mu[:, :length].half().cpu()
        return {row["key"]: self.kept[row["key"], streaming].T.float() for row in rows}


class Prompt:
    """What a clone hears of its speaker: up to `most` tokens in a piece of another of the utterances `of_speaker` than `row`, one that
    is long enough where there is one."""

    def __init__(self, of_speaker, row, most):
        others = [other for other in of_speaker if other is not row] or [row]
        long = [other for other in others if other["length"] >= most * TOKEN_SAMPLES] or [max(others, key=lambda other: other["length"])]
        self.row = random.choice(long)
        tokens = self.row["length"] // TOKEN_SAMPLES
        self.count = min(most, tokens)
        self.start = random.randint(0, tokens - self.count)


def spliced(prompts, rows, own, of_prompt=None, a_token=1):
    """What `own` gives of each row, `a_token` values a token, after what `of_prompt` (None: it too) gives of its prompt, where it has one."""
    parts = []
    for prompt, row in zip(prompts, rows):
        before = [] if prompt is None else [(of_prompt or own)(prompt.row)[a_token * prompt.start:a_token * (prompt.start + prompt.count)]]
        parts.append(torch.cat([*before, own(row)]))
    return parts


def padded_columns(parts, length, value):
    """Of each [T, C] the first `length` rows, or with `value` up to there: [B, C, length]."""
    return torch.stack([F.pad(part[:length], (0, 0, 0, max(0, length - len(part))), value=value) for part in parts]).transpose(1, 2)


def as_heard(tokens, heard):
    """The tokens that the tokenizer hears where it has been asked, as many as are told."""
    return tokens | {key: torch.cat([ids, tokens[key][len(ids):]]) for key, ids in heard.items() if key in tokens}


@torch.no_grad()
def spread(layer, means):
    """Sets the layer that the speaker embedding enters by so that its outputs have unit variance over the speakers (`means`: name
    to mean embedding). An embedding is of unit length and its 192 values near 0.07: through weights of an ordinary size the estimator
    hardly hears who is to speak."""
    points = F.normalize(torch.stack([means[name] for name in sorted(means)]), dim=1)
    centre = points.mean(0)
    _, sizes, directions = torch.linalg.svd(points - centre, full_matrices=False)
    kept = sizes > LEAST_SPREAD * sizes[0]
    kept[MOST_DIRECTIONS:] = False
    scale = len(points) ** 0.5 / sizes[kept].clamp(min=EVEN_SPREAD * sizes[0])
    mixed = torch.randn(layer.out_features, int(kept.sum()), generator=torch.Generator().manual_seed(0)) / int(kept.sum()) ** 0.5
    layer.weight.copy_(mixed @ (scale[:, None] * directions[kept]))
    layer.bias.copy_(-layer.weight @ centre)


def main():
    parser = arguments(__doc__, steps=60_000, batch=48, lr=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--only", choices=["encoder", "estimator"])
    parser.add_argument("--voices-anew", action="store_true",
                        help="with --begin: another speaker encoder has made the embeddings")
    parser.add_argument("--helpers-first", type=int, default=0, metavar="STEPS",
                        help="with --begin: train the reader alone so long")
    parser.add_argument("--main", metavar="SPEAKER", help="the encoder's mean is to be the mel of this speaker, whoever speaks")
    parser.add_argument("--muon", action="store_true", help="step the estimator's matrices by Muon")
    parser.add_argument("--shares", default="", help="SPEAKER=SHARE of the utterances, comma between; the others share the rest")
    parser.add_argument("--doubt", type=float, default=0.0, metavar="SHARE",
                        help="with --shares: mix the embeddings of clones with up to so much of another speaker's")
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch = 2
    shares = {name: float(share) for name, share in (item.split("=") for item in args.shares.split(",") if item)}
    stored = torch.load(args.data / "tokens.pt", weights_only=True)
    tokens = stored["tokens"]
    corpus = Corpus(args.data / "audio", keep=trained_on, tokens=tokens, shards=with_features(args.data / "audio"))
    speakers = Embeddings(corpus.rows, stored["embeddings"])
    if args.only != "encoder" and (mute := {row["speaker"] for row in corpus.rows} - speakers.means.keys()):
        raise SystemExit(f"no speaker embedding of {', '.join(sorted(mute))}: run make_tokens.py with --ckpt")
    names = {c: i for i, c in enumerate(sorted({c for row in corpus.rows for c in row.get("frames", "")}))}
    model = Flow(DIMS.flow, DIMS.tokenizer.codebook, args.dropout).to(device)
    reader = torch.nn.Sequential(torch.nn.Conv1d(MEL_BINS, READER_WIDTH, 5, padding=2), torch.nn.GELU(),
                                 torch.nn.Conv1d(READER_WIDTH, max(1, len(names)), 1)).to(device)
    parameters = [*model.parameters(), *reader.parameters()]
    matrices = [p for p in model.decoder.estimator.parameters() if p.ndim > 1] if args.muon else []
    others = [p for p in parameters if not any(p is matrix for matrix in matrices)]
    kind = functools.partial(Muon, matrices) if args.muon else torch.optim.AdamW
    optimizer = kind(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    run = Run("flow", args, {"model": model, "reader": reader}, {"model": optimizer})
    if run.step == 0 and (args.voices_anew or not args.begin) and len(speakers.means) > 1:
        spread(model.spk_embed_affine_layer, speakers.means)
        spread(run.average.module.spk_embed_affine_layer, speakers.means)
    heard = as_heard(tokens, stored["heard"])
    means = of_prompts = None
    if args.only == "estimator":
        model.encoder.eval()
        means, of_prompts = Means(model, tokens), Means(model, heard)
    for step in run.steps():
        model.requires_grad_(step >= args.helpers_first)
        # processes that train together take rows of one length: each step waits for the slowest
        alike = random.Random(args.seed * 1_000_003 + step)
        length, most = alike.choice(corpus.rows)["length"], alike.randint(*PROMPT_TOKENS)
        rows = corpus.shared(args.batch, shares, length, most * TOKEN_SAMPLES) if shares else corpus.similar(args.batch)
        prompts = [None] * len(rows)
        if shares and args.only != "encoder":
            prompts = [None if row["speaker"] in shares else Prompt(corpus.speakers()[row["speaker"]], row, most) for row in rows]
        ids = spliced(prompts, rows, lambda row: tokens[row["key"]].long(), lambda row: heard[row["key"]].long())
        longest = int(LONGER * statistics.median(len(i) for i in ids))
        lengths = torch.tensor([min(longest, len(i)) for i in ids], device=device)
        longest = int(lengths.max())
        padded = torch.nn.utils.rnn.pad_sequence([i[:longest] for i in ids], batch_first=True).to(device)
        frames = lambda parts, value: padded_columns(parts, 2 * longest, value).to(device)
        mel = frames(spliced(prompts, rows, lambda row: corpus.features(row, "mel"), a_token=2), SILENT)
        embedding = torch.ones(len(rows), SPK_DIM)       # the encoder does without
        if args.only != "encoder":
            embedding = torch.stack([speakers.draw(row) if row["speaker"] in shares or not args.doubt else
                                     speakers.doubted(row, args.doubt) for row in rows])
        sounds, weights = torch.full(mel.shape[::2], -1), torch.zeros(mel.shape[::2])
        for i, row in enumerate(rows if args.only != "estimator" else []):
            first = 2 * prompts[i].count if prompts[i] else 0
            told = row.get("frames", "")[:mel.shape[2] - first]
            sounds[i, first:first + len(told)] = torch.tensor([names[c] for c in told], dtype=torch.long)
            weights[i, first:first + len(told)] = torch.tensor(evenly(told))
        is_main = torch.tensor([row["speaker"] == args.main for row in rows], device=device) if args.main else None
        given = torch.tensor([2 * prompt.count if prompt else 0 for prompt in prompts], device=device)

        def mu(streaming):
            own, before = means(rows, streaming, device), of_prompts([prompt.row for prompt in prompts if prompt], streaming, device)
            return frames(spliced(prompts, rows, lambda row: own[row["key"]], lambda row: before[row["key"]], 2), 0.0)

        with autocast(device):
            loss, prior, sound = model.loss(padded, lengths, mel, embedding.to(device), sounds.to(device), weights.to(device),
                                            reader, args.only, is_main, given, means and mu)
        run.add(loss=loss, prior=prior, sound=sound)
        helpers = 0.0 if args.only == "estimator" else PRIOR_WEIGHT * prior + SOUND_WEIGHT * sound
        clipped_step(loss + helpers, optimizer, parameters)


if __name__ == "__main__":
    main()
