import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from medsam3.errors import InputError, check_frame, printable, reason_of, require, value_error


def test_require_returns_the_module() -> None:
    assert require("json", extra="all") is json


def test_require_says_which_extra_brings_a_missing_package() -> None:
    with pytest.raises(InputError, match=r"no_such_package is not installed; do: pip install 'medsam3\[dicom\]'"):
        require("no_such_package", extra="dicom")


def test_a_package_that_is_there_and_lacks_something_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, line in (("lacks_another", "import no_such_other"), ("lacks_a_name", "from json import no_such_name")):
        (tmp_path / f"{name}.py").write_text(line)
        with pytest.raises(
            InputError, match=rf"{name} is installed and does not load \(.*no_such_\w+.*\): install what"
        ):
            require(name, extra="dicom")


class _Inner(BaseModel):
    height: int


class _Outer(BaseModel):
    images: list[_Inner]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"images": [{"height": 3}, {"height": "20 px"}]}',
            'images[1].height is "20 px": input should be a valid int',
        ),
        ('{"images": [{"height": null}]}', "images[0].height is null: input should be a valid integer"),
        ('{"images": [{}]}', "images[0].height is missing"),
        ('{"images": 7}', "images is 7: input should be a valid array"),
        ("{", "invalid JSON: EOF while parsing an object"),
        ('{"images": "' + "a" * 200 + '"}', 'images is "' + "a" * 76 + "...: input should be"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_shown(text: str, said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        _Outer.model_validate_json(text)
    assert value_error(raised.value.errors()[0]).startswith(said)


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("names", ["medsam3", "medsam3.io, medsam3.view.draw, medsam3.io.files"])
def test_imports_load_no_torch_and_no_format_library(names: str) -> None:
    heavy = ("torch", "transformers", "pydicom", "nibabel", "highdicom", "pycocotools")
    code = f"import sys, {names}; print([name for name in {heavy!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_reason_is_one_line_and_never_empty() -> None:
    assert reason_of(OSError("no\n  such  file ")) == "no such file"
    assert reason_of(TimeoutError()) == "TimeoutError"


def test_what_cannot_be_printed_is_shown_as_escapes() -> None:
    assert printable("a\x1b[2J\n\u202eb é") == "a\\x1b[2J\n\\u202eb é"
    assert printable("Größe 3") == "Größe 3"


def test_a_frame_that_is_no_whole_number_is_refused() -> None:
    fraction: Any = 0.5
    with pytest.raises(InputError, match=r"frame 0\.5 was asked for, allowed is 0 to 3"):
        check_frame(fraction, 4)
    assert check_frame(3, 4) == 3
