"""Series of a DICOMweb archive as inputs of a command: found, brought here, their results stored back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from medsam3.cli.job import ABOVE_0, Help
from medsam3.errors import InputError, require
from medsam3.pacs.series import ArchiveAddress, Series, address_of, is_address

if TYPE_CHECKING:
    from medsam3.batch.pieces import Piece
    from medsam3.pacs.dicomweb import Access, Archive
    from medsam3.segmentation.run import Report

STORED_FORMATS = ("seg", "rtstruct")
"""Forms of results that an archive takes."""
_FOLDER = ".dicomweb-"


@dataclass(frozen=True)
class ArchiveChoice:
    """How a DICOMweb archive is reached."""

    token: Annotated[
        str | None,
        Parameter(name=("--archive-token", "--token")),
        Help("bearer token of the archive; better set MEDSAM3_DICOMWEB_TOKEN, which no list of processes shows"),
    ] = field(default=None, repr=False)
    ca_file: Annotated[Path | None, Help("certificates to trust for the archive, PEM; default: the system's")] = None
    timeout: Annotated[float, ABOVE_0, Help("longest silence of the archive in s, default: 60")] = 60.0

    def access(self) -> Access:
        """Read how the archive is reached, from here and from the environment.

        Raises:
            InputError: The extra `pacs` is not installed, or a token or password that is not allowed.
        """
        for module in ("httpx2", "python_multipart"):
            require(module, extra="pacs")
        from medsam3.pacs.dicomweb import Access, check_token  # noqa: PLC0415  an HTTP client

        access = Access.from_environment()
        if self.token is not None:
            access = replace(access, token=check_token(self.token), user=None)
        return replace(access, ca_file=self.ca_file, timeout_s=self.timeout)


@dataclass(frozen=True)
class ArchiveInput:
    """A series of an archive, which is an input like a folder once it is fetched.

    Attributes:
        archive: Where it lies.
        found: The series, with its instances.
        path: Folder that it is brought into.
        is_stored: Whether results go back to the archive.
    """

    archive: Archive
    found: Series
    path: Path
    is_stored: bool

    series, part = None, None  # the folder holds this one alone, and whole

    @property
    def source(self) -> str:
        """Its address, which tells it from every other input."""
        return _series_address(self.archive.root, self.found)

    @property
    def label(self) -> str:
        """Its address, for tables and messages."""
        return self.source

    @property
    def stem(self) -> str:
        """Its identifier, as the start of file names."""
        return self.found.uid

    def fingerprint(self) -> str:
        """Changes when an instance is added."""
        return self.found.fingerprint

    def fetch(self, report: Report) -> None:
        """Bring it here.

        Raises:
            InputError: As `Archive.fetch`.
        """
        self.archive.fetch(self.found, self.path, report)

    def forget(self) -> None:
        """Remove what was brought here."""
        shutil.rmtree(self.path, ignore_errors=True)

    def holds(self, form: str, identity: str) -> bool:
        """Tell whether the archive has a result already, here or elsewhere made.

        Raises:
            InputError: As `Archive.holds`.
        """
        from medsam3.io.dicom_uids import result_uid  # noqa: PLC0415

        return self.archive.holds(self.found.study, result_uid(f"{form} instance", self.found.instances, identity))

    def store(self, paths: Sequence[Path]) -> None:
        """Store results that the archive does not have yet.

        Raises:
            InputError: As `Archive.store`.
        """
        from medsam3.io.dicom_uids import heading_of  # noqa: PLC0415

        for path in paths:
            instance = heading_of(path).instance
            if not self.archive.holds(self.found.study, instance):
                self.archive.store(path, self.found.study, instance)


@dataclass(frozen=True)
class ArchivePieces:
    """The series of DICOMweb archives as pieces of a batch; see `batch.pieces.Elsewhere`.

    Attributes:
        access: How the archives are reached.
    """

    access: Access

    def knows(self, url: str) -> bool:
        """Tell whether it is the address of an archive, or of something in one."""
        return is_address(url)

    def pieces(self, source: str) -> Iterator[Piece]:
        """Find the series with images at an address; a whole archive is allowed.

        Raises:
            InputError: An address that is none; there is no such series; the archive refuses.
        """
        from medsam3.batch.pieces import Piece  # noqa: PLC0415  fsspec

        address, is_empty = address_of(source), True
        with self._archive(address) as archive:
            for found in archive.series_at(address):
                if found.may_hold_images:
                    is_empty = False
                    yield Piece(_series_address(archive.root, found))
            if is_empty:
                raise InputError(f"{archive.host} has no series with images at this address: correct it")

    def stamp(self, url: str) -> str:
        """Hash the instances of a series.

        Raises:
            InputError: The archive has none of it, or refuses.
        """
        address = address_of(url)
        with self._archive(address) as archive:
            return archive.with_instances(self._series(address)).fingerprint

    def fetch(self, url: str, folder: Path) -> None:
        """Bring the instances of a series.

        Raises:
            InputError: As `Archive.fetch`.
        """
        address = address_of(url)
        with self._archive(address) as archive:
            archive.fetch(archive.with_instances(self._series(address)), folder, lambda done, count: None)

    def _archive(self, address: ArchiveAddress) -> Archive:
        from medsam3.pacs.dicomweb import Archive  # noqa: PLC0415  an HTTP client

        return Archive(address.root, self.access)

    def _series(self, address: ArchiveAddress) -> Series:
        if address.study is None or address.series is None:
            raise InputError("the address of a piece names no series: give a study, a search or an archive as SOURCE")
        return Series(address.study, address.series)


def _series_address(root: str, series: Series) -> str:
    return f"dicomweb:{root}/studies/{series.study}/series/{series.uid}"


@contextmanager
def inputs_of_archives(
    addresses: Sequence[str], choice: ArchiveChoice, out: Path, *, is_stored: bool
) -> Iterator[list[ArchiveInput]]:
    """Find the series with images at addresses, each once, and keep their archives open during the block.

    Raises:
        InputError: An address that is none, or names a whole archive; no such series; the archive refuses.
    """
    if not addresses:
        yield []
        return
    access = choice.access()
    from medsam3.pacs.dicomweb import Archive  # noqa: PLC0415

    found: dict[str, ArchiveInput] = {}
    with ExitStack() as stack:
        for text in addresses:
            address = address_of(text)
            if address.study is None and not address.query:
                raise InputError(f"{text} is a whole archive: name a study, a series or a search, or use medsam3 watch")
            archive = stack.enter_context(Archive(address.root, access))
            matches = [one for one in archive.series_at(address) if one.may_hold_images]
            if not matches:
                raise InputError(f"{archive.host} has no series with images at this address: correct it")
            for one in matches:
                series = archive.with_instances(one)
                folder = out / f"{_FOLDER}{series.fingerprint}"
                item = ArchiveInput(archive, series, folder, is_stored)
                found.setdefault(item.source, item)
        yield list(found.values())
