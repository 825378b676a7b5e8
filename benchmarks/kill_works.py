"""The work that `kills.py` kills: commands of medsam3, inputs that are made here, and what their folders must hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from kills import TESTS, Tally, Tell, ended, environment, left_of, list_troubles, run_trials, stand_in, tree_troubles

if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

Trials = Callable[[Path, int, int, Tell], Tally]
"""Kills one kind of work: a folder for outputs, how often, a seed, whom to tell."""
_AFTER_NEW_S = 2.5
"""A server removes folders of dead ones that are older than two seconds."""


class Missing(Exception):  # noqa: N818  no error: this machine lacks a program
    """A program that is not installed."""


def picture(path: Path, number: int) -> None:
    """A dark picture with a bright block whose place tells its number."""
    pixels = np.zeros((40, 120), dtype=np.uint8)
    pixels[10:20, 5 + number : 20 + number] = 255
    PIL.Image.fromarray(pixels).save(path)


def pictures(folder: Path, count: int) -> Path:
    """Write a folder of pictures."""
    folder.mkdir()
    for number in range(count):
        picture(folder / f"{number:03}.png", number)
    return folder


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _without(record: dict[str, Any], *names: str) -> str:
    return json.dumps({key: value for key, value in record.items() if key not in names}, sort_keys=True, default=str)


@dataclass(frozen=True)
class FolderRun:
    """`medsam3 segment` over a folder, four formats a picture, one COCO file for all."""

    inputs: Path
    count: int
    name: str = "folder"

    def command(self, out: Path) -> list[str]:
        images = str(self.inputs / "images")
        more = ("--text", "block", "--model", "threshold", "--format", "png,overlay,coco,csv", "--out", str(out))
        return stand_in("segment", images, *more)

    def troubles(self, whole: Path, out: Path, kills: int) -> Iterator[str]:
        yield from tree_troubles(whole, out, ("results.jsonl",))
        expected, found = (
            [_without(line) for line in _lines(folder / "results.jsonl") if "stem" in line] for folder in (whole, out)
        )
        yield from list_troubles("results.jsonl", expected, found)
        if len(expected) != self.count:
            yield f"lost: {len(expected)} results of {self.count}"


@dataclass(frozen=True)
class FollowedVolume:
    """`medsam3 segment --propagate` over a volume, whose journal takes a killed run up."""

    inputs: Path
    name: str = "followed volume"

    def command(self, out: Path) -> list[str]:
        more = ("--text", "block", "--model", "threshold", "--propagate", "--format", "nifti,json", "--out", str(out))
        return stand_in("segment", str(self.inputs / "scan.nii.gz"), *more)

    def troubles(self, whole: Path, out: Path, kills: int) -> Iterator[str]:
        yield from tree_troubles(whole, out, ("results.jsonl",))
        expected, found = (
            [_without(line) for line in _lines(folder / "results.jsonl") if "stem" in line] for folder in (whole, out)
        )
        yield from list_troubles("results.jsonl", expected, found)


@dataclass(frozen=True)
class TrainingRun:
    """The training loop on a tiny detector: curves, measurements on val, checkpoint."""

    inputs: Path
    name: str = "training"

    def command(self, out: Path) -> list[str]:
        return [sys.executable, str(TESTS / "train" / "mini_killed_run.py"), str(out)]

    def troubles(self, whole: Path, out: Path, kills: int) -> Iterator[str]:
        yield from tree_troubles(whole, out, ("checkpoint.pt",))
        yield from _tensor_troubles(whole / "checkpoint.pt", out / "checkpoint.pt")


def _tensor_troubles(whole: Path, out: Path) -> Iterator[str]:
    import torch  # noqa: PLC0415  for training alone

    expected, found = (torch.load(path, map_location="cpu", weights_only=True) for path in (whole, out))
    for name, value in expected["model"].items():
        if not torch.equal(value, found["model"][name]):
            yield f"different {name} in {out.name}"
    if expected["step"] != found["step"]:
        yield f"lost updates: {found['step']} of {expected['step']}"


@dataclass(frozen=True)
class AgentRun:
    """`medsam3 agent` with an LLM over HTTP and a transcript; each answer of the LLM counts as paid."""

    inputs: Path
    url: str
    paid: Callable[[], int]
    turns: int
    name: str = "agent"

    def command(self, out: Path) -> list[str]:
        more = ("--segmenter", "threshold", "--model", self.url, "--transcript", str(out / "run"))
        return stand_in("agent", str(self.inputs / "scan.png"), "the block", *more, "--out", str(out))

    def troubles(self, whole: Path, out: Path, kills: int) -> Iterator[str]:
        yield from tree_troubles(whole, out, ("run/transcript.jsonl", "run/index.html"))
        for name in ("run/transcript.jsonl", "run/index.html"):
            if not (out / name).is_file():
                yield f"lost {name}"
        expected, found = (
            [json.dumps(_timeless(line)) for line in _lines(folder / "run/transcript.jsonl")] for folder in (whole, out)
        )
        yield from list_troubles("the transcript", expected, found)
        if not (out / "run/index.html").read_text(encoding="utf-8").rstrip().endswith("</html>"):
            yield "half-written run/index.html"
        paid = self.paid()
        if paid > self.turns + kills:
            yield f"doubled: {paid} answers were paid for {self.turns} turns and {kills} kills"


def _timeless(value: Any) -> Any:
    """Leave out how long things took, and numbers that the provider gives to calls."""
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in ("seconds", "id", "call_id")}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class BatchRun:
    """`medsam3 batch`, in one process or with Ray's workers."""

    inputs: Path
    cluster: tuple[str, ...]
    name: str

    def command(self, out: Path) -> list[str]:
        more = ("--text", "block", "--model", "threshold", "--out", str(out), *self.cluster)
        return stand_in("batch", str(self.inputs / "images"), *more)

    def troubles(self, whole: Path, out: Path, kills: int) -> Iterator[str]:
        import pyarrow.parquet as pq  # noqa: PLC0415  for the manifest alone

        yield from tree_troubles(whole, out, ("manifest/part-",))
        expected, found = (
            [_without(row, "seconds", "finished") for row in pq.read_table(folder / "manifest").to_pylist()]
            for folder in (whole, out)
        )
        yield from list_troubles("the manifest", expected, found)


