#!/usr/bin/env python3
"""Step 2: let the teachers read the sentences.

    make_audio.py --text DATA/text.tsv --out DATA/audio --speakers heart=6,joe=1,slt=0.3,heart@1.1=0.3 [--workers 2]

NAME=HOURS for each speaker (names: see tinyvoice/teachers.py). NAME~RATIO is made of what NAME has said, played RATIO times as
fast, so that pitch, formants and pace all move: a pseudo-speaker for next to nothing; NAME~#NUMBER draws the ratio, and a colour of the
spectrum. Sentences are drawn by a generator seeded with the
speaker's name, so a repeated run reads the same ones; a tenth as many held-out sentences are read too. Shards
that exist are kept.
"""
import argparse
import multiprocessing
import os
import pathlib
import random
import time
import zlib

import torch

from tinyvoice.audio import resample_batch
from tinyvoice.config import MEL_HOP, SAMPLE_RATE
from tinyvoice.corpus import Corpus, ShardWriter
from tinyvoice.teachers import FRAME, Replay, Speaker

SHARD_HOURS = 0.5
TEST_SHARE = 0.03     # of the audio, from held-out sentences
MAX_SECONDS = 14.0


def read_sentences(path):
    split = {"train": [], "test": []}
    for line in path.open(encoding="utf-8"):
        name, text, _ = line.rstrip("\n").split("\t")
        split[name].append(text)
    return split


def file_name(speaker):
    """What the shards of a speaker that is not played from another's are called, before their number."""
    return speaker.replace("@", "_").replace("+", "-")


def make_shard(job):
    text_path, folder, speaker, index, hours = job
    if "~" in speaker:
        return replay_shard(*job)
    name = f"{file_name(speaker)}.{index:03d}"
    if (folder / f"{name}.jsonl").exists():
        return name, 0.0
    rng = random.Random(zlib.crc32(name.encode()))
    sentences = read_sentences(text_path)
    teacher = Speaker(speaker)
    writer = ShardWriter(folder, f".{name}")
    while writer.samples < hours * 3600 * SAMPLE_RATE:
        split = "test" if rng.random() < TEST_SHARE else "train"
        text = rng.choice(sentences[split])
        audio, told = teacher.say(text, rng.randrange(2 ** 31))
        if audio is not None and len(audio) <= MAX_SECONDS * SAMPLE_RATE:
            writer.add(speaker, split, text, audio, told)
    finish(folder, name, writer)
    return name, writer.samples / SAMPLE_RATE


def finish(folder, name, writer):
    """Gives the shard its name, the index last: its presence marks the shard complete."""
    writer.close()
    for suffix in (".i16", ".jsonl"):
        (folder / f".{name}{suffix}").rename(folder / f"{name}{suffix}")


def replayed(told, ratio, count):
    """What `told_of` tells, of `count` mel frames of the same speech played `ratio` times as fast."""
    at = [min(int((i + 0.5) * ratio), len(told["f0"]) - 1) for i in range(count)]
    return {"frames": "".join(told["frames"][i] for i in at), "stress": "".join(told["stress"][i] for i in at),
            "f0": [round(told["f0"][i] * ratio) for i in at]}


def replay_shard(_, folder, speaker, index, hours):
    """A shard of `BASE~RATIO` or `BASE~#NUMBER` from the shards of BASE."""
    name = f"{speaker}.{index:03d}"
    if (folder / f"{name}.jsonl").exists():
        return name, 0.0
    base, _, how = speaker.partition("~")
    replay = Replay(int(how[1:])) if how.startswith("#") else None
    ratio = replay.ratio if replay else float(how)
    shards = [path.stem for path in folder.glob("[!.]*.jsonl") if path.stem.rpartition(".")[0] == file_name(base)]
    corpus = Corpus(folder, None, shards=shards)
    rows = sorted(corpus.rows, key=lambda row: zlib.crc32(f"{name} {row['key']}".encode()))
    writer = ShardWriter(folder, f".{name}")
    for row in rows:
        if writer.samples >= hours * 3600 * SAMPLE_RATE:
            break
        audio = corpus.audio(row)
        if replay:
            audio = torch.from_numpy(replay.coloured(audio.numpy()))
        audio = resample_batch(audio[None], round(SAMPLE_RATE * ratio), SAMPLE_RATE)[0]
        audio = audio[:len(audio) // FRAME * FRAME].numpy()
        told = replayed(row, ratio, len(audio) // MEL_HOP) if "frames" in row else None
        writer.add(speaker, row["split"], row["text"], audio, told)
    finish(folder, name, writer)
    return name, writer.samples / SAMPLE_RATE


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--text", type=pathlib.Path, required=True)
    args.add_argument("--out", type=pathlib.Path, required=True)
    args.add_argument("--speakers", required=True)
    args.add_argument("--workers", type=int, default=os.cpu_count())
    args = args.parse_args()
    jobs = []
    for item in args.speakers.split(","):
        speaker, hours = item.split("=")
        hours = float(hours)
        shards = max(1, round(hours / SHARD_HOURS))
        jobs += [(args.text, args.out, speaker, i, hours / shards) for i in range(shards)]
    started, seconds = time.time(), 0.0
    spoken, replayed = [job for job in jobs if "~" not in job[2]], [job for job in jobs if "~" in job[2]]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for group in (spoken, replayed):
            for name, made in pool.imap_unordered(make_shard, group):
                seconds += made
                print(f"{name}: {made / 60:.1f} min, {seconds / 3600:.2f} h in all, {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
