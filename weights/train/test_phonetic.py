"""What speech tokens say."""
import unittest

import numpy as np

from tinyvoice.phonetic import (LEVEL_DIGITS, LEVELS, SOUND_DIGITS, SOUND_OF_DIGITS, SOUNDS, digits_of, heard_frames, levels_of_pitch,
                                sound_of, sounds_of_frames, sounds_of_phonemes, spoken_tokens, token_of)


def told(frames, f0=None, stress=None):
    return {"frames": frames, "stress": stress or "0" * len(frames), "f0": f0 or [200] * len(frames)}


def said(tokens):
    return "".join(sound_of(token)[0] for token in tokens)


class Codes(unittest.TestCase):
    def test_every_sound_has_its_own_digits(self):
        self.assertEqual(len(SOUND_OF_DIGITS), len(SOUND_DIGITS))
        for sound in SOUNDS:
            for detail in LEVEL_DIGITS:
                token = token_of(sound, detail)
                self.assertLess(token, 729)
                self.assertEqual(sound_of(token), sound)
                self.assertEqual(digits_of(token)[4:], detail)

    def test_a_level_up_is_one_digit_by_one(self):
        for (a, b), (c, d) in zip(LEVEL_DIGITS, LEVEL_DIGITS[1:]):
            self.assertEqual(abs(a - c) + abs(b - d), 1)

    def test_some_tokens_mean_nothing(self):
        self.assertEqual(sum(sound_of(token) is None for token in range(729)), 729 - LEVELS * len(SOUNDS))


class Spoken(unittest.TestCase):
    def test_tokens_follow_the_frames(self):
        self.assertEqual(said(spoken_tokens(told("    ssssɪɪɪɪɪɪttt   "))), "  ssɪɪɪt  ")

    def test_a_sound_of_one_frame_is_kept_where_there_is_room(self):
        self.assertEqual(said(spoken_tokens(told("aaaa".replace("a", "æ") + "tɪɪɪɪɪ"))), "æætɪɪ")

    def test_the_tail_of_a_consonant_without_voice_is_silence(self):
        runs = sounds_of_frames(*told("ɪɪ" + "d" * 12, [200] * 4 + [0] * 10).values())
        self.assertEqual([(sound[0], count) for sound, count in runs], [("ɪ", 2), ("d", 5), (" ", 7)])

    def test_stress_is_for_vowels(self):
        runs = sounds_of_frames(*told("tæ", stress="11").values())
        self.assertEqual([sound for sound, _ in runs], [("t", False), ("æ", True)])

    def test_pitch_is_told_of_vowels_and_age_of_silence(self):
        level = lambda token: LEVEL_DIGITS.index(digits_of(token)[4:])
        tokens = spoken_tokens(told("ɪɪɪɪɪɪ      ", [200, 200, 200, 200, 300, 300] + [200] * 6))
        self.assertEqual([level(token) for token in tokens], [4, 4, 8, 0, 1, 2])

    def test_beginning_and_end_are_told_of_consonants(self):
        detail = lambda frames, at: digits_of(spoken_tokens(told(frames))[at])[4:]
        self.assertEqual(detail("ɪɪssɪɪ", 1), (1, 1))
        self.assertEqual(detail("ɪɪɪsɪɪɪɪ", 1), (2, 1))
        self.assertEqual(detail("ɪsssssɪɪ", 1), (0, 2))
        self.assertEqual(detail("ɪsssssɪɪ", 2), (0, 1))
        self.assertEqual(detail("ɪɪsɪɪɪ", 1), (1, 0))

    def test_pitch_is_relative_to_the_utterance(self):
        f0 = [180, 190, 200, 210, 0, 0, 250, 255]
        self.assertEqual(levels_of_pitch(f0), levels_of_pitch([f / 2 for f in f0]))
        self.assertEqual(levels_of_pitch(f0)[2], 0)


class Heard(unittest.TestCase):
    def test_a_sentence_becomes_sounds(self):
        self.assertEqual(sounds_of_phonemes("hˈI, ðɛɹ."), [(" ", False), ("h", False), ("I", True), (" ", False), ("ð", False), ("ɛ", False),
                                                         ("ɹ", False), (" ", False)])

    def test_what_is_heard_is_put_in_the_order_of_the_text(self):
        sounds = sounds_of_phonemes("sɪt")
        heard = np.full((6, len(SOUNDS)), -5.0)
        for frame, symbol in enumerate("  sɪɪt"):
            heard[frame, SOUNDS.index((symbol, False))] = -0.1
        heard[3, SOUNDS.index(("s", False))] = 0.0      # misheard: an s after the vowel has begun is no s
        heard[3, SOUNDS.index(("ɪ", False))] = -4.0
        self.assertEqual([(sound[0], count) for sound, count in heard_frames(sounds, heard)], [(" ", 2), ("s", 2), ("ɪ", 1), ("t", 1)])

    def test_words_are_parted_where_no_silence_is_heard(self):
        sounds = sounds_of_phonemes("ɪs ɪt")
        heard = np.full((16, len(SOUNDS)), -5.0)
        for frame, symbol in enumerate("  ɪɪɪsssɪɪɪttt  "):
            heard[frame, SOUNDS.index((symbol, False))] = -0.1
        self.assertEqual([(sound[0], count) for sound, count in heard_frames(sounds, heard)],
                         [(" ", 2), ("ɪ", 3), ("s", 2), (" ", 2), ("ɪ", 2), ("t", 3), (" ", 2)])

    def test_more_sounds_than_frames_are_an_error(self):
        with self.assertRaises(ValueError):
            heard_frames(sounds_of_phonemes("sɪtsɪt"), np.zeros((2, len(SOUNDS))))


if __name__ == "__main__":
    unittest.main()
