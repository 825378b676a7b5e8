"""A training run of a tiny detector to be killed: `python mini_killed_run.py OUT`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import mini_tiny as tiny

from medsam3.train.loop import Validation

CONFIG = replace(tiny.CONFIG, steps=8, save_every=3)


if __name__ == "__main__":
    tiny.train(Path(sys.argv[1]), CONFIG, validation=Validation(every=2, patience=100, dice=lambda: 0.5))