@dataclass(frozen=True)
class WatchRun:
    """`medsam3 watch --once` over an archive, a study of its own for each trial."""

    inputs: Path
    archive: Any
    name: str = "watcher"

    def command(self, out: Path) -> list[str]:
        rules = self.inputs / f"{out.name}.toml"
        if not rules.exists():
            self._begin(out, rules)
        pace = ("--settle", "0", "--every", "0.2", "--model", "threshold")
        return stand_in("watch", self.archive.root, "--rule", str(rules), "--once", "--out", str(out), *pace)

    def _begin(self, out: Path, rules: Path) -> None:
        from made_study import made_study  # noqa: PLC0415

        made = [made_study(self.inputs / out.name / str(n), slices=25, SeriesDescription=out.name) for n in range(2)]
        for one in made:
            self.archive.send(one.folder)
        studies = [one.study for one in made]
        (self.inputs / f"{out.name}.json").write_text(json.dumps(studies))
        rules.write_text(f'[[rule]]\ndescription = "{out.name}"\ntext = ["block", "polyp"]\nrtstruct = true\n')

    def troubles(self, whole: Path, out: Path, kills: int) -> Iterator[str]:
        yield from tree_troubles(whole, out, ("done.jsonl",))
        for study in json.loads((self.inputs / f"{out.name}.json").read_text()):
            for modality in ("SEG", "RTSTRUCT"):
                count = self.archive.count(study, modality)
                if count != 2:
                    yield f"{'doubled' if count > 2 else 'lost'} {modality}: {count} in the archive in place of 2"
        noted = Counter(line["result"] for line in _lines(out / "done.jsonl")[1:])
        for result, count in noted.items():
            if count > 1:
                yield f"doubled: {result} is noted {count} times"
        if len(noted) != 8:
            yield f"lost: {len(noted)} results are noted in place of 8"


