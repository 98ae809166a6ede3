"""What a speech token says: a phoneme, and how high it is, where in the token it begins and ends, or how long it has lasted. Nothing of
who speaks.

The tokenizer's six ternary dimensions have a meaning each (a supervised semantic token, as in arXiv 2407.05407, of a teacher that
told its phonemes): the first four are the phoneme, near ones for near sounds. The last two are, of a vowel, one of nine levels of its
pitch relative to the utterance, in an order in which a step up or down changes one dimension by one; of a consonant, whether it begins
before, at, or after the beginning of the token, and whether it ends before, at, or after the end: tokens are long for it; of silence, how
many tokens it has lasted, in the order of the levels. id = sum_k (digit_k + 1) 3^k, as the quantizer counts.
"""
import itertools

import numpy as np

from .teachers import SILENCE, STRESS

DIGITS, LEVELS = 6, 9
OCTAVES = 0.14                # of a level; the middle one is the median of the utterance
STOPS, STOP_FRAMES, LONG_FRAMES = set("ptkbdɡT"), 5, 7     # a consonant that is no longer heard after so many frames is silence by then
BOUNDARY_FRAMES = 4           # a shorter silence only parts two words
PARTED_FRAMES = 2             # of one that is not heard
SKIPPED, SKIPPED_BOUNDARY = 4.0, 0.7     # cost of a sound that no token says, in frames
UNHEARD = 8.0                 # cost of it where sounds are recognised, and the most that a frame may cost, in nats

