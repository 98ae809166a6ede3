"""What all trainers share: arguments, seeds, resuming, checkpoints, averaged weights, log lines.

A trainer calls `Run(...)`, then loops `for step in run.steps():`. The run is done at `--steps` or after `--minutes` of
training, whichever is first; it writes `CKPT/NAME.pt` every few minutes and at the end, and continues from that file
when it is started again. Without one it begins anew, or with `--begin` from the weights of an exported folder. Stopped by
`--until` before it is done, it exits with code 75.

Under `torchrun --nproc-per-node N` N processes train one model: each draws a batch of its own, gradients are averaged, and the first of
them keeps the time, logs and saves.
"""
import argparse
import copy
import json
import math
import os
import pathlib
import random
import time

import numpy as np
import torch
import torch.distributed as together
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from .config import GAIN
from .models.hift import louder

SAVE_SECONDS = 240
LOG_STEPS = 50
UNFINISHED = 75      # exit code of a run that --until stopped
all_f32 = False      # set by --f32
EXPORTED = {"vocoder": "hift.pt", "flow": "flow.pt", "llm": "llm.pt"}


def arguments(description, steps, batch, lr):
    """Parser with the options of every trainer; the defaults are the full run on a GPU."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of text.tsv, audio/, tokens/")
    parser.add_argument("--ckpt", type=pathlib.Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, default=math.inf, help="training time, resumed runs added up")
    parser.add_argument("--until", type=float, default=math.inf, help="stop at this unix time, to be resumed")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--begin", type=pathlib.Path, metavar="MODEL", help="exported folder whose weights a new run begins from")
    parser.add_argument("--f32", action="store_true", help="no bf16, on a CPU that multiplies it more slowly")
    parser.add_argument("--tiny-steps", action="store_true", help="smoke run: two steps on little data")
    return parser


class Average:
    """Exponential moving average of a module's floating-point state; these are the weights that are exported."""

    def __init__(self, module, decay):
        self.module, self.decay = copy.deepcopy(module).eval().requires_grad_(False), decay
        pairs = list(zip(self.module.state_dict().values(), module.state_dict().values()))
        self.smooth = [pair for pair in pairs if pair[0].is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step):
        keep = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_([mine for mine, _ in self.smooth], [other for _, other in self.smooth], 1 - keep)
        for mine, other in self.counters:
            mine.copy_(other)


