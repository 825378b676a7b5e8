"""The arguments of `medsam3 train` that say what to train on, and the `Sources` that they make."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam3.errors import InputError
from medsam3.train.bars import Bars

if TYPE_CHECKING:
    from medsam3.data.folders import FolderSource
    from medsam3.data.samples import Sample
    from medsam3.data.sources import CocoSource, Sources
    from medsam3.train.loop import Progress


@dataclass
class _Folder:
    """A `--folder` with what was said after it, while the arguments are read."""

    images: Path
    masks: Path
    concept: str = ""
    labels: str = ""
    group_pattern: str = ""


class _AddFolder(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        images, masks = values
        namespace.folder = [*(namespace.folder or []), _Folder(images, masks)]


class _OfLastFolder(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if not namespace.folder:
            raise InputError(f"{option_string} belongs to a --folder: give it after --folder IMAGES MASKS")
        setattr(namespace.folder[-1], self.dest, values)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what to train on."""
    parser.add_argument(
        "data", nargs="*", type=Path, metavar="DATA", help="folders with an index.csv, or COCO exports of Roboflow"
    )
    parser.add_argument("--coco", type=Path, help="COCO JSON to train on")
    parser.add_argument("--coco-val", type=Path, help="COCO JSON to choose thresholds on")
    parser.add_argument(
        "--images",
        type=Path,
        help="folder that the COCO file names are relative to (default: the folder of the COCO file)",
    )
    folder = parser.add_argument_group("plain folders")
    folder.add_argument(
        "--folder",
        nargs=2,
        type=Path,
        action=_AddFolder,
        metavar=("IMAGES", "MASKS"),
        help="pictures and their masks, of the same names; may be given several times, each with the options below",
    )
    for name, metavar, text in (
        ("--concept", "PHRASE", "what the masks of the last --folder show"),
        ("--labels", "1=PHRASE,2=PHRASE", "what the values of its label maps mean"),
        ("--group-pattern", "REGEX", "finds in a name what stays in one split"),
    ):
        folder.add_argument(name, metavar=metavar, help=text, action=_OfLastFolder, default=argparse.SUPPRESS)
    chosen = parser.add_argument_group("which of the data")
    chosen.add_argument("--datasets", help="only these data sets, joined by commas")
    chosen.add_argument("--leave-out", metavar="SET,SET", default="", help="keep these data sets out of every split")
    chosen.add_argument(
        "--fold", metavar="K/N", help="split each data set anew by group and keep fold K of N for medsam3 eval --fold"
    )
    chosen.add_argument("--only-open", action="store_true", help="only data sets with an open licence")
    chosen.add_argument(
        "--weight", metavar="SET=W", action="append", default=[], help="draw a data set W times as often as by its size"
    )
    chosen.add_argument("--no-data-report", action="store_true", help="do not look through the data first")
    chosen.add_argument(
        "--slices-every",
        type=int,
        default=2,
        metavar="N",
        help="every Nth slice of volumes (default: 2; 0: no volumes)",
    )


def read_data(args: argparse.Namespace) -> tuple[Sample, ...]:
    """The samples that the arguments name.

    Raises:
        InputError: See `sources_from` and `read_samples`.
    """
    from medsam3.data.sources import read_samples  # noqa: PLC0415  numpy, not for --help

    return read_samples(sources_from(args))


@dataclass(frozen=True)
class Shown:
    """What a run calls after each update, and after each measurement on val."""

    on_step: Callable[[Progress], None]
    on_measured: Callable[[int, float], None]


@contextmanager
def steps_shown(bars: Bars, out: Path, *, has_board: bool) -> Iterator[Shown]:
    """What to call after each step and measurement: the bar, and TensorBoard's curves where they are wanted.

    Curves of a run that is resumed are made anew first, without the steps that were lost.

    Raises:
        InputError: tensorboard is not installed.
    """
    if not has_board:
        yield Shown(bars.step, bars.measured)
        return
    from medsam3.train.board import Board, write_board  # noqa: PLC0415

    if (out / "curves.jsonl").exists():
        write_board(out)
    with Board(out) as board:

        def show(progress: Progress) -> None:
            bars.step(progress)
            board.on_step(progress)

        def show_val(step: int, dice: float) -> None:
            bars.measured(step, dice)
            board.add(step - 1, {"dice": dice}, group="val")

        yield Shown(show, show_val)


def show_report(samples: tuple[Sample, ...], out: Path) -> None:
    """Print the report on the data, and leave it in the run's folder; a report on just these data is not made again.

    Raises:
        InputError: An image or mask cannot be read, or the folder cannot be written.
    """
    from medsam3.data.report import digest_of, report_on  # noqa: PLC0415
    from medsam3.train.data_page import report_lines, write_page, written_lines  # noqa: PLC0415

    lines = written_lines(out, digest_of(samples))
    if lines is None:
        with Bars() as bars:
            bars.phase("data", len(samples))
            report = report_on(samples, on_image=bars.item)
        write_page(report, samples, out)
        lines = report_lines(report)
    for line in [*lines, f"report on the data: {out / 'data.html'}"]:
        print(line, file=sys.stderr)


def sources_from(args: argparse.Namespace) -> Sources:
    """The arguments as one value.

    Raises:
        InputError: An argument that lacks another, or one of a wrong form.
    """
    from medsam3.data.index import Fold  # noqa: PLC0415
    from medsam3.data.sources import Sources  # noqa: PLC0415
    from medsam3.data.volumes import SlicePlan  # noqa: PLC0415

    if args.slices_every < 0:
        raise InputError(f"--slices-every is {args.slices_every}, allowed is 0 and above")
    return Sources(
        indexes=tuple(args.data),
        coco=_coco(args),
        folders=tuple(_folder(one) for one in args.folder or ()),
        slices=SlicePlan(every=args.slices_every) if args.slices_every else None,
        only=_names(args.datasets or ""),
        left_out=_names(args.leave_out),
        is_only_open=args.only_open,
        weights=_weights(args.weight),
        fold=None if args.fold is None else Fold.from_text(args.fold),
    )


def _coco(args: argparse.Namespace) -> tuple[CocoSource, ...]:
    from medsam3.data.sources import CocoSource  # noqa: PLC0415

    found = [CocoSource(args.coco, args.images)] if args.coco else []
    return (*found, CocoSource(args.coco_val, args.images, "val")) if args.coco_val else tuple(found)


def _folder(one: _Folder) -> FolderSource:
    from medsam3.data.folders import FolderSource, parse_labels  # noqa: PLC0415

    labels = parse_labels(one.labels) if one.labels else ()
    return FolderSource(one.images, one.masks, one.concept, labels, one.group_pattern)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _weights(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    found = []
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight < float("inf"):
            raise InputError(f"--weight is {text!r}, allowed is SET=W with W above 0")
        found.append((name, weight))
    return tuple(found)
