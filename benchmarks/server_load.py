"""Load on a server: many clients at once, each with its own picture, whose answers must not be mixed up.

Each client draws a bright block of its own on a dark picture, opens it, outlines the block by a box, clicks, undoes,
and takes the label map away; the block's place tells whether the answer is its own. Run the server first:
`medsam3 serve --port 8080`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import PIL.Image

SIDE = 96
LEAST_SHARE_OF_MASK = 0.5
"""Of a mask, at least this much must lie in the client's own box; a mask of another client's picture seldom does."""


@dataclass
class Seen:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    click_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    rounds: int = 0


class Client:
    """One user, who comes back when the server says so."""

    def __init__(self, number: int, http: httpx.AsyncClient, seen: Seen, until: float) -> None:
        self.http, self.seen, self.until = http, seen, until
        self.rng = np.random.default_rng(number)

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response | None:
        """Ask until the answer is no 503; None once the time is over."""
        while time.monotonic() < self.until:
            answer = await self.http.request(method, path, **more)
            self.seen.statuses[answer.status_code] += 1
            if answer.status_code != 503:
                if answer.status_code >= 400:
                    self.seen.wrong.append(f"{method} {answer.status_code}: {answer.json()['detail']}")
                return answer
            if "retry-after" not in answer.headers:
                self.seen.wrong.append("503 without Retry-After")
            await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
        return None

    async def run(self) -> None:
        """Do rounds until the time is over."""
        while time.monotonic() < self.until:
            await self.one_round()

    async def one_round(self) -> None:
        """Open a picture, segment it, correct it, take it away, remove it."""
        left, top = (int(value) for value in self.rng.integers(4, SIDE - 36, 2))
        box = [left - 2, top - 2, left + 30, top + 30]
        opened = await self.ask("POST", "/v1/images", files={"files": ("block.png", picture(left, top))})
        if opened is None or opened.status_code != 201:
            return
        image = f"/v1/images/{opened.json()['id']}"
        begun = await self.ask("POST", f"{image}/sessions", json={})
        if begun is not None:
            session = f"{image}/sessions/{begun.json()['id']}"
            await self.ask("GET", f"{image}/frames/0.png")
            await self.step(session, self.seen.step_s, {"do": "box", "box": box})
            await self.step(session, self.seen.click_s, {"do": "click", "x": left + 14, "y": top + 14})
            await self.step(session, self.seen.click_s, {"do": "undo"})
            kept = await self.ask("POST", f"{session}/results")
            taken = None if kept is None else await self.ask("GET", f"/v1/results/{kept.json()['id']}?format=png")
            if taken is not None and taken.status_code == 200:
                self.check(np.asarray(PIL.Image.open(io.BytesIO(taken.content))) > 0, left, top)
        await self.http.delete(image)

    async def step(self, session: str, seconds: list[float], asked: dict[str, Any]) -> None:
        """Do one step, and note how long it took."""
        begun = time.perf_counter()
        if await self.ask("POST", f"{session}/steps", json=asked) is not None:
            seconds.append(time.perf_counter() - begun)

    def check(self, mask: np.ndarray[Any, Any], left: int, top: int) -> None:
        """Note a mask that lies elsewhere than the client's own block."""
        self.seen.rounds += 1
        inside = mask[top - 2 : top + 31, left - 2 : left + 31].sum()
        if not mask.any() or inside < LEAST_SHARE_OF_MASK * mask.sum():
            self.seen.wrong.append(f"a mask of {mask.sum()} pixels, {inside} of them in the box")


def picture(left: int, top: int) -> bytes:
    """Draw a bright block of 28 x 28 pixels on a dark picture, as PNG."""
    pixels = np.full((SIDE, SIDE), 30, dtype=np.uint8)
    pixels[top : top + 28, left : left + 28] = 220
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


async def load(address: str, clients: int, seconds: float) -> Seen:
    """Let the clients ask for a time."""
    seen, until = Seen(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as http:
        await asyncio.gather(*(Client(number, http, seen, until).run() for number in range(clients)))
    return seen


def main() -> int:
    """Run the load and print what was seen; exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=600)
    given = parser.parse_args()
    seen = asyncio.run(load(given.address, given.clients, given.seconds))
    print(f"{given.clients} clients, {given.seconds:g} s: {sum(seen.statuses.values())} answers {dict(seen.statuses)}")
    print(f"{seen.rounds} results taken away and checked; {len(seen.wrong)} wrong {sorted(set(seen.wrong))[:5]}")
    for name, times in (("box", seen.step_s), ("click or undo", seen.click_s)):
        if times:
            print(f"{name}: median {statistics.median(times):.2f} s, longest {max(times):.2f} s of {len(times)}")
    return 1 if seen.wrong or any(status >= 500 and status != 503 for status in seen.statuses) else 0


if __name__ == "__main__":
    sys.exit(main())
