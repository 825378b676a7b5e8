"""Load on a server: many clients with calls of all kinds, each of whose answers must be that of its own picture.

Each client draws a bright block of its own on a dark picture (or in a small volume), opens it, looks at it, asks a
phrase, draws a box, clicks, paints, undoes, reads masks, runs jobs and takes results away in several formats. What it
painted and where its block is tell whether an answer is its own. The server is started here, as a user starts it:

    python benchmarks/server_load.py --clients 100 --seconds 600
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import PIL.Image

SIDE = 96
SLICES = 4
SETTLED_S = 120.0
LOOK_S = 10.0
FORMATS = ("png", "nifti", "coco", "csv")


@dataclass
class Kind:
    """What was seen of one kind of call."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Seen:
    """What all clients saw."""

    kinds: dict[str, Kind] = field(default_factory=lambda: defaultdict(Kind))
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    checked: int = 0
    rounds: int = 0
    memory: list[tuple[float, dict[str, int]]] = field(default_factory=list)


class OverError(Exception):
    """The time is over."""


class Client:
    """One user, who comes back when the server says so."""

    def __init__(self, number: int, http: httpx.AsyncClient, seen: Seen, until: float) -> None:
        self.number, self.http, self.seen, self.until = number, http, seen, until
        self.rng = np.random.default_rng(number)

    async def ask(self, kind: str, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask until the answer is no 503; how long one answer took is noted, not how long the client stayed away."""
        while time.monotonic() < self.until:
            begun = time.perf_counter()
            try:
                answer = await self.http.request(method, path, **more)
            except httpx.HTTPError as error:
                self.seen.lost.append(f"{kind}: {type(error).__name__}")
                raise OverError from error
            noted = self.seen.kinds[kind]
            noted.statuses[answer.status_code] += 1
            if answer.status_code == 503:
                if "retry-after" not in answer.headers:
                    self.seen.wrong.append(f"{kind}: 503 without Retry-After")
                await asyncio.sleep(float(answer.headers.get("retry-after", 1)) * float(self.rng.uniform(0.5, 1.5)))
                continue
            noted.seconds.append(time.perf_counter() - begun)
            if answer.status_code >= 400:
                self.seen.wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
                raise OverError
            return answer
        raise OverError

    async def run(self) -> None:
        """Do rounds until the time is over."""
        await asyncio.sleep(float(self.rng.uniform(0, 5)))
        while time.monotonic() < self.until:
            left, top = (int(value) for value in self.rng.integers(4, SIDE - 36, 2))
            opened: str | None = None
            try:
                is_volume = self.rng.random() < 0.2
                name, content = ("v.nii.gz", volume(left, top)) if is_volume else ("p.png", picture(left, top))
                about = (await self.ask("upload", "POST", "/v1/images", files={"files": (name, content)})).json()
                opened = f"/v1/images/{about['id']}"
                await (self.volume_round if is_volume else self.picture_round)(opened, left, top)
                self.seen.rounds += 1
            except OverError:
                pass
            finally:
                if opened is not None:
                    await self.gone(opened)

    async def gone(self, image: str) -> None:
        """Remove an image; nobody else may see it before or after."""
        try:
            self.seen.kinds["remove"].statuses[(await self.http.delete(image)).status_code] += 1
        except httpx.HTTPError as error:
            self.seen.lost.append(f"remove: {type(error).__name__}")

    async def picture_round(self, image: str, left: int, top: int) -> None:
        """Correct a picture in a session, and take it away."""
        await self.ask("frame", "GET", f"{image}/frames/0.png")
        await self.ask("thumbnail", "GET", f"{image}/thumbnail.png")
        await self.ask("concepts", "GET", "/v1/concepts?q=op")
        await self.ask("read a phrase", "GET", "/v1/phrases?q=optic%20disc")
        begun = await self.ask("session", "POST", f"{image}/sessions", json={})
        session = f"{image}/sessions/{begun.json()['id']}"
        box = [left - 2, top - 2, left + 30, top + 30]
        await self.step(session, "box", {"do": "box", "box": box})
        for x, y in self.rng.integers(4, 24, (3, 2)).tolist():
            await self.step(session, "click", {"do": "click", "x": left + x, "y": top + y})
        await self.step(session, "undo", {"do": "undo"})
        await self.step(session, "paint", {"do": "paint", "points": [[left + 14, top + 14]], "radius": 9.0})
        runs = (await self.ask("masks", "GET", f"{session}/masks?frame=0&grid=file")).json()
        mask = dense(runs["masks"][0]["runs"], runs["height"], runs["width"])
        self.check("masks", mask, left, top)
        if self.rng.random() < 0.3:
            await self.step(session, "phrase", {"do": "segment", "phrase": "polyp"})
        kept = (await self.ask("keep", "POST", f"{session}/results")).json()
        form = FORMATS[int(self.rng.integers(len(FORMATS)))]
        taken = await self.ask(f"result {form}", "GET", f"/v1/results/{kept['id']}?format={form}")
        if form == "png":
            self.check("result png", np.asarray(PIL.Image.open(io.BytesIO(taken.content))) > 0, left, top)
        elif form == "nifti":
            labels = nib.Nifti1Image.from_bytes(gzip.decompress(taken.content))
            self.check("result nifti", np.asarray(labels.dataobj)[..., 0].T > 0, left, top)

    async def volume_round(self, image: str, left: int, top: int) -> None:
        """Look at a volume, follow an object as a job, and read the label map."""
        voxels = await self.ask("volume", "GET", f"{image}/volume.nii")
        shown = np.asarray(nib.Nifti1Image.from_bytes(voxels.content).dataobj)[..., 1].T
        if not (shown[top : top + 28, left : left + 28] == 220).all():
            self.seen.wrong.append("volume: another one's voxels")
        begun = await self.ask("session", "POST", f"{image}/sessions", json={})
        session = f"{image}/sessions/{begun.json()['id']}"
        points = [[left + 14, top + 14]]
        await self.step(session, "paint", {"do": "paint", "points": points, "radius": 9.0, "frame": 1})
        job = (await self.ask("propagate", "POST", f"{session}/steps/job", json={"do": "propagate"})).json()
        while job["state"] in ("waiting", "running"):
            await asyncio.sleep(1.0)
            job = (await self.ask("look at a job", "GET", f"/v1/jobs/{job['id']}")).json()
        if job["state"] != "done":
            self.seen.wrong.append(f"propagate: {job['state']} {job['error']}")
            return
        labels = await self.ask("label map", "GET", f"{session}/masks.nii.gz")
        mask = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(labels.content)).dataobj)[..., 1].T > 0
        self.check("label map", mask, left, top)

    async def step(self, session: str, kind: str, asked: dict[str, Any]) -> None:
        """Do one step."""
        answer = (await self.ask(kind, "POST", f"{session}/steps", json=asked)).json()
        if not session.endswith(answer["id"]):
            self.seen.wrong.append(f"{kind}: the answer is of another session")

    def check(self, kind: str, mask: np.ndarray[Any, Any], left: int, top: int) -> None:
        """Note a mask without the disc that this client painted, exact as it is."""
        self.seen.checked += 1
        rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
        disc = (rows - top - 14) ** 2 + (columns - left - 14) ** 2 <= 81
        if not mask[disc].all():
            self.seen.wrong.append(f"{kind}: a mask without the client's own disc")


def dense(runs: list[int], height: int, width: int) -> np.ndarray[Any, Any]:
    """A mask from lengths of runs."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(height, width)


def picture(left: int, top: int) -> bytes:
    """Draw a bright block of 28 x 28 pixels on a dark picture, as PNG."""
    stream = io.BytesIO()
    PIL.Image.fromarray(block(left, top)).save(stream, "PNG")
    return stream.getvalue()


def volume(left: int, top: int) -> bytes:
    """The same on each of a few slices, as NIfTI."""
    voxels = np.repeat(block(left, top).T[..., None], SLICES, axis=2)
    return gzip.compress(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])).to_bytes(), 1)


