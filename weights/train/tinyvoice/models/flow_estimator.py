"""Velocity estimator of the conditional flow: a causal 1-D U-Net of residual and transformer blocks without
down-sampling. Arithmetic and keys of upstream `CausalConditionalDecoder` (`cosyvoice/flow/decoder.py`)."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from ..config import MEL_BINS
from .flow_encoder import chunk_mask

INPUTS = 4 * MEL_BINS     # noisy mel, mu, speaker, condition
TIME_SCALE = 1000


class Mish(torch.autograd.Function):
    """x tanh(softplus x), with a backward pass that PyTorch's own lacks on the CPU: a vectorised one."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        e = x.clamp(max=20).exp()
        n = e * (e + 2)
        return x * (n / (n + 2))

    @staticmethod
    def backward(context, gradient):
        x, = context.saved_tensors
        e = x.clamp(max=20).exp()
        n = e * (e + 2)
        return gradient * (n / (n + 2) + x * (e * (e + 1)) * (2 / (n + 2)) ** 2)


class _Mish(nn.Module):
    def forward(self, x):
        return Mish.apply(x)


class CausalConv1d(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class _Transpose(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class CausalBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.block = nn.Sequential(CausalConv1d(inputs, outputs, 3), _Transpose(), nn.LayerNorm(outputs), _Transpose(),
                                   _Mish())

    def forward(self, x, mask):
        return self.block(x * mask) * mask


class CausalResnet(nn.Module):
    def __init__(self, inputs, outputs, time_dim):
        super().__init__()
        self.mlp = nn.Sequential(_Mish(), nn.Linear(time_dim, outputs))
        self.block1, self.block2 = CausalBlock(inputs, outputs), CausalBlock(outputs, outputs)
        self.res_conv = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x, mask, time):
        h = self.block1(x, mask) + self.mlp(time).unsqueeze(-1)
        return self.block2(h, mask) + self.res_conv(x * mask)


class Attention(nn.Module):
    def __init__(self, width, heads, head_dim):
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, width), nn.Dropout(0.0)])

    def forward(self, x, bias):
        split = lambda t: t.unflatten(2, (self.heads, -1)).transpose(1, 2)
        query, key, value = split(self.to_q(x)), split(self.to_k(x)), split(self.to_v(x))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))


class _Gelu(nn.Module):
    """Linear then GELU; upstream keeps the linear layer under `proj`."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x):
        return F.gelu(self.proj(x))


class TransformerBlock(nn.Module):
    def __init__(self, width, heads, head_dim):
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head_dim)
        self.ff = nn.Module()
        self.ff.net = nn.ModuleList([_Gelu(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width)])

    def forward(self, x, bias):
        x = x + self.attn1(self.norm1(x), bias)
        return x + self.ff.net[2](self.ff.net[0](self.norm3(x)))


class TimeMlp(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, time):
        """time [B] in [0, 1] -> [B, width]."""
        half = INPUTS // 2
        rate = torch.exp(torch.arange(half, device=time.device).float() * -(math.log(10_000) / (half - 1)))
        angle = TIME_SCALE * time[:, None] * rate[None]
        return self.linear_2(F.silu(self.linear_1(torch.cat((angle.sin(), angle.cos()), dim=-1))))


class Estimator(nn.Module):
    def __init__(self, dims):
        super().__init__()
        width, self.chunk = dims.channels, 2 * dims.chunk
        stack = lambda: nn.ModuleList(
            TransformerBlock(width, dims.est_heads, dims.est_head_dim) for _ in range(dims.est_blocks))
        level = lambda inputs, *tail: nn.ModuleList([CausalResnet(inputs, width, 4 * width), stack(), *tail])
        self.time_mlp = TimeMlp(INPUTS, 4 * width)
        self.down_blocks = nn.ModuleList([level(INPUTS, CausalConv1d(width, width, 3))])
        self.mid_blocks = nn.ModuleList(level(width) for _ in range(dims.est_mid))
        self.up_blocks = nn.ModuleList([level(2 * width, CausalConv1d(width, width, 3))])
        self.final_block, self.final_proj = CausalBlock(width, width), nn.Conv1d(width, MEL_BINS, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.pass_through(width)

    @torch.no_grad()
    def pass_through(self, width):
        """Lets the trunk carry the noisy mel, the coarse shape of mu (its first cosine coefficients) and a few constants,
        which keep a layer norm from removing their level, up to the readout; the branches begin small.

        The velocity is mel - noise: all 80 white dimensions of the noise have to pass. From random weights a narrow network
        finds only mu (its loss stays flat in t), and the noise stays in the speech."""
        constants, down, up = 8, self.down_blocks[0], self.up_blocks[0]
        coarse = width - MEL_BINS - constants
        if coarse < 0:
            return
        bin_, order = torch.arange(MEL_BINS) + 0.5, torch.arange(coarse)[:, None]
        first = down[0].res_conv
        nn.init.zeros_(first.weight)
        first.weight[:MEL_BINS, :MEL_BINS, 0] = torch.eye(MEL_BINS)
        first.weight[MEL_BINS:-constants, MEL_BINS:2 * MEL_BINS, 0] = \
            0.5 * math.sqrt(2 / MEL_BINS) * torch.cos(math.pi / MEL_BINS * bin_ * order)
        first.bias[-constants:] = torch.tensor([4.0, -4.0]).repeat(constants // 2)
        down[0].block1.block[0].weight[:, 3 * MEL_BINS:] *= 0.3      # a prompt's mel is not normalised
        through = [mid[0].res_conv for mid in self.mid_blocks]
        for conv in (*through, down[2], up[0].res_conv, up[2], self.final_block.block[0]):
            conv.weight *= 0.05
            conv.weight[:, :width, -1] += torch.eye(width)
        self.final_block.block[2].bias.fill_(2.5)                     # where Mish is nearly linear
        self.final_proj.weight *= 0.3
        for level in (down, *self.mid_blocks, up):
            level[0].block2.block[2].weight.fill_(0.3)
            for block in level[1]:
                block.attn1.to_out[0].weight *= 0.2
                block.ff.net[2].weight *= 0.2

    @staticmethod
    def level(parts, x, mask, time, bias):
        x = parts[0](x, mask, time).transpose(1, 2)
        for block in parts[1]:
            x = block(x, bias)
        return x.transpose(1, 2)

    def forward(self, x, mask, mu, time, speaker, condition, streaming=False):
        """x, mu, condition [B, 80, T], mask [B, 1, T] (1 or 0), time [B], speaker [B, 80] -> velocity [B, 80, T]."""
        time = self.time_mlp(time)
        visible = mask.bool() & chunk_mask(x.shape[2], self.chunk if streaming else 0, x.device)
        bias = ((1.0 - visible.to(x.dtype)) * -1.0e10)[:, None]
        x = torch.cat([x, mu, speaker[:, :, None].expand(-1, -1, x.shape[2]), condition], dim=1)
        down = self.down_blocks[0]
        skip = self.level(down, x, mask, time, bias)
        x = down[2](skip * mask)
        for mid in self.mid_blocks:
            x = self.level(mid, x, mask, time, bias)
        up = self.up_blocks[0]
        x = up[2](self.level(up, torch.cat([x, skip], dim=1), mask, time, bias) * mask)
        return self.final_proj(self.final_block(x, mask) * mask) * mask
