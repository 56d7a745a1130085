"""Measure how much of a training step is spent in oneDNN's kernels, and in which.

    .venv/bin/python scripts/measure/profile_training.py --out profile.json

Trains ResNet50 up to `conv4` from `conv3` on, at 128x128 in batches of 32, on one thread, so that
no two kernels overlap. Needs pretrained weights: `--weights`, or the variable SKINLESION_WEIGHTS.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from benchmark import report

import skinlesion as sl

STEPS = 5
BEGIN, END = "profile: begin", "profile: end"
KINDS = {
    "forward_training": "convolutions, forward",
    "backward_data": "convolutions, gradient of their inputs",
    "backward_weights": "convolutions, gradient of their weights",
}
"""oneDNN's names of what a kernel computes."""


def train(weights: str) -> None:
    """Train a few steps; oneDNN prints a line for each kernel between the two marks."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    settings = {"image_size": (128, 128), "top_stage": "conv4", "fine_tune_from": "conv3"}
    config = sl.make_config("default", **settings, augmentation="none", weights=weights)
    model = sl.build_model(config, 7)
    sl.compile_model(model, config, steps=STEPS)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (config.batch_size, *config.image_size, 3)).astype(np.float32)
    labels = np.arange(config.batch_size) % 7
    for _ in range(2):
        model.train_on_batch(images, labels)
    print(BEGIN, flush=True)
    started = time.perf_counter()
    for _ in range(STEPS):
        model.train_on_batch(images, labels)
    print(END, 1000 * (time.perf_counter() - started) / STEPS, flush=True)


def read_log(log: str) -> dict[str, float]:
    """Milliseconds a step of each kind of kernel, and of everything else."""
    spent: dict[str, float] = defaultdict(float)
    lines = log[log.index(BEGIN) :].splitlines()[1:]
    for line in lines:
        fields = line.split(",")
        if line.startswith(END):
            step = float(line.split()[-1])
            break
        if line.startswith("onednn_verbose") and "exec" in fields:
            kind = fields[fields.index("exec") + 4]
            spent[KINDS.get(kind, "other kernels of oneDNN")] += float(fields[-1]) / STEPS
    return dict(spent) | {"everything else": step - sum(spent.values())}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default=sl.default_weights(), metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.weights:
        parser.error("name a file of weights with --weights")
    if arguments.train:
        train(arguments.weights)
        return
    command = [sys.executable, __file__, "--train", "--weights", arguments.weights]
    environment = os.environ | {"ONEDNN_VERBOSE": "1"}
    log = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    spent = read_log(log.stdout)
    shares = {f"share, {name}": value / sum(spent.values()) for name, value in spent.items()}
    report(spent, shares, item="step", out=arguments.out, threads=1)


if __name__ == "__main__":
    main()
