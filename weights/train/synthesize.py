#!/usr/bin/env python3
"""Step 14: read sentences with an exported folder, for `evaluate.py`: through PyTorch, or with `--binary` through the engine.

    synthesize.py --model ../tiny --sentences eval_sentences.txt --voice pretrained_voice_001 --out OUT
    synthesize.py --binary ../../target/release/cosyvoice --model ../tiny --sentences eval_sentences.txt --out OUT
    synthesize.py --model ../tiny --sentences eval_sentences.txt --prompt P.wav --prompt-text "..." --out OUT
    synthesize.py --model ../tiny --data DATA --reread heart --voice pretrained_voice_001 --out OUT

Writes OUT/NNN.wav and OUT/list.tsv. The last form gives held-out speech of a teacher to the speech tokenizer and
speaks its tokens: the ceiling that the language model can reach.
"""
import argparse
import json
import pathlib
import subprocess

import torch

from tinyvoice.corpus import Corpus
from tinyvoice.teachers import write_wav
from tinyvoice.voice import Voice


def by_engine(args, texts):
    """OUT/NNN.wav by `cosyvoice batch`; a failed line is an error."""
    voice = {"voice": args.voice}
    if args.prompt:
        voice = {"prompt_audio": str(args.prompt.resolve()), "prompt_text": args.prompt_text}
    lines = args.out / "lines.jsonl"
    with lines.open("w", encoding="utf-8") as file:
        for i, text in enumerate(texts):
            (args.out / f"{i:03d}.wav").unlink(missing_ok=True)      # `batch` keeps what is there
            file.write(json.dumps({"id": f"{i:03d}", "text": text, **voice}) + "\n")
    subprocess.run([args.binary, "batch", lines, "--model", args.model, "-o", args.out], check=True)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--binary", type=pathlib.Path)
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
    if args.binary and args.reread:
        raise SystemExit("--reread speaks through PyTorch, without --binary")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    voice = None if args.binary else Voice(args.model)
    if args.reread:
        corpus = Corpus(args.data / "audio", "test", lambda s: s == args.reread)
        rows = corpus.rows[:args.count]
        texts = [row["text"] for row in rows]
        for i, row in enumerate(rows):
            write_wav(args.out / f"source_{i:03d}.wav", corpus.audio(row).numpy())
    else:
        texts = args.sentences.read_text(encoding="utf-8").splitlines()[:args.count]
    if args.binary:
        by_engine(args, texts)
    with (args.out / "list.tsv").open("w", encoding="utf-8") as listing:
        for i, text in enumerate(texts):
            path = args.out / f"{i:03d}.wav"
            listing.write(f"{path}\t{text}\n")
            if args.binary:
                continue
            if args.reread:
                audio = voice.reread(args.out / f"source_{i:03d}.wav", args.voice)
            elif args.prompt:
                audio = voice.clone(text, args.prompt_text, args.prompt, seed=i)
            else:
                audio = voice.speak(text, args.voice, seed=i)
            write_wav(path, audio)


if __name__ == "__main__":
    main()
