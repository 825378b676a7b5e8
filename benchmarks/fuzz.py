"""Damage good files at random and read them: `python benchmarks/fuzz.py --seconds 600 --out fuzz_out`.

Bad input may only be answered by an `InputError` of one line. Reported, and kept in the folder `--out` with what was
raised, are other exceptions, messages of several lines, processes that die, files that take more than ten seconds of
processor time, and files after which the process has taken more than 2 GiB. File number N is the same on every
machine; `--first N --count 1` does one again. Ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuzz_seeds import Seed

MOST_SECONDS, MOST_BYTES = 10.0, 2**31
_KILLED_AFTER = 120.0  # by the clock, on a machine that may have much else to do
_STARTED_WITHIN = 1200.0
_ADDRESS_SPACE = 24 * 2**30
"""Against files that would take the machine's memory: torch alone reserves several GiB of addresses."""
_KEPT_OF_EACH = 3
_HEAD = 512
_NUMBERS = (b"-1", b"0", b"1e309", b"99999999999999999999", b"NaN", b"null", b"", b"0.5", b"65536", b"\xc2\xb2")
_INTEGERS = (0, 1, -1, 2**7, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)


@dataclass(frozen=True)
class Finding:
    """A file that was not answered as it should be."""

    number: int
    seed: str
    kind: str
    place: str
    what: str


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Change a file in one to four ways."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        content = chance.choice(_WAYS)(content, chance)
    return content


def _place(content: bytes, chance: random.Random) -> int:
    """Choose a byte, half of the time one of the header."""
    return chance.randrange(max(1, min(len(content), _HEAD) if chance.random() < 0.5 else len(content)))


