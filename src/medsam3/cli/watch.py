"""`medsam3 watch`: series of an archive, or that are sent here, segmented by rules and stored back, each once."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from cyclopts import Parameter
from cyclopts.validators import Number

from medsam3.cli.archive import ArchiveChoice
from medsam3.cli.byte_sizes import bytes_from
from medsam3.cli.job import ABOVE_0, COUNT, FLAT, FROM_0, SHARE, Help, Job, ModelChoice, StackChoice, prompts_from
from medsam3.cli.terminal import ProgressBar, complain, progress_bar, unexpected
from medsam3.errors import InputError, require
from medsam3.pacs.series import Rule, address_of, is_address, read_rules

if TYPE_CHECKING:
    from medsam3.pacs.dicomweb import Archive
    from medsam3.pacs.line import Line, Recipe, ResultTarget

_log = logging.getLogger(__name__)
DEFAULT_OUT = Path("medsam3_watch")
_RESTART_S = 5.0
_PORT = Parameter(validator=Number(gte=0, lte=65535))


@dataclass(frozen=True)
class IntakeChoice:
    """How series come in by C-STORE."""

    dicom_port: Annotated[int | None, _PORT, Help("port on which series are taken in by C-STORE, such as 11112")] = None
    ae_title: Annotated[str, Help("AE title of this machine, default: MEDSAM3")] = "MEDSAM3"
    dicom_host: Annotated[str, Help("address to listen on, default: 127.0.0.1, this machine alone")] = "127.0.0.1"
    allow_ae: Annotated[tuple[str, ...], Help("AE title that may send here; may be repeated")] = ()
    send_to: Annotated[
        str | None, Help("where results of what was sent go: TITLE@HOST:PORT (C-STORE) or dicomweb:URL (STOW-RS)")
    ] = None
    max_waiting: Annotated[str, Help("most that may wait to be segmented, default: 50GiB")] = "50GiB"


@dataclass(frozen=True)
class Watch:
    """Arguments of `medsam3 watch`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 watch dicomweb:https://host/dicom-web --rule rules.toml
  medsam3 watch dicomweb:https://host/dicom-web --rule rules.toml --once --days 2
  medsam3 watch --dicom-port 11112 --ae-title MEDSAM3 --rule rules.toml --send-to ARCHIVE@192.168.1.5:104 \\
    --dicom-host 0.0.0.0 --allow-ae CT1 --allow-ae ARCHIVE

rules.toml says which series are asked for what; a table for each rule:
  [[rule]]
  modality = "CT"              # this and the next two may be left out; upper and lower case are the same
  body_part = "ABD*"           # patterns with * and ?
  description = "*portal*"
  text = ["liver", "kidney"]   # phrases; each gives a DICOM SEG of its own
  rtstruct = true              # and an RT structure set; default: false

