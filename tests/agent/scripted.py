"""Fakes for the agent: a chat and a policy that say what they were told to, and a picture with bright blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medsam3.agent.chat import Reply, ShownPicture, ToolCall, ToolResult, Usage
from medsam3.agent.values import Decision, Situation
from medsam3.image import Image

Script = Sequence[Sequence[tuple[str, Any]]]


def call(number: int, name: str, values: Any) -> ToolCall:
    """`values` as JSON, or the raw text where it is a str."""
    return ToolCall(f"c{number}", name, values if isinstance(values, str) else json.dumps(values))


def two_blocks() -> Image:
    """40 x 60 pixels: a block of 8 x 10 on the left, one of 4 x 6 on the right, bright on black."""
    pixels = np.zeros((1, 40, 60, 3), dtype=np.uint8)
    pixels[0, 10:18, 5:15] = 200
    pixels[0, 20:24, 40:46] = 200
    return Image(pixels)


@dataclass
class ScriptedPolicy:
    """One list of calls a turn; the last one is said for ever."""

    script: Script
    usage: Usage = field(default_factory=Usage)
    seen: list[Situation] = field(default_factory=list)
    is_shown_pictures: bool = False
    name: str = "scripted"

    def decide(self, situation: Situation) -> Decision:
        self.seen.append(situation)
        turn = min(len(situation.decisions), len(self.script) - 1)
        calls = tuple(call(10 * turn + n, name, values) for n, (name, values) in enumerate(self.script[turn]))
        return Decision("so be it", calls, self.usage)


@dataclass
class Asked:
    text: str
    pictures: tuple[ShownPicture, ...]
    results: tuple[ToolResult, ...]
    timeout_s: float


@dataclass
class ScriptedChat:
    """As `ScriptedPolicy`, on the other side of the chat's protocol."""

    script: Script
    asked: list[Asked] = field(default_factory=list)
    model: str = "fake-1"
    provider: str = "fake"

    def ask(
        self, text: str, pictures: Sequence[ShownPicture] = (), results: Sequence[ToolResult] = (), *, timeout_s: float
    ) -> Reply:
        turn = min(len(self.asked), len(self.script) - 1)
        self.asked.append(Asked(text, tuple(pictures), tuple(results), timeout_s))
        calls = tuple(call(10 * turn + n, name, values) for n, (name, values) in enumerate(self.script[turn]))
        return Reply("thinking", calls, Usage(100, 10, 1, 0.01))
