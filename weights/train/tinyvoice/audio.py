"""Signal features in PyTorch alone, each equal to what the official front end computes (tested in `test_parity.py`).

mel_24k      matcha `mel_spectrogram` with the yaml's `feat_extractor` parameters: [B, N] -> [B, 80, N / 480]
log_mel_16k  whisper `log_mel_spectrogram`, 128 bins: [B, N] -> [B, 128, N / 160]
fbank_16k    kaldi fbank, 80 bins, povey window, minus its mean over time: [N] -> [T, 80]
pitch        fundamental frequency by normalised autocorrelation: [B, N] -> [B, N / 480], 0 where unvoiced
resample     windowed-sinc interpolation (torchaudio's defaults): [N] -> [N * to / from]
"""
import functools
import math

import numpy as np
import torch
import torch.nn.functional as F

from .config import MEL_BINS, MEL_HOP, MEL_MEAN, MEL_STD, SAMPLE_RATE


def slaney_filters(rate, n_fft, bins, fmin, fmax):
    """Mel filter bank of librosa's default kind (Slaney scale and area norm). -> [bins, n_fft // 2 + 1] float32."""
    def to_mel(hz):
        return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4))

    def to_hz(mel):
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    edges = to_hz(np.linspace(to_mel(np.float64(fmin)), to_mel(np.float64(fmax)), bins + 2))
    freqs = np.linspace(0, rate / 2, n_fft // 2 + 1)
    ramps = edges[:, None] - freqs[None]
    widths = np.diff(edges)
    rising, falling = -ramps[:-2] / widths[:-1, None], ramps[2:] / widths[1:, None]
    bank = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(bank.astype(np.float32))


def warp(feats, ratio):
    """Log-mel features of 0 to 8 kHz as if all frequencies were `ratio` times as high: another speaker saying the same at the
    same time (vocal tract length perturbation). [B, bins, T] -> [B, bins, T]."""
    count = feats.shape[1]
    to_mel = lambda hz: np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4))
    to_hz = lambda mel: np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))
    step = to_mel(np.float64(8000)) / (count + 1)
    place = to_mel(to_hz(step * np.arange(1, count + 1)) / ratio) / step - 1
    place = torch.from_numpy(np.clip(place, 0, count - 1))
    low = place.long().clamp(max=count - 2)
    share = (place - low).to(feats)[:, None]
    return feats[:, low] * (1 - share) + feats[:, low + 1] * share


