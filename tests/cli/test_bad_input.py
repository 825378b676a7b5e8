"""Each bad input that the project promises to withstand, through the command: one line, code 2, nothing written."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
import torch
from safetensors.numpy import save_file

from made_data import bright_picture
from medsam3.cli.main import main
from medsam3.models.mini import encoder_files
from medsam3.models.mini.encoder_files import EncoderFiles
from threshold_segmenter import ThresholdSegmenter

MODEL = ("--model", "threshold")
SHIPPED_DICOM = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold_model: ThresholdSegmenter) -> Path:
    """A working folder with one good picture, `good.png`, of 8 x 6 pixels (x, y)."""
    del threshold_model
    monkeypatch.chdir(tmp_path)
    bright_picture(tmp_path / "good.png")
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one error line of a command that writes nothing into the folder."""
    before = contents(folder)
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("medsam3: error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert contents(folder) == before
    return error.removeprefix("medsam3: error: ").rstrip()


def contents(folder: Path) -> dict[str, bytes | None]:
    """Read all files below a folder but the list of hashes, which is kept so that weights are not hashed again."""
    found = (path for path in sorted(folder.rglob("*")) if path.name != "sha256.json")
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


# files


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bomb() -> bytes:
    """A PNG of 60,000 x 60,000 grey pixels whose 3.6 GB of zeros are really there, packed into 4 MB."""
    packer = zlib.compressobj(9)
    start = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated, being flushed
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = start + block * 3433  # 60,000 rows of 60,001 bytes
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def cut_jpeg() -> bytes:
    """The first half of a picture of 90 x 70 pixels of noise."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(stream, format="JPEG")
    return stream.getvalue()[: stream.tell() // 2]


def nifti_with(value: float) -> bytes:
    """A volume of 6 x 5 x 4 voxels whose affine has `value` through its first row."""
    file: Any = nibabel.Nifti1Image(np.zeros((6, 5, 4), dtype=np.int16), np.diag([2.0, 3.0, 4.0, 1.0]))
    raw = bytearray(file.to_bytes())
    raw[280:296] = np.full(4, value, dtype="<f4").tobytes()  # srow_x
    return bytes(raw)


def bad_file(name: str, folder: Path) -> Path:
    """Make one of the bad files by its name."""
    path = folder / name
    if name == "missing.png":
        return path
    made: dict[str, Callable[[], bytes]] = {
        "empty.png": lambda: b"",
        "empty.dcm": lambda: b"",
        "empty.nii.gz": lambda: b"",
        "cut.png": lambda: (folder / "good.png").read_bytes()[:60],
        "cut.jpg": cut_jpeg,
        "cut.dcm": lambda: (SHIPPED_DICOM / "CT_small.dcm").read_bytes()[:20_000],
        "cut.nii": lambda: nifti_with(2.0)[:400],
        "text.png": lambda: b"this is no picture",
        "text.nii.gz": lambda: b"this is no volume",
        "bomb.png": png_bomb,
        "rtstruct.dcm": (SHIPPED_DICOM / "rtstruct.dcm").read_bytes,
        "ecg.dcm": (SHIPPED_DICOM / "waveform_ecg.dcm").read_bytes,
        "report.dcm": (SHIPPED_DICOM / "test-SR.dcm").read_bytes,
        "nan.nii": lambda: nifti_with(float("nan")),
        "singular.nii": lambda: nifti_with(0.0),
    }
    path.write_bytes(made[name]())
    return path


BAD_FILES = {
    "missing.png": "does not exist: correct the path",
    "empty.png": "is empty: copy it again",
    "empty.dcm": "is empty: copy it again",
    "empty.nii.gz": "is empty: copy it again",
    "cut.png": "cannot be decoded, it may be cut short",
    "cut.jpg": "cannot be decoded, it may be cut short",
    "cut.dcm": "the file is damaged or cut short, replace it",
    "cut.nii": "the file is cut short: it holds 400 of 592 bytes, copy it again",
    "text.png": "the content is not what the name says",
    "text.nii.gz": "the content is not what the name says",
    "bomb.png": "more than the 134,217,728 pixels that are allowed",
    "rtstruct.dcm": "DICOM without pixels (RT Structure Set Storage): give an image file",
    "ecg.dcm": "DICOM without pixels (12-lead ECG Waveform Storage): give an image file",
    "report.dcm": "DICOM without pixels (Comprehensive SR Storage): give an image file",
    "nan.nii": "affine holds NaN or infinity",
    "singular.nii": "affine is singular",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line_exit_code_2_and_no_output_folder(
    work: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    bad_file(name, work)
    line = refusal(capsys, work, "segment", name, "--text", "polyp", "--out", "out", *MODEL)
    assert name in line
    assert BAD_FILES[name] in line
    assert not (work / "out").exists()


@pytest.mark.parametrize("name", BAD_FILES)
def test_info_of_a_bad_file_is_the_same(work: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    bad_file(name, work)
    assert name in refusal(capsys, work, "info", name)


def test_the_bomb_is_refused_without_unpacking_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad_file("bomb.png", work)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(capsys, work, "segment", "bomb.png", "--text", "polyp", *MODEL)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < (512 << 10 if sys.platform == "linux" else 512 << 20)  # Linux counts KiB, macOS bytes


def test_every_bad_file_of_a_folder_is_reported_and_the_others_are_done(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in BAD_FILES:
        bad_file(name, work)
    # In a folder, DICOM files that hold no image are passed over.
    passed_over = {"rtstruct.dcm", "ecg.dcm", "report.dcm"}
    names = sorted(set(BAD_FILES) - {"missing.png"} - passed_over)
    assert main(["segment", ".", "missing.png", "--text", "polyp", "--out", "out", "--json", *MODEL]) == 2
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert [row["file"] for row in answer["results"]] == ["good.png"]
    assert [failure["file"] for failure in answer["failures"]] == [*names, "missing.png"]
    warning, *lines = captured.err.splitlines()
    assert warning.startswith("medsam3: warning: .: passed over: 3 DICOM files without an image")
    assert len(lines) == len(BAD_FILES) - len(passed_over)
    assert all(line.startswith("medsam3: error: ") for line in lines)
    written = sorted(path.name for path in (work / "out").iterdir())
    assert written == ["good_polyp_mask.png", "good_polyp_overlay.png", "results.jsonl"]


# prompts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "100,100,120,120"], "box (100.0, 100.0, 120.0, 120.0) is outside the image of 8 x 6 pixels"),
        (["--box", "5,1,2,3"], "box (5.0, 1.0, 2.0, 3.0) is inverted or empty"),
        (["--text", ""], "the phrase is empty"),
        (["--text", "x" * 10_000], "the phrase has 10000 characters, allowed are 300"),
        (["--text", "polyp", "--text", " "], "the phrase is empty"),
        (["--text", "polyp", "--frame", "5-3"], "--frame is '5-3', allowed is N or A-B with A not above B"),
        (["--text", "polyp", "--frame", "-1"], "--frame is '-1', allowed is N or A-B"),
        (["--text", "polyp", "--frame", "1.5"], "--frame is '1.5', allowed is N or A-B"),
        (["--text", "polyp", "--frame", "0-99999999"], "frame 99999999 was asked for, allowed is 0 to 0"),
        (["--text", "polyp", "--series", "3"], "good.png is a file, --series chooses from a folder"),
        (["--text", "polyp", "--alpha", "32"], "--alpha belongs to an adapter: give its file with --lora"),
        (["--text", "polyp", "--format", "seg"], "a DICOM SEG needs an image that was read from DICOM"),
    ],
)
def test_a_bad_prompt_is_one_line_exit_code_2_and_no_output_folder(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    line = refusal(capsys, work, "segment", "good.png", *arguments, "--out", "out", *MODEL)
    assert message in line
    assert len(line) < 400


# the output folder


@pytest.mark.parametrize("place", ["good.png", "good.png/out", "good.png/deep/out", "/proc/medsam3/out"])
def test_an_output_folder_that_cannot_be_written_is_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], threshold_model: ThresholdSegmenter, place: str
) -> None:
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("needs Linux's /proc, which nobody can write to")
    line = refusal(capsys, work, "segment", "good.png", "--text", "polyp", "--out", place, *MODEL)
    assert line.startswith(f"output folder {place} cannot be written (")
    assert threshold_model.encoded == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
def test_a_folder_without_leave_to_write_is_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "locked").mkdir(mode=0o500)
    line = refusal(capsys, work, "segment", "good.png", "--text", "polyp", "--out", "locked/out", *MODEL)
    assert "output folder locked/out cannot be written (Permission denied)" in line


# weights


class RunsCode:
    """Unpickling this would leave a file behind."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return builtins.exec, ("open('code_was_run', 'w').close()",)


def evil(path: Path) -> Path:
    """A file as torch.save writes it, with code in it that runs when it is unpickled."""
    torch.save({"a": torch.zeros(1), "b": RunsCode()}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "good.png", "--text", "polyp", "--weights", "evil.pt"],
        ["segment", "good.png", "--text", "polyp", "--model", "evil.pt"],
        ["segment", "good.png", "--text", "polyp", "--model", "facebook/sam3", "--weights", "evil.pt"],
        ["weights", "convert", "evil.pt", "--out", "out"],
        ["weights", "fetch", "--from", "evil.pt"],
    ],
)
def test_a_pickle_that_runs_code_is_refused_and_not_run(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    home = work / "home" / "encoders"
    home.mkdir(parents=True)
    monkeypatch.setenv("MEDSAM3_HOME", str(home.parent))
    evil(work / "evil.pt")
    before = contents(work)
    assert main(arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "evil.pt" in line
    assert contents(work) == before  # `code_was_run` is not there, nor an output folder


def test_weights_that_their_card_does_not_know_are_refused_by_their_hash(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = EncoderFiles(work / "a", work / "b", work / "c")  # the card is looked at before them
    monkeypatch.setattr(encoder_files, "locate", lambda: nowhere)
    save_file({"a": np.zeros(3, dtype=np.float32)}, work / "own.safetensors")
    card = {"detector": {}, "thresholds": {}, "sha256": "0" * 64}
    (work / "own.json").write_text(json.dumps(card))
    line = refusal(
        capsys, work, "segment", "good.png", "--text", "polyp", "--weights", "own.safetensors", "--out", "out"
    )
    assert "own.safetensors has SHA-256 " in line
    assert f"its card says {'0' * 64}: copy both files of the run again" in line


def test_encoders_with_a_wrong_hash_are_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(work / "home"))
    folder = work / "home" / "encoders"
    folder.mkdir(parents=True)
    for pinned in encoder_files.PINNED:
        (folder / pinned.name).write_bytes(b"other")
    line = refusal(capsys, work, "segment", "good.png", "--text", "polyp", "--out", "out")
    assert "lite_medsam.pth is not the pinned file (SHA-256 expected 79d8c9dc" in line
    assert line.endswith("run: medsam3 weights fetch")