@dataclass(frozen=True)
class _Server:
    """A server that is killed, and what it keeps on disk."""

    port: int
    temporary: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """Run it; in the end all of its processes must be gone."""
        command = [sys.executable, str(TESTS / "serve_fake.py"), str(self.port)]
        self.temporary.mkdir(exist_ok=True)
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(), "TMPDIR": str(self.temporary)},
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            assert self.url in process.stdout.readline(), "the server listens at its port again at once"
            try:
                yield process
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(300)


def server_trials(inputs: Path, count: int, out: Path, kills_wanted: int, seed: int, tell: Tell) -> Tally:
    """Kill the server while one client's jobs run and another one's session is open; both begin again after it."""
    import random  # noqa: PLC0415

    from made_archive import free_port  # noqa: PLC0415

    chance, tally, start = random.Random(f"{seed} server"), Tally("server"), time.monotonic()
    server = _Server(free_port(), out / "tmp")
    job = FolderRun(inputs, count)
    begun = time.monotonic()
    assert ended(job, out / "whole", None).code == 0
    with server.running():
        begun = time.monotonic()
        assert _ask(server, job, out / "plain").wait() == 0
        tally.unbroken_s = round(time.monotonic() - begun, 2)
    while tally.kills < kills_wanted:
        trial, killed = out / f"trial{tally.trials}", 0
        tally.trials += 1
        is_done = False
        while not is_done:
            with server.running() as process:
                is_done = _killed_once(server, process, job, trial, chance.uniform(0.05, 1.3 * tally.unbroken_s))
                killed += not is_done
                tally.in_work += not is_done
            left = left_of(process.pid)
            tally.troubles += [f"left {name} of a killed server" for name in left]
        tally.kills += killed
        found = list(job.troubles(out / "whole", trial, killed))
        tally.troubles += [f"{one} ({trial.name})" for one in found]
        tell(f"server: {tally.kills} of {kills_wanted} kills, {len(tally.troubles)} troubles")
    time.sleep(_AFTER_NEW_S)
    with server.running():
        pass
    tally.troubles += [f"half-written {path.name}, left of a killed server" for path in server.temporary.iterdir()]
    tally.seconds = round(time.monotonic() - start, 1)
    return tally


def _ask(server: _Server, job: FolderRun, out: Path) -> subprocess.Popen[bytes]:
    command = [word for word in job.command(out) if word not in ("--model", "threshold")]
    with out.with_name(f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--server", server.url], stdout=log, stderr=log, env=environment(), start_new_session=True
        )


def _killed_once(server: _Server, process: subprocess.Popen[str], job: FolderRun, out: Path, moment_s: float) -> bool:
    """Kill the server at a moment; give whether the client was done before."""
    from medsam3.client.client import Client  # noqa: PLC0415
    from medsam3.errors import InputError  # noqa: PLC0415

    asking, deadline = _ask(server, job, out), time.monotonic() + moment_s
    with Client(server.url) as client, client.session(job.inputs / "images" / "000.png") as session:
        session.segment("block")
        while asking.poll() is None and time.monotonic() < deadline:
            session.click(40, 15)
            session.undo()
        is_done = asking.poll() is not None
        if not is_done:
            process.kill()
            process.wait()
            _refused(session.undo, InputError)
    code = asking.wait(120)
    assert (code == 0) == is_done or code in (0, 2), f"the client ended with {code}, see {out}.log"
    assert "Traceback" not in out.with_name(f"{out.name}.log").read_text(errors="replace")
    return is_done and code == 0


def _refused(ask: Callable[[], object], error: type[Exception]) -> None:
    try:
        ask()
    except error:
        return
    raise AssertionError("a dead server answered")