# rows of nine: second dimension; within them the third, then the fourth. Consonants: lips and teeth, ridge, behind it; stops,
# fricatives, others; voiceless, voiced, nasal or approximant. Vowels: high, middle, low; front, central, back. "." is unused.
CONSONANTS = "pbmfvwθð" + SILENCE + "tdnszl.Tɹ" + "kɡŋʃʒjʧʤh"
VOWELS = "iɪ.ᵊᵻ..uʊ" + "Aɛ.ɜəʌOɔY" + "Iæ..ɐ.Wɑ."
LEVEL_DIGITS = [(level // 3, level % 3 if level // 3 % 2 == 0 else 2 - level % 3) for level in range(LEVELS)]


def _places(table, first):
    return {symbol: (first, *(at // 3 ** (2 - k) % 3 for k in range(3))) for at, symbol in enumerate(table) if symbol != "."}


SOUND_DIGITS = {**{(symbol, False): digits for symbol, digits in (_places(CONSONANTS, 0) | _places(VOWELS, 1)).items()},
                **{(symbol, True): digits for symbol, digits in _places(VOWELS, 2).items()}}
SOUNDS = list(SOUND_DIGITS)     # (phoneme, whether stressed)
SOUND_OF_DIGITS = {digits: sound for sound, digits in SOUND_DIGITS.items()}


def digits_of(token):
    """The six digits (0, 1, 2) of a token."""
    return tuple(token // 3 ** k % 3 for k in range(DIGITS))


def sound_of(token):
    """(phoneme, whether stressed) of a token, or None where none has these digits."""
    return SOUND_OF_DIGITS.get(digits_of(token)[:4])


def token_of(sound, detail):
    """The token of a sound and the last two digits."""
    return sum(digit * 3 ** k for k, digit in enumerate((*SOUND_DIGITS[sound], *detail)))


def sounds_of_frames(frames, stress, f0):
    """Runs of one sound: [((phoneme, stressed), frames)]. What has no code is silence."""
    runs = []
    for (symbol, mark), run in itertools.groupby(zip(frames, stress, f0), lambda frame: frame[:2]):
        heard = [frame[2] > 0 for frame in run]
        sound = (symbol, mark == "1") if (symbol, mark == "1") in SOUND_DIGITS else (symbol, False)
        sound = sound if sound in SOUND_DIGITS else (SILENCE, False)
        most = STOP_FRAMES if symbol in STOPS else LONG_FRAMES
        kept = len(heard)
        while symbol in CONSONANTS and kept > most and not heard[kept - 1]:
            kept -= 1
        for part, count in ((sound, kept), ((SILENCE, False), len(heard) - kept)):
            if count and runs and runs[-1][0] == part:
                runs[-1] = part, runs[-1][1] + count
            elif count:
                runs.append((part, count))
    return runs


def sounds_of_phonemes(phonemes):
    """Sounds of a sentence as hibari writes it, with silence before, after and between words."""
    out, mark = [(SILENCE, False)], False
    for symbol in phonemes + SILENCE:
        if symbol in STRESS:
            mark = symbol == STRESS[0]
            continue
        sound = (symbol, mark) if (symbol, mark) in SOUND_DIGITS else (symbol, False)
        sound = sound if sound in SOUND_DIGITS else (SILENCE, False)
        if sound != out[-1] or sound[0] != SILENCE:
            out.append(sound)
        mark = False
    return out


def best_runs(cost, skipped):
    """The cheapest way for tokens, or frames, in order to say runs in order: cost [tokens, runs] of each saying each, cost [runs] of
    leaving one out, of which no two may follow each other. -> the run of each token."""
    count, size = cost.shape
    passed = np.array([np.inf, np.inf, *skipped[1:-1]])[:size]     # of leaving out the run before
    best = np.full(size, np.inf)
    best[:2] = [0.0, skipped[0]][:size]
    best += cost[0]
    came = np.zeros((count, size), int)
    for token in range(1, count):
        earlier = np.concatenate([[np.inf, np.inf], best])
        ways = np.stack([best, earlier[1:-1], earlier[:-2] + passed])
        came[token] = ways.argmin(0)
        best = ways.min(0) + cost[token]
    last = size - 1
    if size > 1 and best[-2] + skipped[-1] < best[-1]:
        last -= 1
    if np.isinf(best[last]):
        raise ValueError(f"{size} sounds in {count} places")
    out = []
    for token in range(count - 1, -1, -1):
        out.append(last)
        last -= came[token, last]
    return out[::-1]


def run_of_tokens(runs, count):
    """Which run each of `count` tokens of two frames says: every one as near to its place as can be, none left out where there is
    room."""
    starts, ends = bounds(runs)
    place = np.arange(2 * count)[:, None] + 0.5
    far = np.maximum(np.maximum(starts - place, place - ends), -0.5) + 0.5       # of each frame from each run
    skipped = [SKIPPED_BOUNDARY if sound[0] == SILENCE and frames < BOUNDARY_FRAMES else SKIPPED for sound, frames in runs]
    return best_runs((far[0::2] + far[1::2]) / 2, skipped)


def bounds(runs):
    """First frame of each run, and the first after it."""
    ends = np.cumsum([frames for _, frames in runs])
    return ends - [frames for _, frames in runs], ends


def heard_frames(sounds, heard):
    """Runs of a sentence's sounds in frames, by the log-probabilities of SOUNDS that a recogniser gave each frame, [frames, sounds].

    Between two words there is a short silence even where none is heard, as in what `heart` tells of itself: tokens must mean the same
    whoever speaks."""
    cost = np.minimum(-heard[:, [SOUNDS.index(sound) for sound in sounds]], UNHEARD)
    best = best_runs(cost, [0.0 if sound[0] == SILENCE else UNHEARD for sound in sounds])
    counts = np.bincount(best, minlength=len(sounds))
    for run in range(1, len(sounds) - 1):
        while sounds[run][0] == SILENCE and counts[run] < PARTED_FRAMES:
            longer = max(run - 1, run + 1, key=lambda other: counts[other])
            if counts[longer] <= PARTED_FRAMES:
                break
            counts[longer] -= 1
            counts[run] += 1
    return [(sound, int(count)) for sound, count in zip(sounds, counts) if count]


def levels_of_pitch(f0):
    """Level of each token from the f0 of its two frames, whole tokens: those where nothing is voiced have the lowest."""
    f0 = np.asarray(f0, np.float64).reshape(-1, 2)
    heard = f0 > 0
    if not heard.any():
        return [0] * len(f0)
    octaves = np.log2(np.where(heard, f0, 1))
    middle = np.median(octaves[heard])
    mean = (octaves * heard).sum(1) / np.maximum(heard.sum(1), 1)
    levels = np.clip(np.rint((mean - middle) / OCTAVES) + LEVELS // 2, 0, LEVELS - 1)
    return np.where(heard.any(1), levels, 0).astype(int).tolist()


def tokens_of(runs, f0):
    """Speech tokens of runs of sounds, [((phoneme, stressed), frames)], and the f0 of the frames, an even number."""
    starts, ends = bounds(runs)
    side = lambda frames: int(np.sign(frames)) + 1
    out, before, lasted = [], None, 0
    for token, (run, level) in enumerate(zip(run_of_tokens(runs, len(f0) // 2), levels_of_pitch(f0), strict=True)):
        lasted = lasted + 1 if run == before else 0
        before, sound = run, runs[run][0]
        if sound[0] == SILENCE:
            detail = LEVEL_DIGITS[min(lasted, LEVELS - 1)]
        elif sound[0] in CONSONANTS:
            detail = side(starts[run] - 2 * token), side(ends[run] - 2 * token - 2)
        else:
            detail = LEVEL_DIGITS[level]
        out.append(token_of(sound, detail))
    return out


def spoken_tokens(row):
    """Speech tokens of an utterance whose teacher told what it says (`told_of` in `teachers.py`)."""
    return tokens_of(sounds_of_frames(row["frames"], row["stress"], row["f0"]), row["f0"])
