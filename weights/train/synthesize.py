#!/usr/bin/env python3
"""Step 11: read sentences with an exported folder through PyTorch, for `evaluate.py`.

    synthesize.py --model ../tiny --sentences eval_sentences.txt --voice pretrained_voice_001 --out OUT
    synthesize.py --model ../tiny --sentences eval_sentences.txt --prompt P.wav --prompt-text "..." --out OUT
    synthesize.py --model ../tiny --data DATA --reread heart --voice pretrained_voice_001 --out OUT

Writes OUT/NNN.wav and OUT/list.tsv. The third form gives held-out speech of a teacher to the speech tokenizer and
speaks its tokens: the ceiling that the language model can reach.
"""
import argparse
import pathlib

import torch

from tinyvoice.corpus import Corpus
from tinyvoice.teachers import write_wav
from tinyvoice.voice import Voice


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", type=pathlib.Path, required=True)
    args.add_argument("--sentences", type=pathlib.Path)
    args.add_argument("--voice", default="pretrained_voice_001")
    args.add_argument("--prompt", type=pathlib.Path)
    args.add_argument("--prompt-text", default="")
    args.add_argument("--data", type=pathlib.Path)
    args.add_argument("--reread", metavar="SPEAKER")
    args.add_argument("--count", type=int, default=40)
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--out", type=pathlib.Path, required=True)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    voice = Voice(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.reread:
        corpus = Corpus(args.data / "audio", "test", lambda s: s == args.reread)
        rows = corpus.rows[:args.count]
        texts = [row["text"] for row in rows]
        for i, row in enumerate(rows):
            write_wav(args.out / f"source_{i:03d}.wav", corpus.audio(row).numpy())
    else:
        texts = args.sentences.read_text(encoding="utf-8").splitlines()[:args.count]
    with (args.out / "list.tsv").open("w", encoding="utf-8") as listing:
        for i, text in enumerate(texts):
            path = args.out / f"{i:03d}.wav"
            if args.reread:
                audio = voice.reread(args.out / f"source_{i:03d}.wav", args.voice)
            elif args.prompt:
                audio = voice.clone(text, args.prompt_text, args.prompt, seed=i)
            else:
                audio = voice.speak(text, args.voice, seed=i)
            write_wav(path, audio)
            listing.write(f"{path}\t{text}\n")


if __name__ == "__main__":
    main()