Each series that fits is segmented once, when no slice of it has come in for --settle seconds, and the results are
stored: back where it came from, or at --send-to. What is done is kept in the folder --out, whose files of patients are
removed as soon as the results are stored. A run that was killed, or an archive that was away, loses and doubles
nothing. Set MEDSAM3_DICOMWEB_TOKEN, or MEDSAM3_DICOMWEB_USER and MEDSAM3_DICOMWEB_PASSWORD. docs/pacs.md tells more.
Not a medical device: for research only."""

    address: Annotated[
        str | None, Parameter(name="ADDRESS"), Help("dicomweb:URL of an archive, or of a search in it")
    ] = None
    _: KW_ONLY
    rule: Annotated[Path | None, Help("TOML file with the rules")] = None
    out: Annotated[Path, Help("folder of what is done and under way, default: medsam3_watch")] = DEFAULT_OUT
    once: Annotated[bool, Help("end when nothing is left to do, in place of going on")] = False
    every: Annotated[float, ABOVE_0, Help("seconds between two looks at the archive, default: 30")] = 30.0
    settle: Annotated[
        float | None,
        FROM_0,
        Help("seconds without a new slice until a series is complete, default: 60; of what is sent here 10"),
    ] = None
    days: Annotated[int | None, COUNT, Help("only studies of the last N days, today among them; default: all")] = None
    threshold: Annotated[float | None, SHARE, Help("least score, 0 to 1, of an object that is kept")] = None
    intake: Annotated[IntakeChoice, FLAT] = field(default_factory=IntakeChoice)
    stacks: Annotated[StackChoice, FLAT] = field(default_factory=StackChoice)
    archive: Annotated[ArchiveChoice, FLAT] = field(default_factory=ArchiveChoice)
    model: Annotated[ModelChoice, FLAT] = field(default_factory=ModelChoice)

    def run(self) -> int:
        """Watch until interrupted, or once."""
        recipe = self._recipe()
        logging.getLogger("pynetdicom").setLevel(logging.ERROR)
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # addresses hold what was searched for
        with progress_bar() as bar:
            bar.start("watching")
            if self.intake.dicom_port is not None:
                return self._take_in(recipe, bar)
            return self._follow(recipe, bar)

    def _follow(self, recipe: Recipe, bar: ProgressBar) -> int:
        """Follow an archive."""
        from medsam3.pacs.watch import Follower, Pace  # noqa: PLC0415

        assert self.address is not None, "checked with the recipe"
        pace = Pace(self.every, 60.0 if self.settle is None else self.settle, days=self.days)
        with self._archive_at(self.address) as archive, self._line(recipe, archive) as line:
            follower = Follower(archive, address_of(self.address), line, pace, bar.tell)
            bar.tell(f"watching {archive.host} (Ctrl+C ends it). Not a medical device: for research only.")
            follower.run(bar.show_slices, is_once=self.once)
        return 2 if follower.failures else 0

    def _take_in(self, recipe: Recipe, bar: ProgressBar) -> int:
        """Take in what is sent here."""
        from medsam3.pacs.dimse import Intake, IntakeLimits  # noqa: PLC0415

        chosen, port = self.intake, self.intake.dicom_port
        assert port is not None and chosen.send_to is not None, "checked with the recipe"
        limits = IntakeLimits(
            total_bytes=bytes_from(chosen.max_waiting), settle_s=10.0 if self.settle is None else self.settle
        )
        with (
            self._target(chosen.send_to) as target,
            self._line(recipe, target) as line,
            Intake(line, chosen.ae_title, chosen.allow_ae, limits, bar.tell) as intake,
        ):
            port = intake.listen(chosen.dicom_host, port)
            bar.tell(f"medsam3 takes DICOM as {chosen.ae_title} at {chosen.dicom_host} port {port}")
            intake.run(bar.show_slices)
        return 0

    def _recipe(self) -> Recipe:
        """Check the arguments, and read what is asked of which series.

        Raises:
            InputError: An argument that is not allowed, or one that is missing.
        """
        rules = self.check()
        from medsam3.pacs.line import Recipe  # noqa: PLC0415  numpy

        prompts = {rule: prompts_from(rule.text, (), (), (), self.model.taught) for rule in rules}
        asked = tuple(dict.fromkeys(prompt for many in prompts.values() for prompt in many))
        job = Job(asked, None, self.threshold, (), self.model, self.stacks)
        _log.info("weights: %s", job.model.sha256)  # hashed here: weights that are not there end the run at once
        options = replace(self.stacks.options(), threshold=self.threshold)
        return Recipe(rules, prompts.__getitem__, job.identity, self.model.load, options)

    def check(self) -> tuple[Rule, ...]:
        """Check the arguments and give the rules.

        Raises:
            InputError: An argument that is not allowed, or one that is missing.
        """
        self.model.sam3.check()
        self.stacks.check()
        if self.rule is None:
            raise InputError("--rule is missing: give a TOML file that says which series are asked for what")
        if (self.address is None) == (self.intake.dicom_port is None):
            raise InputError("give the dicomweb: address of an archive to watch, or --dicom-port to be sent series")
        if self.address is not None:
            if self.intake != IntakeChoice():
                raise InputError("an archive is watched: leave out what belongs to --dicom-port")
            address_of(self.address)
        else:
            self._check_intake()
        return read_rules(self.rule)

    def _check_intake(self) -> None:
        if self.once or self.days is not None:
            raise InputError("--once and --days choose from an archive: leave them out with --dicom-port")
        require("pynetdicom", extra="pacs")
        from medsam3.pacs.dimse import Node, check_title  # noqa: PLC0415
        from medsam3.server.settings import is_loopback  # noqa: PLC0415

        for title in (self.intake.ae_title, *self.intake.allow_ae):
            check_title(title)
        bytes_from(self.intake.max_waiting)
        if self.intake.send_to is None:
            raise InputError("--send-to is missing: give where results go, TITLE@HOST:PORT or dicomweb:URL")
        if is_address(self.intake.send_to):
            address_of(self.intake.send_to)
        else:
            Node.from_text(self.intake.send_to, self.intake.ae_title, self.archive.timeout)
        if not is_loopback(self.intake.dicom_host) and not self.intake.allow_ae:
            raise InputError(
                f"{self.intake.dicom_host} can be reached from other machines: name those that may send with "
                "--allow-ae, or listen on 127.0.0.1"
            )

    @contextmanager
    def _archive_at(self, address: str) -> Iterator[Archive]:
        access = self.archive.access()
        from medsam3.pacs.dicomweb import Archive  # noqa: PLC0415  an HTTP client

        with Archive(address_of(address).root, access) as archive:
            yield archive

    @contextmanager
    def _target(self, text: str) -> Iterator[ResultTarget]:
        if is_address(text):
            with self._archive_at(text) as archive:
                yield archive
            return
        from medsam3.pacs.dimse import Node  # noqa: PLC0415

        yield Node.from_text(text, self.intake.ae_title, self.archive.timeout)

    @contextmanager
    def _line(self, recipe: Recipe, target: ResultTarget) -> Iterator[Line]:
        from medsam3.pacs.line import Line  # noqa: PLC0415

        with Line(self.out, recipe, target) as line:
            yield line


def take_in(watch: Watch) -> None:
    """Take series in as long as the process that this one belongs to lives; what fails unforeseen is begun again."""
    if multiprocessing.parent_process() is not None:
        from medsam3.io.apart import end_with_parent  # noqa: PLC0415  numpy, not for --help

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends this one
        end_with_parent()
    while True:
        try:
            watch.run()
        except InputError as error:
            complain(str(error))
            return
        except Exception as error:  # the edge of a process
            _log.debug("unexpected error", exc_info=True)
            complain(unexpected(error))
        time.sleep(_RESTART_S)
