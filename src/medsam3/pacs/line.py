"""From a series on disk to results that are stored elsewhere, each once, whatever is killed in between.

The folder of a line holds `done.jsonl`, a line for each result that is stored and each series that cannot be segmented,
and below `series` the files of what is under way: its images, and results that wait to be stored. What is stored is
removed. A result is known by its SOP Instance UID, which its images, phrase, weights and settings decide.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from medsam3.errors import InputError
from medsam3.image import Masks
from medsam3.io import read, write
from medsam3.io.dicom_uids import result_uid
from medsam3.models.segmenter import Segmenter
from medsam3.pacs.series import Rule, Series, fitting
from medsam3.prompts import Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import Report, segment
from medsam3.store import Journal

_log = logging.getLogger("medsam3.pacs")
Tell = Callable[[str], None]
Bring = Callable[[Series, Path, Report], None]
"""Brings the images of a series into a folder; nothing to do if they lie there."""
_HEADING = {"list": "results of medsam3 watch", "version": 1}


class SeriesError(InputError):
    """A series that cannot be segmented, however often it is tried."""


class ResultTarget(Protocol):
    """Where results go."""

    def holds(self, study: str, instance: str) -> bool:
        """Tell whether it has a result already; False if it cannot be asked."""
        ...

    def store(self, path: Path, study: str, instance: str) -> None:
        """Store a result, all of it or nothing.

        Raises:
            InputError: It is refused; `UnreachableError` if it may be taken later.
        """
        ...


@dataclass(frozen=True)
class Recipe:
    """What a line does with series.

    Attributes:
        rules: Which series are asked for what.
        prompts: From a rule to what is asked of the model.
        identity: From a prompt to a hash of all that changes its masks beside the images.
        load: Gives the model, once it is needed.
        options: How volumes are segmented.
    """

    rules: tuple[Rule, ...]
    prompts: Callable[[Rule], Sequence[Prompt]]
    identity: Callable[[Prompt], str]
    load: Callable[[], Segmenter]
    options: Options


@dataclass(frozen=True)
class WantedResult:
    """A result that is to be made.

    Attributes:
        prompt: What is asked.
        form: `seg` or `rtstruct`.
        instance: SOP Instance UID that it has.
    """

    prompt: Prompt
    form: str
    instance: str


class Line:
    """Segments series by rules and stores what comes of them. A context manager; one process at a time has a folder."""

    def __init__(self, folder: Path, recipe: Recipe, target: ResultTarget) -> None:
        """Take a folder, with what was done and what is under way in it.

        Raises:
            InputError: It cannot be written, or another process works in it.
        """
        self.recipe, self._target = recipe, target
        self._journal = Journal(folder / "done.jsonl", _HEADING, other="keep")
        self.under_way = folder / "series"
        self.under_way.mkdir(exist_ok=True, mode=0o700)
        self._done = {str(record["result"]) for record in self._journal.records if "result" in record}
        self._failed = {str(record["failed"]) for record in self._journal.records if "failed" in record}
        self._segmenter: Segmenter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._journal.close()

    def images_of(self, series: str) -> Path:
        """Name the folder of a series' images."""
        return self.under_way / series / "images"

    def wanted(self, series: Series) -> list[WantedResult]:
        """List the results that the rules ask of a series with its instances."""
        found: dict[str, WantedResult] = {}
        for rule in fitting(self.recipe.rules, series):
            for prompt in self.recipe.prompts(rule):
                for form in ("seg", "rtstruct") if rule.rtstruct else ("seg",):
                    uid = result_uid(f"{form} instance", series.instances, self.recipe.identity(prompt))
                    found.setdefault(uid, WantedResult(prompt, form, uid))
        return list(found.values())

    def is_done(self, series: Series) -> bool:
        """Tell whether all results of a series are stored, or it was found that it cannot be segmented."""
        return self._are_done(self.wanted(series))

    def work(self, series: Series, bring: Bring, report: Report) -> int:
        """Make and store what is wanted of a series, and remove its files; what is stored already is not made again.

        Returns:
            How many results were stored.

        Raises:
            SeriesError: It cannot be segmented, which is noted.
            InputError: Images or results cannot be had or stored now; what has been made is kept for the next try.
        """
        wanted = self.wanted(series)
        count = 0 if self._are_done(wanted) else self._work(series, wanted, bring, report)
        self.remove(series)
        return count

    def remove(self, series: Series) -> None:
        """Remove the files of a series; if more images have come in since, all of them stay, to be dealt with anew."""
        folder, images = self.under_way / series.uid, self.images_of(series.uid)
        for path in folder.glob("*"):
            if path != images:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if {path.stem for path in images.glob("*.dcm")} <= set(series.instances):
            shutil.rmtree(folder, ignore_errors=True)

    def _are_done(self, wanted: Sequence[WantedResult]) -> bool:
        return _key(wanted) in self._failed or all(one.instance in self._done for one in wanted)

    def _work(self, series: Series, wanted: Sequence[WantedResult], bring: Bring, report: Report) -> int:
        left = [one for one in wanted if one.instance not in self._done]
        for one in [one for one in left if self._target.holds(series.study, one.instance)]:
            self._note(series, one, is_found=True)
            left.remove(one)
        results = self.under_way / series.uid / "results"
        results.mkdir(parents=True, exist_ok=True, mode=0o700)
        unmade = [one for one in left if not _path(results, one).is_file()]
        if unmade:
            bring(series, self.images_of(series.uid), report)
            if self._segmenter is None:
                self._segmenter = self.recipe.load()
            try:
                self._make(unmade, self.images_of(series.uid), results, report)
            except Exception as error:  # the edge of a series: it is noted, so that the line does not stand still
                if isinstance(error.__cause__, OSError):  # the disk, which says nothing of the series
                    raise
                raise self._failed_by(error, series, wanted) from error
        count = 0
        for one in left:
            path = _path(results, one)
            if path.is_file():  # an RT structure set of nothing is none
                self._target.store(path, series.study, one.instance)
                count += 1
            self._note(series, one, is_found=False)
        return count

    def _make(self, unmade: Sequence[WantedResult], images: Path, results: Path, report: Report) -> None:
        assert self._segmenter is not None, "it is loaded by now"
        image = read(images)
        prompts = list(dict.fromkeys(one.prompt for one in unmade))
        options = self.recipe.options
        if image.shape[0] > 1:
            options = replace(options, journal=results.parent / f"{_key(unmade)}.journal")
        found = dict(zip(prompts, segment(image, prompts, self._segmenter, options, progress=report), strict=True))
        for one in unmade:
            masks: Masks = found[one.prompt]
            if masks.objects or one.form == "seg":
                identity = self.recipe.identity(one.prompt)
                write(masks, _path(results, one), image, format=one.form, identity=identity)

    def _note(self, series: Series, one: WantedResult, *, is_found: bool) -> None:
        record = {"result": one.instance, "form": one.form, "phrase": one.prompt.text, "series": series.uid}
        self._journal.append(record | ({"was": "in the archive"} if is_found else {}))
        self._done.add(one.instance)

    def _failed_by(self, error: Exception, series: Series, wanted: Sequence[WantedResult]) -> SeriesError:
        """Note that a series cannot be segmented, and remove its files."""
        _log.debug("a series failed", exc_info=True)
        kind = type(error).__name__
        message = str(error) if isinstance(error, InputError) else f"unexpected {kind}, see it with --debug: {error}"
        message = message.replace(f"{self.images_of(series.uid)}: ", "")
        self._journal.append({"failed": _key(wanted), "series": series.uid, "error": message})
        self._failed.add(_key(wanted))
        self.remove(series)
        return SeriesError(message)


def _key(wanted: Sequence[WantedResult]) -> str:
    """Hash what is wanted of a series; another one if an instance, a rule or the weights change."""
    return hashlib.sha256("\n".join(sorted(one.instance for one in wanted)).encode()).hexdigest()[:16]


def _path(results: Path, one: WantedResult) -> Path:
    return results / f"{one.instance}.dcm"
