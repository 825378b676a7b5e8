"""The test split is read once for shipped weights, and the README shows what was kept of that reading."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import readme_results

WEIGHTS = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of weights b"weights", beside an empty folder of kept results and a README with marks."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mini.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("before\n<!-- results -->\n<!-- /results -->\nafter\n")
    monkeypatch.setattr(readme_results, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(readme_results, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(readme_results, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme_results, "ROWS", (("polyp, colonoscopy", "kvasir_seg", "polyp"),))
    write_run(tmp_path)
    return tmp_path


def write_run(place: Path, *, date: str = "2026-11-26 10:00 UTC", **config: Any) -> Path:
    dice = {"value": 0.5, "low": 0.25, "high": 0.75, "cases": 3}
    scope = {"dataset": "kvasir_seg", "concept": "polyp"}
    everything = {"scope": {"dataset": "all", "concept": "all"}, "positives": 3, "negatives": 2}
    everything |= {"auroc": {**dice, "value": 0.9}, "sensitivity": 1.0, "specificity": 0.5, "unsure": 0.1}
    entry = {
        "about": {"model": "mini", "weights_sha256": WEIGHTS, "date": date, "commit": "c" * 40},
        "config": {"split": "test", "limit": None, "fold": None, "datasets": [], **config},
        "summary": {
            "overlap": [{"scope": scope, "mode": mode, "dice": dice} for mode in ("T", "I")],
            "presence": [everything],
        },
        "extras": {"pooled": []},
        "cases": [{}],
    }
    (place / "run").mkdir(exist_ok=True)
    (place / "run" / "report.md").write_text("report")
    path = place / "run" / "results.json"
    path.write_text(json.dumps(entry))
    return path


def test_a_first_reading_is_kept_with_date_and_hash_and_shown(place: Path) -> None:
    readme_results.main(["take", str(place / "run/results.json")])
    kept = json.loads((place / "kept/mini.json").read_text())
    reading = {"date": "2026-11-26 10:00 UTC", "weights_sha256": WEIGHTS, "commit": "c" * 40}
    assert kept["readings"] == [reading] and "cases" not in kept
    row = "| polyp, colonoscopy | kvasir_seg | 3 | 0.500 (0.250-0.750) | 0.500 |"
    assert row in (place / "README.md").read_text()
    readme_results.main(["check"])


def test_a_second_reading_by_the_same_weights_is_refused_and_names_the_first(place: Path) -> None:
    readme_results.main(["take", str(place / "run/results.json")])
    before = (place / "kept/mini.json").read_bytes()
    write_run(place, date="2026-11-27 09:00 UTC")
    with pytest.raises(SystemExit, match="read the test split on 2026-11-26 10:00 UTC"):
        readme_results.main(["take", str(place / "run/results.json")])
    with pytest.raises(SystemExit, match="read the test split on 2026-11-26"):  # before any image is asked
        readme_results.main(["measure", str(place / "no data"), "--out", str(place / "out")])
    assert (place / "kept/mini.json").read_bytes() == before and not (place / "out").exists()
    readme_results.main(["take", str(place / "run/results.json"), "--to", str(place / "other.json")])
    assert (place / "kept/mini.json").read_bytes() == before
    readme_results.main(["take", str(place / "run/results.json"), "--again"])
    dates = [one["date"] for one in json.loads((place / "kept/mini.json").read_text())["readings"]]
    assert dates == ["2026-11-26 10:00 UTC", "2026-11-27 09:00 UTC"]


def test_new_weights_read_it_and_the_earlier_reading_stays_noted(place: Path) -> None:
    readme_results.main(["take", str(place / "run/results.json")])
    (place / "weights" / "mini.safetensors").write_bytes(b"better")
    with pytest.raises(SystemExit, match="weights is"):  # the run is of the earlier ones
        readme_results.main(["take", str(place / "run/results.json")])
    path = place / "run/results.json"
    path.write_text(path.read_text().replace(WEIGHTS, hashlib.sha256(b"better").hexdigest()))
    readme_results.main(["take", str(path)])
    readings = json.loads((place / "kept/mini.json").read_text())["readings"]
    assert [one["weights_sha256"] for one in readings] == [WEIGHTS, hashlib.sha256(b"better").hexdigest()]


@pytest.mark.parametrize("config", [{"split": "val"}, {"limit": 4}, {"datasets": ["busi"]}])
def test_a_part_of_the_test_split_is_refused(place: Path, config: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="not the shipped weights on the whole test split"):
        readme_results.main(["take", str(write_run(place, **config))])
    assert not (place / "kept").exists()


def test_a_readme_of_other_rows_is_found(place: Path) -> None:
    readme_results.main(["take", str(place / "run/results.json")])
    readme = place / "README.md"
    readme.write_text(readme.read_text().replace("0.500 (", "0.600 ("))
    with pytest.raises(SystemExit, match="shows other rows"):
        readme_results.main(["check"])


def test_figures_that_moved_are_listed_with_both_values(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme_results.main(["take", str(place / "run/results.json")])
    entry = json.loads((place / "run/results.json").read_text())
    entry["summary"]["overlap"][1]["dice"]["value"] = 0.625
    entry["summary"]["presence"][0]["sensitivity"] = 0.9995  # less than a thousandth
    (place / "run/results.json").write_text(json.dumps(entry))
    capsys.readouterr()
    readme_results.main(["moved", str(place / "run/results.json")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 of 4 figures moved by 0.001 or more; 0 are new, 0 were not measured again")
    assert lines[-1] == "| kvasir_seg | polyp | Dice, I | 0.500 | 0.625 | +0.125 |"
