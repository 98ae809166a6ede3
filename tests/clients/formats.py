"""Decodes what a server answers in every format with decoders that are not ours: `python tests/clients/formats.py http://localhost:8000`.

The same request is made in each format, as a task and as a stream. libsndfile and ffmpeg must find the sample rate and the length of the result,
and the same audio as in its wav file. Needs requests, numpy, soundfile, imageio-ffmpeg.
"""

import io
import re
import subprocess
import sys

import imageio_ffmpeg
import numpy
import requests
import soundfile

BASE = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://localhost:8000"
REQUEST = {"text": "The same sentence in every format, one after the other.", "voice_id": "pretrained_voice_001", "seed": 11}
# Least correlation with the wav file of the same request; 1: every sample equal.
FLOOR = {"wav": 1.0, "flac": 1.0, "pcm": 1.0, "mp3": 0.99, "opus": 0.95, "aac": 0.97, "m4a": 0.97}
# What ffmpeg calls the codec. Opus is always decoded at 48 kHz.
CODEC = {"wav": "pcm_s16le", "flac": "flac", "mp3": "mp3", "opus": "opus", "aac": "aac", "m4a": "aac"}
SNDFILE = {"wav", "flac", "mp3", "opus"}
# Samples that a decoder may add where nothing tells it of the encoder's delay and padding.
PADDING = {"mp3": 2600, "aac": 2600}


def task(form):
    accepted = requests.post(f"{BASE}/api/v1/synthesize/sft", json={**REQUEST, "format": form}, timeout=120)
    assert accepted.status_code == 200, accepted.text
    result = accepted.json()
    audio = requests.get(BASE + result["audio_url"], timeout=30)
    assert audio.status_code == 200, audio.text
    return audio.content, result


def stream(form):
    answer = requests.post(f"{BASE}/api/v1/synthesize/sft", json={**REQUEST, "format": form, "stream": True}, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.content


def by_ffmpeg(data, form, rate):
    """Samples at `rate`; the stream must be what its name says."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", "-", "-f", "f32le", "-ar", str(rate), "-"]
    if form == "m4a":  # An index at the end cannot be read from a pipe.
        command[command.index("-")] = "cache:pipe:0"
    run = subprocess.run(command, input=data, capture_output=True)
    report = run.stderr.decode()
    assert run.returncode == 0, (form, report)
    found = re.search(r"Stream #0:0.*: Audio: (\w+).*?, (\d+) Hz, (\w+)", report)
    assert found and found[1] == CODEC[form], (form, report)
    assert int(found[2]) == (48000 if form == "opus" else rate) and found[3] == "mono", (form, found.groups())
    assert "Error" not in report and "Invalid" not in report, (form, report)
    return numpy.frombuffer(run.stdout, numpy.float32)


def by_sndfile(data, form, rate):
    samples, found = soundfile.read(io.BytesIO(data), dtype="float32")
    assert found == rate and samples.ndim == 1, (form, found, samples.shape)
    return samples


def by_hand(data, form, rate):
    return numpy.frombuffer(data, "<i2").astype(numpy.float32) / 32768


def correlation(found, expected, slack):
    """The largest over the lags up to `slack`."""
    best = 0.0
    for lag in range(max(1, min(slack, len(found) - len(expected)) + 1)):
        part = found[lag : lag + len(expected)].astype(float)
        whole = expected[: len(part)].astype(float)
        best = max(best, (part * whole).sum() / max(numpy.sqrt((part**2).sum() * (whole**2).sum()), 1e-30))
    return best


def check(name, decoder, data, form, rate, expected):
    found = decoder(data, form, rate)
    slack = PADDING.get(form, 0)
    match = correlation(found, expected, slack)
    print(f"{name:12} {decoder.__name__:10} {len(found):6} of {len(expected)} samples, correlation {match:.4f}")
    assert 0 <= len(found) - len(expected) <= slack, (name, len(found), len(expected))
    if FLOOR[form] == 1.0:
        assert (found == expected).all(), name
    assert match >= FLOOR[form] - 1e-9, (name, match)


def decoders(form, streamed):
    if form == "pcm":
        return [by_hand]
    # soundfile seeks after each read, which libsndfile cannot where the length is unknown.
    sndfile = form in SNDFILE and not (streamed and form in ("wav", "flac"))
    return [by_ffmpeg] + [by_sndfile] * sndfile


def main():
    wav, result = task("wav")
    rate = result["sample_rate"]
    expected = by_sndfile(wav, "wav", rate)
    assert abs(len(expected) / rate - result["duration"]) < 0.01 and numpy.abs(expected).max() > 0, result
    expected_stream = by_hand(stream("pcm"), "pcm", rate)
    for form in FLOOR:
        data, result = task(form)
        assert abs(len(expected) / rate - result["duration"]) < 0.01, result
        for decoder in decoders(form, False):
            check(form, decoder, data, form, rate, expected)
        data = stream(form)
        for decoder in decoders(form, True):
            check(f"stream {form}", decoder, data, form, rate, expected_stream)


if __name__ == "__main__":
    main()
    print("ok formats")
