#!/usr/bin/env python3
"""The whole way from packages to a model folder, in one command.

    run_all.py --work WORK --out ../tiny [--device cuda] [--minutes 24] [--call-minutes 9] [--tiny-steps]

Text and speech are made, then the parts are trained side by side: the vocoder all the time, the tokenizer and the
speaker encoder first, the flow and the language model after all of the corpus was turned into tokens. Every stage leaves
WORK/done/STAGE; started again, the command goes on where it stopped. `--call-minutes` ends this call early (exit code
75) with everything saved, for machines that are lent in slices. Logs: WORK/logs.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import time

from tinyvoice.teachers import TAUGHT

HERE = pathlib.Path(__file__).parent
UNFINISHED = 75
# glibc would give large blocks back and fault their pages in again at every step: a sixth of the flow's time on a CPU
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(8 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
SPEAKERS = ("heart=40,heart@0.84=1.5,heart@1.14=1.5,heart@0.88^0.72=1.5,joe=2,kumo=0.5,alpha=0.5,gongitsune=0.3,tebukuro=0.3,"
            "gongitsune+kumo=0.2,alpha+tebukuro=0.2,joe@0.9=0.3,joe@1.12=0.3,joe@1.2=0.3,"
            "kumo@0.92=0.2,kumo@1.12=0.2,alpha@0.88=0.2,alpha@1.08=0.2,gongitsune@0.94=0.2,tebukuro@1.08=0.2"
            + "".join(f",{name}=0.05" for name in TAUGHT if "_" in name)
            + "".join(f",heart#{number}=0.05" for number in range(150)))
FLITE_SPEAKERS = ",slt=0.4,rms=0.4,awb=0.4,slt@0.88=0.2,slt@1.13=0.2,rms@0.9=0.2,rms@1.15=0.2,awb@1.12=0.2,awb@0.9=0.2"
DRAWN = "".join(f",kokoro#{number}=0.03" for number in range(40)) + "".join(
    f",{name}~#{6 * place + number}=0.02" for number in range(6)
    for place, name in enumerate(("kumo", "alpha", "gongitsune", "tebukuro", "joe", *(f"kokoro#{mix}" for mix in range(40)))))
REPLAYED = "".join(f",{name}~{ratio}=0.1" for name in ("kumo", "alpha", "joe") for ratio in (0.84, 0.92, 1.09, 1.18))
TINY_SPEAKERS = "heart=0.006,heart@0.84=0.002,heart@1.14=0.002,heart@0.88^0.72=0.002,heart#1=0.001,joe=0.001,joe~0.9=0.001,kumo=0.001,kumo~#1=0.001"
# of the flow's rows: the voices that are bundled
FLOW = ("--main", "heart", "--shares", "heart=0.15,heart@0.88^0.72=0.15,heart@0.84=0.12,heart@1.14=0.08")
# shares of --minutes; the three later shares sum to 1 along the critical path tokenizer -> tokens -> llm
TIME = {"vocoder": 0.95, "tokenizer": 0.30, "speaker": 0.2, "flow": 0.60, "llm": 0.65}


class Plan:
    def __init__(self, args):
        self.args, self.started = args, time.time()
        self.data, self.ckpt = args.work / "data", args.work / "ckpt"
        self.until = self.started + 60 * args.call_minutes
        for folder in ("logs", "done"):
            (args.work / folder).mkdir(parents=True, exist_ok=True)

    def is_done(self, stage):
        return (self.args.work / "done" / stage).exists()

    def start(self, stage, script, *options):
        """Starts a stage unless it is done; returns (stage, process or None)."""
        if self.is_done(stage):
            return stage, None
        command = [sys.executable, str(HERE / script), *map(str, options)]
        print(f"{time.time() - self.started:7.0f} s  {stage}: {' '.join(command[1:])}", flush=True)
        log = (self.args.work / "logs" / f"{stage}.log").open("a")
        environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": str(self.args.threads), "PYTHONUNBUFFERED": "1"}
        return stage, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def finish(self, *stages):
        """Waits for the stages; True when all are done. A failure ends the command, naming the log."""
        complete = True
        for stage, process in stages:
            code = 0 if process is None else process.wait()
            if code == UNFINISHED:
                complete = False
            elif code:
                raise SystemExit(f"{stage} failed with code {code}: see {self.args.work / 'logs' / stage}.log")
            else:
                (self.args.work / "done" / stage).touch()
                print(f"{time.time() - self.started:7.0f} s  {stage} done", flush=True)
        return complete

    def train(self, part, *options):
        options = [*options, "--data", self.data, "--ckpt", self.ckpt, "--device", self.args.device, "--until", self.until,
                   "--threads", self.args.threads]
        options += ["--tiny-steps"] if self.args.tiny_steps else ["--minutes", self.args.minutes * TIME[part]]
        return self.start(part, f"train_{part}.py", *options)


def prepare(plan):
    args, data = plan.args, plan.data
    if (data / "text.tsv").exists():      # made elsewhere and carried in
        (args.work / "done" / "text").touch()
    made = ("--prose", 300, "--made", 300, "--cut", 300, "--strewn", 100, "--held-out", 20) if args.tiny_steps else ()
    plan.finish(plan.start("text", "make_text.py", "--out", data / "text.tsv", *made))
    speakers = TINY_SPEAKERS if args.tiny_steps else args.speakers
    plan.finish(plan.start("audio", "make_audio.py", "--text", data / "text.tsv", "--out", data / "audio",
                           "--speakers", speakers),
                plan.start("bpe", "make_bpe.py", "--data", data))
    plan.finish(plan.start("features", "make_feats.py", "--data", data), plan.start("told", "make_tokens.py", "--data", data),
                plan.start("voiceprints", "make_voiceprints.py", "--data", data))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--work", type=pathlib.Path, required=True, help="folder of data, checkpoints and logs")
    args.add_argument("--out", type=pathlib.Path, required=True, help="model folder to write")
    args.add_argument("--device", default="cuda")
    args.add_argument("--threads", type=int, default=2, help="CPU threads a process")
    args.add_argument("--minutes", type=float, default=24, help="training time, making the data not counted")
    args.add_argument("--call-minutes", type=float, default=1e6, help="end this call after so long")
    args.add_argument("--speakers", default=SPEAKERS + REPLAYED + DRAWN + FLITE_SPEAKERS)
    args.add_argument("--tiny-steps", action="store_true", help="smoke run: two steps a part on a minute of speech")
    plan = Plan(args.parse_args())
    paths = ("--data", plan.data, "--ckpt", plan.ckpt)
    prepare(plan)
    vocoder = plan.train("vocoder", "--evenly", 0.6)
    ready = plan.finish(plan.train("tokenizer"), plan.train("speaker"))
    if ready:
        plan.finish(plan.start("tokens", "make_tokens.py", *paths, "--device", plan.args.device))
        ready = plan.finish(plan.train("flow", *FLOW), plan.train("llm"))
    if not plan.finish(vocoder) or not ready:
        raise SystemExit(UNFINISHED)
    plan.finish(plan.start("export", "export.py", *paths, "--out", plan.args.out))


if __name__ == "__main__":
    main()