class Run:
    """Holds named modules and optimisers; the first module is the one whose average is exported."""

    def __init__(self, name, args, modules, optimizers, decay=0.999):
        self.name, self.args, self.modules, self.optimizers = name, args, modules, optimizers
        self.path = args.ckpt / f"{name}.pt"
        if args.begin and not self.path.exists():
            self._begin(next(iter(modules.values())))
        self.average = Average(next(iter(modules.values())), decay)
        self.step, self.seconds, self.sums = 0, 0.0, {}
        if args.tiny_steps:
            args.steps, args.minutes = 2, 10.0
        args.ckpt.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()

    def _begin(self, module):
        if self.name == "tokenizer":
            from .onnx_export import TOKENIZER_FILE, tokenizer_state     # only here are the packages of the export needed
            module.load_state_dict(tokenizer_state(self.args.begin / TOKENIZER_FILE))
            return
        if self.name not in EXPORTED:
            raise SystemExit(f"--begin: an exported folder holds no weights that the {self.name} could begin from")
        state = torch.load(self.args.begin / EXPORTED[self.name], map_location=self.args.device, weights_only=True)
        state.pop("llm.model.lm_head.weight", None)      # tied to the text embedding
        state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        module.load_state_dict(louder(state, 1 / GAIN) if self.name == "vocoder" else state)

    def _load(self):
        state = torch.load(self.path, map_location=self.args.device, weights_only=True)
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
        for key, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][key])
        self.average.module.load_state_dict(state["average"])
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"{self.name}: resumed at step {self.step}", flush=True)

    def save(self):
        state = {"modules": {k: m.state_dict() for k, m in self.modules.items()},
                 "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
                 "average": self.average.module.state_dict(), "step": self.step, "seconds": self.seconds}
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)

    def progress(self):
        """Share of the run that is over, by steps or by time."""
        return max(self.step / self.args.steps, self.seconds / (self.args.minutes * 60))

    def rate(self):
        """Learning rate: linear warm-up over 2 % of the steps, cosine down to 5 % of the peak."""
        warm = max(1, min(500, self.args.steps // 50))
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress())))
        return self.args.lr * min(1.0, (self.step + 1) / warm) * (0.05 + 0.95 * fall)

    def steps(self):
        """Yields step numbers; between two of them it averages, logs and saves."""
        started = saved = time.time()
        before, first = self.seconds, self.step
        while self._goes_on():
            # a resumed run draws what an unbroken one would
            seed = self.args.seed * 1_000_003 + self.step + 1_000_000_007 * rank()
            random.seed(seed), np.random.seed(seed % 2 ** 32), torch.manual_seed(seed)
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = self.rate() * group.get("pace", 1.0)
            yield self.step
            self.step += 1
            self.seconds = before + time.time() - started
            self.average.update(self.step)
            if self.step % LOG_STEPS == 0 or self.progress() >= 1:
                self._log((self.step - first) / (time.time() - started))
            if time.time() - saved > SAVE_SECONDS and rank() == 0:
                self.save()
                saved = time.time()
        if rank() == 0:
            self.save()
        if self.progress() < 1:
            raise SystemExit(UNFINISHED)

    def _goes_on(self):
        """Whether there is another step: the first process decides, by its clock."""
        if together.is_initialized():
            clock = torch.tensor([self.seconds, time.time()], dtype=torch.float64, device=self.args.device)
            together.broadcast(clock, 0)
            self.seconds, now = clock.tolist()
        else:
            now = time.time()
        return self.progress() < 1 and now < self.args.until

    def add(self, **losses):
        """Adds to the means that the next log line prints."""
        for key, value in losses.items():
            total, count = self.sums.get(key, (0.0, 0))
            self.sums[key] = (total + value.detach(), count + 1)     # read from the device only to be printed

    def _log(self, pace):
        means = {k: round(float(total) / count, 4) for k, (total, count) in self.sums.items()}
        self.sums = {}
        if rank() > 0:
            return
        print(json.dumps({"part": self.name, "step": self.step, "minutes": round(self.seconds / 60, 1),
                          "steps_per_s": round(pace, 3), **means}), flush=True)


def setup(args):
    """Threads and matrix precision; call before any tensor is made."""
    global all_f32
    all_f32 = args.f32
    torch.set_num_threads(args.threads)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        together.init_process_group("gloo" if args.device == "cpu" else "nccl")
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False
    return torch.device(args.device)


def rank():
    """Which of the processes that train together this is."""
    return together.get_rank() if together.is_initialized() else 0


def average_gradients(parameters):
    """Over the processes that train together. Which parameters have a gradient is the same for all of them."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = _flatten_dense_tensors(gradients)
    together.all_reduce(flat)
    flat /= together.get_world_size()
    for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat, gradients)):
        gradient.copy_(mean)


def autocast(device):
    """bf16 on a GPU and on a CPU that multiplies bf16, else plain f32."""
    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=native and not all_f32)


def clipped_step(loss, optimizer, parameters, limit=1.0):
    """Backward and one optimiser step with the gradient norm clipped; a step with a non-finite norm is skipped."""
    parameters = list(parameters)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if together.is_initialized():
        average_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    if torch.isfinite(norm):
        optimizer.step()
    return norm


def averaged_state(ckpt, name):
    """State dict of the averaged weights of a trained part."""
    return _checkpoint(ckpt, name)["average"]


def state_of(ckpt, name, module):
    """State dict of one module of a part as its training left it, such as a helper that is not averaged."""
    return _checkpoint(ckpt, name)["modules"][module]


def _checkpoint(ckpt, name):
    path = pathlib.Path(ckpt) / f"{name}.pt"
    if not path.exists():
        raise SystemExit(f"{path} is missing: train {name} first")
    return torch.load(path, map_location="cpu", weights_only=True)
