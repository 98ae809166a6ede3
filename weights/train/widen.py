#!/usr/bin/env python3
"""Makes a vocoder of more channels that says the same, to train on from with `train_vocoder.py --begin FOLDER`.

    widen.py --model ../tiny --out FOLDER

The vocoder of MODEL has half the `base` channels of `tinyvoice/config.py`. Every channel comes twice, and what reads it splits its
weight between the two, unevenly (Net2Net, arXiv 1511.05641): so they are equal at first, but their gradients are not.
"""
import argparse
import dataclasses
import pathlib

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from tinyvoice.config import DIMS
from tinyvoice.models.hift import HiftGenerator, Snake

UNEVEN = 0.5     # standard deviation of a channel's share of the weight


def twice(weight, shape, reads, generator):
    """`weight` with every axis that is twice as long in `shape` doubled: along the axis `reads` split, along the others repeated."""
    for axis, (now, then) in enumerate(zip(weight.shape, shape)):
        if now == then:
            continue
        if now * 2 != then:
            raise SystemExit(f"{tuple(weight.shape)} is not half of {tuple(shape)}")
        if axis == reads:       # one share for all of a kernel: an up-sampling stays an interpolation
            part = weight * (0.5 + UNEVEN * torch.randn(*weight.shape[:2], *[1] * (weight.dim() - 2), generator=generator))
            weight = torch.cat([part, weight - part], axis)
        else:
            weight = torch.cat([weight, weight], axis)
    return weight


@torch.no_grad()
def widened(narrow, wide, seed=1):
    """Gives `wide` the function of `narrow`."""
    generator = torch.Generator().manual_seed(seed)
    for before, after in zip(narrow.modules(), wide.modules(), strict=True):
        if isinstance(after, Snake):
            after.alpha.copy_(twice(before.alpha, after.alpha.shape, None, generator))
        elif isinstance(after, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            reads = 0 if isinstance(after, nn.ConvTranspose1d) else 1
            weight = twice(before.weight, after.weight.shape, reads, generator)
            if is_parametrized(after):      # weight norm: writes both of its parts
                after.weight = weight
            else:
                after.weight.copy_(weight)
            after.bias.copy_(twice(before.bias, after.bias.shape, None, generator))
    return wide


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", type=pathlib.Path, required=True)
    args.add_argument("--out", type=pathlib.Path, required=True)
    args = args.parse_args()
    narrow = HiftGenerator(dataclasses.replace(DIMS.hift, base=DIMS.hift.base // 2))
    state = torch.load(args.model / "hift.pt", map_location="cpu", weights_only=True)
    narrow.load_state_dict({k: v.float() for k, v in state.items()})
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(widened(narrow, HiftGenerator(DIMS.hift)).state_dict(), args.out / "hift.pt")


if __name__ == "__main__":
    main()
