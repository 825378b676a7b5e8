"""`medsam3 demo` makes its pictures from what is installed alone."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest

from medsam3.cli import demo
from medsam3.cli.main import main
from medsam3.errors import InputError


@pytest.mark.slow
@pytest.mark.weights
def test_three_phrases_are_found_and_shown_beside_the_photograph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert [f"{phrase!r} present" in said for phrase in demo.PHRASES] == [True] * 4
    assert len(list((tmp_path / "out").glob("retina_*_overlay.png"))) == 4
    assert PIL.Image.open(tmp_path / "out" / "demo.png").size == (4 * 512, 512)  # the photograph and three findings


def test_without_scikit_image_it_says_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(module: str, *, extra: str) -> None:
        raise InputError(f"{module} is not installed; do: pip install 'medsam3[{extra}]'")

    monkeypatch.setattr(demo, "require", missing)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip().endswith("skimage is not installed; do: pip install 'medsam3[demo]'")
    assert not (tmp_path / "out").exists()