def _bits(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 3, 16))):
        if changed:
            changed[_place(content, chance)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _bytes(content: bytes, chance: random.Random) -> bytes:
    at, count = _place(content, chance), chance.choice((1, 2, 4, 16))
    return content[:at] + chance.randbytes(count) + content[at + count :]


def _integer(content: bytes, chance: random.Random) -> bytes:
    at, size = _place(content, chance), chance.choice((1, 2, 4, 8))
    value = chance.choice(_INTEGERS) & ((1 << 8 * size) - 1)
    return content[:at] + value.to_bytes(size, chance.choice(("little", "big"))) + content[at + size :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: _place(content, chance)]


def _without(content: bytes, chance: random.Random) -> bytes:
    at = _place(content, chance)
    return content[:at] + content[at + chance.choice((1, 2, 8, 64)) :]


def _twice(content: bytes, chance: random.Random) -> bytes:
    at, size = _place(content, chance), chance.choice((1, 4, 32, 256))
    return content[: at + size] + content[at : at + size] * chance.choice((1, 1, 50)) + content[at + size :]


def _swapped(content: bytes, chance: random.Random) -> bytes:
    first, second = sorted((_place(content, chance), _place(content, chance)))
    size = chance.choice((2, 8, 32))
    pieces = (content[:first], content[second : second + size], content[first + size : second])
    return b"".join((*pieces, content[first : first + size], content[second + size :]))


def _number(content: bytes, chance: random.Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not found:
        return _bytes(content, chance)
    match = chance.choice(found)
    return content[: match.start()] + chance.choice(_NUMBERS) + content[match.end() :]


_WAYS: Sequence[Callable[[bytes, random.Random], bytes]] = (
    *(_bits, _bytes, _integer, _integer, _cut, _without, _twice, _swapped, _number),
)


def repacked(content: bytes, chance: random.Random) -> bytes:
    """Damage what a gzip file holds, or half of the time the file itself, whose checksum then tells."""
    if content[:2] != b"\x1f\x8b" or chance.random() < 0.5:
        return damaged(content, chance)
    packer = zlib.compressobj(wbits=31)
    return packer.compress(damaged(zlib.decompress(content, wbits=31), chance)) + packer.flush()


def read_damaged(first: int, count: int, only: str) -> None:
    """Read damaged files in this process, and print a line of JSON before each and for each finding."""
    from fuzz_seeds import seeds  # noqa: PLC0415  the parent needs none of the readers
    from fuzz_texts import texts  # noqa: PLC0415

    from medsam3.errors import InputError  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    logging.disable(logging.CRITICAL)
    chosen = [seed for seed in (*seeds(), *texts()) if any(part in seed.name for part in only.split(","))]
    with tempfile.TemporaryDirectory() as temporary:
        contents = {seed.name: _good(seed, Path(temporary) / seed.name) for seed in chosen}
        for number in range(first, first + count):
            chance = random.Random(number)
            seed = chosen[number % len(chosen)]
            path = Path(temporary) / seed.name / seed.file
            path.write_bytes(repacked(contents[seed.name], chance))
            _say(number=number, seed=seed.name, path=str(path))
            started, finding = time.process_time(), None
            try:
                seed.open(path)
            except InputError as error:
                if "\n" in str(error):
                    finding = Finding(number, seed.name, "several lines", _where(error), str(error))
            except Exception as error:  # what this program looks for
                finding = Finding(number, seed.name, type(error).__name__, _where(error), traceback.format_exc())
            seconds = time.process_time() - started
            if finding is None and seconds > MOST_SECONDS:
                finding = Finding(number, seed.name, "slow", "", f"{seconds:.1f} s")
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if finding is None and peak > MOST_BYTES:
                finding = Finding(number, seed.name, "memory", "", f"{peak:,} bytes")
            if finding is not None:
                _say(found=asdict(finding))
            if peak > MOST_BYTES:
                break  # the peak of a process never falls
    _say(done=True)


def _good(seed: Seed, folder: Path) -> bytes:
    """Make a seed, and see that it can be read."""
    folder.mkdir()
    seed.make(folder)
    seed.open(folder / seed.file)
    return (folder / seed.file).read_bytes()


def _say(**record: object) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def _where(error: BaseException) -> str:
    """Find the last line of ours that the error came through."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "medsam3" in Path(frame.filename).parts]
    return f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "?"


class Campaign:
    """Runs children one after the other, each until it dies or its files are done."""

    def __init__(self, out: Path, only: str) -> None:
        self.out, self.only = out, only
        self.done: Counter[str] = Counter()
        self.findings: list[Finding] = []

    def run(self, first: int, last: int, deadline: float) -> int:
        """Go on until the time is up or `last` is reached; returns the next number."""
        number = first
        while number < last and time.monotonic() < deadline:
            number = self._child(number, min(last - number, 5000), deadline)
        return number

    def _child(self, first: int, count: int, deadline: float) -> int:
        command = [sys.executable, __file__, "--child", "--first", str(first), "--count", str(count)]
        with tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                [*command, "--only", self.only],
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                start_new_session=True,
            )
            assert child.stdout is not None
            current: dict[str, Any] = {}
            is_stopped = is_hung = False
            for record in _records(child.stdout):
                if record is not None and "done" in record:
                    break
                if record is None:  # nothing for too long
                    is_hung = True
                    break
                if "found" in record:
                    self._keep(Finding(**record["found"]), Path(current["path"]))
                    continue
                current = record
                self.done[record["seed"]] += 1
                if time.monotonic() > deadline:
                    is_stopped = True
                    break
            if is_stopped or is_hung:
                child.kill()
            code = child.wait()
            errors.seek(0)
            said = errors.read()[-2000:].decode(errors="replace")
        if not current:
            raise SystemExit(f"the fuzzer itself fails: {said or f'no file in {_STARTED_WITHIN:g} s'}")
        number: int = current["number"]
        if is_hung or (code != 0 and not is_stopped):
            kind = "hang" if is_hung else signal.Signals(-code).name if code < 0 else f"exit {code}"
            self._keep(Finding(number, current["seed"], kind, "", said), Path(current["path"]))
        return number + 1

    def _keep(self, finding: Finding, path: Path) -> None:
        self.findings.append(finding)
        like = [one for one in self.findings if (one.kind, one.place) == (finding.kind, finding.place)]
        if len(like) > _KEPT_OF_EACH:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        name = f"{finding.number}-{finding.seed}-{finding.kind.replace(' ', '-')}"
        (self.out / f"{name}.txt").write_text(finding.what, encoding="utf-8")
        if path.is_file():
            (self.out / f"{name}{''.join(path.suffixes)}").write_bytes(path.read_bytes())

    def report(self) -> str:
        """Count the files by kind, and the findings by place."""
        places = Counter((one.kind, one.place, one.seed) for one in self.findings)
        lines = [f"{count:6d}  {kind} at {place} ({seed})" for (kind, place, seed), count in places.most_common()]
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(self.done.items()))
        return "\n".join([f"{self.done.total():,} files: {kinds}", f"{len(self.findings)} findings", *lines])


def _records(stream: IO[bytes]) -> Iterator[dict[str, Any] | None]:
    """Read lines of JSON; None if none comes for longer than a file may take."""
    started = False
    while True:
        ready, _, _ = select.select([stream], [], [], _KILLED_AFTER if started else _STARTED_WITHIN)
        if not ready:
            yield None
            return
        line = stream.readline()
        if not line:
            return
        started = True
        yield json.loads(line)


def main() -> int:
    """Read the arguments, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to go on (600)")
    parser.add_argument("--first", type=int, default=0, help="number of the first file (0)")
    parser.add_argument("--count", type=int, default=10**9, help="most files")
    parser.add_argument("--only", default="", help="seeds whose name holds one of these, joined by commas")
    parser.add_argument("--out", type=Path, default=Path("fuzz_out"), help="folder of the files that are found")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        read_damaged(asked.first, asked.count, asked.only)
        return 0
    campaign = Campaign(asked.out, asked.only)
    campaign.run(asked.first, asked.first + asked.count, time.monotonic() + asked.seconds)
    print(campaign.report())
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    sys.exit(main())
