"""A run that is killed with SIGKILL, not merely broken off."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from box_segmenter import BoxSegmenter
from made_stacks import blocks, stack_from
from medsam3.prompts import Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import segment

CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from box_segmenter import BoxSegmenter
from made_stacks import blocks, stack_from
from medsam3.prompts import Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import segment

class Killed(BoxSegmenter):
    def decode(self, features, prompt, *, threshold=None):
        if self.decoded == {decodes}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(features, prompt, threshold=threshold)

options = Options(is_followed=True, journal=Path({journal!r}))
segment(stack_from(blocks(9, hidden=(4,))), [Prompt(text="bright")], Killed(), options)
"""


@pytest.mark.parametrize("decodes", [3, 14, 25])
def test_kill_and_resume_gives_the_mask_of_an_unbroken_run(decodes: int, tmp_path: Path) -> None:
    journal = tmp_path / "run.journal"
    code = CHILD.format(here=str(Path(__file__).parents[1]), decodes=decodes, journal=str(journal))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    stack, prompts = stack_from(blocks(9, hidden=(4,))), [Prompt(text="bright")]
    resumed, fresh = BoxSegmenter(), BoxSegmenter()
    (result,) = segment(stack, prompts, resumed, Options(is_followed=True, journal=journal))
    (whole,) = segment(stack, prompts, fresh, Options(is_followed=True))
    assert resumed.decoded < fresh.decoded
    np.testing.assert_array_equal(result.label_map(), whole.label_map())


@pytest.mark.parametrize(
    ("own", "damaged"),
    [
        ('"key"', '"kez"'),
        ('"score": ', '"score": null, "old": '),
        ('"score": ', '"score": NaN, "old": '),
        ('"start": [', '"start": [0.5, '),
        ('"frame": [', '"frame": [9'),
        ('"crop": [', '"crop": [9'),
        ('"bits": "', '"bits": "00'),
        ('"is_sure": true', '"is_sure": "yes"'),
        ('"value": {', '"value": 7, "other": {'),
    ],
)
def test_an_answer_that_is_damaged_in_the_journal_is_made_anew(tmp_path: Path, own: str, damaged: str) -> None:
    journal = tmp_path / "run.journal"
    stack, prompts = stack_from(blocks(9, hidden=(4,))), [Prompt(text="bright")]
    options = Options(is_followed=True, journal=journal)
    (whole,) = segment(stack, prompts, BoxSegmenter(), options)
    lines = journal.read_text().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if own in line and '"key"' in line)
    lines[number] = lines[number].replace(own, damaged, 1)
    journal.write_text("".join(lines))
    again = BoxSegmenter()
    (result,) = segment(stack, prompts, again, options)
    assert again.decoded == 1
    np.testing.assert_array_equal(result.label_map(), whole.label_map())
