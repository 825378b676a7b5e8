"""A run on disk: one line of JSON for each step, its pictures beside it. Written as it happens, read back to replay.

A step stands in the file only after its pictures do. A line that a killed run left half written is cut off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.agent.chat import ShownPicture, ToolCall, Usage
from medsam3.agent.values import Budget, Decision, Mark, Observation, Step, Verdict
from medsam3.errors import InputError
from medsam3.image import ObjectMask

FILE_NAME = "transcript.jsonl"
PICTURES = "pictures"


@dataclass(frozen=True)
class Heading:
    """What a run is: it may be taken up again only where this is equal.

    Attributes:
        instruction: The user's.
        image: SHA-256 of pixels and shape; the file's name is not kept.
        shape: (N, H, W).
        model: The segmenter.
        weights: What tells its weights from others; "" where that is not known.
        policy: Name of the policy.
        budget: What it may cost.
        sent_to: The provider that pictures go to; None where they stay here.
    """

    instruction: str
    image: str
    shape: tuple[int, int, int]
    model: str
    weights: str
    policy: str
    budget: Budget
    sent_to: str | None


@dataclass(frozen=True)
class Ending:
    """How a run ended: a verdict, or the error that stopped it."""

    verdict: Verdict | None
    error: str | None
    usage: Usage
    seconds: float


class Transcript:
    """A run's record; without a folder it is kept in memory only."""

    def __init__(self, folder: Path | None, heading: Heading) -> None:
        """Open a folder: begin, or go on where a run with the same heading was broken off.

        Raises:
            InputError: The folder holds another run, is damaged, or cannot be written.
        """
        self.heading = heading
        self.decisions: list[Decision] = []
        self.steps: list[Step] = []
        self.opening: tuple[ShownPicture, ...] | None = None
        self.lost = Usage()
        self.ending: Ending | None = None
        self._folder = folder
        if folder is None:
            return
        try:
            (folder / PICTURES).mkdir(parents=True, exist_ok=True)
            if (folder / FILE_NAME).exists():
                self._take_up(folder)
            if not (folder / FILE_NAME).exists():
                self._append({"heading": asdict(heading)})
        except OSError as error:
            raise InputError(
                f"transcript {folder} cannot be written ({error.strerror}): name another folder"
            ) from error

    def open_with(self, pictures: tuple[ShownPicture, ...]) -> None:
        """Note the pictures that the policy was shown first."""
        self.opening = pictures
        self._append({"opening": self._store(pictures)})

    def decide(self, decision: Decision) -> None:
        """Note a decision, what it cost among it, before any of its calls is run."""
        self._append({"decision": asdict(decision)})
        self.decisions.append(decision)

    def lose(self, usage: Usage) -> None:
        """Note what asking cost that came to no decision."""
        self._append({"lost": asdict(usage)})
        self.lost = self.lost + usage

    def add(self, step: Step) -> None:
        """Write one step so that it outlives this process."""
        self._append({"step": _step_to_json(step, self._store(step.seen.pictures))})
        self.steps.append(step)

    def end(self, ending: Ending) -> None:
        """Write how the run ended."""
        self.ending = ending
        self._append({"ending": asdict(ending)})

    def _take_up(self, folder: Path) -> None:
        path = folder / FILE_NAME
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        if not whole:
            path.unlink()
            return
        saved = read_transcript(folder)
        if saved.heading != self.heading:
            raise InputError(
                f"{folder} holds another run (other instruction, image, model or limits): name another folder"
            )
        self.opening, self.ending = saved.opening, saved.ending
        self.decisions, self.steps, self.lost = list(saved.decisions), list(saved.steps), saved.lost
        if self.ending is not None and self.ending.error is not None:
            self.ending = None  # what stopped it may be mended by now

    def _store(self, pictures: Sequence[ShownPicture]) -> list[dict[str, str]]:
        entries = []
        for picture in pictures:
            name = f"{hashlib.sha256(picture.png).hexdigest()[:16]}.png"
            if self._folder is not None and not (self._folder / PICTURES / name).exists():
                temporary = self._folder / PICTURES / f".{name}"
                temporary.write_bytes(picture.png)
                temporary.replace(self._folder / PICTURES / name)
            entries.append({"file": name, "caption": picture.caption})
        return entries

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._folder is None:
            return
        with (self._folder / FILE_NAME).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


@dataclass(frozen=True)
class SavedRun:
    """A transcript read back."""

    heading: Heading
    opening: tuple[ShownPicture, ...] | None
    decisions: tuple[Decision, ...]
    steps: tuple[Step, ...]
    lost: Usage
    ending: Ending | None


