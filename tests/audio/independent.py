"""Checks the files that `AUDIO_DUMP=DIR cargo test --test main audio::round_trip` leaves with libsndfile and ffmpeg.

usage: independent.py DIR    (needs numpy, soundfile, imageio-ffmpeg)
"""

import pathlib
import subprocess
import sys

import imageio_ffmpeg
import numpy
import soundfile

RATE = 24_000
# Floor of the signal-to-noise ratio in dB; None: every sample equal.
FLOOR = {"wav": None, "flac": None, "mp3": 30.0, "opus": 15.0, "aac": 20.0, "m4a": 20.0}
SNDFILE = {"wav", "flac", "mp3", "opus"}
# `soundfile` seeks after each read, which libsndfile cannot in a FLAC file of unknown length.
UNSEEKABLE = {"stream.flac"}
# Samples that a decoder may be late by where nothing tells it of the encoder's delay.
DELAY = 2600


def by_ffmpeg(path):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path)]
    command += ["-f", "f32le", "-ac", "1", "-ar", str(RATE), "-"]
    run = subprocess.run(command, capture_output=True, check=True)
    if run.stderr:
        raise SystemExit(f"{path.name}: ffmpeg: {run.stderr.decode()}")
    return numpy.frombuffer(run.stdout, numpy.float32)


def by_sndfile(path):
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE, f"{path.name}: {rate} Hz"
    return samples


def best_snr(decoded, expected):
    best = (-100.0, 0)
    for lag in range(0, max(1, min(DELAY, len(decoded) - len(expected) + 2))):
        n = min(len(decoded) - lag, len(expected))
        error = decoded[lag : lag + n].astype(float) - expected[:n]
        snr = 10 * numpy.log10((expected[:n].astype(float) ** 2).sum() / max((error**2).sum(), 1e-30))
        best = max(best, (snr, lag))
    return best


def main(folder):
    expected = by_sndfile(folder / "whole.wav")
    checked = 0
    for path in sorted(folder.glob("*.*")):
        kind = path.suffix[1:]
        if kind not in FLOOR:
            continue
        for name, read in [("libsndfile", by_sndfile), ("ffmpeg", by_ffmpeg)]:
            if name == "libsndfile" and (kind not in SNDFILE or path.name in UNSEEKABLE):
                continue
            decoded = read(path)
            snr, lag = best_snr(decoded, expected)
            print(f"{path.name:12} {name:10} {len(decoded):6} samples, {snr:6.1f} dB at lag {lag}")
            if FLOOR[kind] is None:
                assert len(decoded) == len(expected) and (decoded == expected).all(), path.name
            else:
                assert snr >= FLOOR[kind], f"{path.name}: {snr} dB"
            checked += 1
    assert checked >= 10, f"only {checked} files checked"


main(pathlib.Path(sys.argv[1]))
