"""Several runs as one: what is put together, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from colour_data import ColourSegmenter, DataFolder, block, polyp_folder

from medsam3.cli.main import run
from medsam3.data.index import Fold
from medsam3.errors import InputError
from medsam3.eval.pool import pool
from medsam3.eval.saved import SavedRun, read_run
from medsam3.models import registry


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    monkeypatch.setitem(registry.LOADERS, "colour", lambda weights, device: ColourSegmenter())
    folder = polyp_folder(tmp_path / "data")
    polyp = block((4, 8), (6, 14))
    folder.add("bowel", "e", block((4, 8), (8, 16)), polyp.astype("uint8"), "polyp=1=q1")  # shares 6 columns: Dice .75
    return folder


def command(*arguments: str | Path) -> int:
    return run(["eval", *map(str, arguments)])


def measured(data: DataFolder, out: Path, *arguments: str) -> Path:
    command(data.path, "--model", "colour", "--out", out, "--json", *arguments)
    return out / "results.json"


def test_data_sets_evaluated_apart_pool_to_the_run_over_both(
    data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = measured(data, tmp_path / "whole")
    parts = [measured(data, tmp_path / name, "--datasets", name) for name in ("gut", "bowel")]
    capsys.readouterr()
    assert command(data.path, "--pool", *parts, "--out", tmp_path / "pooled") == 0
    assert re.search(r"all +polyp +4 +\.562", capsys.readouterr().out)  # Dice 1, .5, 0 and .75
    entry, expected = (json.loads(path.read_text()) for path in (tmp_path / "pooled" / "results.json", whole))

    def without_seconds(cases: list[dict[str, object]]) -> list[dict[str, object]]:
        return sorted(({**case, "seconds": 0} for case in cases), key=str)

    assert entry["summary"] == expected["summary"]
    assert without_seconds(entry["cases"]) == without_seconds(expected["cases"])
    assert entry["config"]["datasets"] == ["bowel", "gut"]
    pooled = entry["extras"]["pooled"]
    assert [part["path"] for part in pooled] == [str(path) for path in parts]
    abouts = [json.loads(path.read_text())["about"] for path in parts]
    assert [part["about"] for part in pooled] == abouts
    page = (tmp_path / "pooled" / "report.html").read_text()
    assert "Runs pooled" in page and page.count("<img") == 4  # gut a to c, bowel e: answers of both runs are drawn


def test_folds_pool_to_the_whole_data_with_intervals_over_all_groups(data: DataFolder, tmp_path: Path) -> None:
    parts = [measured(data, tmp_path / str(n), "--fold", f"{n}/2") for n in (1, 2)]
    command("--pool", *parts, "--out", tmp_path / "pooled", "--json")
    entry = json.loads((tmp_path / "pooled" / "results.json").read_text())
    (row,) = [row for row in entry["summary"]["overlap"] if row["scope"] == {"dataset": "gut", "concept": "polyp"}]
    assert (row["dice"]["value"], row["dice"]["cases"], row["dice"]["groups"]) == (0.5, 3, 2)
    assert entry["config"]["fold"] is None and [part["fold"] for part in entry["extras"]["pooled"]] == ["1/2", "2/2"]
    assert "folds 1/2, 2/2, split anew by group" in (tmp_path / "pooled" / "report.md").read_text()
    assert any("fold 1/2: this is a fair test only" in note for note in entry["extras"]["notes"])


def test_folds_may_differ_in_weights_and_what_lacks_is_said(data: DataFolder, tmp_path: Path) -> None:
    first, second = (
        with_weights(read_run(measured(data, tmp_path / str(n), "--fold", f"{n}/3")), f"w{n}") for n in (1, 2)
    )
    found = pool([first, second], command="c")
    assert found.about.weights_sha256 is None
    assert [part.about.weights_sha256 for part in found.extras.pooled] == ["w1", "w2"]
    assert "of 3 folds, 3 is not here" in found.extras.notes
    same = pool([first, with_weights(second, "w1")], command="c")
    assert any("all folds were answered by the same weights" in note for note in same.extras.notes)


def with_weights(run: SavedRun, weights: str) -> SavedRun:
    return replace(run, about=replace(run.about, weights_sha256=weights))


def test_what_does_not_belong_together_is_refused_in_one_line(data: DataFolder, tmp_path: Path) -> None:
    gut, bowel = (read_run(measured(data, tmp_path / name, "--datasets", name)) for name in ("gut", "bowel"))
    wider = replace(bowel, config=replace(bowel.config, tolerance=3.0))
    folds = [replace(bowel, config=replace(bowel.config, fold=fold)) for fold in (Fold(1, 2), Fold(2, 2), Fold(1, 3))]
    for runs, message in (
        ([gut], "1 results.json was given to pool, it takes 2 or more"),
        ([gut, gut], "gut/images/a.png, optic disc is in"),
        ([gut, wider], "differ in settings (tolerance 2.0 and 3.0)"),
        ([gut, with_weights(bowel, "w")], "were made by different weights: only folds may differ"),
        ([folds[0], with_weights(folds[0], "w")], "were in fold 1/2 made by different weights"),
        ([gut, folds[0]], "are no fold and one of 2 folds"),
        ([folds[0], folds[2]], "are one of 2 folds and one of 3 folds"),
        ([gut, replace(bowel, about=replace(bowel.about, model="mini"))], "is of model colour and"),
        ([gut, replace(bowel, is_pooled=True)], "is itself pooled"),
        ([folds[0], replace(folds[1], cases=renamed(folds[1]))], "group bowel/q1 is in fold 1/2"),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as raised:
            pool(runs, command="c")
        assert "\n" not in str(raised.value)


def renamed(run: SavedRun) -> tuple:  # type: ignore[type-arg]
    return tuple(replace(case, image=f"other/{case.image}") for case in run.cases)


def test_a_pool_does_not_replace_a_run(data: DataFolder, tmp_path: Path) -> None:
    parts = [measured(data, tmp_path / name, "--datasets", name) for name in ("gut", "bowel")]
    with pytest.raises(InputError, match="holds a run, whose results a pool would replace"):
        command("--pool", *parts, "--out", tmp_path / "gut")
    command("--pool", *parts, "--out", tmp_path / "pooled", "--json")
    with pytest.raises(InputError, match="is itself pooled: name the runs that it is made of"):
        command("--pool", tmp_path / "pooled" / "results.json", parts[0], "--out", tmp_path / "more")


def test_a_file_that_is_no_run_is_refused(data: DataFolder, tmp_path: Path) -> None:
    path = measured(data, tmp_path / "gut", "--datasets", "gut")
    entry = json.loads(path.read_text())
    for change, message in (
        ({"config": {**entry["config"], "colour": 1}}, "settings that this version does not know (colour)"),
        ({"about": {}}, "is no results.json"),
        ({"form": 1}, "is of form 1"),
    ):
        path.write_text(json.dumps({**entry, **change}))
        with pytest.raises(InputError, match=re.escape(message)):
            read_run(path)
