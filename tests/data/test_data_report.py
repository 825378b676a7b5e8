"""The report on the data: counts worked out by hand, and each kind of problem found where it was put."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from medsam3.cli.main import main
from medsam3.data.index import Split
from medsam3.data.report import (
    ConceptFacts,
    Duplicate,
    SetFacts,
    collisions,
    digest_of,
    report_on,
)
from medsam3.data.samples import Instances, Sample, Target
from medsam3.errors import InputError
from medsam3.train.data_page import chosen_samples, problems, report_lines, set_lines, write_page, written_lines

SIZE = (40, 60)


def constant(labels: Instances) -> Callable[[], Instances]:
    return lambda: labels


def target(concept: str, pixels: int, *, size: tuple[int, int] = SIZE) -> Target:
    labels = np.zeros(size, np.int32)
    labels.ravel()[:pixels] = 1
    return Target(concept, pixels > 0, constant(labels))


def sample(folder: Path, name: str, split: Split, targets: tuple[Target, ...], *, seed: int) -> Sample:
    pixels = np.random.default_rng(seed).integers(0, 255, size=(*SIZE, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(folder / name)
    return Sample(name, folder / name, "gut", name, split, targets)


def clean(folder: Path) -> tuple[Sample, ...]:
    return (
        sample(folder, "a.png", "train", (target("polyp", 60), target("melanoma", 0)), seed=1),
        sample(folder, "b.png", "train", (target("polyp", 0), target("melanoma", 90)), seed=2),
        sample(folder, "c.png", "val", (target("polyp", 60), target("melanoma", 60)), seed=3),
    )


def test_sound_data_are_counted_and_have_no_problem(tmp_path: Path) -> None:
    empty = sample(tmp_path, "d.png", "train", (target("polyp", 0), target("melanoma", 0)), seed=4)
    report = report_on((*clean(tmp_path), empty))
    assert report.sets == (SetFacts("gut", "train", 3, 1, SIZE, SIZE), SetFacts("gut", "val", 1, 0, SIZE, SIZE))
    assert report.concepts == (
        ConceptFacts("melanoma", "train", 1, 2, 0, 0),
        ConceptFacts("melanoma", "val", 1, 0, 0, 0),
        ConceptFacts("polyp", "train", 1, 2, 0, 0),
        ConceptFacts("polyp", "val", 1, 0, 0, 0),
    )
    assert problems(report) == ["no problem was found in the data"]
    assert re.search(r"^polyp +1/2 +1/0 +-$", "\n".join(report_lines(report)), re.M)
    assert re.search(r"^gut +train +3 +1 +40x60$", "\n".join(set_lines(report)), re.M)


def test_a_mask_that_does_not_fit_or_belies_the_index_is_named(tmp_path: Path) -> None:
    wrong = sample(tmp_path, "e.png", "train", (target("polyp", 9, size=(40, 61)),), seed=5)
    false = replace(target("polyp", 0), is_present=True)
    report = report_on((wrong, sample(tmp_path, "f.png", "val", (false,), seed=6)))
    assert report.mismatched == ("e.png",)
    assert report.belied == ("f.png: polyp",)


def test_what_is_too_small_at_256_pixels_is_counted(tmp_path: Path) -> None:
    # 512 x 512 is halved: of a block of 4 x 4 pixels 2 x 2 are left, of one pixel at (0, 0) none.
    block, dot = np.zeros((512, 512), np.int32), np.zeros((512, 512), np.int32)
    block[8:12, 8:12], dot[0, 0] = 1, 1
    samples = []
    for name, labels in (("block.png", block), ("dot.png", dot)):
        pixels = np.random.default_rng(len(name)).integers(0, 255, size=(512, 512, 3)).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / name)
        samples.append(Sample(name, tmp_path / name, "gut", name, "train", (Target("polyp", True, constant(labels)),)))
    report = report_on(samples)
    assert report.concepts == (ConceptFacts("polyp", "train", 2, 0, 1, 1),)
    assert any(line.startswith("! gone at 256 x 256") for line in problems(report))


def test_copies_are_found_across_and_within_splits_but_not_within_a_group(tmp_path: Path) -> None:
    first, second, third = clean(tmp_path)
    PIL.Image.open(first.image).save(tmp_path / "copy.png")
    grey = np.asarray(PIL.Image.open(second.image), np.float64) * 0.9 + 12
    PIL.Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "paler.png")
    copy = replace(first, name="copy.png", image=tmp_path / "copy.png", group="copy", split="val")
    paler = replace(second, name="paler.png", image=tmp_path / "paler.png", group="paler")
    report = report_on((first, second, third, copy, paler))
    assert report.duplicates == (
        Duplicate("a.png", "copy.png", ("train", "val"), is_exact=True),
        Duplicate("b.png", "paler.png", ("train", "train"), is_exact=False),
    )
    assert [pair.is_across for pair in report.duplicates] == [True, False]
    one_group = [replace(one, group="patient") for one in (first, second, third, copy, paler)]
    assert report_on(one_group).duplicates == ()
    assert report_on(one_group).crossing == ("gut/patient",)


def test_phrases_that_cannot_be_told_apart_are_named(tmp_path: Path) -> None:
    targets = tuple(target(name, 60) for name in ("polyp", "colorectal polyp", "xyz-gland", "XYZ gland", "tool"))
    samples = (sample(tmp_path, "a.png", "train", targets, seed=1),)
    found = collisions(samples)
    assert "'XYZ gland' and 'xyz-gland' are two spellings of one phrase" in found
    assert "'colorectal polyp' and 'polyp' are two phrasings of 'polyp'" in found
    assert "'xyz gland' has two masks in a.png of gut" in found
    assert len(found) == 3
    assert report_on(samples).unknown == ("XYZ gland", "tool", "xyz-gland")


def test_an_image_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    broken = clean(tmp_path)[0]
    broken.image.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.png: the content is not what the name says"):
        report_on([broken])


def test_the_page_shows_each_concept_and_is_not_made_again_for_the_same_data(tmp_path: Path) -> None:
    samples, out = clean(tmp_path), tmp_path / "out"
    report = report_on(samples)
    assert written_lines(out, report.digest) is None
    write_page(report, samples, out)
    page = (out / "data.html").read_text()
    assert page.count("<figure>") == 4  # polyp in a and c, melanoma in b and c
    assert page.count("data:image/jpeg;base64,") == 4
    assert written_lines(out, digest_of(samples)) == report_lines(report)
    assert written_lines(out, digest_of(samples[:2])) is None
    assert json.loads((out / "data.json").read_text())["concepts"][0]["concept"] == "melanoma"


def test_samples_to_look_at_come_from_as_many_data_sets_as_possible(tmp_path: Path) -> None:
    one = clean(tmp_path)[0]
    many = [replace(one, name=f"{n}.png", dataset="gut" if n < 20 else "skin") for n in range(21)]
    chosen = chosen_samples(many, "polyp")
    assert len(chosen) == 6
    assert sum(sample.dataset == "skin" for sample in chosen) == 1
    assert chosen_samples(many, "melanoma") == []


def test_the_command_reports_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from made_data import data_folder  # noqa: PLC0415

    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "nowhere"))  # no encoders, so nothing is timed
    command = ["train", str(data_folder(tmp_path / "data")), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr().err
    assert "! never present: 2: ulcer (train); ulcer (val)" in shown
    assert "report on the data" in shown
    assert main([*command, "--no-data-report"]) == 0
    assert "report on the data" not in capsys.readouterr().err