def block(left: int, top: int) -> np.ndarray[Any, Any]:
    pixels = np.full((SIDE, SIDE), 30, dtype=np.uint8)
    pixels[top : top + 28, left : left + 28] = 220
    return pixels


async def load(address: str, clients: int, seconds: float, pid: int) -> Seen:
    """Let the clients ask for a time, and look at the memory of the server's processes."""
    seen, begun = Seen(), time.monotonic()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as http:
        watching = asyncio.create_task(watch(seen, begun, pid))
        await asyncio.gather(*(Client(number, http, seen, begun + seconds).run() for number in range(clients)))
        watching.cancel()
    return seen


async def watch(seen: Seen, begun: float, pid: int) -> None:
    """Note the memory of the server and its workers by their kind."""
    while True:
        seen.memory.append((time.monotonic() - begun, memory_of(pid)))
        await asyncio.sleep(LOOK_S)


def memory_of(pid: int) -> dict[str, int]:
    """MiB of a process and of its children, the largest first."""
    sizes = [resident(pid)]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    sizes += sorted((resident(int(child)) for child in children), reverse=True)
    return {
        ("server" if n == 0 else f"worker {n}"): size >> 20 for n, size in enumerate(sizes) if n == 0 or size > 50 << 20
    }


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


@contextmanager
def served(arguments: list[str]) -> Iterator[tuple[str, int]]:
    """`medsam3 serve` in a process of its own: its address, once its model is loaded, and its number."""
    command = [sys.executable, "-m", "medsam3", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
            while httpx.get(f"{address}readyz", timeout=120).status_code != 200:
                time.sleep(1)
            yield address, process.pid
        finally:
            process.terminate()


def report(seen: Seen) -> str:
    """Tell what was seen, by kind of call."""
    lines = ["| call | answers | 503 | other 5xx | median s | p95 s |", "| --- | --- | --- | --- | --- | --- |"]
    for name, kind in sorted(seen.kinds.items()):
        others = {status: count for status, count in kind.statuses.items() if status >= 500 and status != 503}
        times = sorted(kind.seconds)
        middle = f"{statistics.median(times):.2f}" if times else ""
        late = f"{times[min(len(times) - 1, int(0.95 * len(times)))]:.2f}" if times else ""
        total = sum(count for status, count in kind.statuses.items() if status < 400)
        lines.append(f"| {name} | {total} | {kind.statuses[503]} | {others or 0} | {middle} | {late} |")
    lines.append(f"rounds: {seen.rounds}; masks checked: {seen.checked}; wrong or mixed up: {len(seen.wrong)}; ")
    lines[-1] += f"lost: {len(seen.lost)} {sorted(set(seen.wrong + seen.lost))[:8]}"
    settled = [sizes for at, sizes in seen.memory if at >= SETTLED_S] or [sizes for _, sizes in seen.memory]
    for name in settled[0]:
        values = [sizes.get(name, 0) for sizes in settled]
        lines.append(f"{name}: {values[0]} MiB after {SETTLED_S:g} s, {values[-1]} at the end, at most {max(values)}")
    return "\n".join(lines)


def main() -> int:
    """Run the load and print what was seen; exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--json", type=Path, help="keep times and memory here")
    parser.add_argument("serve", nargs="*", help="more arguments of medsam3 serve, after --")
    given = parser.parse_args()
    with served(given.serve) as (address, pid):
        seen = asyncio.run(load(address, given.clients, given.seconds, pid))
    print(f"{given.clients} clients, {given.seconds:g} s")
    print(report(seen))
    if given.json is not None:
        kinds = {name: {"statuses": dict(kind.statuses), "seconds": kind.seconds} for name, kind in seen.kinds.items()}
        given.json.write_text(
            json.dumps({"kinds": kinds, "memory": seen.memory, "wrong": seen.wrong, "lost": seen.lost})
        )
    has_5xx = any(s >= 500 and s != 503 for kind in seen.kinds.values() for s in kind.statuses)
    return 1 if seen.wrong or seen.lost or has_5xx else 0


if __name__ == "__main__":
    sys.exit(main())
