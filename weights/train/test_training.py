"""What the trainers promise beside their losses."""
import argparse
import pathlib
import tempfile
import unittest

import torch

from tinyvoice.config import HiftDims
from tinyvoice.models.discriminators import Discriminators
from tinyvoice.models.hift import HiftGenerator
from tinyvoice.training import Run


def run_of(name, model, folder, begin):
    args = argparse.Namespace(ckpt=pathlib.Path(folder), begin=begin, tiny_steps=False, device="cpu")
    return Run(name, args, {"model": model}, {})


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


class Judges(unittest.TestCase):
    def test_slim_ones_are_fewer_and_see_every_crop(self):
        wave = torch.randn(2, 24_000)
        full, slim = Discriminators(), Discriminators(slim=True)
        self.assertLess(len(slim(wave)), len(full(wave)))
        self.assertTrue(all(len(score) == 2 for score, _ in slim(wave)))


class Begin(unittest.TestCase):
    def test_a_run_begins_from_an_exported_folder(self):
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours = HiftGenerator(HiftDims(base=16)), HiftGenerator(HiftDims(base=16))
            torch.save({k: v.half() for k, v in theirs.state_dict().items()}, pathlib.Path(folder) / "hift.pt")
            run = run_of("vocoder", ours, folder + "/ckpt", pathlib.Path(folder))
            want = theirs.state_dict()["conv_pre.bias"].half().float()
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
        with tempfile.TemporaryDirectory() as folder, self.assertRaisesRegex(SystemExit, "tokenizer"):
            run_of("tokenizer", torch.nn.Linear(2, 2), folder, pathlib.Path(folder))


if __name__ == "__main__":
    unittest.main()
