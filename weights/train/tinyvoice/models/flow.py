"""Token-to-mel flow matching (arXiv 2210.02747, Matcha-TTS): training loss and the Euler solver with classifier-free
guidance. Arithmetic and keys of upstream `CausalMaskedDiffWithXvec` (`cosyvoice/flow/flow.py`, `flow_matching.py`)."""
import math
import random

import torch
import torch.nn.functional as F
from torch import nn

from ..audio import normal
from ..config import MEL_BINS, SPK_DIM
from .flow_encoder import LOOKAHEAD, UpsampleEncoder
from .flow_estimator import Estimator

SIGMA_MIN = 1e-6
TRAIN_CFG_RATE = 0.2
PROMPT_WEIGHT = 0.3       # of a clone's prompt in the loss: it is given, and as long as what is said
STEPS = 10
NOISE_FRAMES = 15_000


def fixed_noise():
    """The buffer that every synthesis starts from: standard normal [1, 80, 15000], seed 0."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn([1, MEL_BINS, NOISE_FRAMES], generator=generator)


class Flow(nn.Module):
    def __init__(self, dims, vocab, dropout=0.1):
        super().__init__()
        self.cfg_rate = dims.cfg_rate
        self.input_embedding = nn.Embedding(vocab, dims.dim)
        self.spk_embed_affine_layer = nn.Linear(SPK_DIM, MEL_BINS)
        self.encoder = UpsampleEncoder(dims, dropout)
        self.encoder_proj = nn.Linear(dims.dim, MEL_BINS)
        self.decoder = nn.Module()
        self.decoder.estimator = Estimator(dims)

    def speaker(self, embedding):
        """[B, 192] -> [B, 80]."""
        return self.spk_embed_affine_layer(F.normalize(embedding, dim=1))

    def encode(self, token, lengths, streaming=False, finalize=True):
        """token [B, L] -> mu [B, 80, 2L], a normalised mel; with finalize False the last three tokens only serve as look-ahead."""
        return self.mean(self.hidden(token, lengths, streaming, finalize))

    def mean(self, hidden):
        """[B, 2L, D] -> mu [B, 80, 2L]."""
        return self.encoder_proj(hidden).transpose(1, 2)

    def hidden(self, token, lengths, streaming=False, finalize=True):
        """The encoder's frames of `encode` before they become a mel: [B, 2L, D]."""
        inside = (torch.arange(token.shape[1], device=token.device)[None] < lengths[:, None])[..., None]
        x, context = self.input_embedding(token.clamp(min=0)) * inside, None
        if not finalize:
            x, context, lengths = x[:, :-LOOKAHEAD], x[:, -LOOKAHEAD:], lengths - LOOKAHEAD
        return self.encoder(x, lengths, streaming, context)

    def loss(self, token, lengths, mel, embedding, sounds, weights, reader, only=None, main=None, prompts=None, means=None):
        """Flow-matching loss of a padded batch: token [B, L], mel [B, 80, 2L], embedding [B, 192].

        As upstream trains: full attention or chunks with equal chance, a prompt of up to 30 % of the mel given to
        half of the batch, conditions dropped for a fifth; but of a row that is to be a clone the first `prompts` (int64 [B], 0: no clone,
        None: none is) frames are the prompt. Also returns the helper losses: the L1 of `mu` to the mel, of the rows
        `main` (bool [B], None: of all: the encoder is not told who speaks, and the mean of many speakers is nobody's mel),
        and the cross entropy of the phonemes `sounds` [B, 2L] (-1 where unknown), each frame by its weight, that `reader` reads from
        `mu`, which is all that the estimator is told. With `only` "encoder" these are all there is, and the loss
        is 0; with "estimator" the encoder gets no gradient, nobody reads, and `means` may know `mu` (called with whether it streams).
        """
        batch, _, time = mel.shape
        prompt, mel = mel, normal(mel)
        streaming = random.random() < 0.5
        with torch.set_grad_enabled(only != "estimator"):
            mu = self.encode(token, lengths, streaming) if means is None else means(streaming)
        sound = mel.new_zeros(())
        if only != "estimator":
            weights = weights * (sounds >= 0)
            sound = (F.cross_entropy(reader(mu).float(), sounds, ignore_index=-1, reduction="none") * weights).sum() / weights.sum().clamp(min=1)
        speaker = self.speaker(embedding)
        mask = (torch.arange(time, device=mel.device)[None] < 2 * lengths[:, None])[:, None].to(mel.dtype)
        taught = mask if main is None else mask * main[:, None, None]
        prior = (F.l1_loss(mu * taught, mel * taught, reduction="sum")) / (taught.sum() * MEL_BINS).clamp(min=1)
        if only == "encoder":
            return prior.new_zeros(()), prior, sound
        prompts = torch.zeros_like(lengths) if prompts is None else prompts
        share = torch.rand(batch, device=mel.device) * 0.3 * (torch.rand(batch, device=mel.device) < 0.5)
        frames = torch.where(prompts > 0, prompts, (share * 2 * lengths).long())
        given = (torch.arange(time, device=mel.device)[None] < frames[:, None])[:, None]
        condition = prompt * given
        weight = mask * torch.where(given & (prompts > 0)[:, None, None], PROMPT_WEIGHT, 1.0)
        t = 1 - torch.cos(torch.rand(batch, 1, 1, device=mel.device) * 0.5 * math.pi)     # as the steps of `solve` are spaced
        noise = torch.randn_like(mel)
        x = (1 - (1 - SIGMA_MIN) * t) * noise + t * mel
        kept = torch.rand(batch, 1, 1, device=mel.device) > TRAIN_CFG_RATE
        velocity = self.decoder.estimator(x, mask, mu * kept, t.flatten(), speaker * kept[..., 0], condition * kept,
                                          streaming)
        target = mel - (1 - SIGMA_MIN) * noise
        return ((velocity - target).square() * weight).sum() / (weight.sum() * MEL_BINS), prior, sound

    @torch.inference_mode()
    def synthesize(self, token, embedding, prompt_token=None, prompt_mel=None, streaming=False, finalize=True,
                   noise=None):
        """token [1, L], embedding [1, 192], prompt_token [1, P], prompt_mel [1, 2P, 80] -> normalised
        mel [1, 80, 2L] (less look-ahead when not finalised)."""
        if prompt_token is not None:
            token = torch.cat([prompt_token, token], dim=1)
        lengths = torch.tensor([token.shape[1]], device=token.device)
        mu = self.encode(token, lengths, streaming, finalize)
        condition = torch.zeros_like(mu)
        prompt = 0 if prompt_mel is None else prompt_mel.shape[1]
        if prompt:
            condition[:, :, :prompt] = prompt_mel.transpose(1, 2)
        noise = fixed_noise() if noise is None else noise
        mel = self.solve(noise[:, :, :mu.shape[2]].to(mu), mu, self.speaker(embedding), condition, streaming)
        return mel[:, :, prompt:]

    def solve(self, x, mu, speaker, condition, streaming):
        """Ten Euler steps on a cosine schedule; the second row of the batch is unconditional."""
        span = 1 - torch.cos(torch.linspace(0, 1, STEPS + 1, device=x.device) * 0.5 * math.pi)
        double = lambda c: torch.cat([c, torch.zeros_like(c)])
        mu, speaker, condition = double(mu), double(speaker), double(condition)
        mask = torch.ones(2, 1, x.shape[2], device=x.device)
        t, dt = span[0], span[1] - span[0]
        for step in range(1, STEPS + 1):
            velocity = self.decoder.estimator(torch.cat([x, x]), mask, mu, t.expand(2), speaker, condition, streaming)
            given, free = velocity.chunk(2)
            x = x + dt * ((1 + self.cfg_rate) * given - self.cfg_rate * free)
            t = t + dt
            if step < STEPS:
                dt = span[step + 1] - t
        return x
