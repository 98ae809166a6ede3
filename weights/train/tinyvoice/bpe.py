"""Byte-level BPE in Qwen2's file format: training, encoding with optional BPE dropout (arXiv 1910.13267), and the
files of `CosyVoice-BlankEN/`."""
import collections
import functools
import json
import pathlib
import re

# Qwen2's pre-tokenizer; \p{L} is written [^\W\d_], \p{N} is written \d
SPLIT = re.compile(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# upstream `CosyVoice2Tokenizer` adds these, in this order
ADDED_SPECIALS = ("<|endofprompt|>", "[breath]", "<strong>", "</strong>", "[noise]", "[laughter]", "[cough]", "[clucking]",
                  "[accent]", "[quick_breath]", "<laughter>", "</laughter>", "[hissing]", "[sigh]", "[vocalized-noise]",
                  "[lipsmack]", "[mn]")


@functools.cache
def byte_symbols():
    """GPT-2's printable character for every byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table, extra = {b: chr(b) for b in plain}, 256
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(extra)
            extra += 1
    return table


def pieces(text):
    """Pre-tokens of the text in byte symbols."""
    return ["".join(byte_symbols()[b] for b in piece.encode()) for piece in SPLIT.findall(text)]


def train(texts, count):
    """The `count` most frequent merges, greedily, ties broken by the symbols."""
    words = collections.Counter(piece for text in texts for piece in pieces(text))
    split = {word: list(word) for word in words}
    pairs, where = collections.Counter(), collections.defaultdict(set)

    def tally(word, sign):
        for pair in zip(split[word], split[word][1:]):
            pairs[pair] += sign * words[word]
            where[pair].add(word)

    for word in words:
        tally(word, 1)
    merges = []
    while len(merges) < count:
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        for word in sorted(where.pop(best)):
            tally(word, -1)
            split[word] = _merge(split[word], best)
            tally(word, 1)
    return merges


def _merge(symbols, pair):
    out, i = [], 0
    while i < len(symbols):
        if symbols[i:i + 2] == [*pair]:
            out.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


class Bpe:
    def __init__(self, merges):
        self.merges = [tuple(m) for m in merges]
        self.ranks = {pair: i for i, pair in enumerate(self.merges)}
        symbols = sorted(byte_symbols().values()) + [a + b for a, b in self.merges]
        self.vocab = {symbol: i for i, symbol in enumerate(symbols)}
        self.bytes = [len(symbol) for symbol in symbols]
        self.cached = functools.cache(self._word)

    @property
    def size(self):
        """Rows that the text embedding needs, special tokens included."""
        return len(self.vocab) + len(QWEN_SPECIALS) + len(ADDED_SPECIALS)

    @property
    def end_of_prompt(self):
        """Id of what separates an instruction from the text to be spoken."""
        return len(self.vocab) + len(QWEN_SPECIALS)

    def _word(self, word, keep=lambda: True):
        symbols = list(word)
        while len(symbols) > 1:
            known = [p for p in zip(symbols, symbols[1:]) if p in self.ranks and keep()]
            if not known:
                break
            symbols = _merge(symbols, min(known, key=self.ranks.get))
        return tuple(self.vocab[s] for s in symbols)

    def encode(self, text, rng=None, dropout=0.0):
        """Token ids; with `rng`, every merge is skipped with chance `dropout` so that spellings are seen too."""
        if not dropout:
            return [i for piece in pieces(text) for i in self.cached(piece)]
        return [i for piece in pieces(text) for i in self._word(piece, lambda: rng.random() >= dropout)]

    def lengths(self, ids):
        """Bytes that each token stands for."""
        return [self.bytes[i] for i in ids]

    def save(self, folder):
        """vocab.json, merges.txt and tokenizer_config.json."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps(self.vocab, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        first = len(self.vocab)
        added = {str(first + i): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                                  "single_word": False, "special": True} for i, token in enumerate(QWEN_SPECIALS)}
        config = {"add_prefix_space": False, "added_tokens_decoder": added,
                  "additional_special_tokens": list(QWEN_SPECIALS[1:]), "bos_token": None,
                  "clean_up_tokenization_spaces": False, "eos_token": QWEN_SPECIALS[0], "errors": "replace",
                  "model_max_length": 32768, "pad_token": QWEN_SPECIALS[0], "split_special_tokens": False,
                  "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder):
        lines = (pathlib.Path(folder) / "merges.txt").read_text(encoding="utf-8").splitlines()
        return cls([tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")])
