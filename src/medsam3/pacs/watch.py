"""Rounds over an archive: which series are new, complete and wanted; and patience with an archive that is away."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from medsam3.errors import InputError
from medsam3.pacs.dicomweb import Archive
from medsam3.pacs.line import Line, SeriesError, Tell
from medsam3.pacs.series import ArchiveAddress, Series, UnreachableError
from medsam3.segmentation.run import Report

_log = logging.getLogger("medsam3.pacs")


@dataclass(frozen=True)
class Pace:
    """How often an archive is asked.

    Attributes:
        every_s: Time between two rounds.
        settle_s: Time for which a series must have had as many instances as now to be taken as complete.
        longest_s: Longest time until what failed for the archive's sake is tried again; it doubles up to this.
        days: Only studies of so many days, today among them; None takes all.
    """

    every_s: float = 30.0
    settle_s: float = 60.0
    longest_s: float = 600.0
    days: int | None = None


@dataclass
class _SeriesState:
    """A series as earlier rounds saw it: how many instances since when, and when it is tried again."""

    count: int | None
    since: float
    not_before: float = 0.0
    tries: int = 0
    is_dealt_with: bool = False


class Follower:
    """Follows an archive."""

    def __init__(self, archive: Archive, address: ArchiveAddress, line: Line, pace: Pace, tell: Tell) -> None:
        """Prepare; nothing is asked yet.

        Args:
            archive: Asked for series and for their images.
            address: All of the archive, or a part of it.
            line: Segments and stores.
            pace: How often.
            tell: Told what is done and what fails, in lines.
        """
        self._archive, self._address, self._line, self._pace, self._tell = archive, address, line, pace, tell
        self._seen: dict[str, _SeriesState] = {}
        self._body_parts: dict[str, str] = {}
        self.failures = 0

    def run(self, report: Report, *, is_once: bool) -> None:
        """Make rounds until interrupted; if it is once, until nothing is left that can be done now.

        Raises:
            InputError: The archive refuses who asks; `UnreachableError` if it is once and the archive is away.
        """
        silent = 0
        while True:
            try:
                pending = self.round(report)
                silent = 0
            except UnreachableError as error:
                if is_once:
                    raise
                if silent == 0:
                    self._tell(f"{error}; waiting for it")
                pending, silent = True, silent + 1
            if is_once and not pending:
                return
            pause = min(self._pace.every_s * 2 ** min(silent, 10), max(self._pace.longest_s / 10, self._pace.every_s))
            time.sleep(min(pause, self._pace.settle_s or 0.05) if is_once else pause)

    def round(self, report: Report) -> bool:
        """Look once at all series, and deal with those that are due.

        Returns:
            Whether some are wanted that are not complete yet.

        Raises:
            UnreachableError: The archive is away.
            InputError: It refuses who asks.
        """
        is_pending, in_a_row = False, 0
        for series in self._archive.series_at(self._dated()):
            if not self._may_fit(series):
                continue
            if self._is_due(series):
                in_a_row = in_a_row + 1 if self._is_put_off(series, report) else 0
            if in_a_row > 1:  # it is the archive, not the series
                raise UnreachableError(f"{self._archive.host} fails again and again")
            is_pending |= not self._seen[series.uid].is_dealt_with
        return is_pending

    def _is_put_off(self, series: Series, report: Report) -> bool:
        """Deal with a series; tell whether the archive failed in it, so that it is tried again later."""
        seen = self._seen[series.uid]
        try:
            self._deal_with(series, report)
        except SeriesError as error:
            self.failures += 1
            self._tell(f"series {series.uid}: {error}")
        except InputError as error:
            seen.not_before = time.monotonic() + min(self._pace.every_s * 2**seen.tries, self._pace.longest_s)
            seen.tries += 1
            self._tell(f"series {series.uid}: {error}; tried again later")
            return isinstance(error, UnreachableError)
        seen.is_dealt_with = True
        return False

    def _deal_with(self, series: Series, report: Report) -> None:
        whole = self._with_body_part(self._archive.with_instances(series))
        if not self._line.is_done(whole):
            count = self._line.work(whole, self._archive.fetch, report)
            self._tell(f"series {series.uid}: {count} results stored")

    def _dated(self) -> ArchiveAddress:
        if self._pace.days is None:
            return self._address
        first = datetime.now() - timedelta(days=self._pace.days - 1)
        return replace(self._address, query=(*self._address.query, ("StudyDate", f"{first:%Y%m%d}-")))

    def _may_fit(self, series: Series) -> bool:
        """Tell whether a rule fits, or may do so once the body part is looked up."""
        rules = self._line.recipe.rules
        is_told = bool(series.body_part)
        return any((rule if is_told else replace(rule, body_part=None)).fits(series) for rule in rules)

    def _with_body_part(self, series: Series) -> Series:
        """Look the body part up if a rule asks for it and the search did not tell."""
        if series.body_part or not any(rule.body_part for rule in self._line.recipe.rules):
            return series
        if series.uid not in self._body_parts:
            self._body_parts[series.uid] = self._archive.body_part_of(series)
        return replace(series, body_part=self._body_parts[series.uid])

    def _is_due(self, series: Series) -> bool:
        now = time.monotonic()
        count = series.count if series.count is not None else len(self._archive.with_instances(series).instances)
        seen = self._seen.get(series.uid)
        if seen is None or seen.count != count:
            seen = self._seen[series.uid] = _SeriesState(count, now)
        return not seen.is_dealt_with and now - seen.since >= self._pace.settle_s and now >= seen.not_before
