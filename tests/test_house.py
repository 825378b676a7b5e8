"""What `benchmarks/house.py` counts, on files made for it."""

from __future__ import annotations

import ast
from pathlib import Path

import house
import pytest

from threshold_segmenter import ThresholdSegmenter


def modules(**sources: str) -> dict[Path, ast.Module]:
    return {house.PACKAGE / f"{name}.py": ast.parse(text) for name, text in sources.items()}


def test_a_name_of_two_things_is_found_and_private_ones_are_not() -> None:
    found = house.names_of_two_things(modules(a="class A: ...\nclass _B: ...", b="class A: ...\nclass _B: ...\nx = 1"))
    assert found == ["A (a.py, b.py)"]


def test_no_class_name_of_the_package_stands_for_two_things() -> None:
    assert house.names_of_two_things(house.trees(house.PACKAGE)) == []


def test_a_module_that_only_tests_import_is_found() -> None:
    # prompts and concepts are imported by tests; here the package uses concepts alone, and a benchmark store
    made = modules(prompts="", concepts="", store="", main="from medsam3 import concepts")
    others = [ast.parse("import medsam3.store")]
    assert house.modules_for_tests_alone(made, others) == ["medsam3.prompts"]


def test_a_module_whose_name_is_put_together_is_used() -> None:
    named = 'import importlib\nALL = ["store"]\nload = lambda name: importlib.import_module(f"medsam3.{name}")'
    assert house.modules_for_tests_alone(modules(prompts="", store="", main=named), []) == ["medsam3.prompts"]
    own = 'ALL = ["cvat"]\nfound = f"{__name__}.{one}"'
    assert "medsam3.server.clients.cvat" in set(house.put_together(ast.parse(own), "medsam3.server.clients"))


def test_a_module_that_a_documented_command_imports_is_used() -> None:
    made = modules(prompts="", store="")
    pages = ["text about medsam3.prompts", "other-tool --function-module medsam3.store -p a=1"]
    assert house.modules_for_tests_alone(made, [], pages) == ["medsam3.prompts"]


def test_another_copy_of_the_package_stops_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "PACKAGE", tmp_path / "src" / "medsam3")
    monkeypatch.setattr("sys.argv", ["house.py", "--no-path"])
    with pytest.raises(SystemExit, match="set PYTHONPATH to "):
        house.main()


def test_the_path_is_made_of_files_whose_functions_run(tmp_path: Path, threshold_model: ThresholdSegmenter) -> None:
    path = house.files_on_the_path("threshold", tmp_path)
    assert {"cli/main.py", "io/raster.py", "segmentation/run.py", "view/view.py"} <= set(path)
    assert not any(name.startswith(("train/", "eval/", "agent/")) for name in path)


def test_a_goal_is_missed_above_it() -> None:
    assert not house.Count("files", 3, 3).is_missed and house.Count("files", 4, 3).is_missed


def test_a_missed_goal_ends_with_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["house.py", "--no-path"])
    for goal, code in ((3, 1), (4, 0)):
        monkeypatch.setattr(house, "counts", lambda model, goal=goal: [house.Count("files", 4, goal, ["a.py"])])
        assert house.main() == code
    assert "| files | 4 | 3 | missed |" in capsys.readouterr().out
