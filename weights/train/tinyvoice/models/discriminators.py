"""Discriminators of the vocoder's adversarial stage: multi-period (HiFi-GAN) and multi-resolution spectral
(UnivNet), in a slim width. Each call returns a list of (score, feature maps) per sub-discriminator."""
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

PERIODS = (2, 3, 5, 7, 11)
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))     # n_fft, hop, window
SLIM_RESOLUTIONS = ((1024, 256, 1024), (2048, 512, 2048), (512, 128, 512))


class PeriodDiscriminator(nn.Module):
    """Wave [B, N] folded to [B, 1, N / period, period]."""

    def __init__(self, period, widths):
        super().__init__()
        self.period = period
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(i, o, (5, 1), (3, 1), (2, 0))) for i, o in zip((1, *widths), widths))
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave):
        short = -wave.shape[1] % self.period
        x = F.pad(wave[:, None], (0, short), mode="reflect").unflatten(2, (-1, self.period))
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        return self.last(x), maps


class SpectralDiscriminator(nn.Module):
    """Magnitude spectrogram of wave [B, N] as an image."""

    def __init__(self, n_fft, hop, size, width):
        super().__init__()
        self.sizes = n_fft, hop, size
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        shapes = [(1, (3, 9), 1), *[(width, (3, 9), 2)] * 3, (width, (3, 3), 1)]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(i, width, k, (1, s), (k[0] // 2, k[1] // 2))) for i, k, s in shapes)
        self.last = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, wave):
        x = torch.stft(wave.float(), *self.sizes, window=self.window, return_complex=True).abs().transpose(1, 2)[:, None]
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        return self.last(x), maps


class Discriminators(nn.Module):
    """`slim`: the spectral ones alone, at half their width and two to four times their hop, a tenth of the arithmetic."""

    def __init__(self, slim=False, widths=(16, 64, 128, 256), spectral_width=16):
        super().__init__()
        periods = [] if slim else [PeriodDiscriminator(p, widths) for p in PERIODS]
        width = spectral_width // 2 if slim else spectral_width
        resolutions = SLIM_RESOLUTIONS if slim else RESOLUTIONS
        self.parts = nn.ModuleList(periods + [SpectralDiscriminator(*r, width) for r in resolutions])

    def forward(self, wave):
        return [part(wave) for part in self.parts]


def discriminator_loss(real, fake):
    """Least squares: real scores to 1, generated ones to 0."""
    return sum(((r - 1) ** 2).mean() + (f ** 2).mean() for (r, _), (f, _) in zip(real, fake))


def generator_losses(real, fake):
    """(adversarial loss, feature-matching loss)."""
    adversarial = sum(((score - 1) ** 2).mean() for score, _ in fake)
    matching = sum(F.l1_loss(f, r.detach()) for (_, rm), (_, fm) in zip(real, fake) for r, f in zip(rm, fm))
    return adversarial, matching
