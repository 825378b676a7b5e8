"""`medsam3 watch dicomweb:...` against a real Orthanc that is stopped and started, and is itself killed."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from made_archive import Orthanc, start_fake, until
from made_study import made_study
from medsam3.cli.main import main
from threshold_segmenter import ThresholdSegmenter

RULE = '[[rule]]\nmodality = "CT"\ntext = "{}"\n'
QUICK = ("--settle", "0", "--every", "0.2", "--model", "threshold")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold_model: ThresholdSegmenter) -> Path:
    del threshold_model
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "rules.toml").write_text(RULE.format("polyp"), encoding="utf-8")
    return folder


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line with the fake model as a process; those that still run are killed in the end."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = start_fake(*arguments, stderr=subprocess.PIPE)
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def _done(work: Path) -> list[dict[str, Any]]:
    lines = (work / "medsam3_watch" / "done.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    return [json.loads(line) for line in lines]


def test_series_that_fit_a_rule_are_segmented_once(
    orthanc: Orthanc, work: Path, tmp_path: Path, threshold_model: ThresholdSegmenter
) -> None:
    fits = made_study(tmp_path / "a", BodyPartExamined="ABDOMEN", SeriesDescription="Portal venous 3 mm")
    other = made_study(tmp_path / "b", BodyPartExamined="CHEST", SeriesDescription="Portal venous 3 mm")
    magnet = made_study(tmp_path / "c", Modality="MR", BodyPartExamined="ABDOMEN", SeriesDescription="portal")
    for made in (fits, other, magnet):
        orthanc.send(made.folder)
    rule = 'modality = "ct"\nbody_part = "abd*"\ndescription = "*PORTAL*"\n'
    text = f'[[rule]]\n{rule}text = ["polyp", "liver"]\nrtstruct = true\n'
    (work / "rules.toml").write_text(text, encoding="utf-8")
    assert main(["watch", orthanc.root, "--rule", "rules.toml", "--once", *QUICK]) == 0
    assert (orthanc.count(fits.study, "SEG"), orthanc.count(fits.study, "RTSTRUCT")) == (2, 2)
    assert orthanc.count(other.study, "SEG") == orthanc.count(magnet.study, "SEG") == 0
    assert {record["series"] for record in _done(work)} == {fits.series}
    encoded = threshold_model.encoded
    assert main(["watch", orthanc.root, "--rule", "rules.toml", "--once", *QUICK]) == 0
    assert main(["watch", orthanc.root, "--rule", "rules.toml", "--once", "--out", "other", *QUICK]) == 0
    assert threshold_model.encoded == encoded
    assert orthanc.count(fits.study, "SEG") == 2
    assert list((work / "medsam3_watch" / "series").iterdir()) == []


def test_what_cannot_be_segmented_is_told_once_and_holds_nothing_up(
    orthanc: Orthanc, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = '[[rule]]\ndescription = "hold-up"\ntext = "polyp"\n'
    (work / "rules.toml").write_text(rule, encoding="utf-8")
    gappy = made_study(tmp_path / "a", slices=8, SeriesDescription="hold-up")
    (gappy.folder / "00004.dcm").unlink()
    whole = made_study(tmp_path / "b", SeriesDescription="hold-up")
    for made in (gappy, whole):
        orthanc.send(made.folder)
    command = ["watch", orthanc.root, "--rule", "rules.toml", "--once", *QUICK]
    assert main(command) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "missing" in line]
    assert gappy.series in line
    assert (orthanc.count(gappy.study, "SEG"), orthanc.count(whole.study, "SEG")) == (0, 1)
    assert main(command) == 0
    assert "missing" not in capsys.readouterr().err


def test_a_slice_that_comes_later_is_new_work(orthanc: Orthanc, work: Path, tmp_path: Path) -> None:
    rule = '[[rule]]\ndescription = "grows"\ntext = "polyp"\n'
    (work / "rules.toml").write_text(rule, encoding="utf-8")
    made = made_study(tmp_path / "a", SeriesDescription="grows")
    late = tmp_path / "late" / "00001.dcm"  # the last slice
    late.parent.mkdir()
    (made.folder / "00001.dcm").rename(late)
    command = ["watch", orthanc.root, "--rule", "rules.toml", "--once", *QUICK]
    orthanc.send(made.folder)
    assert main(command) == 0
    orthanc.send(late.parent)
    assert main(command) == 0
    assert orthanc.count(made.study, "SEG") == 2


@pytest.mark.slow
def test_an_archive_that_dies_in_mid_run_loses_and_doubles_nothing(
    own_orthanc: Orthanc, work: Path, tmp_path: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    (work / "rules.toml").write_text(RULE.format("slow"), encoding="utf-8")  # a fifth of a second a slice
    studies = [made_study(tmp_path / name, slices=20) for name in "ab"]
    own_orthanc.send(studies[0].folder)
    begin("watch", own_orthanc.root, "--rule", "rules.toml", *QUICK, "--settle", "2")
    under_way = work / "medsam3_watch" / "series"
    until(lambda: bool(list(under_way.glob("*/*.journal"))))
    own_orthanc.stop(kill=True)
    until(lambda: bool(list(under_way.glob("*/results/*.dcm"))))  # segmented, and cannot be stored
    own_orthanc.start()
    own_orthanc.send(studies[1].folder)
    until(lambda: all(own_orthanc.count(made.study, "SEG") == 1 for made in studies))
    until(lambda: len(_done(work)) == 2)
    time.sleep(2)  # some more rounds
    assert [own_orthanc.count(made.study, "SEG") for made in studies] == [1, 1]
    assert list(under_way.iterdir()) == []


@pytest.mark.slow
def test_a_watch_that_is_killed_goes_on_where_it_was(
    own_orthanc: Orthanc, work: Path, tmp_path: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    (work / "rules.toml").write_text(RULE.format("slow"), encoding="utf-8")
    made = made_study(tmp_path / "a", slices=40)
    own_orthanc.send(made.folder)
    command = ("watch", own_orthanc.root, "--rule", "rules.toml", *QUICK)
    under_way = work / "medsam3_watch" / "series" / made.series
    for least in (5, 15):  # killed twice, each time with more slices done
        process = begin(*command)
        until(lambda least=least: _lines(under_way) > least)  # type: ignore[misc]
        process.kill()
        process.wait()
    before = _lines(under_way)
    assert before > 15
    assert len(list((under_way / "images").glob("*.dcm"))) == 40
    begin(*command)
    until(lambda: own_orthanc.count(made.study, "SEG") == 1)
    until(lambda: not under_way.exists())
    assert len(_done(work)) == 1


def _lines(under_way: Path) -> int:
    return max((path.read_bytes().count(b"\n") for path in under_way.glob("*.journal")), default=0)


BAD_RULES = [
    ("no file", None, "cannot be read"),
    ("no TOML", "[[rule", "cannot be read"),
    ("no rule", "", "hold nothing"),
    ("another table", "[[rules]]\ntext = 'liver'\n", "hold rules"),
    ("no phrase", '[[rule]]\nmodality = "CT"\n', "rule 1 of rules.toml has no phrases"),
    ("an empty phrase", '[[rule]]\ntext = [""]\n', "rule 1 of rules.toml has no phrases"),
    ("an unknown condition", '[[rule]]\ntext = "liver"\nmodalty = "CT"\n', "has modalty, allowed are text, modality"),
    ("a number", '[[rule]]\ntext = "liver"\nmodality = 3\n', "has modality = 3"),
    ("a phrase that denies", '[[rule]]\ntext = "no liver"\n', "no liver"),
]


@pytest.mark.parametrize(("content", "message"), [case[1:] for case in BAD_RULES], ids=[case[0] for case in BAD_RULES])
def test_bad_rules_are_one_line(
    content: str | None, message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "rules.toml").unlink()
    if content is not None:
        (work / "rules.toml").write_text(content, encoding="utf-8")
    assert main(["watch", "dicomweb:http://127.0.0.1:1/dicom-web", "--rule", "rules.toml", *QUICK]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (work / "medsam3_watch").exists()


BAD_ARGUMENTS = [
    ("no rule", ("dicomweb:http://h/d",), "--rule is missing"),
    ("nothing to watch", ("--rule", "rules.toml"), "give the dicomweb: address of an archive"),
    ("a file", ("scan.png", "--rule", "rules.toml"), "is no address of an archive"),
    ("two sources", ("dicomweb:http://h/d", "--rule", "rules.toml", "--dicom-port", "0"), "give the dicomweb: address"),
    ("no target", ("--rule", "rules.toml", "--dicom-port", "0"), "--send-to is missing"),
    ("a target of no form", ("--rule", "rules.toml", "--dicom-port", "0", "--send-to", "A"), "is no DICOM node"),
    (
        "a long title",
        ("--rule", "rules.toml", "--dicom-port", "0", "--send-to", "A@h:1", "--ae-title", "SEVENTEEN_LETTERS"),
        "allowed are 1 to 16 ASCII characters",
    ),
    (
        "everybody may send",
        ("--rule", "rules.toml", "--dicom-port", "0", "--send-to", "A@h:1", "--dicom-host", "0.0.0.0"),
        "name those that may send with --allow-ae",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "message"), [case[1:] for case in BAD_ARGUMENTS], ids=[case[0] for case in BAD_ARGUMENTS]
)
def test_bad_arguments_are_one_line(
    arguments: tuple[str, ...], message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", *arguments, "--model", "threshold"]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (work / "medsam3_watch").exists()
