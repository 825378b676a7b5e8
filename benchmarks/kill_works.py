"""The work that `kills.py` kills: commands of medsam3, inputs that are made here, and what their folders must hold."""

from __future__ import annotations

import json
import os
import re
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
from kills import (
    AFTER_NEW_S,
    TESTS,
    Tally,
    Tell,
    environment,
    left_of,
    list_troubles,
    names_in,
    run_trials,
    stand_in,
    tree_troubles,
    unbroken,
)
from warm_starts import WarmProgram, WarmStarts, until_told

if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

Trials = Callable[[Path, int, int, Tell], Tally]
"""Kills one kind of work: a folder for outputs, how often, a seed, whom to tell."""
_ENDING_S = 20.0
"""A server that is interrupted has ended by then: it waits three seconds for open requests."""


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

    starts: WarmStarts
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self, modules: Path | None = None) -> Iterator[WarmProgram]:
        """Run it; it must listen at its port again at once, and end when it is interrupted."""
        self.log.unlink(missing_ok=True)
        command = [sys.executable, str(TESTS / "serve_fake.py"), str(self.port)]
        program = self.starts.start(command, self.log, modules)
        until_told(self.log, self.url, program)
        try:
            yield program
        finally:
            program.send_signal(signal.SIGINT)
            program.wait(_ENDING_S)


@dataclass(frozen=True)
class AskedFolder:
    """`medsam3 segment --server` over a folder."""

    folder: FolderRun
    url: str
    name: str = "server"

    def command(self, out: Path) -> list[str]:
        own = [word for word in self.folder.command(out) if word not in ("--model", "threshold")]
        return [*own, "--server", self.url]

    def troubles(self, whole: Path, out: Path, kills: int) -> Iterator[str]:
        return self.folder.troubles(whole, out, kills)


def server_trials(inputs: Path, count: int, out: Path, kills_wanted: int, seed: int, tell: Tell) -> Tally:
    """Kill the server while one client's jobs run and another one's session is open; both begin again after it."""
    import random  # noqa: PLC0415

    from made_archive import free_port  # noqa: PLC0415

    chance, tally, start = random.Random(f"{seed} server"), Tally("server"), time.monotonic()
    own = environment(out / "tmp")
    with WarmStarts(own) as server_starts, WarmStarts(own) as starts:
        server = _Server(server_starts, free_port(), out / "server.log")
        work = AskedFolder(FolderRun(inputs, count), server.url)
        for name in ("whole", "again"):  # the second finds its imports done
            with server.running(out / "server.modules"):
                whole = unbroken(starts, work, out, name, tally)
            server_starts.warm(out / "server.modules")
        tally.unbroken_s = round(whole.seconds, 2)
        usual = names_in(out / "tmp")
        while tally.kills < kills_wanted:
            trial, killed = out / f"trial{tally.trials}", 0
            tally.trials += 1
            while True:
                with server.running() as program:
                    asking = starts.start(work.command(trial), trial.with_suffix(".log"))
                    is_done = _killed_once(server, program, work, asking, chance.uniform(0, 1.3 * tally.unbroken_s))
                tally.troubles += [f"left {name} of a killed server" for name in left_of(program.pid)]
                if is_done:
                    break
                killed += 1
                tally.in_work += trial.exists()
            tally.kills += killed
            tally.troubles += [f"{one} ({trial.name})" for one in work.troubles(out / "whole", trial, killed)]
            tell(f"server: {tally.kills} of {kills_wanted} kills, {len(tally.troubles)} troubles")
        time.sleep(AFTER_NEW_S)
        with server.running():
            unbroken(starts, work, out, "last", tally)
    tally.troubles += [f"half-written {name}, in the temporary place" for name in names_in(out / "tmp") - usual]
    tally.seconds = round(time.monotonic() - start, 1)
    return tally


def _killed_once(
    server: _Server, program: WarmProgram, work: AskedFolder, asking: WarmProgram, moment_s: float
) -> bool:
    """Kill the server at a moment; give whether the client was done before."""
    from medsam3.client.client import Client  # noqa: PLC0415
    from medsam3.errors import InputError  # noqa: PLC0415

    deadline = time.monotonic() + moment_s
    with Client(server.url) as client, client.session(work.folder.inputs / "images" / "000.png") as session:
        session.segment("block")
        while asking.poll() is None and time.monotonic() < deadline:
            session.click(40, 15)
            session.undo()
        is_done = asking.poll() is not None
        if not is_done:
            program.kill()
            program.wait(_ENDING_S)
            _refused(session.undo, InputError)
    code = asking.wait(120)
    assert (code == 0) == is_done or code in (0, 2), f"the client ended with {code}"
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
    from medsam3.agent.values import Budget  # noqa: PLC0415

    script: list[Answer] = []
    for n in range(3):
        script.append(Answer("", (Call("segment", {"phrase": f"block {n}"}, f"s{n}"),)))
        looks = (Call(name, {"mask": n + 1}, f"{name}{n}") for name in ("measure", "examine"))
        script.append(Answer("", tuple(looks)))
    script.append(Answer("", (Call("accept", {"masks": [1], "reason": "it is bright"}, "a"),)))

    def step(request: Request) -> Answer:
        """Go by how many turns are left, which is told in a conversation that was broken off too."""
        left = int(re.findall(r"(\d+) turns are left", request.text)[-1])
        return script[min(Budget().turns - left, len(script) - 1)]

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
def _batch_on_ray(inputs: Path, count: int = 100) -> Iterator[Trials]:
    """Kill the batch, not the cluster: its workers are Ray's, and may still be at work when the batch is taken up."""
    try:
        import ray  # noqa: F401, PLC0415
    except ImportError as error:
        raise Missing("Ray is not installed") from error
    from made_archive import free_port  # noqa: PLC0415

    pictures(inputs / "images", count)
    port, own = free_port(), environment(inputs / "tmp")
    head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", str(port)]
    head += ["--num-cpus", "2", "--include-dashboard", "false", "--disable-usage-stats"]
    head += ["--temp-dir", str(inputs / "ray"), "--object-store-memory", str(100 << 20)]
    log = inputs / "head.log"
    with log.open("wb") as stream:
        cluster = subprocess.Popen(head, stdout=stream, stderr=stream, env=own, start_new_session=True)
    try:
        while b"--block" not in log.read_bytes():  # what it says once it is up
            if cluster.poll() is not None:
                raise Missing(f"Ray did not start here, which happens where much else runs: {log}")
            time.sleep(0.2)
        os.environ["RAY_ADDRESS"] = f"127.0.0.1:{port}"
        yield partial(run_trials, BatchRun(inputs, ("--cluster", "auto", "--workers", "2"), "batch on Ray"))
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        os.killpg(cluster.pid, signal.SIGKILL)
        cluster.wait()


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