def read_transcript(folder: Path) -> SavedRun:
    """Read a run that `Transcript` wrote; a half line at the end is left out.

    Raises:
        InputError: There is none, or it is damaged.
    """
    path = folder / FILE_NAME
    try:
        content = path.read_bytes()
        lines = [json.loads(line) for line in content[: content.rfind(b"\n") + 1].decode().splitlines()]
        heading = _heading(lines[0]["heading"])
        found: dict[str, Any] = {"opening": None, "ending": None, "lost": Usage()}
        decisions: list[Decision] = []
        steps: list[Step] = []
        for line in lines[1:]:
            if "step" in line:
                steps.append(_step_from_json(line["step"], folder))
            elif "decision" in line:
                decisions.append(_decision(line["decision"]))
            elif "opening" in line:
                found["opening"] = _pictures(line["opening"], folder)
            elif "lost" in line:
                found["lost"] = found["lost"] + Usage(**line["lost"])
            elif "ending" in line:
                found["ending"] = _ending(line["ending"])
        return SavedRun(heading, found["opening"], tuple(decisions), tuple(steps), found["lost"], found["ending"])
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read ({error.strerror}): name a transcript") from error
    except (ValueError, KeyError, TypeError, IndexError, zlib.error) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): name another folder") from error


def _step_to_json(step: Step, pictures: list[dict[str, str]]) -> dict[str, Any]:
    seen = step.seen
    return {
        "number": step.number,
        "turn": step.turn,
        "call": asdict(step.call),
        "seconds": round(step.seconds, 3),
        "is_round": step.is_round,
        "seen": {
            "text": seen.text,
            "pictures": pictures,
            "marks": [_mark_to_json(mark) for mark in seen.marks],
            "facts": dict(seen.facts),
            "verdict": None if seen.verdict is None else asdict(seen.verdict),
            "is_mistake": seen.is_mistake,
        },
    }


def _step_from_json(entry: dict[str, Any], folder: Path) -> Step:
    seen = entry["seen"]
    observation = Observation(
        text=seen["text"],
        pictures=_pictures(seen["pictures"], folder),
        marks=tuple(_mark_from_json(mark) for mark in seen["marks"]),
        facts=seen["facts"],
        verdict=None if seen["verdict"] is None else _verdict(seen["verdict"]),
        is_mistake=seen["is_mistake"],
    )
    rest = {name: entry[name] for name in ("number", "turn", "seconds", "is_round")}
    return Step(call=ToolCall(**entry["call"]), seen=observation, **rest)


def _mark_to_json(mark: Mark) -> dict[str, Any]:
    crop = mark.mask.crop
    packed = base64.b64encode(zlib.compress(np.packbits(crop).tobytes())).decode()
    about = {name: getattr(mark, name) for name in ("number", "phrase", "presence", "is_present", "origin")}
    return {**about, "start": mark.mask.start, "shape": crop.shape, "score": mark.mask.score, "bits": packed}


def _mark_from_json(entry: dict[str, Any]) -> Mark:
    about = dict(entry)
    shape = tuple(about.pop("shape"))
    bits = np.frombuffer(zlib.decompress(base64.b64decode(about.pop("bits"))), dtype=np.uint8)
    crop = np.unpackbits(bits, count=int(np.prod(shape))).astype(np.bool_).reshape(shape)
    start = about.pop("start")
    mask = ObjectMask((start[0], start[1], start[2]), crop, float(about.pop("score")))
    return Mark(mask=mask, **about)


def _pictures(entries: list[dict[str, str]], folder: Path) -> tuple[ShownPicture, ...]:
    return tuple(
        ShownPicture((folder / PICTURES / Path(entry["file"]).name).read_bytes(), entry["caption"]) for entry in entries
    )


def _verdict(entry: dict[str, Any]) -> Verdict:
    return Verdict(entry["outcome"], tuple(entry["marks"]), entry["reason"])


def _ending(entry: dict[str, Any]) -> Ending:
    verdict = None if entry["verdict"] is None else _verdict(entry["verdict"])
    return Ending(verdict, entry["error"], Usage(**entry["usage"]), entry["seconds"])


def _decision(entry: dict[str, Any]) -> Decision:
    calls = tuple(ToolCall(**call) for call in entry["calls"])
    return Decision(entry["said"], calls, Usage(**entry["usage"]))


def _heading(entry: dict[str, Any]) -> Heading:
    about = {**entry, "shape": tuple(entry["shape"]), "budget": Budget(**entry["budget"])}
    return Heading(**about)
