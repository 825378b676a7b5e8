"""Kill the program at random moments, start it again, and compare what comes out with an unbroken run.

    python benchmarks/kills.py                              50 kills of each kind, a table
    python benchmarks/kills.py folder agent --kills 10 --json kills.json

A trial starts the same command again after each SIGKILL until it ends by itself; its moments are drawn over the whole
of a run, and fall into resumed runs as well. A run begins where its imports are done, which write nothing
(`warm_starts.py`). Then its files are held against those of a run that nobody killed. What may not be: lost (a result
is missing), doubled (noted, stored or paid twice), half-written (a file cut off, or a temporary one left), different
(another answer), left (a process that outlives the killed one).
The models are the fast ones of the tests, because files are what is at stake. Ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from warm_starts import WarmStarts

Tell = Callable[[str], None]
TESTS = Path(__file__).resolve().parents[1] / "tests"
TROUBLES = ("lost", "doubled", "half-written", "different", "left")
_LONGEST_S = 900.0
_LEAVING_S = 60.0
_LOOK_S = 0.005
_BEYOND = 1.1
"""Moments are drawn from the start to this share of the last run that nobody killed."""
_MOST_IN_A_ROW = 6
AFTER_NEW_S = 2.5
"""What a killed process left in the temporary place is removed once it is older than two seconds."""


class Work(Protocol):
    """A command that writes into a folder, and what a good folder is."""

    @property
    def name(self) -> str:
        """Name for tables and folders."""
        ...

    def command(self, out: Path) -> list[str]:
        """Give the command, the same one for the first run and for those that go on."""
        ...

    def troubles(self, whole: Path, out: Path, kills: int) -> Iterator[str]:
        """Say what is wrong with a folder, beside that of an unbroken run, as `KIND what`."""
        ...


@dataclass
class Tally:
    """What came of the kills of one kind of work."""

    name: str
    kills: int = 0
    in_work: int = 0
    trials: int = 0
    unbroken_s: float = 0.0
    seconds: float = 0.0
    troubles: list[str] = field(default_factory=list)

    def count(self, kind: str) -> int:
        """How many troubles are of a kind."""
        return sum(one.startswith(f"{kind} ") for one in self.troubles)


@dataclass(frozen=True)
class Ended:
    """A process that has ended: when its folder was first there, how long it took, and what outlives it."""

    code: int
    begun_s: float
    seconds: float
    left: tuple[str, ...] = ()


def environment(temporary: Path) -> dict[str, str]:
    """The environment of the commands: the tests' stand-ins can be imported, and torch takes one thread.

    Args:
        temporary: Folder for their temporary files; made here.
    """
    temporary.mkdir(exist_ok=True)
    paths = [str(TESTS), str(TESTS / "train"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    return {**os.environ, **own}


def stand_in(*arguments: str) -> list[str]:
    """Give the command line with the tests' models."""
    return [sys.executable, str(TESTS / "fake_medsam3.py"), *arguments]


def run_trials(work: Work, place: Path, kills: int, seed: int, tell: Tell) -> Tally:
    """Kill one kind of work at least so many times.

    Args:
        work: What is run.
        place: An empty folder for its outputs.
        kills: How many; the trial in which the last one falls is still brought to its end.
        seed: Of the moments.
        tell: Told of each trial.
    """
    chance, tally, start = random.Random(f"{seed} {work.name}"), Tally(work.name), time.monotonic()
    with WarmStarts(environment(place / "tmp")) as starts:
        for name in ("whole", "again"):  # the second finds its imports done
            whole = unbroken(starts, work, place, name, tally)
        tally.unbroken_s = round(whole.seconds, 2)
        usual = names_in(place / "tmp")
        while tally.kills < kills:
            out = place / f"trial{tally.trials}"
            killed, whole = _trial(starts, work, out, whole, chance, tally)
            found = list(work.troubles(place / "whole", out, killed))
            tally.troubles += [f"{one} ({out.name})" for one in found]
            tell(f"{work.name}: {tally.kills} of {kills} kills, {len(tally.troubles)} troubles")
        time.sleep(AFTER_NEW_S)
        unbroken(starts, work, place, "last", tally)
    tally.troubles += [f"half-written {name}, in the temporary place" for name in names_in(place / "tmp") - usual]
    tally.seconds = round(time.monotonic() - start, 1)
    return tally


def names_in(temporary: Path) -> set[str]:
    """Name what lies in the temporary place, such as a cache of torch's, which it leaves there in any case."""
    return {path.name for path in temporary.iterdir()}


def unbroken(starts: WarmStarts, work: Work, place: Path, name: str, tally: Tally) -> Ended:
    """Run a command that nobody kills, compare it with the first one, and make its imports for those that come."""
    end = ended(starts, work, place / name, None)
    assert end.code == 0, f"the unbroken run of {work.name} failed: {place / name}.log"
    starts.warm(place / f"{name}.modules")
    tally.troubles += [f"{one} ({name})" for one in work.troubles(place / "whole", place / name, 0)]
    return end


