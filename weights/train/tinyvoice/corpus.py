"""Speech corpus on disk: per shard `NAME.i16` (24 kHz PCM16, utterances end to end) and `NAME.jsonl`, one line an
utterance: {speaker, split, text, start, length} with start and length in samples, length a multiple of 960, and where the
teacher tells them `frames`: the phonemes of its mel frames, a character each."""
import bisect
import json
import math
import pathlib
import random
import re

import numpy as np
import torch

from .config import SAMPLE_RATE


HELD_OUT = ("nezumi", "alpha+kumo")      # cloning is tested on these and on what is made of them


def trained_on(speaker):
    """Whether the speaker encoder and the flow may learn from this speaker."""
    base = re.split("[@~]", speaker)[0]
    return base not in HELD_OUT and not any(part in HELD_OUT for part in base.split("+"))


class ShardWriter:
    """Appends utterances; the audio file is the truth about how many are complete, so a run can be repeated."""

    def __init__(self, folder, name):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.audio = (folder / f"{name}.i16").open("wb")
        self.index = (folder / f"{name}.jsonl").open("w", encoding="utf-8")
        self.samples = 0

    def add(self, speaker, split, text, audio, frames=None):
        pcm = (np.clip(audio, -1, 1) * 32767).astype("<i2")
        self.audio.write(pcm.tobytes())
        row = {"speaker": speaker, "split": split, "text": text, "start": self.samples, "length": len(pcm)}
        if frames is not None:
            row["frames"] = frames
        self.index.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.samples += len(pcm)

    def close(self):
        self.audio.close()
        self.index.close()


class Corpus:
    """All utterances of a folder, audio memory-mapped.

    `rows` are the utterances of `split` (None: of all) whose speaker passes `keep` (a predicate of the name), up to
    `longest` seconds and, given `tokens`, whose key is in it; `audio(row)` is float32 [N] at 24 kHz.
    """

    def __init__(self, folder, split="train", keep=lambda speaker: True, longest=None, tokens=None):
        self.maps, self.rows = [], []
        for index in sorted(pathlib.Path(folder).glob("[!.]*.jsonl")):
            pcm = np.memmap(index.with_suffix(".i16"), "<i2", "r")
            for line in filter(None, index.read_text(encoding="utf-8").split("\n")):
                row = json.loads(line)
                row["shard"], row["key"] = len(self.maps), f"{index.stem}:{row['start']}"
                fits = row["start"] + row["length"] <= len(pcm) and row["length"] <= (longest or math.inf) * SAMPLE_RATE
                known = tokens is None or row["key"] in tokens
                if split in (None, row["split"]) and keep(row["speaker"]) and fits and known:
                    self.rows.append(row)
            self.maps.append(pcm)
        self.by_length = sorted(self.rows, key=lambda row: row["length"])
        self.by_speaker = {}
        if not self.rows:
            raise SystemExit(f"no {split or ''} speech in {folder}: run make_audio.py first")

    def audio(self, row, offset=0, length=None):
        start = row["start"] + offset
        length = row["length"] - offset if length is None else min(length, row["length"] - offset)
        pcm = self.maps[row["shard"]][start:start + length]
        return torch.from_numpy(pcm.astype(np.float32) / 32768)

    def similar(self, size):
        """`size` random utterances of about the same length."""
        start = random.randrange(len(self.rows))
        near = self.by_length[max(0, start - size):start + size]
        return random.sample(near, min(size, len(near)))

    def shared(self, size, shares):
        """`size` random utterances of about the same length, from speakers drawn by `shares` (name to share of the
        utterances); what the shares leave of 1 is for the other speakers, evenly."""
        if not self.by_speaker:
            for row in self.by_length:
                self.by_speaker.setdefault(row["speaker"], []).append(row)
        others = [name for name in self.by_speaker if name not in shares]
        rest = max(0.0, 1.0 - sum(shares.values())) / max(1, len(others))
        names = [name for name in shares if name in self.by_speaker] + others
        length = random.choice(self.rows)["length"]
        chosen = []
        for name in random.choices(names, [shares.get(name, rest) for name in names], k=size):
            rows = self.by_speaker[name]
            near = 2 + len(rows) // 40
            place = bisect.bisect(rows, length, key=lambda row: row["length"]) + random.randint(-near, near)
            chosen.append(rows[min(max(place, 0), len(rows) - 1)])
        return chosen

    def padded(self, rows, device):
        """Audio of the rows with silence up to the longest: (float32 [B, N], lengths in samples int64 [B])."""
        longest = max(row["length"] for row in rows)
        out = torch.zeros(len(rows), longest)
        for i, row in enumerate(rows):
            out[i, :row["length"]] = self.audio(row)
        return out.to(device), torch.tensor([row["length"] for row in rows], device=device)

    def seconds(self):
        return sum(row["length"] for row in self.rows) / SAMPLE_RATE
