"""C-STORE in and out, with dcmtk's programs as the scanner and a real Orthanc as the archive."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE

from made_archive import ECHOSCU, Orthanc, cutting, free_port, start_fake, storescu, until
from made_study import made_study
from medsam3.errors import InputError
from medsam3.pacs.dicomweb import Access, Archive
from medsam3.pacs.dimse import Intake, IntakeLimits, Node, check_title
from medsam3.pacs.line import Line, Recipe
from medsam3.pacs.series import Rule, UnreachableError
from medsam3.prompts import Prompt
from medsam3.segmentation.options import Options
from threshold_segmenter import ThresholdSegmenter

CT = "1.2.840.10008.5.1.4.1.1.2"
RULE = Rule(("polyp",), modality="CT")


@contextmanager
def taking_in(
    folder: Path, target: Any, limits: IntakeLimits | None = None, callers: tuple[str, ...] = ("SCANNER",)
) -> Iterator[tuple[Intake, int, list[str]]]:
    """An intake at a port of its own, and what it tells."""
    told: list[str] = []
    segmenter = ThresholdSegmenter()
    recipe = Recipe((RULE,), lambda rule: [Prompt(text) for text in rule.text], repr, lambda: segmenter, Options())
    with Line(folder, recipe, target) as line:
        chosen = limits or IntakeLimits(settle_s=0)
        with Intake(line, "MEDSAM3", callers, chosen, told.append) as intake:
            yield intake, intake.listen("127.0.0.1", 0), told


def _report(done: int, count: int) -> None:
    """Show nothing."""


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.dcm"))


def test_a_series_that_is_sent_comes_back_as_a_segmentation(orthanc: Orthanc, tmp_path: Path) -> None:
    made = made_study(tmp_path / "scans")
    node = Node("ORTHANC", "127.0.0.1", orthanc.dicom_port, "MEDSAM3")
    with taking_in(tmp_path / "line", node) as (intake, port, told):
        echo = [str(ECHOSCU), "-aet", "SCANNER", "-aec", "MEDSAM3", "127.0.0.1", str(port)]
        assert subprocess.run(echo, check=False, timeout=30).returncode == 0
        for _ in range(2):  # the second time nothing is left to do
            storescu(port, "MEDSAM3", made.folder)
            assert intake.round(_report)
    assert told == [f"series {made.series}: 1 results stored", f"series {made.series}: 0 results stored"]
    assert orthanc.count(made.study, "SEG") == 1
    assert _files(tmp_path / "line") == []


def test_results_go_to_an_archive_by_the_web_too(orthanc: Orthanc, tmp_path: Path) -> None:
    made = made_study(tmp_path / "scans")
    archive = Archive(orthanc.root.removeprefix("dicomweb:"), Access.from_environment())
    with archive, taking_in(tmp_path / "line", archive) as (intake, port, _):
        storescu(port, "MEDSAM3", made.folder)
        assert intake.round(_report)
    assert orthanc.count(made.study, "SEG") == 1


def test_what_no_rule_asks_for_is_taken_and_not_kept(tmp_path: Path) -> None:
    made = made_study(tmp_path / "scans", Modality="MR")
    with taking_in(tmp_path / "line", None) as (_, port, _):
        storescu(port, "MEDSAM3", made.folder)
    assert _files(tmp_path / "line") == []


@pytest.mark.parametrize(("caller", "called"), [("STRANGER", "MEDSAM3"), ("SCANNER", "ANOTHER")])
def test_others_are_turned_away(caller: str, called: str, tmp_path: Path) -> None:
    with taking_in(tmp_path / "line", None) as (_, port, _):
        entity = AE(ae_title=caller)
        entity.add_requested_context(CT)
        association = entity.associate("127.0.0.1", port, ae_title=called)
        assert association.is_rejected


def test_more_than_may_wait_is_refused_as_out_of_resources(tmp_path: Path) -> None:
    made = made_study(tmp_path / "scans")
    with taking_in(tmp_path / "line", None, IntakeLimits(total_bytes=3000)) as (_, port, _):
        with pytest.raises(AssertionError, match="Refused"):
            storescu(port, "MEDSAM3", made.folder, "-v")
        assert 0 < len(_files(tmp_path / "line")) < 6


def test_an_instance_that_is_too_large_breaks_the_connection_off(tmp_path: Path) -> None:
    made = made_study(tmp_path / "scans", size=(600, 600))  # 720,000 bytes each
    with taking_in(tmp_path / "line", None, IntakeLimits(instance_bytes=100_000)) as (_, port, _):
        with pytest.raises(AssertionError):
            storescu(port, "MEDSAM3", made.folder)
        assert _files(tmp_path / "line") == []
        echo = [str(ECHOSCU), "-aet", "SCANNER", "-aec", "MEDSAM3", "127.0.0.1", str(port)]
        assert subprocess.run(echo, check=False, timeout=30).returncode == 0  # others are heard as before


def test_a_sender_that_is_cut_off_leaves_no_part_of_an_instance(tmp_path: Path) -> None:
    made = made_study(tmp_path / "scans", size=(600, 600))
    with taking_in(tmp_path / "line", None) as (_, port, _):
        with cutting(port, up=1_000_000) as cut, pytest.raises(AssertionError):
            storescu(cut, "MEDSAM3", made.folder)
        time.sleep(0.5)
        assert len(_files(tmp_path / "line")) == 1
    assert [path.name for path in (tmp_path / "line").iterdir() if path.name.startswith(".")] == []


def test_results_wait_for_a_target_that_is_away(orthanc: Orthanc, tmp_path: Path) -> None:
    made = made_study(tmp_path / "scans")
    away = Node("ORTHANC", "127.0.0.1", free_port(), "MEDSAM3", timeout_s=5)
    with taking_in(tmp_path / "line", away) as (intake, port, told):
        storescu(port, "MEDSAM3", made.folder)
        assert not intake.round(_report)
    assert "cannot be reached: see that it runs" in told[0]
    there = Node("ORTHANC", "127.0.0.1", orthanc.dicom_port, "MEDSAM3")
    with taking_in(tmp_path / "line", there) as (intake, _, told):  # after a new start, with what was kept
        assert intake.round(_report)
    assert orthanc.count(made.study, "SEG") == 1


def test_slices_that_come_in_meanwhile_are_not_lost(orthanc: Orthanc, tmp_path: Path) -> None:
    made = made_study(tmp_path / "scans")
    late = tmp_path / "late" / "00001.dcm"
    late.parent.mkdir()
    (made.folder / "00001.dcm").rename(late)
    node = Node("ORTHANC", "127.0.0.1", orthanc.dicom_port, "MEDSAM3")

    class WhileStoring:
        def holds(self, study: str, instance: str) -> bool:
            return False

        def store(self, path: Path, study: str, instance: str) -> None:
            if late.exists():
                storescu(port, "MEDSAM3", late.parent)
                late.unlink()
            node.store(path, study, instance)

    with taking_in(tmp_path / "line", WhileStoring()) as (intake, port, _):
        storescu(port, "MEDSAM3", made.folder)
        assert intake.round(_report)
        assert len(_files(tmp_path / "line" / "series")) == 6
        assert intake.round(_report)
    assert orthanc.count(made.study, "SEG") == 2
    assert _files(tmp_path / "line") == []


def test_a_node_that_does_not_know_us_or_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    made = made_study(tmp_path / "scans")
    with taking_in(tmp_path / "line", None) as (_, port, _):
        stranger = Node("MEDSAM3", "127.0.0.1", port, "STRANGER", timeout_s=5)
        with pytest.raises(UnreachableError, match=r"MEDSAM3@127.0.0.1:\d+ refuses the connection.*knows STRANGER"):
            stranger.store(made.folder / "00001.dcm", made.study, made.instances[-1])


@pytest.mark.parametrize("text", ["", "A", "A@h", "A@h:0", "A@h:99999", "SEVENTEEN_LETTERS@h:104", "A@h h:1", "@h:1"])
def test_a_node_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"no DICOM node|AE title"):
        Node.from_text(text, "MEDSAM3", 60)


def test_a_node_is_read_from_its_text() -> None:
    node = Node.from_text("ARCHIVE@[::1]:104", "MEDSAM3", 60)
    assert (node.title, node.host, node.port) == ("ARCHIVE", "::1", 104)


@pytest.mark.parametrize("title", ["", "SEVENTEEN_LETTERS", "a\\b", " LEADING", "Ä"])
def test_a_title_that_the_protocol_cannot_carry_is_refused(title: str) -> None:
    with pytest.raises(InputError, match="allowed are 1 to 16 ASCII characters"):
        check_title(title)


@pytest.mark.slow
def test_the_server_takes_series_in_beside_its_page(orthanc: Orthanc, tmp_path: Path) -> None:
    made = made_study(tmp_path / "scans")
    (tmp_path / "rules.toml").write_text('[[rule]]\ntext = "polyp"\n', encoding="utf-8")
    port = free_port()
    command = ["serve", "--port", "0", "--model", "threshold", "--dicom-port", str(port), "--ae-title", "MEDSAM3"]
    more = ["--rule", "rules.toml", "--send-to", f"ORTHANC@127.0.0.1:{orthanc.dicom_port}"]
    process = start_fake(*command, *more, cwd=tmp_path)
    try:
        until(lambda: _listens(port))
        storescu(port, "MEDSAM3", made.folder)
        until(lambda: orthanc.count(made.study, "SEG") == 1)
    finally:
        process.kill()  # what it started ends with it
        process.wait()
    until(lambda: not _listens(port))


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
