"""Speech tokenizer v2 (S3, arXiv 2412.10117): log-mel [B, 128, T] at 100 Hz -> token ids [B, T / 4].

Two strided convolutions, transformer blocks with rotary positions and an FSMN memory (depthwise convolution of the
values), then finite scalar quantisation with three levels a dimension: id = sum_k (round(0.999 tanh h_k) + 1) 3^k.
Only the ONNX graph of upstream is public; names and arithmetic here give that graph when exported.
"""
import torch
import torch.nn.functional as F
from torch import nn

FSQ_SCALE = 0.9990000128746033
FSMN_KERNEL = 31


def rotary_table(head_dim, positions):
    """cos and sin of the rotary angles: [positions, head_dim / 2, 2], half of what is used, which repeats it."""
    freqs = 1.0 / 10_000 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(positions).float(), freqs)
    return torch.view_as_real(torch.polar(torch.ones_like(angles), angles)).contiguous()


def length_mask(lengths, size):
    """[B] -> bool [B, 1, size], True inside."""
    return ~(torch.arange(size, device=lengths.device)[None] >= lengths[:, None])[:, None]


class FsmnAttention(nn.Module):
    def __init__(self, state, heads):
        super().__init__()
        self.heads = heads
        self.query, self.value = nn.Linear(state, state), nn.Linear(state, state)
        self.key = nn.Linear(state, state, bias=False)
        self.out = nn.Linear(state, state)
        self.fsmn_block = nn.Conv1d(state, state, FSMN_KERNEL, groups=state, bias=False)

    def memory(self, value, inside):
        """FSMN memory of the values [B, T, D], zero outside the mask [B, T, 1]."""
        value = value * inside
        side = (FSMN_KERNEL - 1) // 2
        seen = self.fsmn_block(F.pad(value.transpose(1, 2), (side, FSMN_KERNEL - 1 - side)))
        return (seen.transpose(1, 2) + value) * inside

    def rotate(self, x, table):
        cos, sin = table[None, :, None, :, 0], table[None, :, None, :, 1]
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-right, left), dim=-1) * sin

    def forward(self, x, inside, bias, table):
        """x [B, T, D], inside [B, T, 1] (1 or 0), bias [B, 1, 1, T], table [T, D / heads, 2] -> [B, T, D]."""
        batch, time, width = x.shape
        scale = (width // self.heads) ** -0.25
        split = lambda t: t.view(batch, time, self.heads, -1)
        value = self.value(x)
        query, key = self.rotate(split(self.query(x)), table), self.rotate(split(self.key(x)), table)
        memory = self.memory(value, inside)
        weights = torch.softmax((query.permute(0, 2, 1, 3) * scale) @ (key.permute(0, 2, 3, 1) * scale) + bias, dim=-1)
        mixed = (weights @ split(value).permute(0, 2, 1, 3)).permute(0, 2, 1, 3).flatten(start_dim=2)
        return self.out(mixed) + memory


class Block(nn.Module):
    def __init__(self, state, heads):
        super().__init__()
        self.attn, self.attn_ln = FsmnAttention(state, heads), nn.LayerNorm(state, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(state, 4 * state), nn.GELU(), nn.Linear(4 * state, state))
        self.mlp_ln = nn.LayerNorm(state)

    def forward(self, x, inside, bias, table):
        x = x + self.attn(self.attn_ln(x), inside, bias, table)
        return x + self.mlp(self.mlp_ln(x))


class Encoder(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.conv1 = nn.Conv1d(dims.n_mels, dims.state, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(dims.state, dims.state, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(dims.state, dims.heads) for _ in range(dims.blocks))
        self.register_buffer("table", rotary_table(dims.state // dims.heads, dims.positions), persistent=False)

    def forward(self, feats, lengths):
        """feats [B, 128, T], lengths int32 [B] -> hidden [B, T / 4, D], lengths of it."""
        x = F.gelu(self.conv1(feats * length_mask(lengths, feats.shape[2]).to(feats.dtype)))
        lengths = (lengths - 1) // 2 + 1
        x = F.gelu(self.conv2(x * length_mask(lengths, x.shape[2]).to(x.dtype)))
        lengths = (lengths - 1) // 2 + 1
        inside = length_mask(lengths, x.shape[2])
        bias = ((1.0 - inside.to(x.dtype)) * -1e10)[:, None]
        table = self.table[:x.shape[2]]
        x, table = x.transpose(1, 2), torch.cat((table, table), dim=1)
        for block in self.blocks:
            x = block(x, inside.transpose(1, 2).to(x.dtype), bias, table)
        return x, lengths


class Quantizer(nn.Module):
    """Finite scalar quantisation of 3 levels a dimension."""

    def __init__(self, state, dims):
        super().__init__()
        self.project_in = nn.Linear(state, dims)
        self.register_buffer("powers", 3.0 ** torch.arange(dims)[None], persistent=False)

    def bounded(self, hidden):
        """[B, T, D] -> values before rounding, [B, T, dims] in (-1, 1)."""
        return torch.tanh(self.project_in(hidden).float()) * FSQ_SCALE

    def codes(self, hidden):
        """Rounded values in {-1, 0, 1} with straight-through gradients."""
        bounded = self.bounded(hidden)
        return bounded + (bounded.round() - bounded).detach()

    def ids(self, hidden):
        return ((self.bounded(hidden).round() + 1.0) * self.powers).sum(dim=-1).int()


class SpeechTokenizer(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.encoder, self.quantizer = Encoder(dims), Quantizer(dims.state, dims.fsq_dims)

    def forward(self, feats, feats_length):
        """feats [B, 128, T], feats_length int32 [B] -> ids int32 [B, ceil(ceil(T / 2) / 2)]."""
        return self.quantizer.ids(self.encoder(feats, feats_length)[0])
