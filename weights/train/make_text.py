#!/usr/bin/env python3
"""Step 1: write the training sentences.

Sources, all from packages (no download of its own): Debian's `fortunes`, the prose of Python's own documentation
(`pydoc_data.topics` and docstrings of the standard library), and sentences made from both by swapping nouns, verbs,
adjectives and adverbs for other words of the same part of speech (tags of hibari's tagger, words of its lexicon drawn
by `wordfreq` frequency), so that spelling and pronunciation are seen for far more words than the prose has. Of the
prose parts of sentences are cut out, so that any word may be the last, and some sentences are its words in no order, so that each
must be read for itself. Numbers, names, lists and single words are generated.

    make_text.py --out DATA/text.tsv [--prose N] [--made 40000] [--cut 60000] [--strewn 20000] [--held-out 400]

Output: one line a sentence, `split <tab> text <tab> phonemes`; split is `train` or `test` (test: prose only, 8 to 16
words); the phonemes, hibari's, are the target of the speech tokenizer's text loss.
"""
import argparse
import collections
import contextlib
import importlib
import inspect
import io
import pathlib
import pkgutil
import pydoc_data.topics
import random
import re
import warnings

FORTUNES = pathlib.Path("/usr/share/games/fortunes")
SKIPPED_FORTUNES = {"art", "ascii-art", "translate-me", "zippy", "knghtbrd"}
PLAIN = re.compile(r"^[A-Z][A-Za-z ,.;:!?'-]*[.!?]$")
SWAPPED_TAGS = ("NN", "NNS", "JJ", "VB", "VBD", "VBG", "VBN", "VBZ", "RB")
ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


def sentences(text):
    """Plain sentences of 2 to 30 words in running text."""
    text = re.sub(r"\s+", " ", text.replace("--", ", ").replace("`", "'").replace('"', ""))
    for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text):
        part = re.sub(r"\s+([,.;:!?])", r"\1", part.strip())
        if PLAIN.match(part) and 2 <= len(part.split()) <= 30 and len(part) <= 200:
            if not re.search(r"[A-Z]{2}|\.\.|,,|[A-Za-z]{18}|[.][A-Za-z]", part):
                yield part


def fortune_text():
    for path in sorted(FORTUNES.iterdir()):
        if path.suffix or path.name in SKIPPED_FORTUNES:
            continue
        for entry in path.read_text(encoding="utf-8", errors="ignore").split("\n%\n"):
            yield re.split(r"\n\s*--", entry)[0]


def documentation_text():
    for topic in pydoc_data.topics.topics.values():
        yield from re.split(r"\n\s*\n", topic)
    for module in sorted(m.name for m in pkgutil.iter_modules() if not m.name.startswith("_")):
        if module in ("antigravity", "this", "idlelib", "turtledemo", "lib2to3"):
            continue
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                spec = importlib.util.find_spec(module)
                if spec is None or not spec.origin or "site-packages" in spec.origin:
                    continue
                loaded = importlib.import_module(module)
            except Exception:   # modules of other platforms
                continue
        for _, member in inspect.getmembers(loaded):
            with contextlib.suppress(Exception):
                yield from re.split(r"\n\s*\n", inspect.getdoc(member) or "")


