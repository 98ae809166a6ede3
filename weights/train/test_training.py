"""What the trainers promise beside their losses."""
import argparse
import collections
import copy
import math
import os
import pathlib
import random
import socket
import tempfile
import unittest
import unittest.mock

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic

import make_feats
from export import mean_of
from make_audio import replay_shard, replayed
from make_voiceprints import placed, space, speaker_means
from tinyvoice.audio import log_mel_16k, mel_24k, warp
from tinyvoice.config import DIMS, GAIN, MEL_MEAN, MEL_STD, SPK_DIM, HiftDims
from tinyvoice.corpus import Corpus, ShardWriter, trained_on, with_features
from tinyvoice.models.discriminators import Discriminators
from tinyvoice.models.flow import Flow
from tinyvoice.models.hift import HiftGenerator, louder
from tinyvoice.muon import Muon, orthogonal
from tinyvoice.training import Run, clipped_step, setup
from train_flow import Embeddings, Means, Prompt, as_heard, padded_columns, spliced, spread
from train_vocoder import convolutions, crops
from tinyvoice.phonetic import token_of
from tinyvoice.teachers import Replay, Timbre, drawn_mix, in_float
from train_tokenizer import as_others, collapsed, digit_losses, misread, wanted


def run_of(name, model, folder, begin=None, optimizers=None):
    args = argparse.Namespace(ckpt=pathlib.Path(folder), begin=begin, tiny_steps=False, device="cpu", steps=100, minutes=math.inf, until=math.inf,
                              seed=1, lr=0.01)
    return Run(name, args, {"model": model}, optimizers or {})


