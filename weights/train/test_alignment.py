"""Which text token is spoken when."""
import unittest

from tinyvoice.alignment import evenly, phoneme_of_frames, spoken_text


class Alignment(unittest.TestCase):
    def test_frames_follow_the_phonemes(self):
        self.assertEqual(phoneme_of_frames("ab ba", "  aab   baa "), [0, 0, 0, 0, 1, 1, 1, 1, 3, 4, 4, 4])

    def test_a_short_phoneme_weighs_as_much_as_a_long_one(self):
        weights = evenly("  taaa")
        self.assertAlmostEqual(sum(weights), 6)
        self.assertAlmostEqual(weights[2], sum(weights[3:]))
        self.assertAlmostEqual(weights[2], 4 * sum(weights[:2]))

    def test_foreign_frames_are_refused(self):
        self.assertIsNone(phoneme_of_frames("ab", "xx"))

    def test_text_tokens_by_frame(self):
        # "Hi" | " the" | "re"; a speech token is two frames
        self.assertEqual(spoken_text("Hi there", "hˈI ðˈɛɹ", "  hhII  ððɛɛɹɹ  ", [2, 4, 2]), [0, 0, 0, 0, 1, 1, 2, 2])

    def test_digits_have_no_place(self):
        self.assertIsNone(spoken_text("in 1984", "ɪn nˌIntˌin ˈATi fˈɔɹ", "ɪɪ", [2, 5]))


if __name__ == "__main__":
    unittest.main()
