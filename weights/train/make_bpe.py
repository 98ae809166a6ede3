#!/usr/bin/env python3
"""Step 9: learn the text tokenizer's merges from the training sentences.

    make_bpe.py --data DATA
"""
import argparse
import pathlib

from tinyvoice import bpe
from tinyvoice.config import DIMS

ROWS_FREE = 4     # the vocabulary fits the text embedding with these to spare


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=pathlib.Path, required=True)
    args.add_argument("--model", type=pathlib.Path, help="take the tokenizer of this exported folder, whose language model goes on")
    args = args.parse_args()
    rows = [line.split("\t") for line in (args.data / "text.tsv").open(encoding="utf-8")]
    texts = [text for split, text, _ in rows if split == "train"]
    if args.model:
        tokenizer = bpe.Bpe.load(args.model / "CosyVoice-BlankEN")
    else:
        tokenizer = bpe.Bpe(bpe.train(texts, DIMS.llm.text_vocab - ROWS_FREE - bpe.Bpe([]).size))
    tokenizer.save(args.data / "bpe")
    some = texts[:2000]
    ids = sum(len(tokenizer.encode(text)) for text in some)
    print(f"{tokenizer.size} tokens with specials, {sum(map(len, some)) / ids:.2f} characters a token")


if __name__ == "__main__":
    main()
