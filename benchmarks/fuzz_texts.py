"""Good texts that people write and that runs leave behind, for `fuzz.py` to damage: lists, recipes, rules, journals.

Each is read as the command that takes it reads it, beyond the first look: a list's prompts are made, a transcript is
shown and replayed, an earlier run's folder is taken up again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from fuzz_seeds import Seed, grey, lora, open_picture_masks
from numpy.typing import NDArray

import medsam3
import sam3_small
from medsam3.agent import RunOptions, replay, run
from medsam3.agent.transcript import page_of, read_transcript
from medsam3.batch.pieces import find_pieces
from medsam3.cli.inputs import find_inputs, frame_ranges
from medsam3.cli.job import formats_from, prompts_from
from medsam3.cli.outputs import OutputFolder, ResultRow, Task, make_files
from medsam3.image import Image, Masks
from medsam3.io.geojson import write_geojson
from medsam3.io.packed_masks import dumped, loaded
from medsam3.models.sam3.checkpoints import read_adapter, read_checkpoint, write_folder
from medsam3.models.sam3.clip_phrases import load_tokenizer, vocabulary_of_bpe
from medsam3.models.sam3.lora import LoraSource
from medsam3.pacs.series import read_rules
from medsam3.prompts import Prompt, prompt_from_json
from medsam3.segmentation.options import Options
from medsam3.server.settings import read_tokens
from medsam3.train.recipes import read_recipe
from threshold_segmenter import ThresholdSegmenter

_WORDS = "polyp\n12,-3.5,40,5e1\n7,8,1\n3,4,9,12,0\n3-9\npng,nifti\nliver and kidney without tumor\n"


def texts() -> tuple[Seed, ...]:
    """All kinds of texts."""
    return (
        Seed("transcript", "transcript.jsonl", _transcript, _read_transcript),
        Seed("results-list", "results.jsonl", _results_list, _take_up),
        Seed("journal", "a.journal", _journal, _resume),
        Seed("prompts", "a.txt", _text("a.txt", _WORDS), _read_prompts),
        Seed("list-csv", "a.csv", _text("a.csv", _LIST), lambda path: list(find_pieces([str(path)]))),
        Seed("list-jsonl", "a.jsonl", _text("a.jsonl", _LINES), lambda path: list(find_pieces([str(path)]))),
        Seed("recipe", "a.json", _recipe("mini.recipe.json"), lambda path: read_recipe(str(path))),
        Seed("recipe-clicks", "a.json", _recipe("mini-interactive.recipe.json"), lambda path: read_recipe(str(path))),
        Seed("sam3-config", "config.json", _sam3, lambda path: read_checkpoint(path.parent)),
        Seed("sam3-lora", "a.yaml", _lora, lambda path: read_adapter(LoraSource(path.with_suffix(".pt"), path))),
        Seed("vocabulary", "vocab.json", _vocabulary, lambda path: load_tokenizer(path.parent, None)("optic disc")),
        Seed("rules", "a.toml", _text("a.toml", _RULES), read_rules),
        Seed("tokens", "a.txt", _tokens, read_tokens),
        Seed("prompt", "a.json", _prompt, lambda path: prompt_from_json(_said(path))),
        Seed("masks-geojson", "a.geojson", _geojson, open_picture_masks),
        Seed("masks-packed", "a.json", _packed, lambda path: loaded(path.read_bytes())),
    )


_LIST = 'file,text,box\na.png,polyp,\na.png,"kidney, left","1,2,30,40"\nb.png,,"3,4,5,6"\n'
_LINES = '{"file": "a.png", "text": "polyp"}\n{"file": "b.png", "box": [1, 2, 3.5, 4]}\n'
_RULES = """[[rule]]
modality = "CT"
description = "*abd*"
text = ["liver", "kidney"]
[[rule]]
text = "lung"
rtstruct = true
"""


def _said(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _text(file: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(content)


def _image() -> Image:
    return Image(grey()[None, ..., None], source=(Path("a.png"),))


def _transcript(folder: Path) -> None:
    run(_image(), "segment the polyp", ThresholdSegmenter(), options=RunOptions(transcript=folder))


def _read_transcript(path: Path) -> None:
    """Show the run, and do its calls again."""
    page_of(read_transcript(path.parent))
    replay(path.parent, _image(), ThresholdSegmenter())


def _results_list(folder: Path) -> None:
    PIL.Image.fromarray(grey()).save(folder / "seen.png")
    with OutputFolder(folder) as out:
        out.open()
        for concept in ("polyp", "ulcer"):
            masks = Masks.from_dense((grey() > 128)[None, None], [0.5], concept=concept)
            task = Task(str(folder / "seen.png"), "1:2:1", "job", concept)
            stem = out.stem(task, "seen")
            names = out.take(stem, make_files(folder, stem, masks, _image(), ("png", "coco"), None))
            out.record(
                f"seen_{concept}", task, ResultRow.from_masks("seen.png", Prompt(concept), masks, _image(), names)
            )


def _take_up(path: Path) -> None:
    """Go on in a folder of results: find what is done, name what is new, and look for images in it."""
    content = path.read_bytes()
    with OutputFolder(path.parent) as out:
        for concept in ("polyp", "cyst"):
            task = Task(str(path.parent / "seen.png"), "1:2:1", "job", concept)
            done = out.finished(task)
            if done is not None:
                done.cells()
            out.stem(task, "seen")
    path.write_bytes(content)
    find_inputs([str(path.parent)])


def _stack() -> NDArray[np.uint8]:
    return np.stack([np.roll(grey(), 2 * k, axis=1) for k in range(4)])


def _segment(journal: Path) -> None:
    medsam3.segment(_stack(), ["polyp"], ThresholdSegmenter(), Options(journal=journal))


def _journal(folder: Path) -> None:
    _segment(folder / "a.journal")


def _resume(path: Path) -> None:
    _segment(path)


def _read_prompts(path: Path) -> None:
    """Read each line as a phrase, a box, a point, an exemplar, frames and formats."""
    readers: tuple[Callable[[str], object], ...] = (
        lambda line: prompts_from([line], [], [], []),
        lambda line: prompts_from([], [line], [], []),
        lambda line: prompts_from([], [], [line], []),
        lambda line: prompts_from([], [], [], [line]),
        lambda line: frame_ranges([line]),
        formats_from,
    )
    for line in _said(path).split("\n"):
        for reader in readers:
            try:
                reader(line)
            except medsam3.errors.InputError as error:
                assert "\n" not in str(error)


def _recipe(file: str) -> Callable[[Path], object]:
    shipped = Path(medsam3.__file__).parent / "weights" / file
    return lambda folder: shutil.copy(shipped, folder / "a.json")


def _sam3(folder: Path) -> None:
    architecture = sam3_small.small_architecture()
    write_folder(folder, architecture, sam3_small.random_tensors(architecture))


def _lora(folder: Path) -> None:
    torch.save(lora(), folder / "a.pt")
    (folder / "a.yaml").write_text("lora:\n  rank: 2\n  alpha: 4\n  dropout: 0.1\n")


def _vocabulary(folder: Path) -> None:
    merges = [("o", "p"), ("op", "t"), ("d", "i"), ("di", "s"), ("dis", "c</w>")]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
    (folder / "vocab.json").write_text(json.dumps(vocabulary_of_bpe(merges)))


def _tokens(folder: Path) -> None:
    (folder / "a.txt").write_text(f"{'a1' * 16}\n{'b2' * 16}\n")
    (folder / "a.txt").chmod(0o600)


def _prompt(folder: Path) -> None:
    (prompt,) = prompts_from(["polyp"], ["1,2,30,40"], ["7,8,0"], ["3,4,9,12,0"])
    (folder / "a.json").write_text(prompt.to_json())


def _packed(folder: Path) -> None:
    (folder / "a.json").write_text(dumped([Masks.from_dense((grey() > 128)[None, None], [0.5], concept="polyp")]))


def _geojson(folder: Path) -> None:
    mask = Masks.from_dense((grey() > 128)[None, None], [0.5], concept="polyp")
    write_geojson([mask], _image(), folder / "a.geojson")
