"""A batch does each file once, says what came of it in the manifest, and takes up what was broken off."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture

from made_batch import manifest, picture, run, work_for
from made_dicom import series
from medsam3.batch.crew import Cluster, Crew, Pieces, part_name, work_here
from medsam3.batch.pieces import Piece, find_pieces
from medsam3.batch.target import Known, OutputTarget
from medsam3.batch.worker import Report
from medsam3.cli import batch
from medsam3.cli.inputs import SUFFIXES
from medsam3.cli.main import main
from medsam3.cli.terminal import progress_bar
from medsam3.errors import InputError
from threshold_segmenter import ThresholdSegmenter


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    picture(folder / "a.png", (5, 6, 15, 16))
    picture(folder / "below" / "b.png", (1, 2, 4, 8))
    picture(folder / "c.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def test_each_file_has_rows_with_what_was_found(scans: Path, tmp_path: Path) -> None:
    report = run([str(scans)], str(tmp_path / "out"), "polyp")
    assert (report.done, report.failed, report.objects) == (3, 1, 2)
    a, below, broken, c = manifest(tmp_path / "out")
    assert [Path(row["file"]).name for row in (a, below, broken, c)] == ["a.png", "b.png", "broken.png", "c.png"]
    assert (a["concept"], a["object"], a["voxels"], a["x0"], a["y0"]) == ("polyp", 1, 100, 4.5, 5.5)
    assert (a["frames"], a["rows"], a["columns"], a["mode"], a["is_present"]) == (1, 30, 40, "T", True)
    assert (c["object"], c["is_present"], c["error"]) == (0, False, None)
    assert broken["error"] is not None and "\n" not in broken["error"]
    mask = np.asarray(Picture.open(tmp_path / "out" / a["outputs"][0]))
    assert (mask > 0).sum() == 100
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_second_run_does_only_what_is_missing(scans: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run([str(scans)], out, "polyp")
    picture(scans / "d.png", (0, 0, 3, 3))
    again = run([str(scans)], out, "polyp")
    assert (again.done, again.skipped, again.failed) == (1, 4, 0)
    assert len(manifest(tmp_path / "out")) == 5
    assert run([str(scans)], out, "lesion").done == 4  # another question is another job


def test_failures_are_tried_again_when_that_is_asked(scans: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run([str(scans)], out, "polyp")
    picture(scans / "broken.png", (2, 2, 4, 4))
    os.utime(scans / "broken.png", (1, 1))
    report = run([str(scans)], out, "polyp", retry=True)
    assert (report.done, report.failed) == (1, 0)
    assert [row["error"] for row in manifest(tmp_path / "out")] == [None] * 4


def test_a_changed_file_is_done_anew_and_its_old_rows_go(scans: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run([str(scans)], out, "polyp")
    picture(scans / "a.png", (0, 0, 2, 3), (20, 20, 22, 22))
    os.utime(scans / "a.png", (5, 5))
    assert run([str(scans)], out, "polyp").done == 1
    rows = [row for row in manifest(tmp_path / "out") if row["file"].endswith("a.png")]
    assert sum(row["voxels"] for row in rows) == 10


def test_content_known_under_another_name_is_not_done_twice(scans: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run([str(scans)], out, "polyp")
    (scans / "a.png").rename(scans / "moved.png")
    report = run([str(scans)], out, "polyp")
    assert (report.copied, report.done) == (1, 0)
    moved = next(row for row in manifest(tmp_path / "out") if row["file"].endswith("moved.png"))
    assert moved["voxels"] == 100


def test_content_that_a_part_holds_under_several_names_is_copied_once(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / "scans" / f"{name}.png", (5, 6, 15, 16))
    run([str(tmp_path / "scans")], str(tmp_path / "out"), "polyp")
    picture(tmp_path / "scans" / "d.png", (5, 6, 15, 16))
    assert run([str(tmp_path / "scans")], str(tmp_path / "out"), "polyp").copied == 1
    assert [Path(row["file"]).stem for row in manifest(tmp_path / "out")] == list("abcd")


@pytest.mark.parametrize("has_mark", [False, True])
def test_what_a_killed_run_left_half_written_is_removed_and_stops_nobody(
    has_mark: bool, scans: Path, tmp_path: Path
) -> None:
    target = OutputTarget(str(tmp_path / "out"))
    if has_mark:
        target.prepare()
    dead, alive = tmp_path / "out" / ".writing-dead", tmp_path / "out" / ".writing-alive"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
        (folder / ".half").write_bytes(b"half")
        os.utime(folder, (1.0, 1.0))
    handle = os.open(alive, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)  # as a running process holds it
    try:
        assert run([str(scans)], str(tmp_path / "out"), "polyp").done == 3
        assert (dead.exists(), alive.exists()) == (False, True)
    finally:
        os.close(handle)


def test_a_folder_of_dicom_files_is_one_volume(tmp_path: Path) -> None:
    series(tmp_path / "study" / "ct")
    picture(tmp_path / "study" / "photo.png", (1, 1, 3, 3))
    report = run([str(tmp_path / "study")], str(tmp_path / "out"), "liver")
    assert (report.done, report.failed) == (2, 0)
    volumes = [row for row in manifest(tmp_path / "out") if row["file"].endswith("ct")]
    assert {row["frames"] for row in volumes} != {1}
    assert nib.load(tmp_path / "out" / volumes[0]["outputs"][0]).ndim == 3


def test_a_list_brings_its_own_prompts(scans: Path, tmp_path: Path) -> None:
    listed = scans / "tasks.csv"
    listed.write_text("file,text,box\na.png,polyp,\na.png,absent,\nbelow/b.png,lesion,\n")
    run([str(listed)], str(tmp_path / "out"))
    assert [(Path(row["file"]).name, row["concept"], row["object"]) for row in manifest(tmp_path / "out")] == [
        ("a.png", "absent", 0),
        ("a.png", "polyp", 1),
        ("b.png", "lesion", 1),
    ]
    lines = [{"file": "c.png", "text": "polyp"}, {"file": "gone.png", "text": "polyp"}]
    (scans / "more.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    report = run([str(scans / "more.jsonl")], str(tmp_path / "out"))
    assert (report.done, report.failed) == (1, 1)
    assert "does not exist" in report.errors[0]


def test_boxes_of_one_file_have_masks_of_their_own(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (5, 6, 15, 16))
    (tmp_path / "tasks.csv").write_text('file,box\na.png,"4,5,16,17"\na.png,"5,6,9,9"\n')
    assert run([str(tmp_path / "tasks.csv")], str(tmp_path / "out")).done == 1
    files = [row["outputs"][0] for row in manifest(tmp_path / "out")]
    assert len(set(files)) == 2
    assert all((tmp_path / "out" / file).is_file() for file in files)


def test_all_phrases_of_a_picture_are_asked_of_one_encoding(scans: Path, tmp_path: Path) -> None:
    segmenter = ThresholdSegmenter()
    target = OutputTarget(str(tmp_path / "out"))
    work = replace(work_for("polyp", "absent", "lesion"), load=lambda: segmenter)
    [report] = work_here(find_pieces([str(scans / "a.png")]), work, target.url, target.known())
    assert (report.objects, segmenter.encoded, segmenter.decoded) == (2, 1, 3)
    assert [row["concept"] for row in manifest(tmp_path / "out")] == ["absent", "lesion", "polyp"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text\npolyp\n", "no file"),
        ("file,box\na.png,1;2\n", "x0,y0,x1,y1"),
        ("file,text\n", "names no files"),
        ('file,box\na.png,"5,5,1,1"\n', "inverted"),
    ],
)
def test_a_bad_list_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.csv").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        list(find_pieces([str(tmp_path / "tasks.csv")]))
    assert "\n" not in str(caught.value)


def test_the_shards_share_all_files_and_write_one_manifest(
    scans: Path, tmp_path: Path, threshold_model: object, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "broken.png").unlink()
    command = ["batch", str(scans), "--text", "polyp", "--out", str(tmp_path / "out"), "--model", "threshold"]
    for shard in ("1/3", "2/3", "3/3"):
        assert main([*command, "--cluster", "none", "--shard", shard, "--json"]) == 0
    assert len(manifest(tmp_path / "out")) == 3
    capsys.readouterr()
    assert main([*command, "--cluster", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 3


def test_a_target_that_holds_something_else_is_refused(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.docx").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        run([str(scans)], str(tmp_path / "full"), "polyp")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.docx"]


def test_results_within_the_source_are_not_taken_for_input(scans: Path) -> None:
    out = str(scans / "out")
    assert run([str(scans)], out, "polyp").done == 3
    assert run([str(scans)], out, "polyp").pieces == 4
    assert run([str(scans)], str(scans.parent / "elsewhere"), "polyp").pieces == 4


@pytest.mark.parametrize("name", ["nowhere", "*.xyz", "s3x://bucket/key"])
def test_a_source_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    source = name if "://" in name else str(tmp_path / name)
    with pytest.raises(InputError) as caught:
        list(find_pieces([source]))
    assert "\n" not in str(caught.value)


def test_a_damaged_part_of_the_manifest_is_named(scans: Path, tmp_path: Path) -> None:
    run([str(scans)], str(tmp_path / "out"), "polyp")
    part = next((tmp_path / "out" / "manifest").iterdir())
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(InputError, match=part.name):
        run([str(scans)], str(tmp_path / "out"), "polyp")


def test_a_run_cut_off_between_parts_ends_as_an_unbroken_one(scans: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    target = OutputTarget(out)
    target.prepare()
    reports = work_here(find_pieces([str(scans)]), work_for("polyp"), out, target.known())
    next(reports)  # then the process is gone
    assert run([str(scans)], out, "polyp").skipped >= 1
    run([str(scans)], str(tmp_path / "whole"), "polyp")

    def kept(folder: Path) -> list[tuple[Any, ...]]:
        columns = ("file", "concept", "object", "voxels", "score", "error", "sha256")
        return [tuple(row[name] for name in columns) for row in manifest(folder)]

    assert kept(tmp_path / "out") == kept(tmp_path / "whole")


def test_chunks_grow_with_fast_files_and_shrink_with_slow_ones() -> None:
    source = Pieces(iter([Piece(str(n)) for n in range(1000)]))
    sizes = []
    for seconds_each in (0.01, 0.01, 0.01, 0.01, 20.0, 20.0):
        chunk = source.take()
        sizes.append(len(chunk))
        source.learn(len(chunk), seconds_each * len(chunk))
    assert sizes == [1, 2, 4, 8, 16, 1]


def test_a_part_is_called_alike_for_the_same_pieces_and_question() -> None:
    pieces = (Piece("a", stamp="1"), Piece("b"))
    assert part_name(pieces, work_for("polyp")) == part_name(pieces, work_for("polyp"))
    assert part_name(pieces, work_for("polyp")) != part_name(pieces, work_for("lesion"))


def test_nothing_is_known_of_an_empty_manifest(tmp_path: Path) -> None:
    known = OutputTarget(str(tmp_path / "new")).known()
    assert isinstance(known, Known)
    assert not Known.has(known.states, 5)
    assert known.part_with(5) is None


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b"])
def test_a_shard_that_is_none_is_refused(shard: str, scans: Path, tmp_path: Path) -> None:
    command = ["batch", str(scans), "--text", "polyp", "--out", str(tmp_path / "out"), "--shard", shard]
    assert main(command) == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_gives_every_kind_of_image_that_segment_takes_from_one(tmp_path: Path) -> None:
    for number, ending in enumerate(SUFFIXES):
        (tmp_path / f"{number}{ending}").write_bytes(b"x")
    found = {name for piece in find_pieces([str(tmp_path)]) for name in piece.names or (Path(piece.url).name,)}
    assert found == {f"{number}{ending}" for number, ending in enumerate(SUFFIXES)}


def test_the_time_left_is_told_in_a_log_file_once_all_files_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [100.0]
    pace = batch.BatchPace(iter([Piece(str(n)) for n in range(500)]), clock=lambda: now[0])
    deadline = 200
    while pace.count is None and deadline:
        deadline -= 1
        time.sleep(0.01)
    with progress_bar() as bar:
        for done in (50, 200):  # 100 s each
            now[0] += 100
            pace.show(Report(done=done), bar)
    assert capsys.readouterr().err.splitlines() == [
        "medsam3: 50 of 500 files, 0.5 files/s, 0 failed, 15.0 min left",  # 450 files at .5 a second
        "medsam3: 200 of 500 files, 1.5 files/s, 0 failed, 3.3 min left",  # the last 150 took 100 s
    ]


@pytest.mark.parametrize(("seconds", "said"), [(30, "0.5 min"), (3599, "60.0 min"), (7500, "2:05 h")])
def test_long_times_are_told_in_hours(seconds: float, said: str) -> None:
    assert batch.minutes(seconds) == said


def test_a_ray_that_does_not_start_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'medsam3[cluster]'")

    def init(address: str, **options: object) -> None:
        if address == "auto":
            raise ConnectionError("no cluster runs here")
        raise Exception("The current node timed out during startup.\nThe GCS may be overloaded.")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    known = OutputTarget(str(tmp_path / "out")).known()
    with pytest.raises(InputError, match=r"Ray cannot be started here \(The current node timed out.*give none") as said:
        Crew(work_for("polyp"), str(tmp_path / "out"), known, Cluster())
    assert "\n" not in str(said.value)