def number_words(n):
    """English cardinal of 0 <= n < 10**9."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")
    for size, name in ((10 ** 6, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = number_words(n % size) if n % size else ""
            joint = " and " if rest and n % size < 100 else " "
            return f"{number_words(n // size)} {name}" + (joint + rest if rest else "")
    raise ValueError(n)


class Swapper:
    """Makes new sentences by drawing other words of the same part of speech."""

    def __init__(self, prose, rng):
        from hibari.g2p import G2P
        from wordfreq import zipf_frequency
        self.g2p, self.rng = G2P(), rng
        self.tagged = [[(t.text, t.tag, t.whitespace) for t in self.g2p.tokenize(s)] for s in prose]
        counts = collections.defaultdict(collections.Counter)
        for sentence in self.tagged:
            for word, tag, _ in sentence:
                if tag in SWAPPED_TAGS and word.isalpha() and word.islower() and len(word) > 2:
                    counts[word][tag] += 1
        words = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
        for word, tag in self.g2p.tagger.tagdict.items():
            if tag in SWAPPED_TAGS and word.isalpha() and len(word) > 2:
                words.setdefault(word.lower(), tag)
        self.pool = {}
        for tag in SWAPPED_TAGS:
            group = sorted(w for w, t in words.items() if t == tag and zipf_frequency(w, "en") >= 2.0)
            self.pool[tag] = (group, [10 ** (0.35 * zipf_frequency(w, "en")) for w in group])

    def make(self):
        parts = []
        for word, tag, space in self.rng.choice(self.tagged):
            group, weights = self.pool.get(tag, ((), ()))
            if group and word.isalpha() and word.islower() and len(word) > 2 and self.rng.random() < 0.6:
                word = self.rng.choices(group, weights)[0]
            parts.append(word + space)
        return "".join(parts)


def cut_out(rng, prose):
    """Some words of a sentence, half of the time from its beginning, as a sentence."""
    words = rng.choice(prose).split()
    start = rng.randrange(len(words) - 1) if rng.random() < 0.5 else 0
    part = " ".join(words[start:start + rng.randint(2, 16)]).strip(" ,.;:!?'-")
    return part[:1].upper() + part[1:] + rng.choices(".?!", (18, 1, 1))[0]


def strewn(rng, words):
    """Words in no order, as a sentence. Common ones, each as often as it is written, and now and then any."""
    often, known = words
    part = " ".join(rng.choice(often if rng.random() < 0.7 else known) for _ in range(rng.randint(2, 12)))
    return part[:1].upper() + part[1:] + "."


def generated(rng, pool, count):
    """Numbers, lists, names and single words."""
    nouns, adjectives = pool["NN"], pool["JJ"]
    pick = lambda group: rng.choices(*group)[0]
    shapes = (
        lambda: number_words(rng.randrange(10 ** rng.randint(1, 6))).capitalize() + ".",
        lambda: f"It costs {number_words(rng.randrange(200))} dollars and {number_words(rng.randrange(2, 100))} cents.",
        lambda: f"The {pick(adjectives)} {pick(nouns)} opens at {rng.choice(ONES[1:13])} {rng.choice(TENS[2:6])}.",
        lambda: f"{rng.choice(('Bring', 'Take', 'Find', 'Leave'))} the {pick(nouns)}, the {pick(nouns)}, and the {pick(nouns)}.",
        lambda: f"{pick(adjectives).capitalize()}.",
        lambda: f"{pick(nouns).capitalize()}!",
        lambda: f"{rng.choice(('What', 'Where', 'Who'))} is the {pick(adjectives)} {pick(nouns)}?",
        lambda: f"Is it a {pick(adjectives)} {pick(nouns)} or a {pick(nouns)}?",
        lambda: f"In {number_words(rng.randrange(1, 30))} days we will see {number_words(rng.randrange(2, 1000))} of them.",
    )
    return [rng.choice(shapes)() for _ in range(count)]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=pathlib.Path, required=True)
    args.add_argument("--prose", type=int, default=None, help="at most so many sentences of prose")
    args.add_argument("--made", type=int, default=40_000, help="sentences made by swapping words")
    args.add_argument("--cut", type=int, default=60_000, help="parts of sentences")
    args.add_argument("--strewn", type=int, default=20_000, help="sentences of words in no order")
    args.add_argument("--held-out", type=int, default=400)
    args.add_argument("--seed", type=int, default=1)
    args = args.parse_args()
    rng = random.Random(args.seed)
    prose = sorted({s for source in (fortune_text(), documentation_text()) for text in source for s in sentences(text)})
    rng.shuffle(prose)
    prose = prose[:args.prose]
    mid = [s for s in prose if 8 <= len(s.split()) <= 16]
    test = mid[:args.held_out]
    train = sorted(set(prose) - set(test))
    swapper = Swapper(train, rng)
    made = [s for s in (swapper.make() for _ in range(args.made)) if PLAIN.match(s) and len(s) <= 200]
    cut = [s for s in (cut_out(rng, train) for _ in range(args.cut)) if PLAIN.match(s)]
    words = [w for s in train for w in re.findall(r"(?<!\S)(?:[a-z][a-z']*[a-z]|[aI])(?=[ ,.;:!?])", s)]
    words = words, sorted(set(words))
    lines = train + made + cut + [strewn(rng, words) for _ in range(args.strewn)] + generated(rng, swapper.pool, args.made // 5)
    lines = sorted(set(lines) - set(test))
    rng.shuffle(lines)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8") as out:
        for split, group in (("test", test), ("train", lines)):
            out.writelines(f"{split}\t{line}\t{swapper.g2p(line)}\n" for line in group)
    print(f"{len(train)} prose, {len(lines)} in all, {len(test)} held out -> {args.out}")


if __name__ == "__main__":
    main()
