"""Which text token is spoken at every speech token, where the teacher told the phoneme of every frame.

A language model learns what to say long before where in the text it is. The alignment lets a helper loss show one
attention head the place (guided attention, arXiv 1710.08969), which brings intelligible speech many thousand steps sooner.
"""
import itertools

from .teachers import SILENCE, STRESS

FRAMES_PER_TOKEN = 2
SILENT_WEIGHT = 0.25  # of a pause beside a phoneme
REACH = 14            # phonemes that may be skipped because they are shorter than a frame


def phoneme_of_frames(phonemes, frames):
    """For every frame the index into `phonemes` of what it speaks, or None where the two do not belong together."""
    at, out, before = -1, [], ""
    for symbol in frames:
        again = at >= 0 and phonemes[at] == symbol and not (before == SILENCE and phonemes[at + 1:at + 3] == SILENCE + symbol)
        if symbol != SILENCE and not again:
            found = phonemes.find(symbol, at + 1, at + 1 + REACH)
            if found < 0:
                return None
            at = found
        out.append(max(at, 0))
        before = symbol
    return out


def text_of_phonemes(text, phonemes, lengths):
    """For every phoneme (stress marks taken out) the ordinal of its text token; `lengths` are the text tokens' bytes. None
    where words and their phonemes are not one to one, as in numbers written with digits."""
    words, sounds = text.split(), phonemes.split()
    if len(words) != len(sounds) or " ".join(sounds) != phonemes:
        return None
    token_of_byte = [i for i, length in enumerate(lengths) for _ in range(length)]
    tokens, place = [], 0
    for word, sound in zip(words, sounds):
        place = text.index(word, place)
        start, size = len(text[:place].encode()), len(word.encode())
        bytes_of_word = [start + int((k + 0.5) / len(sound) * size) for k in range(len(sound))] + [start + size - 1]
        tokens += [token_of_byte[b] for b in bytes_of_word]
        place += len(word)
    return tokens[:-1]


def unstressed(phonemes):
    return phonemes.translate({ord(c): None for c in STRESS})


def spoken_text(text, phonemes, frames, lengths):
    """For every speech token the ordinal of the text token that it speaks, or None; see `text_of_phonemes`."""
    phonemes = unstressed(phonemes)
    tokens = text_of_phonemes(text, phonemes, lengths)
    frame_at = None if tokens is None else phoneme_of_frames(phonemes, frames)
    if frame_at is None:
        return None
    return [tokens[i] for i in itertools.islice(frame_at, 0, None, FRAMES_PER_TOKEN)]


def evenly(frames):
    """A weight for every frame (a character each): each run of one phoneme weighs as much as any other, so that the burst of a `t` counts as much
    as a long vowel. Silence weighs a quarter. The mean is 1."""
    runs = [(c, len(list(run))) for c, run in itertools.groupby(frames)]
    weights = [(SILENT_WEIGHT if c == SILENCE else 1.0) / count for c, count in runs for _ in range(count)]
    scale = len(weights) / max(sum(weights), 1e-6)
    return [scale * weight for weight in weights]
