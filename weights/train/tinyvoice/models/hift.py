"""HiFT vocoder (HiFTNet, arXiv 2309.09493): mel [B, 80, T] -> wave [B, 480 T] at 24 kHz.

A convolutional predictor reads f0 from the mel; a harmonic-plus-noise source is made from it, its short STFT joins
the up-sampling generator at every stage, and the generator's last layer is the magnitude and phase of an inverse
STFT (n_fft 16, hop 4). Same arithmetic and state-dict keys as upstream `cosyvoice/hifigan/generator.py`.

Weights begin as PyTorch draws them: HiFi-GAN's N(0, 0.01) is for 512 channels, and leaves 64 so small that every Snake
is nearly linear.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from ..config import MEL_BINS, SAMPLE_RATE

SINE_AMPLITUDE, NOISE_STD, VOICED_HZ = 0.1, 0.003, 10.0
LEAKY, AUDIO_LIMIT = 0.1, 0.99
EPSILON = 1e-9


def _conv(inputs, outputs, kernel, dilation=1):
    conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)
    return weight_norm(conv)


class SnakeFunction(torch.autograd.Function):
    """x + sin^2(alpha x) / alpha with half the passes over memory that autograd would make."""

    @staticmethod
    def forward(context, x, alpha):
        context.save_for_backward(x, alpha)
        sine = (x * alpha).sin_()
        return torch.addcmul(x, sine, sine / (alpha + EPSILON))

    @staticmethod
    def backward(context, gradient):
        x, alpha = context.saved_tensors
        inverse = 1 / (alpha + EPSILON)
        twice = x * (2 * alpha)
        cosine, sine = twice.cos(), twice.sin_()
        to_x = torch.addcmul(gradient, gradient, sine)
        # sin^2 = (1 - cos 2t) / 2
        slope = torch.addcmul(cosine.mul_(0.5 * inverse).sub_(0.5 * inverse), x, sine)
        return to_x, slope.mul_(gradient).sum(dim=(0, 2), keepdim=True) * inverse


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha, alpha per channel (arXiv 2006.08195)."""

    def __init__(self, channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return SnakeFunction.apply(x, self.alpha[None, :, None])


class ResBlock(nn.Module):
    """HiFi-GAN residual block with Snake activations. [B, C, T] -> [B, C, T]."""

    def __init__(self, channels, kernel, dilations):
        super().__init__()
        self.convs1 = nn.ModuleList(_conv(channels, channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(_conv(channels, channels, kernel) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x):
        for first, conv1, second, conv2 in zip(self.activations1, self.convs1, self.activations2, self.convs2):
            x = x + conv2(second(conv1(first(x))))
        return x


class F0Predictor(nn.Module):
    """mel [B, 80, T] -> f0 [B, T] in Hz."""

    def __init__(self, channels):
        super().__init__()
        layers = []
        for i in range(5):
            layers += [_conv(MEL_BINS if i == 0 else channels, channels, 3), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel):
        return self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1).abs()


class SourceModule(nn.Module):
    """f0 at sample rate [B, N] -> excitation [B, 1, N]: harmonics of f0 plus noise, merged by a linear layer.

    The merge is fixed: all harmonics equally loud, in step. A generator that can do without the source learns to, and with the
    merge free its weights fell from 0.5 to 0.03 in 1,570 steps. At 0.35 the sum of
    48 harmonics peaks at 1.7 before tanh."""

    def __init__(self, harmonics, scale):
        super().__init__()
        self.harmonics, self.scale = harmonics, scale
        self.l_linear = nn.Linear(harmonics + 1, 1)
        nn.init.constant_(self.l_linear.weight, 0.35)
        nn.init.zeros_(self.l_linear.bias)
        self.l_linear.requires_grad_(False)

    def sines(self, f0):
        """[B, N] -> [B, N, harmonics + 1]; the phase is summed at frame rate and interpolated linearly. Upstream multiplies at sample
        rate and reads the middle of each frame, in which f0 is constant: the same."""
        multiples = torch.arange(1, self.harmonics + 2, device=f0.device, dtype=f0.dtype)
        frames = (f0[:, None, self.scale // 2::self.scale] * multiples[:, None] / SAMPLE_RATE) % 1
        phase = torch.cumsum(frames, dim=2) * (2 * math.pi)
        phase = F.interpolate(phase * self.scale, scale_factor=self.scale, mode="linear")
        return torch.sin(phase).transpose(1, 2) * SINE_AMPLITUDE

    def forward(self, f0, noise=None):
        """`noise`: standard normal [B, N, harmonics + 1]; drawn when absent."""
        with torch.no_grad():
            sines = self.sines(f0)
            voiced = (f0 > VOICED_HZ).to(f0.dtype)[..., None]
            noise = torch.randn_like(sines) if noise is None else noise
            level = voiced * NOISE_STD + (1 - voiced) * SINE_AMPLITUDE / 3
            excitation = sines * voiced + level * noise
        return torch.tanh(self.l_linear(excitation)).transpose(1, 2)


class HiftGenerator(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.n_fft, self.hop, self.stages = dims.n_fft, dims.hop, len(dims.rates)
        self.kernels = len(dims.res_kernels)
        self.scale = math.prod(dims.rates) * dims.hop
        self.m_source = SourceModule(dims.harmonics, self.scale)
        self.conv_pre = _conv(MEL_BINS, dims.base, 7)
        widths = [dims.base // 2 ** i for i in range(self.stages + 1)]
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        self.source_downs, self.source_resblocks = nn.ModuleList(), nn.ModuleList()
        for i, (rate, kernel) in enumerate(zip(dims.rates, dims.kernels)):
            up = weight_norm(nn.ConvTranspose1d(widths[i], widths[i + 1], kernel, rate, (kernel - rate) // 2))
            self.ups.append(up)
            self.resblocks.extend(ResBlock(widths[i + 1], k, dims.res_dilations) for k in dims.res_kernels)
            down = math.prod(dims.rates[i + 1:])
            size, pad = (1, 0) if down == 1 else (2 * down, down // 2)
            self.source_downs.append(nn.Conv1d(dims.n_fft + 2, widths[i + 1], size, down, pad))
            self.source_resblocks.append(ResBlock(widths[i + 1], dims.source_kernels[i], dims.res_dilations))
        self.conv_post = _conv(widths[-1], dims.n_fft + 2, 7)
        self.f0_predictor = F0Predictor(dims.f0_channels)
        self.register_buffer("window", torch.hann_window(dims.n_fft), persistent=False)

    @torch.no_grad()
    def interpolate(self):
        """Makes every up-sampling a channel mix and a linear interpolation, the nearest such kernel to the present one.

        For a trainer, after every step. Free kernels learn patterns that repeat with the frame: the generator then fills
        the spectrum with lines at multiples of 50 Hz, and lets the source, whose harmonics should be there, die out."""
        for up in self.ups:
            size, rate = up.kernel_size[0], up.stride[0]
            ramp = 1 - (torch.arange(size) - (size - 1) / 2).abs() / rate
            ramp = ramp.clamp(min=0).to(up.weight.device)
            kernel = up.parametrizations.weight.original1
            kernel.copy_((kernel * ramp).sum(2, keepdim=True) / (ramp * ramp).sum() * ramp)

    def source(self, f0, noise=None):
        """f0 [B, T] at frame rate -> excitation [B, 1, 480 T]."""
        return self.m_source(f0.repeat_interleave(self.scale, dim=1), noise)

    def decode(self, mel, source):
        """mel [B, 80, T], source [B, 1, 480 T] -> wave [B, 480 T]."""
        spec = torch.stft(source[:, 0], self.n_fft, self.hop, window=self.window, return_complex=True)
        spec = torch.cat([spec.real, spec.imag], dim=1)
        x = self.conv_pre(mel)
        for i in range(self.stages):
            x = self.ups[i](F.leaky_relu(x, LEAKY))
            if i == self.stages - 1:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self.source_resblocks[i](self.source_downs[i](spec))
            x = sum(block(x) for block in self.resblocks[i * self.kernels:(i + 1) * self.kernels]) / self.kernels
        x = self.conv_post(F.leaky_relu(x)).float()
        bins = self.n_fft // 2 + 1
        magnitude, phase = torch.exp(x[:, :bins]).clamp(max=1e2), torch.sin(x[:, bins:])
        spec = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
        wave = torch.istft(spec, self.n_fft, self.hop, window=self.window)
        return wave.clamp(-AUDIO_LIMIT, AUDIO_LIMIT)

    def forward(self, mel, f0=None, noise=None):
        """Wave [B, 480 T] and predicted f0 [B, T]; a given `f0` drives the source instead of the predicted one."""
        predicted = self.f0_predictor(mel)
        return self.decode(mel, self.source(predicted if f0 is None else f0, noise)), predicted


def louder(state, gain):
    """State of the same vocoder with an output `gain` times as high: the first half of the last biases is added to log magnitudes."""
    bias = state["conv_post.bias"].clone()
    bias[:len(bias) // 2] += math.log(gain)
    return state | {"conv_post.bias": bias}