def _trial(
    starts: WarmStarts, work: Work, out: Path, whole: Ended, chance: random.Random, tally: Tally
) -> tuple[int, Ended]:
    """Run a command to its end through kills; give their count, and how long an unbroken run takes by now."""
    tally.trials += 1
    killed = 0
    while True:
        moment = chance.uniform(0, _BEYOND * whole.seconds) if killed < _MOST_IN_A_ROW else None
        end = ended(starts, work, out, moment)
        tally.troubles += [f"left {name} ({out.name})" for name in end.left]
        if end.code != -signal.SIGKILL:
            break
        killed += 1
        tally.kills += 1
        tally.in_work += end.seconds > end.begun_s
    if end.code != 0:
        tally.troubles.append(f"lost: exit code {end.code}, see {out}.log")
    return killed, whole if killed else end


def ended(starts: WarmStarts, work: Work, out: Path, moment_s: float | None) -> Ended:
    """Run a command, and kill it at a moment unless it has ended before."""
    log, modules = (out.with_name(f"{out.name}.{ending}") for ending in ("log", "modules"))
    command = work.command(out)
    start, begun = time.monotonic(), None
    program = starts.start(command, log, modules if moment_s is None else None)
    while program.poll() is None:
        now = time.monotonic() - start
        if begun is None and out.exists():
            begun = now
        if (moment_s is not None and now >= moment_s) or now > _LONGEST_S:
            program.kill()
            break
        time.sleep(_LOOK_S)
    code = program.wait(_LEAVING_S)
    seconds = time.monotonic() - start
    assert seconds < _LONGEST_S, f"{work.name} did not end: {log}"
    return Ended(code, seconds if begun is None else begun, seconds, tuple(left_of(program.pid)))


def left_of(session: int) -> list[str]:
    """Wait for the processes of a session to end, and name those that do not."""
    deadline = time.monotonic() + _LEAVING_S
    while left := [about for about in _processes() if about[1] == session]:
        if time.monotonic() > deadline:
            for pid, _, _ in left:
                os.kill(pid, signal.SIGKILL)
            return [name for _, _, name in left]
        time.sleep(0.02)
    return []


def _processes() -> Iterator[tuple[int, int, str]]:
    """List running processes: number, session, name."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue
        name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
        if rest[0] not in "ZX":
            yield int(entry.name), int(rest[3]), name


def tree_troubles(
    whole: Path, out: Path, apart: Sequence[str] = (), content: Callable[[Path], object] = Path.read_bytes
) -> Iterator[str]:
    """Compare two folders of files; those whose names begin with one of `apart` are compared by the caller."""
    names = [{name for name in _names(folder) if not name.startswith(tuple(apart))} for folder in (whole, out)]
    expected, found = names
    for name in sorted(expected - found):
        yield f"lost {name}"
    for name in sorted(found - expected):
        is_temporary = any(part.startswith(".") for part in Path(name).parts)
        yield f"{'half-written' if is_temporary else 'doubled'} {name}"
    for name in sorted(expected & found):
        if content(whole / name) != content(out / name):
            yield f"different {name}"


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def list_troubles(what: str, expected: Sequence[str], found: Sequence[str]) -> Iterator[str]:
    """Compare two lists of records, each as a text."""
    wanted, got = Counter(expected), Counter(found)
    for record in wanted - got:
        yield f"{'different' if got else 'lost'} {what}: {record[:160]} is not there"
    for record, count in (got - wanted).items():
        yield f"doubled {what}: {record[:160]} is there {count} times more"


def table(tallies: Sequence[Tally]) -> str:
    """Give the figures as a table in Markdown."""
    heads = ("what was killed", "kills", "after its first file", "runs", *TROUBLES)
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for one in tallies:
        cells = (one.name, one.kills, one.in_work, one.trials, *(one.count(kind) for kind in TROUBLES))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    from kill_works import WORKS, Missing  # noqa: PLC0415  what is run, which needs this module

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[*WORKS, []], help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--keep", type=Path, help="folder for all outputs, which is not removed")
    arguments = parser.parse_args()
    tallies = []
    for name in arguments.works or WORKS:
        with ExitStack() as stack:
            place = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-")))
            made, inputs = place / name / "out", place / name / "in"
            for folder in (made, inputs):
                folder.mkdir(parents=True)
            try:
                trials = stack.enter_context(WORKS[name](inputs))
            except Missing as missing:
                print(f"{name} is left out: {missing}", file=sys.stderr)
                continue
            tally = trials(made, arguments.kills, arguments.seed, lambda text: print(text, file=sys.stderr))
            tallies.append(tally)
            print("\n".join(tally.troubles), file=sys.stderr)
    print(table(tallies))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(one) for one in tallies], indent=1) + "\n", encoding="utf-8")
    if tallies:
        print(f"median unbroken run {statistics.median(one.unbroken_s for one in tallies):.1f} s", file=sys.stderr)
    return int(any(one.troubles for one in tallies))


if __name__ == "__main__":
    sys.exit(main())
