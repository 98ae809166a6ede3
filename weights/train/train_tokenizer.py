#!/usr/bin/env python3
"""Step 4: train the speech tokenizer.

The quantised codes must tell a small decoder the phonemes (frame by frame where the teacher tells them, else by CTC),
the mel of the utterance given its mean and deviation over time, and the pitch relative to its mean: content and prosody,
not timbre. Only the tokenizer is exported.

    train_tokenizer.py --data DATA --ckpt CKPT [--device cuda] [--steps N] [--minutes M]
"""
import torch
import torch.nn.functional as F
from torch import nn

from tinyvoice.audio import log_mel_16k, mel_24k, pitch, resample_batch
from tinyvoice.config import DIMS, MEL_BINS, PROMPT_RATE, SAMPLE_RATE
from tinyvoice.corpus import Corpus
from tinyvoice.models.speech_tokenizer import SpeechTokenizer
from tinyvoice.training import Run, arguments, autocast, clipped_step, setup

UNSPOKEN = set(" ˈˌ.,;:!?—…\"“”()")
SAMPLES_PER_TOKEN = 960


def phoneme_table(path):
    """({text: phoneme ids}, {phoneme: id}); id 0 is CTC's blank, and the silence of frames."""
    spoken = {}
    for line in path.open(encoding="utf-8"):
        _, text, phonemes = line.rstrip("\n").split("\t")
        spoken[text] = [c for c in phonemes if c not in UNSPOKEN]
    alphabet = sorted({c for phonemes in spoken.values() for c in phonemes})
    ids = {c: i + 1 for i, c in enumerate(alphabet)}
    return {text: [ids[c] for c in phonemes] for text, phonemes in spoken.items()}, ids


class ConvBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.depth = nn.LayerNorm(width), nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.depth(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(self.up(y)))


class CodeReader(nn.Module):
    """codes [B, T, dims] at 25 Hz -> phoneme logits [B, T, P] for CTC and [B, P, 2T] of the frames, mel [B, 80, 2T],
    (voiced logit, pitch) [B, 2, 2T]."""

    def __init__(self, code_dims, phonemes, width=192):
        super().__init__()
        self.enter = nn.Linear(code_dims, width)
        self.shared = nn.Sequential(ConvBlock(width), ConvBlock(width))
        self.phonemes, self.frames = nn.Linear(width, phonemes), nn.Linear(width, 2 * phonemes)
        self.timbre = nn.Linear(2 * MEL_BINS, width)
        self.fine = nn.Sequential(ConvBlock(width), ConvBlock(width), nn.LayerNorm(width))
        self.mel, self.pitch = nn.Linear(width, 2 * MEL_BINS), nn.Linear(width, 4)

    def forward(self, codes, timbre):
        """timbre: mean and deviation of the mel over time, [B, 160]."""
        shared = self.shared(self.enter(codes))
        fine = self.fine(shared + self.timbre(timbre)[:, None])
        frames = lambda x: x.unflatten(2, (2, -1)).flatten(1, 2).transpose(1, 2)
        return self.phonemes(shared), frames(self.frames(shared)), frames(self.mel(fine)), frames(self.pitch(fine))


def timbre_of(mel, inside):
    """Mean and deviation over the frames inside: mel [B, 80, T], inside [B, T] -> [B, 160]."""
    weight = inside[:, None] / inside.sum(1)[:, None, None]
    mean = (mel * weight).sum(2)
    return torch.cat([mean, (((mel - mean[..., None]) ** 2) * weight).sum(2).sqrt()], dim=1)


def pitch_loss(predicted, f0, inside):
    """Voicing cross entropy plus L1 of log2 f0 about the utterance's mean, on frames inside [B, T]."""
    voiced = (f0 > 0) & inside
    entropy = F.binary_cross_entropy_with_logits(predicted[:, 0], voiced.float(), reduction="none")[inside].mean()
    octaves = torch.log2(f0.clamp(min=50.0))
    mean = (octaves * voiced).sum(1, keepdim=True) / voiced.sum(1, keepdim=True).clamp(min=1)
    return entropy + 4 * ((predicted[:, 1] - (octaves - mean)).abs() * voiced).sum() / voiced.sum().clamp(min=1)


def phoneme_losses(rows, tokens, phonemes, ids, by_token, by_frame):
    """(cross entropy of the frames whose phonemes are known, CTC of the other rows, each 0 where there are none)."""
    known = [i for i, row in enumerate(rows) if "frames" in row]
    other = [i for i, row in enumerate(rows) if "frames" not in row]
    frame = ctc = by_token.sum() * 0
    if known:
        target = torch.full((len(known), by_frame.shape[2]), -1)
        for row, line in zip(target, (rows[i]["frames"] for i in known)):
            row[:len(line)] = torch.tensor([ids.get(c, 0) for c in line])
        frame = F.cross_entropy(by_frame[known].float(), target.to(by_frame.device), ignore_index=-1)
    if other:
        targets = [torch.tensor(phonemes[rows[i]["text"]]) for i in other]
        ctc = F.ctc_loss(by_token[other].float().log_softmax(-1).transpose(0, 1), torch.cat(targets).to(by_token.device),
                         tokens[other], torch.tensor([len(t) for t in targets], device=by_token.device),
                         zero_infinity=True)
    return frame, ctc


def main():
    parser = arguments(__doc__, steps=40_000, batch=48, lr=1e-3)
    args = parser.parse_args()
    device = setup(args)
    if args.tiny_steps:
        args.batch = 2
    corpus = Corpus(args.data / "audio")
    phonemes, ids = phoneme_table(args.data / "text.tsv")
    model = SpeechTokenizer(DIMS.tokenizer).to(device)
    reader = CodeReader(DIMS.tokenizer.fsq_dims, len(ids) + 1).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *reader.parameters()], args.lr, betas=(0.9, 0.98))
    run = Run("tokenizer", args, {"model": model, "reader": reader}, {"both": optimizer})
    for _ in run.steps():
        rows = corpus.similar(args.batch)
        audio, samples = corpus.padded(rows, device)
        tokens = samples // SAMPLES_PER_TOKEN
        feats = log_mel_16k(resample_batch(audio, SAMPLE_RATE, PROMPT_RATE))
        mel, f0 = mel_24k(audio), pitch(audio)
        inside = torch.arange(mel.shape[2], device=device)[None] < 2 * tokens[:, None]
        timbre = timbre_of(mel, inside)
        with autocast(device):
            hidden, _ = model.encoder(feats, (4 * tokens).int())
            codes = model.quantizer.codes(hidden)
            by_token, by_frame, mel_hat, pitch_hat = reader(codes, timbre)
        frame, ctc = phoneme_losses(rows, tokens, phonemes, ids, by_token, by_frame)
        mel_loss = ((mel_hat.float() - mel).abs() * inside[:, None]).sum() / (inside.sum() * MEL_BINS)
        f0_loss = pitch_loss(pitch_hat.float(), f0, inside)
        run.add(frame=frame, ctc=ctc, mel=mel_loss, pitch=f0_loss)
        clipped_step(2 * frame + 0.5 * ctc + mel_loss + 0.5 * f0_loss, optimizer, [*model.parameters(), *reader.parameters()])


if __name__ == "__main__":
    main()