class Upsampling(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        self.ups = (model := HiftGenerator(HiftDims(base=16))).ups
        self.model = model

    def ripple(self, up):
        """How far the middle of the output strays from its mean, for an input that does not change with time."""
        still = torch.randn(1, up.in_channels, 1).expand(-1, -1, 40)
        with torch.no_grad():
            out = up(still)[..., 100:-100] if up.stride[0] > 5 else up(still)[..., 30:-30]
        return float((out - out.mean(2, keepdim=True)).abs().max())

    def test_nothing_repeats_with_the_frame(self):
        before = [self.ripple(up) for up in self.ups]
        self.model.interpolate()
        for free, held in zip(before, (self.ripple(up) for up in self.ups)):
            self.assertGreater(free, 1e-2)
            self.assertLess(held, 1e-5)

    def test_held_once_is_held(self):
        self.model.interpolate()
        once = [up.weight.detach().clone() for up in self.ups]
        self.model.interpolate()
        for up, weight in zip(self.ups, once):
            self.assertGreater(float(weight.abs().max()), 0)
            torch.testing.assert_close(up.weight.detach(), weight)

    def test_the_merge_of_the_source_is_not_trained(self):
        self.model.decode(torch.randn(1, 80, 8), self.model.source(torch.full((1, 8), 150.0))).sum().backward()
        self.assertIsNone(self.model.m_source.l_linear.weight.grad)
        self.assertIsNotNone(self.model.conv_pre.bias.grad)


class Crops(unittest.TestCase):
    def of(self, told):
        """f0 of crops of an utterance at 200 Hz whose second half is silent."""
        with tempfile.TemporaryDirectory() as folder:
            writer = ShardWriter(folder, "a")
            tone = 0.3 * np.sign(np.sin(2 * np.pi * 200 * np.arange(24_000) / 24_000)).astype(np.float32)
            tone[12_000:] = 0
            writer.add("a", "train", "words", tone, told)
            writer.close()
            random.seed(0)
            return crops(Corpus(folder), 50, 2, "cpu")

    def test_the_teacher_says_how_high_and_the_sound_what_is_voiced(self):
        for told, hertz in (({"f0": [100] * 50}, 100), (None, 200)):
            wave, f0 = self.of(told)
            self.assertEqual((tuple(wave.shape), tuple(f0.shape)), ((2, 24_000), (2, 50)))
            self.assertLess(float((f0[:, 3:22] - hertz).abs().max()), 2)
            self.assertEqual(float(f0[:, 28:].abs().max()), 0)


class Timbres(unittest.TestCase):
    def test_a_number_is_always_the_same_speaker_and_no_other(self):
        flat = np.linspace(0, -9, 601, dtype=np.float32)[:, None]
        once, again, other = Timbre(3), Timbre(3), Timbre(4)
        np.testing.assert_array_equal(once.spectrum(flat), again.spectrum(flat))
        self.assertGreater(float(np.abs(once.spectrum(flat) - other.spectrum(flat)).max()), 0.3)

    def test_pitch_and_formants_move(self):
        f0 = np.array([0, 150, 200, 0, 260], np.float32)
        peak = np.full((601, 1), -9, np.float32)
        peak[60:66] = 0          # near 1250 Hz
        for number in range(30):
            timbre = Timbre(number)
            moved, middle = timbre.contour(f0), float(np.exp(np.log(f0[f0 > 0]).mean()))
            self.assertEqual(list(moved == 0), list(f0 == 0))
            self.assertAlmostEqual(float(np.exp(np.log(moved[moved > 0]).mean())) / middle, timbre.pitch, places=3)
            spectrum = timbre.spectrum(peak) - timbre.colour
            self.assertTrue(0.65 < spectrum.argmax() / 62.5 < 1.5)
            self.assertLessEqual(float(spectrum.max()), 1e-5)


class InFloat(unittest.TestCase):
    def test_rounded_weights_and_biases_are_kept_and_inputs_are_not_rounded(self):
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
        info = lambda name, *shape: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        x, parts = draw(1, 4, 30), {"w": draw(6, 4, 3), "b": draw(6), "m": draw(28, 5)}
        nodes = [onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"]), onnx.helper.make_node("MatMul", ["y", "m"], ["z"])]
        graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, 4, 30)], [info("z", 1, 6, 5)],
                                       [onnx.numpy_helper.from_array(value, name) for name, value in parts.items()])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            onnx.save(model, path / "wide.onnx")
            quantize_dynamic(path / "wide.onnx", path / "int8.onnx")
            rounded = onnx.load(path / "int8.onnx")
        run = lambda m: onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        exact, as_int8 = run(model), run(rounded)
        in_float(rounded)
        self.assertFalse([n.op_type for n in rounded.graph.node if "Integer" in n.op_type or "Quantize" in n.op_type])
        error = lambda out: float(np.abs(out - exact).max() / np.abs(exact).max())
        self.assertLess(error(run(rounded)), 0.02)
        self.assertLess(error(run(rounded)), error(as_int8))


class Drawn(unittest.TestCase):
    """Speakers that a number names."""

    def test_mixes_are_of_sum_one_and_differ(self):
        names, mixes = zip(*(drawn_mix(number) for number in range(50)))
        mixes = np.stack(mixes)
        np.testing.assert_allclose(mixes.sum(1), 1, atol=1e-6)
        self.assertEqual(names[7], drawn_mix(7)[0])
        np.testing.assert_array_equal(mixes[7], drawn_mix(7)[1])
        self.assertGreater(float(mixes.std(0).min()), 0.2)
        self.assertGreater(float(mixes.min()), -0.15)
        self.assertTrue(all(len(set(three)) == 3 for three in names))
        self.assertGreater(len(set().union(*names)), 40)
        self.assertTrue(all(trained_on(name) for three in names for name in three))

    def test_a_replay_colours_and_moves_nothing_in_time(self):
        click = np.zeros(4000, np.float32)
        click[1000] = 0.5
        spectra = []
        for number in range(4):
            replay = Replay(number)
            self.assertEqual(replay.ratio, round(replay.ratio, 2))
            out = replay.coloured(click)
            self.assertEqual((len(out), int(np.abs(out).argmax())), (4000, 1000))
            self.assertAlmostEqual(float(np.abs(out).max()), 0.5, places=5)
            spectra.append(np.abs(np.fft.rfft(out)))
        self.assertGreater(float(np.abs(np.log(spectra[0] / spectra[1])).max()), 0.2)

    def test_what_is_told_is_replayed(self):
        told = {"frames": "aabbccdd", "stress": "00110022", "f0": [100, 100, 0, 0, 200, 200, 300, 300]}
        self.assertEqual(replayed(told, 2.0, 4), {"frames": "abcd", "stress": "0102", "f0": [200, 0, 400, 600]})
        slow = replayed(told, 0.5, 17)
        self.assertEqual(slow["frames"], "aaaabbbbccccddddd")
        self.assertEqual(slow["f0"][:4], [50] * 4)