@contextmanager
def _folder(inputs: Path, count: int = 40) -> Iterator[Trials]:
    pictures(inputs / "images", count)
    yield partial(run_trials, FolderRun(inputs, count))


@contextmanager
def _volume(inputs: Path, slices: int = 150) -> Iterator[Trials]:
    import nibabel as nib  # noqa: PLC0415

    values = np.zeros((60, 40, slices), dtype=np.int16)
    for n in range(5, slices - 5):
        values[10 + n % 7 : 25 + n % 7, 10:20, n] = 900
    affine = np.array([[0.8, 0.1, 0, -12], [-0.1, 1.3, 0.2, 7], [0, -0.2, 3, 31], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(values, affine), inputs / "scan.nii.gz")
    yield partial(run_trials, FollowedVolume(inputs))


@contextmanager
def _training(inputs: Path) -> Iterator[Trials]:
    yield partial(run_trials, TrainingRun(inputs))


@contextmanager
def _agent(inputs: Path) -> Iterator[Trials]:
    from llm_server import Answer, Call, LlmServer, Request  # noqa: PLC0415  pytest among it

    script = [Answer("", (Call("segment", {"phrase": f"block {n}"}, f"s{n}"),)) for n in range(3)]
    looks = [
        Answer("", (Call("measure", {"mask": 1}, f"m{n}"), Call("examine", {"mask": 1}, f"e{n}"))) for n in range(6)
    ]
    script[1:1], script[3:3] = looks[:3], looks[3:]
    script.append(Answer("", (Call("accept", {"masks": [1], "reason": "it is bright"}, "a"),)))

    def step(request: Request) -> Answer:
        turn: int = sum(one["role"] == "assistant" for one in request.body["messages"])
        return script[min(turn, len(script) - 1)]

    picture(inputs / "scan.png", 3)
    with LlmServer(step) as server:
        seen = [0]

        def paid() -> int:
            before, seen[0] = seen[0], len(server.requests)
            return seen[0] - before

        yield partial(run_trials, AgentRun(inputs, f"{server.origin}/v1", paid, len(script)))


@contextmanager
def _batch(inputs: Path, count: int = 150) -> Iterator[Trials]:
    pictures(inputs / "images", count)
    yield partial(run_trials, BatchRun(inputs, ("--cluster", "none"), "batch"))


@contextmanager
def _batch_on_ray(inputs: Path, count: int = 300) -> Iterator[Trials]:
    try:
        import ray  # noqa: F401, PLC0415
    except ImportError as error:
        raise Missing("Ray is not installed") from error
    pictures(inputs / "images", count)
    os.environ["RAY_TMPDIR"] = str(inputs)  # another Ray on this machine is not joined
    yield partial(run_trials, BatchRun(inputs, ("--cluster", "auto", "--workers", "2"), "batch on Ray"))


@contextmanager
def _server(inputs: Path, count: int = 30) -> Iterator[Trials]:
    pictures(inputs / "images", count)
    yield partial(server_trials, inputs, count)


@contextmanager
def _watcher(inputs: Path) -> Iterator[Trials]:
    from made_archive import MISSING, PASSWORD, USER, Orthanc  # noqa: PLC0415

    if MISSING is not None:
        raise Missing(MISSING)
    os.environ.update(MEDSAM3_DICOMWEB_USER=USER, MEDSAM3_DICOMWEB_PASSWORD=PASSWORD)
    archive = Orthanc(inputs / "orthanc").start()
    try:
        yield partial(run_trials, WatchRun(inputs, archive))
    finally:
        archive.stop()


WORKS: dict[str, Callable[[Path], AbstractContextManager[Trials]]] = {
    "folder": _folder,
    "volume": _volume,
    "training": _training,
    "agent": _agent,
    "batch": _batch,
    "ray": _batch_on_ray,
    "server": _server,
    "watcher": _watcher,
}
"""By name: makes the inputs in a folder, and gives what kills the work."""
