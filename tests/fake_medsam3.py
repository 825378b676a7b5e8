"""The command line with the fake model `threshold`, as a process of its own: `python fake_medsam3.py watch ...`."""

from __future__ import annotations

import sys

from medsam3.cli.main import main
from medsam3.models import registry
from slow_segmenter import SlowSegmenter

registry.LOADERS["threshold"] = lambda weights, running: SlowSegmenter()  # also in the processes that this one starts

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