class Voiceprints(unittest.TestCase):
    def test_speakers_are_placed_by_what_sets_them_apart(self):
        rng = torch.Generator().manual_seed(0)
        common = torch.rand(256, generator=rng)
        apart = {name: torch.randn(256, generator=rng) for name in ("a", "b", "c")}
        apart["a like"] = apart["a"] + 0.2 * torch.randn(256, generator=rng)
        rows = [{"key": f"{name}{i}", "speaker": name} for name in apart for i in range(3)]
        prints = {row["key"]: common + 0.1 * apart[row["speaker"]] for row in rows}
        stored = space(rows, prints)
        self.assertEqual(tuple(stored["directions"].shape), (SPK_DIM, 256))
        means = speaker_means([*rows, {"key": "unheard", "speaker": "d"}], prints)
        self.assertEqual(list(means), ["a", "a like", "b", "c"])
        points = placed(torch.stack(list(means.values())), stored)
        near = points @ points.T
        self.assertGreater(float(near[0, 1]), 0.9)
        self.assertLess(float(near[0, 2:].max()), 0.3)


class Prompts(unittest.TestCase):
    def loss(self, prompts, mel):
        """Of a flow whose estimator says nothing, and how many frames of condition each row had."""
        torch.manual_seed(0)
        flow, seen = Flow(DIMS.flow, DIMS.tokenizer.codebook, 0.0), {}

        def estimator(x, mask, mu, t, speaker, condition, streaming):
            seen["frames"] = (condition.abs().sum(1) > 0).sum(1)
            return torch.zeros_like(x)

        flow.decoder.estimator.forward = estimator
        rows, frames = len(mel), mel.shape[2]
        loss, _, _ = flow.loss(torch.zeros(rows, frames // 2, dtype=torch.long), torch.full((rows,), frames // 2), mel,
                               torch.randn(rows, SPK_DIM), torch.full((rows, frames), -1), torch.zeros(rows, frames),
                               torch.nn.Conv1d(80, 2, 1), "estimator", None, prompts)
        return float(loss), seen["frames"]

    def test_of_a_clone_it_is_what_stands_before(self):
        prompts = torch.arange(400) % 2 * 24
        _, frames = self.loss(prompts, torch.ones(400, 80, 40))
        self.assertEqual(set(frames[1::2].tolist()), {0, 24})
        self.assertAlmostEqual(float((frames[1::2] > 0).float().mean()), 0.8, delta=0.1)       # a fifth is dropped
        self.assertAlmostEqual(float((frames[::2] > 0).float().mean()), 0.4 * 0.92, delta=0.1)
        self.assertLess(int(frames[::2].max()), 12)

    def test_of_a_clone_it_weighs_less_than_what_is_said(self):
        mel = torch.full((40, 80, 40), MEL_MEAN)
        mel[:, :, :20] += 100 * MEL_STD
        for prompts, weight in ((None, 1.0), (torch.full((40,), 20), 0.3)):
            loss, _ = self.loss(prompts, mel)
            self.assertAlmostEqual(loss / (100 ** 2 * weight / (1 + weight)), 1.0, delta=0.01)

    def test_it_is_a_piece_of_another_utterance(self):
        random.seed(0)
        rows = [{"key": str(tokens), "length": 960 * tokens} for tokens in (30, 50, 80, 90)]
        drawn = [Prompt(rows, rows[3], 40) for _ in range(200)]
        self.assertEqual({prompt.row["key"] for prompt in drawn}, {"50", "80"})       # long enough, and not its own
        self.assertEqual({prompt.count for prompt in drawn}, {40})
        self.assertEqual({prompt.start for prompt in drawn if prompt.row is rows[1]}, set(range(11)))
        self.assertEqual(Prompt(rows, rows[3], 125).row["key"], "80")
        alone = Prompt(rows[:1], rows[0], 125)
        self.assertEqual((alone.row["key"], alone.start, alone.count), ("30", 0, 30))

    def test_it_stands_before_what_is_said(self):
        rows = [{"key": "a", "length": 2 * 960}, {"key": "b", "length": 3 * 960}]
        told, heard = {"a": torch.arange(2), "b": torch.arange(10, 13)}, {"b": torch.arange(20, 23)}
        prompt = Prompt(rows, rows[0], 2)
        prompt.start = 1
        ids = spliced([prompt, None], rows, lambda row: told[row["key"]], lambda row: heard[row["key"]])
        self.assertEqual([part.tolist() for part in ids], [[21, 22, 0, 1], [10, 11, 12]])
        frames = {row["key"]: torch.arange(2 * row["length"] // 960).float()[:, None] for row in rows}
        parts = spliced([prompt, None], rows, lambda row: frames[row["key"]], a_token=2)
        padded = padded_columns(parts, 7, -1.0)
        self.assertEqual(padded[:, 0].tolist(), [[2, 3, 4, 5, 0, 1, 2], [0, 1, 2, 3, 4, 5, -1]])

    def test_where_nothing_was_heard_it_is_as_told(self):
        told = {"a": torch.tensor([1, 2, 3, 4]), "b": torch.tensor([5, 6])}
        of_prompts = as_heard(told, {"a": torch.tensor([7, 8, 9]), "c": torch.tensor([1])})
        self.assertEqual({key: ids.tolist() for key, ids in of_prompts.items()}, {"a": [7, 8, 9, 4], "b": [5, 6]})
        self.assertEqual(told["a"].tolist(), [1, 2, 3, 4])


class Mean(unittest.TestCase):
    def test_it_lies_half_way(self):
        mean = mean_of({"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(7)}, {"w": torch.tensor([2.0, 6.0]).half(), "n": torch.tensor(9), "tied": None})
        self.assertEqual({key: value.tolist() for key, value in mean.items()}, {"w": [1.5, 4.0], "n": 7})


class Gain(unittest.TestCase):
    def test_the_output_is_so_much_lower(self):
        torch.manual_seed(0)
        vocoder = HiftGenerator(DIMS.hift).eval()
        mel, source = torch.randn(1, 80, 12), 0.1 * torch.randn(1, 1, 12 * 480)
        with torch.inference_mode():
            before = vocoder.decode(mel, source)
            vocoder.load_state_dict(louder(vocoder.state_dict(), 0.5))
            torch.testing.assert_close(vocoder.decode(mel, source), 0.5 * before, rtol=1e-4, atol=1e-6)


class Doubt(unittest.TestCase):
    def test_the_embedding_goes_from_its_speaker_to_another(self):
        rows = [{"key": name, "speaker": name} for name in "ab"]
        speakers = Embeddings(rows, {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 5.0])})
        random.seed(0)
        for most in (0.0, 0.4, 1.0):
            own = torch.stack([speakers.doubted(rows[0], most) for _ in range(400)])
            torch.testing.assert_close(own.sum(1), torch.ones(400))           # of unit vectors, whatever their length was
            self.assertGreaterEqual(float(own[:, 0].min()), 1 - most - 1e-6)
            self.assertAlmostEqual(float(own[:, 1].mean()), most / 4, delta=0.03)      # the other is itself in half of the draws


class Judges(unittest.TestCase):
    def test_slim_ones_are_fewer_and_see_every_crop(self):
        wave = torch.randn(2, 24_000)
        full, slim = Discriminators(), Discriminators(slim=True)
        self.assertLess(len(slim(wave)), len(full(wave)))
        self.assertTrue(all(len(score) == 2 for score, _ in slim(wave)))


class Shares(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        for name, count in (("a", 40), ("b", 4), ("c", 4)):
            writer = ShardWriter(self.folder.name, f"{name}.000")
            for i in range(count):
                writer.add(name, "train", "words", np.full(960 * (10 + i), 0.5, np.float32))
            writer.close()
        self.corpus = Corpus(self.folder.name)

    def tearDown(self):
        self.folder.cleanup()

    def test_speakers_are_drawn_by_their_shares(self):
        random.seed(0)
        drawn = collections.Counter(row["speaker"] for _ in range(500) for row in self.corpus.shared(8, {"b": 0.5}))
        self.assertAlmostEqual(drawn["b"] / 4000, 0.5, delta=0.03)
        self.assertAlmostEqual(drawn["a"] / 4000, 0.25, delta=0.03)
        self.assertAlmostEqual(drawn["c"] / 4000, 0.25, delta=0.03)

    def test_a_batch_is_of_about_one_length(self):
        random.seed(0)
        for _ in range(50):
            lengths = [row["length"] for row in self.corpus.shared(8, {"a": 1.0})]
            self.assertLessEqual(max(lengths) - min(lengths), 8 * 960)

    def test_its_length_may_be_given(self):
        for tokens, longer in ((12, 0), (40, 0), (20, 15)):
            for row in self.corpus.shared(8, {"a": 1.0}, 960 * tokens, 960 * longer):
                self.assertLessEqual(abs(row["length"] // 960 - tokens - longer), 4)

    def test_what_cloning_is_tested_on_is_left_out(self):
        self.assertEqual([s for s in ("heart", "kumo~0.9", "nezumi", "nezumi@0.9", "nezumi~1.1", "alpha+kumo", "alpha+nezumi") if trained_on(s)],
                         ["heart", "kumo~0.9"])

    def test_replayed_speech_is_faster(self):
        name, seconds = replay_shard(None, pathlib.Path(self.folder.name), "c~1.25", 0, 1.0)
        self.assertEqual(name, "c~1.25.000")
        rows = Corpus(self.folder.name, keep=lambda s: s == "c~1.25").rows
        self.assertEqual(sorted(row["length"] // 960 for row in rows), [8, 8, 9, 10])
        self.assertEqual(seconds, sum(row["length"] for row in rows) / 24_000)


class Warp(unittest.TestCase):
    """Moving the frequencies of features is moving those of the sound."""

    def setUp(self):
        torch.manual_seed(0)
        self.feats = log_mel_16k(self.tones(1.0))

    def tones(self, ratio):
        time = torch.arange(16_000) / 16_000
        return sum(0.1 * torch.sin(2 * np.pi * hz * ratio * time) for hz in (310.0, 740.0, 1510.0, 3020.0))[None]

    def test_moved_features_are_those_of_moved_tones(self):
        for ratio in (0.8, 1.25):
            wanted, moved = log_mel_16k(self.tones(ratio)), warp(self.feats, ratio)
            off = lambda feats: float((feats - wanted).abs().mean())
            self.assertLess(off(moved), 0.35 * off(self.feats))

    def test_by_one_nothing_moves(self):
        torch.testing.assert_close(warp(self.feats, 1.0), self.feats, rtol=0, atol=1e-5)

    def test_others_say_the_same_at_the_same_time(self):
        random.seed(0)
        rows = self.feats.repeat(3, 1, 1)
        rows[:, :, 40:60] = rows.min()
        others = as_others(rows)
        self.assertEqual(others.shape, rows.shape)
        self.assertGreater(float((others[0] - others[1]).abs().mean()), 0.02)
        peaks = others.amax(dim=1)
        self.assertGreater(float(peaks[:, :38].min()), float(peaks[:, 42:58].max()))


class Features(unittest.TestCase):
    def test_kept_features_are_those_of_the_audio(self):
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            writer = ShardWriter(folder, "heart.000")
            for length, told in ((9600, {"f0": [*range(100, 120)]}), (14400, None)):
                writer.add("heart", "train", "a b", 0.1 * rng.standard_normal(length).astype(np.float32), told)
            writer.close()
            self.assertEqual(with_features(folder), [])
            make_feats.make((folder, "heart.000"))
            self.assertEqual(with_features(folder), ["heart.000"])
            corpus = Corpus(folder)
            for row in corpus.rows:
                torch.testing.assert_close(corpus.features(row, "mel").T, mel_24k(corpus.audio(row)[None])[0], rtol=2e-3, atol=2e-3)
            self.assertEqual(corpus.features(corpus.rows[0], "f0")[:, 0].tolist(), [*range(100, 120)])
            self.assertEqual(corpus.features(corpus.rows[1], "f0").shape, (30, 1))
            self.assertEqual(corpus.padded_features(corpus.rows, "log", 0.0, "cpu").shape, (2, 128, 60))


class Readings(unittest.TestCase):
    def test_tokens_become_phonemes(self):
        silence, s, t = (token_of((symbol, False), (1, 1)) for symbol in " st")
        self.assertEqual(collapsed([silence, s, s, silence, s, t, t, silence]), ["s", "s", "t"])

    def test_the_loss_is_of_the_tokens_inside(self):
        tokens = torch.tensor([token_of((symbol, False), (1, 1)) for symbol in " sst"])
        told = {"long": tokens, "short": tokens[:2]}
        digits, _, weights = wanted([{"key": "long"}, {"key": "short"}], told)
        self.assertEqual((weights > 0).tolist(), [[True] * 4, [True, True, False, False]])
        self.assertAlmostEqual(float(weights[0, 1] + weights[0, 2]), float(weights[0, 3]), places=5)
        right = digits - 1.0
        wrong = right.clone()
        wrong[1, 2:] = 5.0
        self.assertEqual(digit_losses(wrong, digits, weights), digit_losses(right, digits, weights))
        wrong[0, 3, 0] += 1.0
        self.assertGreater(float(digit_losses(wrong, digits, weights)[0]), float(digit_losses(right, digits, weights)[0]) + 0.5)

    def test_misread_is_an_edit_distance(self):
        self.assertEqual(misread([1, 2, 3, 4], [1, 2, 3, 4]), 0)
        self.assertEqual(misread([1, 2, 3, 4], [1, 3, 4, 4]), 0.5)

    def test_speakers_differ_by_about_one(self):
        torch.manual_seed(0)
        means = {name: torch.randn(192) for name in "abcdefgh"}
        layer = torch.nn.Linear(192, 80)
        spread(layer, means)
        out = layer(torch.nn.functional.normalize(torch.stack(list(means.values())), dim=1))
        self.assertAlmostEqual(float(out.std(0, correction=0).mean()), 1.0, delta=0.15)
        self.assertLess(float(out.mean(0).abs().max()), 1e-4)


class KeptMeans(unittest.TestCase):
    """`mu` of an encoder that does not learn is made once for each utterance."""

    def test_they_are_those_of_the_batch(self):
        torch.manual_seed(0)
        flow = Flow(DIMS.flow, DIMS.tokenizer.codebook, 0.0).eval()
        tokens = {key: torch.randint(0, DIMS.tokenizer.codebook, (length,), dtype=torch.int16) for key, length in (("a", 40), ("b", 71))}
        means, rows = Means(flow, tokens), [{"key": "b"}, {"key": "a"}, {"key": "a"}]
        for streaming in (False, True):
            ids = torch.nn.utils.rnn.pad_sequence([tokens[row["key"]].long() for row in rows], batch_first=True)
            with torch.no_grad():
                want = flow.encode(ids, torch.tensor([71, 40, 40]), streaming)
            want[1:, :, 80:] = 0
            made = means(rows, streaming, "cpu")
            self.assertEqual(list(made), ["b", "a"])
            torch.testing.assert_close(padded_columns([made[row["key"]] for row in rows], 142, 0.0), want, rtol=2e-3, atol=2e-3)
        self.assertEqual(sorted(means.kept), [(key, streaming) for key in "ab" for streaming in (False, True)])
        with unittest.mock.patch.object(flow, "encode", side_effect=AssertionError("made twice")):
            means(rows[:2], True, "cpu")


def one_of_two(rank, folder, port):
    """A process of two that train a line together; what it ends with goes to `folder`."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    args = argparse.Namespace(ckpt=pathlib.Path(folder), begin=None, tiny_steps=False, device="cpu", f32=True, threads=1, seed=3,
                              steps=3, minutes=9.0, until=np.inf, lr=0.1)
    setup(args)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run, drawn = Run("line", args, {"model": model}, {"model": optimizer}), []
    for _ in run.steps():
        drawn.append(torch.randn(5, 4))
        clipped_step(model(drawn[-1]).square().mean(), optimizer, model.parameters(), 1e9)
    torch.save({"model": model.state_dict(), "drawn": drawn}, pathlib.Path(folder) / f"{rank}.pt")


class Together(unittest.TestCase):
    def test_two_processes_learn_from_both_their_batches(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(one_of_two, (folder, port), nprocs=2)
            first, second = (torch.load(pathlib.Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2))
            saved = torch.load(pathlib.Path(folder) / "line.pt", weights_only=True)
        torch.testing.assert_close(first["model"], second["model"], rtol=0, atol=0)
        torch.testing.assert_close(first["model"], saved["modules"]["model"], rtol=0, atol=0)
        self.assertEqual(saved["step"], 3)
        torch.manual_seed(3)
        alone = torch.nn.Linear(4, 1)
        args = argparse.Namespace(steps=3, minutes=9.0, lr=0.1)
        for step, batch in enumerate(zip(first["drawn"], second["drawn"])):
            self.assertFalse(torch.equal(*batch))
            rate = Run.rate(argparse.Namespace(args=args, step=step, progress=lambda: step / 3))
            gradients = torch.autograd.grad(alone(torch.cat(batch)).square().mean(), list(alone.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(alone.parameters(), gradients):
                    parameter -= rate * gradient
        torch.testing.assert_close(dict(first["model"]), dict(alone.state_dict()))


class Muons(unittest.TestCase):
    def test_no_direction_waits_for_the_strong_ones(self):
        torch.manual_seed(0)
        for shape in ((20, 60), (60, 20)):
            uneven = torch.randn(shape[0], 20) @ torch.diag(0.7 ** torch.arange(20.0)) @ torch.randn(20, shape[1])
            sizes = torch.linalg.svdvals(orthogonal(uneven))
            self.assertGreater(float(sizes[:12].min()), 0.6)
            self.assertLess(float(sizes.max()), 1.3)

    def test_matrices_go_its_way_and_the_rest_that_of_adam(self):
        torch.manual_seed(0)
        weight, bias, other = (torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 8, 3), (6,), (6,)))
        alone = torch.nn.Parameter(bias.detach().clone())
        muon = Muon([weight], [bias, other], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
        adam = torch.optim.AdamW([alone], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
        before = weight.detach().clone()
        weight.grad, bias.grad, alone.grad = torch.randn_like(weight), torch.full_like(bias, 0.3), torch.full_like(bias, 0.3)
        muon.step(), adam.step()
        torch.testing.assert_close(bias, alone)
        moved = torch.linalg.svdvals((weight.detach() - before).flatten(1)) / (0.01 * 0.2 * 24 ** 0.5)
        self.assertGreater(float(moved.min()), 0.6)
        self.assertLess(float(moved.max()), 1.3)
        again = Muon([torch.nn.Parameter(weight.detach().clone())], [alone, torch.nn.Parameter(other.detach().clone())], lr=0.5, betas=(0.9, 0.98),
                     weight_decay=0.0)
        again.load_state_dict(copy.deepcopy(muon.state_dict()))
        for optimizer, parameters in ((muon, (weight, bias)), (again, (again.matrices[0], alone))):
            parameters[0].grad, parameters[1].grad = torch.ones_like(weight), torch.ones_like(bias)
            optimizer.step()
        torch.testing.assert_close(again.matrices[0], weight)
        torch.testing.assert_close(alone, bias)

    def test_kept_interpolations_and_the_predictor_of_f0_are_not_its_matrices(self):
        model = HiftGenerator(HiftDims(base=16))
        stepped = {id(p) for p in convolutions(model)}
        all_of = lambda *parts: {id(p) for part in parts for name, p in part.named_parameters() if name.endswith("original1")}
        self.assertEqual(stepped, all_of(model.conv_pre, model.resblocks, model.source_resblocks, model.conv_post))

    def test_the_rest_goes_at_a_pace_of_its_own(self):
        with tempfile.TemporaryDirectory() as folder:
            model = torch.nn.Linear(3, 3)
            muon = Muon([model.weight], [{"params": [model.bias], "weight_decay": 0.0}], lr=1.0, betas=(0.9, 0.98), weight_decay=0.1, pace=0.25)
            run = run_of("vocoder", model, folder, optimizers={"model": muon})
            next(run.steps())
            self.assertEqual([group["lr"] for group in muon.param_groups], [0.25 * run.rate(), run.rate()])
            self.assertEqual([group["weight_decay"] for group in muon.param_groups], [0.0, 0.1])


class Begin(unittest.TestCase):
    def test_a_run_begins_from_an_exported_folder(self):
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours = HiftGenerator(HiftDims(base=16)), HiftGenerator(HiftDims(base=16))
            torch.save({k: v.half() for k, v in theirs.state_dict().items()}, pathlib.Path(folder) / "hift.pt")
            run = run_of("vocoder", ours, folder + "/ckpt", pathlib.Path(folder))
            want = theirs.state_dict()["conv_pre.bias"].half().float()
            torch.testing.assert_close(louder(ours.state_dict(), GAIN)["conv_post.bias"], theirs.state_dict()["conv_post.bias"].half().float())
            torch.testing.assert_close(ours.state_dict()["conv_pre.bias"], want, rtol=0, atol=0)
            torch.testing.assert_close(run.average.module.state_dict()["conv_pre.bias"], want, rtol=0, atol=0)
            self.assertEqual(run.step, 0)

    def test_a_checkpoint_comes_before_it(self):
        with tempfile.TemporaryDirectory() as folder:
            model = torch.nn.Linear(2, 2)
            first = run_of("vocoder", model, folder, None)
            first.step = 7
            first.save()
            again = run_of("vocoder", torch.nn.Linear(2, 2), folder, pathlib.Path("/nowhere"))
            self.assertEqual(again.step, 7)

    def test_parts_without_exported_weights_say_so(self):
        with tempfile.TemporaryDirectory() as folder, self.assertRaisesRegex(SystemExit, "speaker"):
            run_of("speaker", torch.nn.Linear(2, 2), folder, pathlib.Path(folder))


if __name__ == "__main__":
    unittest.main()
