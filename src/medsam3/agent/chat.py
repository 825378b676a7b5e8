"""A conversation with a vision LLM, as the agent's loop sees it: texts and pictures out, words and tool calls back.

Knows no provider, no library and no wire format (see `providers`), and runs no tool: names and arguments come back
as the model wrote them, so that an unknown tool or bad JSON is the loop's to answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from medsam3.errors import InputError

Vendor = Literal["google", "openai", "anthropic"]

VENDORS: dict[str, Vendor] = {"google": "google", "openai": "openai", "anthropic": "anthropic"}


@dataclass(frozen=True)
class ToolSpec:
    """A tool the model may call; `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture for the model: PNG bytes, and the line of text that stands before it."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class ToolCall:
    """A call as the model wrote it: `name` may be unknown, `arguments` is raw text that may not be JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolResult:
    """What a call gave; every call of a reply must get one, in the next `ask`."""

    call_id: str
    name: str
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What answers were billed for; adds up.

    Attributes:
        input_tokens: Read by the model, pictures and cached tokens included.
        output_tokens: Written by the model, its reasoning included.
        requests: Answers that arrived with success, even those that could not be read. Refused (429, 5xx), hung and
            cut requests are not among them.
        usd: US dollars; None where the price is not known. Unknown plus anything is unknown.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    usd: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        known = self.usd is not None and other.usd is not None
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.requests + other.requests,
            math.fsum((self.usd or 0.0, other.usd or 0.0)) if known else None,
        )


@dataclass(frozen=True)
class Reply:
    """The model's answer to one `ask`; `usage` is of this `ask` alone, answers that had to be asked again included."""

    text: str
    calls: tuple[ToolCall, ...]
    usage: Usage


class ChatError(InputError):
    """The provider failed for good: retries and time are used up, or it refuses.

    Attributes:
        usage: Of the failed `ask` alone, so that adding up replies and errors counts every answer once.
    """

    def __init__(self, message: str, usage: Usage) -> None:
        super().__init__(message)
        self.usage = usage


class Chat(Protocol):
    """A conversation that remembers what was said."""

    def ask(
        self, text: str, pictures: Sequence[Picture] = (), results: Sequence[ToolResult] = (), *, timeout_s: float
    ) -> Reply:
        """Send text, pictures and the results of the last reply's calls; wait for the answer.

        A failed `ask` leaves the conversation as it was, so the same may be asked again.

        Args:
            text: May be empty where there are results.
            pictures: Shown after `text`.
            results: One per call of the last reply, in any order.
            timeout_s: The longest this may take, retries and their pauses included.

        Raises:
            ChatError: The provider failed for good.
            InputError: Pictures where none may be sent, results that do not fit the last calls, or nothing to say.
        """
        ...

    @property
    def model(self) -> str:
        """The model's name, without its provider."""
        ...

    @property
    def provider(self) -> str:
        """`google`, `openai`, `anthropic`, or host:port of an OpenAI-compatible server."""
        ...


@dataclass(frozen=True)
class Address:
    """Where a model is: at a vendor, or behind the URL of an OpenAI-compatible server.

    Attributes:
        provider: The vendor, or host:port of `url`.
        model: None where the server behind `url` is to be asked for the one it has.
        url: None for a vendor.
    """

    provider: str
    model: str | None
    url: str | None = None


def parse_address(text: str) -> Address:
    """Read `google:NAME`, `openai:NAME`, `anthropic:NAME` or `http(s)://HOST[:PORT]/v1[#NAME]`.

    Raises:
        InputError: Neither of these, or a URL that carries a password.
    """
    allowed = "allowed are google:NAME, openai:NAME, anthropic:NAME or http://HOST:PORT/v1#NAME"
    if text.startswith(("http://", "https://")):
        url, _, name = text.partition("#")
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise InputError("the model's URL carries a user or password: give a key in MEDSAM3_API_KEY instead")
        if not parts.hostname:
            raise InputError(f"the model's URL {text!r} names no host; {allowed}")
        return Address(parts.netloc, name or None, url.rstrip("/"))
    vendor, _, name = text.partition(":")
    if vendor not in VENDORS or not name:
        raise InputError(f"model {text!r} is not known; {allowed}")
    return Address(vendor, name)
