"""Speech corpus on disk: per shard `NAME.i16` (24 kHz PCM16, utterances end to end) and `NAME.jsonl`, one line an
utterance: {speaker, split, text, start, length} with start and length in samples, length a multiple of 960, and where the
teacher tells them `frames`, `stress` and `f0` of its mel frames (`told_of` in `teachers.py`)."""
import bisect
import collections
import json
import math
import pathlib
import random
import re

import numpy as np
import torch

from .config import MEL_BINS, MEL_HOP, SAMPLE_RATE


# by kind: values a frame, samples a frame; as `make_feats.py` writes them
FEATURES = {"mel": (MEL_BINS, MEL_HOP), "log": (128, SAMPLE_RATE // 100), "f0": (1, MEL_HOP)}
HELD_OUT = ("nezumi", "alpha+kumo", "af_sarah", "am_eric")      # cloning is tested on these and on what is made of them


def trained_on(speaker):
    """Whether the speaker encoder and the flow may learn from this speaker."""
    base = re.split("[@~^#]", speaker)[0]
    return base not in HELD_OUT and not any(part in HELD_OUT for part in base.split("+"))


class ShardWriter:
    """Appends utterances; the audio file is the truth about how many are complete, so a run can be repeated."""

    def __init__(self, folder, name):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.audio = (folder / f"{name}.i16").open("wb")
        self.index = (folder / f"{name}.jsonl").open("w", encoding="utf-8")
        self.samples = 0

    def add(self, speaker, split, text, audio, told=None):
        pcm = (np.clip(audio, -1, 1) * 32767).astype("<i2")
        self.audio.write(pcm.tobytes())
        row = {"speaker": speaker, "split": split, "text": text, "start": self.samples, "length": len(pcm)}
        row.update(told or {})
        self.index.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.samples += len(pcm)

    def close(self):
        self.audio.close()
        self.index.close()


def with_features(folder):
    """Names of the shards that `make_feats.py` has read."""
    folder = pathlib.Path(folder)
    return [path.stem for path in folder.glob("[!.]*.jsonl") if all((folder / f"{path.stem}.{k}.f16").exists() for k in FEATURES)]


def some(count, rows, done):
    """Of each speaker the first rows, in all `count` with those that are in `done`."""
    known = collections.Counter(row["speaker"] for row in rows if row["key"] in done)
    for row in rows:
        if row["key"] not in done and known[row["speaker"]] < count:
            known[row["speaker"]] += 1
            yield row


class Corpus:
    """All utterances of a folder, audio memory-mapped.

    `rows` are the utterances of `split` (None: of all) whose speaker passes `keep` (a predicate of the name), up to
    `longest` seconds and, given `tokens`, whose key is in it; `audio(row)` is float32 [N] at 24 kHz. With `shards` only
    these files are read.
    """

    def __init__(self, folder, split="train", keep=lambda speaker: True, longest=None, tokens=None, shards=None):
        self.maps, self.rows, self.names, self.feats, self.folder = [], [], [], {}, pathlib.Path(folder)
        for index in sorted(self.folder.glob("[!.]*.jsonl")):
            if shards is not None and index.stem not in shards:
                continue
            self.names.append(index.stem)
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

    def features(self, row, kind):
        """`mel`, `log` or `f0` (see FEATURES) of an utterance: float32 [T, values], from the files of `make_feats.py`."""
        width, hop = FEATURES[kind]
        key = row["shard"], kind
        if key not in self.feats:
            path = self.folder / f"{self.names[row['shard']]}.{kind}.f16"
            if not path.exists():
                raise SystemExit(f"{path} is missing: run make_feats.py")
            self.feats[key] = np.memmap(path, np.float16, "r").reshape(-1, width)
        start = row["start"] // hop
        return torch.from_numpy(self.feats[key][start:start + row["length"] // hop].astype(np.float32))

    def padded_features(self, rows, kind, value, device):
        """Features of the rows, `value` up to the longest: float32 [B, values, T]."""
        parts = [self.features(row, kind) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value).transpose(1, 2).to(device)

    def similar(self, size):
        """`size` random utterances of about the same length."""
        start = random.randrange(len(self.rows))
        near = self.by_length[max(0, start - size):start + size]
        return random.sample(near, min(size, len(near)))

    def speakers(self):
        """The utterances of each speaker, the short first."""
        if not self.by_speaker:
            for row in self.by_length:
                self.by_speaker.setdefault(row["speaker"], []).append(row)
        return self.by_speaker

    def of_any_speaker(self):
        """A random utterance of a speaker drawn first, each as likely."""
        return random.choice(random.choice(list(self.speakers().values())))

    def shared(self, size, shares, length=None, longer=0):
        """`size` random utterances of about `length` samples (None: that of any), where their speakers have such, from speakers drawn
        by `shares` (name to share of the utterances; theirs are `longer` by so much); what the shares leave of 1 is for the other
        speakers, evenly."""
        by_speaker = self.speakers()
        others = [name for name in by_speaker if name not in shares]
        rest = max(0.0, 1.0 - sum(shares.values())) / max(1, len(others))
        names = [name for name in shares if name in by_speaker] + others
        length, chosen = length or random.choice(self.rows)["length"], []
        for name in random.choices(names, [shares.get(name, rest) for name in names], k=size):
            rows = by_speaker[name]
            near = 2 + len(rows) // 40
            place = bisect.bisect(rows, length + longer * (name in shares), key=lambda row: row["length"]) + random.randint(-near, near)
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
