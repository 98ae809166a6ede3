"""Up-sampling conformer encoder of the flow: token embeddings at 25 Hz -> hidden states at 50 Hz.

Look-ahead convolution over three tokens, relative-position transformer blocks, nearest x2 with a causal convolution,
four more blocks. Arithmetic and state-dict keys of upstream `cosyvoice/transformer/upsample_encoder.py`.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

LOOKAHEAD = 3
UP_BLOCKS = 4


def chunk_mask(size, chunk, device):
    """bool [1, size, size]: a position sees its own chunk and everything before; all True when chunk is 0."""
    if chunk == 0:
        return torch.ones(1, size, size, dtype=torch.bool, device=device)
    index = torch.arange(size, device=device)
    ends = (index // chunk + 1) * chunk
    return (index[None] < ends[:, None])[None]


def relative_positions(size, width, device):
    """Sinusoids of the distances size-1 .. -(size-1): [1, 2 size - 1, width]."""
    distance = torch.arange(size - 1, -size, -1, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * -(math.log(10_000.0) / width))
    return torch.stack([torch.sin(distance * rate), torch.cos(distance * rate)], dim=2).flatten(1)[None]


class RelativeAttention(nn.Module):
    """Transformer-XL attention (arXiv 1901.02860) with ESPnet's relative shift."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, width // heads, nn.Dropout(dropout)
        for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
            setattr(self, name, nn.Linear(width, width))
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, self.head_dim))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, self.head_dim))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def shift(self, scores):
        """[B, H, T, 2T-1] by distance -> [B, H, T, T] by key position."""
        batch, heads, time, span = scores.shape
        strides = (heads * time * span, time * span, span - 1, 1)     # row i begins at distance i back
        return scores.contiguous().as_strided((batch, heads, time, time), strides, time - 1)

    def forward(self, x, mask, positions):
        """x [B, T, D], mask bool [B, T or 1, T], positions [1, 2T-1, D] -> [B, T, D]."""
        split = lambda t: t.view(t.shape[0], -1, self.heads, self.head_dim)
        query = split(self.linear_q(x))
        key, value = split(self.linear_k(x)).transpose(1, 2), split(self.linear_v(x)).transpose(1, 2)
        distance = split(self.linear_pos(positions)).transpose(1, 2)
        place = self.shift((query + self.pos_bias_v).transpose(1, 2) @ distance.transpose(-2, -1)) / math.sqrt(self.head_dim)
        hidden = torch.where(mask, 0.0, torch.finfo(place.dtype).min).to(place.dtype)[:, None]      # added: quicker than filled in on a CPU
        mixed = F.scaled_dot_product_attention((query + self.pos_bias_u).transpose(1, 2), key, value, attn_mask=place + hidden,
                                               dropout_p=self.dropout.p if self.training else 0.0)
        return self.linear_out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width, hidden, dropout):
        super().__init__()
        self.w_1, self.w_2, self.dropout = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.Dropout(dropout)

    def forward(self, x):
        return self.w_2(self.dropout(F.silu(self.w_1(x))))


class EncoderLayer(nn.Module):
    def __init__(self, width, heads, hidden, dropout):
        super().__init__()
        self.self_attn = RelativeAttention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.norm_ff, self.norm_mha = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask, positions):
        x = x + self.dropout(self.self_attn(self.norm_mha(x), mask, positions))
        return x + self.dropout(self.feed_forward(self.norm_ff(x)))


class InputLayer(nn.Module):
    """Linear, LayerNorm, times sqrt(width)."""

    def __init__(self, inputs, width, dropout):
        super().__init__()
        self.out = nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.Dropout(dropout))
        self.scale = math.sqrt(width)

    def forward(self, x):
        return self.out(x) * self.scale


class PreLookahead(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, LOOKAHEAD + 1)
        self.conv2 = nn.Conv1d(width, width, 3)

    def forward(self, x, context=None):
        """x [B, T, D]; context [B, 3, D] are the tokens after x, zeros when absent."""
        y = x.transpose(1, 2)
        y = F.pad(y, (0, LOOKAHEAD)) if context is None else torch.cat([y, context.transpose(1, 2)], dim=2)
        y = self.conv2(F.pad(F.leaky_relu(self.conv1(y)), (2, 0)))
        return x + y.transpose(1, 2)


class Upsample(nn.Module):
    """Nearest x2, then a causal convolution of five taps. [B, D, T] -> [B, D, 2T]."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 5)

    def forward(self, x):
        return self.conv(F.pad(x.repeat_interleave(2, dim=2), (4, 0)))


class UpsampleEncoder(nn.Module):
    def __init__(self, dims, dropout=0.1):
        super().__init__()
        self.chunk = dims.chunk
        layer = lambda: EncoderLayer(dims.dim, dims.heads, dims.linear, dropout)
        self.embed, self.up_embed = InputLayer(dims.dim, dims.dim, dropout), InputLayer(dims.dim, dims.dim, dropout)
        self.pre_lookahead_layer, self.up_layer = PreLookahead(dims.dim), Upsample(dims.dim)
        self.encoders = nn.ModuleList(layer() for _ in range(dims.blocks))
        self.up_encoders = nn.ModuleList(layer() for _ in range(UP_BLOCKS))
        self.after_norm = nn.LayerNorm(dims.dim)

    def run(self, layers, x, lengths, chunk):
        inside = torch.arange(x.shape[1], device=x.device)[None] < lengths[:, None]
        mask = inside[:, None] & chunk_mask(x.shape[1], chunk, x.device)
        positions = relative_positions(x.shape[1], x.shape[2], x.device)
        for layer in layers:
            x = layer(x, mask, positions)
        return x

    def forward(self, x, lengths, streaming=False, context=None):
        """Embedded tokens x [B, L, D], lengths [B], context [B, 3, D] or None -> [B, 2L, D]."""
        chunk = self.chunk if streaming else 0
        x = self.embed(x)
        x = self.pre_lookahead_layer(x, None if context is None else self.embed(context))
        x = self.run(self.encoders, x, lengths, chunk)
        x = self.up_embed(self.up_layer(x.transpose(1, 2)).transpose(1, 2))
        return self.after_norm(self.run(self.up_encoders, x, 2 * lengths, 2 * chunk))
