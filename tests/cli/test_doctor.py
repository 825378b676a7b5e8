"""`medsam3 doctor` says what works, and what to do about the rest."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

import medsam3
from medsam3.cli.main import main


def checks(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}


def test_the_versions_are_those_that_are_installed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json", "--no-test"])
    found = checks(capsys)
    assert found["numpy"]["found"] == metadata.version("numpy")
    assert found["medsam3"]["found"].startswith(medsam3.__version__)


def test_weights_that_are_not_there_are_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path))
    assert main(["doctor", "--json"]) == 2
    found = checks(capsys)
    assert found["minilm_tokenizer.json"] == {
        "name": "minilm_tokenizer.json",
        "state": "broken",
        "found": f"missing in {tmp_path / 'encoders'}",
        "advice": "medsam3 weights fetch",
    }
    assert found["test picture"]["state"] == "broken"
    assert not any(tmp_path.iterdir())


@pytest.mark.weights
def test_with_the_weights_the_test_picture_is_segmented(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "all is well" in capsys.readouterr().out
