#!/usr/bin/env python3
"""Steps 4 and 10: speech tokens of the whole corpus, and speaker embeddings.

    make_tokens.py --data DATA [--ckpt CKPT [--no-embeddings]] [--device cuda]

Output: DATA/tokens.pt with, per utterance key, its tokens (int16) and, of some utterances of each speaker, the embedding
(float16 [192]) and the tokens that the tokenizer hears (`heard`). What it holds already is kept.

Without CKPT, of the utterances whose teacher told what it says. With it also of the others: the trained tokenizer names their
sounds, the text says which ones there must be, and the cheapest way to have these in order gives each token its own. So
language model and flow never learn from a sound that was misheard. Embeddings are those of the trained speaker encoder.
"""
import argparse
import pathlib
import zlib

import torch

from tinyvoice.audio import fbank_16k, resample_batch
from tinyvoice.config import DIMS, PROMPT_RATE, SAMPLE_RATE
from tinyvoice.corpus import Corpus, some, with_features
from tinyvoice.models.speaker import SpeakerEncoder
from tinyvoice.models.speech_tokenizer import SpeechTokenizer
from tinyvoice.phonetic import SOUNDS, heard_frames, sounds_of_phonemes, spoken_tokens, tokens_of
from tinyvoice.training import averaged_state, state_of

EMBEDDED, HEARD = 80, 80     # utterances of each speaker
HALF_TOKEN = 2               # frames of the tokenizer's features


class Aligner:
    """Tokens of an utterance whose text is known, by the tokenizer's last hidden state."""

    def __init__(self, data, ckpt, device):
        self.model, self.names = SpeechTokenizer(DIMS.tokenizer), torch.nn.Linear(DIMS.tokenizer.state, len(SOUNDS))
        self.model.load_state_dict(averaged_state(ckpt, "tokenizer"))
        self.names.load_state_dict(state_of(ckpt, "tokenizer", "names"))
        self.model.to(device).eval(), self.names.to(device)
        lines = (line.rstrip("\n").split("\t") for line in (data / "text.tsv").open(encoding="utf-8"))
        self.sounds = {text: sounds_of_phonemes(phonemes) for _, text, phonemes in lines}
        self.device = device

    def hidden(self, feats):
        return self.model.encoder(feats, torch.tensor([feats.shape[2]], dtype=torch.int32, device=self.device))[0]

    def heard(self, corpus, row):
        return self.model.quantizer.ids(self.hidden(corpus.padded_features([row], "log", 0.0, self.device)))[0].cpu()

    def __call__(self, corpus, row):
        feats, f0 = corpus.padded_features([row], "log", 0.0, self.device), corpus.features(row, "f0")[:, 0]
        # each token says what is near its middle; of the speech half a token later, what is near its end: together, every 20 ms
        later = torch.cat([feats[..., HALF_TOKEN:], feats[..., -HALF_TOKEN:]], dim=2)
        points = torch.stack([self.names(self.hidden(x))[0].log_softmax(-1) for x in (feats, later)], dim=1).flatten(0, 1)
        frames = (points + torch.cat([points[:1], points[:-1]])) / 2
        return tokens_of(heard_frames(self.sounds[row["text"]], frames[:len(f0)].cpu().numpy()), f0)


@torch.inference_mode()
def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=pathlib.Path, required=True)
    args.add_argument("--ckpt", type=pathlib.Path)
    args.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--no-embeddings", action="store_true", help="of speakers, whose encoder may then be missing")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    path = args.data / "tokens.pt"
    stored = torch.load(path, weights_only=True) if path.exists() else {"tokens": {}, "embeddings": {}, "heard": {}}
    tokens, embeddings, heard, lost = stored["tokens"], stored["embeddings"], stored.setdefault("heard", {}), 0
    corpus = Corpus(args.data / "audio", split=None)
    ready = set(with_features(args.data / "audio"))
    align = Aligner(args.data, args.ckpt, args.device) if args.ckpt else None
    for row in corpus.rows:
        told = "frames" in row
        if row["key"] in tokens or not told and (align is None or corpus.names[row["shard"]] not in ready):
            continue
        try:
            tokens[row["key"]] = torch.tensor(spoken_tokens(row) if told else align(corpus, row), dtype=torch.int16)
        except ValueError:      # more sounds than tokens
            lost += 1
    by_chance = sorted(corpus.rows, key=lambda row: zlib.crc32(row["key"].encode()))
    if align is not None:
        for row in some(HEARD, by_chance, heard):
            if row["key"] in tokens and corpus.names[row["shard"]] in ready:
                heard[row["key"]] = align.heard(corpus, row)[:len(tokens[row["key"]])].short()
    if align is not None and not args.no_embeddings:
        encoder = SpeakerEncoder(DIMS.speaker)
        encoder.load_state_dict(averaged_state(args.ckpt, "speaker"))
        encoder.to(args.device).eval()
        for row in some(EMBEDDED, by_chance, embeddings):
            low = resample_batch(corpus.audio(row)[None].to(args.device), SAMPLE_RATE, PROMPT_RATE)
            embeddings[row["key"]] = encoder(fbank_16k(low))[0].cpu().half()
    part = args.data / "tokens.part"
    torch.save({"tokens": tokens, "embeddings": embeddings, "heard": heard}, part)
    part.replace(path)
    used = torch.bincount(torch.cat(list(tokens.values())).long(), minlength=DIMS.tokenizer.codebook)
    share = used[used > 0].float() / used.sum()
    print(f"{len(tokens)} utterances, {lost} too fast, {int((used > 0).sum())} of {len(used)} ids used, "
          f"entropy {float(-(share * share.log2()).sum()):.2f} bits")


if __name__ == "__main__":
    main()