def kaldi_filters(rate, n_fft, bins, fmin=20.0):
    """Mel filter bank of Kaldi (HTK scale, triangles in mel). -> [bins, n_fft // 2 + 1]."""
    to_mel = lambda hz: 1127.0 * math.log(1 + hz / 700)
    low, high = to_mel(fmin), to_mel(rate / 2)
    step = (high - low) / (bins + 1)
    left = low + step * torch.arange(bins, dtype=torch.float64)[:, None]
    mel = 1127.0 * torch.log(1 + torch.arange(n_fft // 2, dtype=torch.float64) * (rate / n_fft) / 700)[None]
    bank = torch.minimum((mel - left) / step, (left + 2 * step - mel) / step).clamp(min=0)
    return F.pad(bank, (0, 1)).float()


@functools.cache
def _mel_tables(device, n_fft, bins, fmax):
    return slaney_filters(SAMPLE_RATE, n_fft, bins, 0, fmax).to(device), torch.hann_window(n_fft, device=device)


def mel_24k(audio, n_fft=1920, hop=MEL_HOP, bins=MEL_BINS, fmax=8000.0):
    """Natural-log mel of 24 kHz audio; other sizes serve the spectral losses. [B, N] -> [B, bins, N // hop]."""
    filters, window = _mel_tables(audio.device, n_fft, bins, fmax)
    side = (n_fft - hop) // 2
    audio = F.pad(audio[:, None], (side, side), mode="reflect")[:, 0]
    spec = torch.stft(audio, n_fft, hop, n_fft, window, center=False, return_complex=True)
    magnitude = torch.sqrt(spec.real ** 2 + spec.imag ** 2 + 1e-9)
    return torch.log(torch.clamp(filters @ magnitude, min=1e-5))


def normal(mel):
    """The mel as flow and vocoder exchange it: near zero mean and unit variance, as the flow's noise.

    A log mel lies near -6, so that x_t = (1 - t) noise + t mel is almost all t mel, and a small estimator never learns to
    see the noise in it. The scale is inside the trained weights: the official layout knows nothing of it, and the mel of a
    prompt is given to the flow as it is."""
    return (mel - MEL_MEAN) / MEL_STD


@functools.cache
def _log_mel_tables(device):
    return slaney_filters(16_000, 400, 128, 0, 8000).to(device), torch.hann_window(400, device=device)


def log_mel_16k(audio):
    """Whisper's features of 16 kHz audio, the 8-decade floor set per utterance. [B, N] -> [B, 128, N // 160]."""
    filters, window = _log_mel_tables(audio.device)
    spec = torch.stft(audio, 400, 160, window=window, return_complex=True)
    power = filters @ spec[..., :-1].abs() ** 2
    log = torch.clamp(power, min=1e-10).log10()
    log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8)
    return (log + 4) / 4


@functools.cache
def _fbank_tables(device):
    window = torch.hann_window(400, periodic=False, dtype=torch.float64).pow(0.85).float()
    return kaldi_filters(16_000, 512, 80).to(device), window.to(device)


def fbank_16k(audio):
    """Kaldi log filter bank of 16 kHz audio, mean removed. [B, N] -> [B, (N - 400) // 160 + 1, 80]."""
    filters, window = _fbank_tables(audio.device)
    frames = audio.unfold(1, 400, 160)
    frames = frames - frames.mean(dim=2, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
    power = torch.fft.rfft(frames * window, 512).abs() ** 2
    feats = torch.clamp(power @ filters.T, min=torch.finfo(torch.float32).eps).log()
    return feats - feats.mean(dim=1, keepdim=True)


def pitch(audio, low=60.0, high=500.0):
    """F0 of clean speech at 24 kHz: the best peak of the normalised autocorrelation (Boersma 1993) of 40 ms frames,
    unvoiced below 0.4 or in silence, then a median over 3 frames. [B, N] -> [B, N // 480] in Hz."""
    size, hop = 1440, MEL_HOP
    frames = F.pad(audio, ((size - hop) // 2, (size - hop) // 2)).unfold(1, size, hop)
    window = torch.hann_window(size, device=audio.device)
    power = torch.fft.rfft((frames - frames.mean(2, keepdim=True)) * window, 4096).abs() ** 2
    correlation = torch.fft.irfft(power)[..., :size]
    own = torch.fft.irfft(torch.fft.rfft(window, 4096).abs() ** 2)[:size]
    energy = correlation[..., :1]
    first, last = int(SAMPLE_RATE / high), int(SAMPLE_RATE / low)
    score = correlation / (energy + 1e-9) * own[0] / own
    lags = torch.arange(first, last, device=audio.device)
    # a small cost per octave keeps the period from doubling
    biased = score[..., first:last] - 0.06 * torch.log2(lags / first)
    middle = score[..., first:last]
    peak = (middle >= score[..., first - 1:last - 1]) & (middle >= score[..., first + 1:last + 1])
    best = torch.where(peak, biased, torch.full_like(biased, -1)).argmax(2, keepdim=True)
    around = [score.gather(2, best + first + shift) for shift in (-1, 0, 1)]
    curve = around[0] - 2 * around[1] + around[2]
    offset = torch.where(curve < -1e-6, 0.5 * (around[0] - around[2]) / curve, torch.zeros_like(curve)).clamp(-0.5, 0.5)
    hertz = SAMPLE_RATE / (best + first + offset)
    loud = energy > 1e-4 * energy.amax(dim=1, keepdim=True)
    hertz = torch.where((around[1] > 0.4) & loud, hertz, torch.zeros_like(hertz))[..., 0]
    return F.pad(hertz[:, None], (1, 1), mode="replicate")[:, 0].unfold(1, 3, 1).median(dim=2).values


@functools.cache
def _sinc_kernel(source, target):
    width_factor, rolloff = 6, 0.99
    base = min(source, target) * rolloff
    width = math.ceil(width_factor * source / base)
    index = torch.arange(-width, width + source, dtype=torch.float64)[None] / source
    time = torch.arange(0, -target, -1, dtype=torch.float64)[:, None] / target + index
    time = (time * base).clamp(-width_factor, width_factor)
    window = torch.cos(time * math.pi / width_factor / 2) ** 2
    time = time * math.pi
    kernel = torch.where(time == 0, 1.0, torch.sin(time) / torch.where(time == 0, 1.0, time))
    return (kernel * window * base / source)[:, None].float(), width


def resample_batch(audio, source, target):
    """Hann-windowed sinc interpolation, width 6, roll-off 0.99. [B, N] -> [B, ceil(N * target / source)]."""
    common = math.gcd(source, target)
    source, target = source // common, target // common
    if source == target:
        return audio
    kernel, width = _sinc_kernel(source, target)
    padded = F.pad(audio, (width, width + source))
    out = F.conv1d(padded[:, None], kernel.to(audio.device), stride=source).transpose(1, 2).flatten(1)
    return out[:, :math.ceil(target * audio.shape[1] / source)]


def resample(audio, source, target):
    """numpy float32 [N] -> [ceil(N * target / source)]."""
    return resample_batch(torch.from_numpy(np.ascontiguousarray(audio))[None], source, target)[0].numpy()
