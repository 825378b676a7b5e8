"""The command line with the fake model `threshold`, as a process of its own: `python fake_medsam3.py watch ...`."""

from __future__ import annotations

import copyreg
import sys
from dataclasses import fields

from medsam3.cli.job import ModelChoice
from medsam3.cli.main import main
from slow_segmenter import choice_with_fake, register_fake

register_fake()  # also in the processes that this one starts
copyreg.pickle(  # and in Ray's workers, to which the choice of a model is sent
    ModelChoice,
    lambda choice: (choice_with_fake, ({one.name: getattr(choice, one.name) for one in fields(choice) if one.init},)),
)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
