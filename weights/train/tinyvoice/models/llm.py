"""Text-speech language model: a Qwen2 decoder (arXiv 2407.10671) that reads text tokens and writes speech tokens.

Sequence: [sos] text [task] speech; targets are the speech tokens and an end id. In bistream training five text tokens
alternate with fifteen speech tokens, a fill id after each group. Arithmetic and keys of upstream `Qwen2LM`
(`cosyvoice/llm/llm.py`) over transformers' Qwen2.
"""
import random

import torch
import torch.nn.functional as F
from torch import nn

SOS, TASK = 0, 1
MIX_TEXT, MIX_SPEECH = 5, 15
IGNORE = -1
TOP_P, TOP_K, WINDOW, REPEATS = 0.4, 25, 10, 5     # as in cosyvoice2.yaml.in, which says why
GUIDED_LAYERS = (2, 3)      # their first head is shown the text token that is spoken
GUIDE_SPREAD = 1.5          # text tokens
FAR = -1e4                  # ordinal of what is no text token


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * (x.float() * scale).to(x.dtype)


def rotary(positions, head_dim, theta):
    """(cos, sin), each [T, head_dim]."""
    rate = theta ** -(torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    angle = torch.outer(positions.float(), rate).repeat(1, 2)
    return angle.cos(), angle.sin()


class Attention(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.head_dim = dims.hidden // dims.heads
        kv = dims.kv_heads * self.head_dim
        self.q_proj = nn.Linear(dims.hidden, dims.hidden)
        self.k_proj, self.v_proj = nn.Linear(dims.hidden, kv), nn.Linear(dims.hidden, kv)
        self.o_proj = nn.Linear(dims.hidden, dims.hidden, bias=False)

    def forward(self, x, turn, cache, watched=None):
        """`watched`: a list that takes the attention weights of the first head, [B, T, T]."""
        split = lambda t: t.unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        cos, sin = (part.to(x.dtype) for part in turn)
        flip = lambda t: torch.cat((-t[..., self.head_dim // 2:], t[..., :self.head_dim // 2]), dim=-1)
        query, key = query * cos + flip(query) * sin, key * cos + flip(key) * sin
        if cache is not None:
            if "k" in cache:
                key, value = torch.cat([cache["k"], key], dim=2), torch.cat([cache["v"], value], dim=2)
            cache["k"], cache["v"] = key, value
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        if watched is not None:
            scores = query[:, 0] @ key[:, 0].transpose(1, 2) * self.head_dim ** -0.5
            later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
            watched.append(scores.masked_fill(later, -torch.inf).softmax(-1))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(dims.hidden, dims.mlp, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(dims.mlp, dims.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, dims, dropout):
        super().__init__()
        self.self_attn, self.mlp, self.dropout = Attention(dims), Mlp(dims), nn.Dropout(dropout)
        self.input_layernorm, self.post_attention_layernorm = (RmsNorm(dims.hidden, dims.eps) for _ in range(2))

    def forward(self, x, turn, cache, watched=None):
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), turn, cache, watched))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    """The transformer under `llm.model.model`."""

    def __init__(self, dims, dropout):
        super().__init__()
        self.head_dim, self.theta = dims.hidden // dims.heads, dims.rope_theta
        self.embed_tokens = nn.Embedding(dims.text_vocab, dims.hidden)
        self.layers = nn.ModuleList(Layer(dims, dropout) for _ in range(dims.layers))
        self.norm = RmsNorm(dims.hidden, dims.eps)

    def forward(self, x, caches=None, start=0, watched=None):
        """x [B, T, D] at positions start.., causal -> [B, T, D]; padding must be on the right. `watched`: a list that
        takes the attention weights of the guided heads."""
        turn = rotary(torch.arange(start, start + x.shape[1], device=x.device), self.head_dim, self.theta)
        for i, layer in enumerate(self.layers):
            x = layer(x, turn, None if caches is None else caches[i], watched if i in GUIDED_LAYERS else None)
        return self.norm(x)


class SpeechLm(nn.Module):
    def __init__(self, dims, speech_vocab, dropout=0.1):
        super().__init__()
        self.speech_vocab = speech_vocab
        self.llm_embedding = nn.Embedding(2, dims.hidden)
        self.llm = nn.Module()
        self.llm.model = nn.Module()
        self.llm.model.model = Decoder(dims, dropout)
        self.llm_decoder = nn.Linear(dims.hidden, speech_vocab + 3)
        self.speech_embedding = nn.Embedding(speech_vocab + 3, dims.hidden)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    @property
    def decoder(self):
        return self.llm.model.model

    def embed(self, text, speech):
        """ids of one sequence, text [L], speech [S] -> [1 + L + 1 + S, D]: sos, text, task, speech."""
        special = self.llm_embedding.weight
        return torch.cat([special[SOS:SOS + 1], self.decoder.embed_tokens(text), special[TASK:TASK + 1],
                          self.speech_embedding(speech)])

    def unistream(self, text, speech, given):
        """((kind, id) items, targets) of one sequence; kind 0 special, 1 text, 2 speech. `given` is read where `speech` is wanted."""
        end = self.speech_vocab
        items = [(0, SOS)] + [(1, t) for t in text] + [(0, TASK)] + [(2, s) for s in given]
        return items, [IGNORE] * (1 + len(text)) + list(speech) + [end]

    def bistream(self, text, speech, given):
        """Groups of 5 text and 15 speech tokens; the target after a full group is the fill id, at the end the end id."""
        end, fill = self.speech_vocab, self.speech_vocab + 2
        items, targets = [(0, SOS)], [IGNORE]
        for j in range(0, len(text) + 1, MIX_TEXT):
            words = text[j:j + MIX_TEXT]
            start = j // MIX_TEXT * MIX_SPEECH
            items += [(1, t) for t in words]
            if len(words) == MIX_TEXT:
                group = speech[start:start + MIX_SPEECH]
                items += [(2, s) for s in given[start:start + MIX_SPEECH]]
                targets += [IGNORE] * (MIX_TEXT - 1) + list(group) + [fill]
            else:
                items += [(0, TASK)] + [(2, s) for s in given[start:]]
                targets += [IGNORE] * len(words) + list(speech[start:]) + [end]
        return items, targets

    def loss(self, texts, speeches, mixed=0.5, hints=None, reader=None, given=None):
        """(cross entropy, share of right guesses, guide loss, sound loss), means over a batch of id lists, a share
        `mixed` of them bistream where the speech is long enough. `given`: the speech tokens that the model reads, where they are
        not those it is to write. `hints`: per row, for each speech token, the ordinal of
        the text token that it speaks and the phonemes of its two frames, [S, 3]; None where they are not known. The guide
        loss is how far the guided heads look from that text token, the sound loss how badly `reader`, a linear layer to
        both phonemes, reads them from the last hidden state."""
        rows = []
        for text, speech, read in zip(texts, speeches, given or speeches, strict=True):
            fits = len(speech) / len(text) > MIX_SPEECH / MIX_TEXT
            rows.append((self.bistream if fits and random.random() < mixed else self.unistream)(text, speech, read))
        device, size = self.llm_decoder.weight.device, max(len(items) for items, _ in rows)
        flat = torch.tensor([items + [(0, SOS)] * (size - len(items)) for items, _ in rows]).to(device)
        target = torch.tensor([t + [IGNORE] * (size - len(t)) for _, t in rows]).to(device)
        kind, ids = flat[..., 0], flat[..., 1]
        tables = (self.llm_embedding, self.decoder.embed_tokens, self.speech_embedding)
        x = sum(table(ids * (kind == k)) * (kind == k)[..., None] for k, table in enumerate(tables))
        watched = []
        hidden = self.decoder(x, watched=watched)
        logits = self.llm_decoder(hidden).float()
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE)
        right = (logits.argmax(-1) == target)[target != IGNORE].float().mean()
        guide = sound = logits.new_zeros(())
        where = torch.full((*target.shape, 3), -1, device=device)
        guesses = (target >= 0) & (target < self.speech_vocab)
        for row, hint in enumerate(hints or ()):
            if hint is not None:
                where[row, guesses[row]] = hint.to(device)
        known = where[..., 0] >= 0
        if known.any():
            guide = guide_loss(watched, kind == 1, where[..., 0], known)
            guess = reader(hidden[known]).float().unflatten(1, (2, -1)).transpose(1, 2)
            sound = F.cross_entropy(guess, where[known][:, 1:])
        return loss, right, guide, sound

    @torch.inference_mode()
    def generate(self, text, prompt=(), target_len=None, seed=0):
        """Speech ids for text ids (prompt text included) after prompt speech ids, by repetition-aware sampling.

        `target_len`: text tokens to be spoken, which bound the length to 2x .. 20x of it.
        """
        device, end = self.llm_decoder.weight.device, self.speech_vocab
        target_len = len(text) if target_len is None else target_len
        caches = [{} for _ in self.decoder.layers]
        as_ids = lambda ids: torch.tensor(list(ids), dtype=torch.long, device=device)
        x, out, position = self.embed(as_ids(text), as_ids(prompt))[None], [], 0
        generator = torch.Generator().manual_seed(seed)
        for step in range(20 * target_len):
            hidden = self.decoder(x, caches, position)
            position += x.shape[1]
            logp = torch.log_softmax(self.llm_decoder(hidden[0, -1]).float(), dim=-1).cpu()
            if step < 2 * target_len:
                logp[end] = -torch.inf
            token = ras_sample(logp, out, generator)
            if token >= end:
                break
            out.append(token)
            x = self.speech_embedding(as_ids([token]))[None]
        return out


def guide_loss(watched, is_text, wanted, known):
    """-log of the attention [B, T, T] that falls near the wanted text token (ordinal [B, T]), mean over those known."""
    ordinal = torch.where(is_text, is_text.cumsum(1) - 1.0, FAR)
    near = torch.exp(-0.5 * ((ordinal[:, None] - wanted[..., None]) / GUIDE_SPREAD) ** 2)
    return sum(-((a * near).sum(-1)[known] + 1e-6).log().mean() for a in watched) / len(watched)


def ras_sample(logp, decoded, generator):
    """Nucleus sampling; a token seen `REPEATS` times in the last ten is redrawn from the full distribution without it."""
    order = torch.sort(logp, descending=True, stable=True)
    p = order.values.exp()
    keep = min(int((p.cumsum(0) < TOP_P).sum()) + 1, TOP_K)
    token = int(order.indices[torch.multinomial(p[:keep], 1, generator=generator)])
    if decoded[-WINDOW:].count(token) >= REPEATS:
        logp = logp.clone()
        logp[token] = -torch.inf
        token = int(torch.multinomial(logp.exp(), 1, generator=generator))
    return token
