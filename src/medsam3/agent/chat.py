"""A conversation with a vision LLM, as the agent's loop sees it: texts and pictures out, words and tool calls back.

It runs no tool: names and arguments come back as the model wrote them, so that an unknown tool or bad JSON is the
loop's to answer. Also here: a model's address, and what it costs by the dated price list of genai-prices, which is read
offline. A server on this machine or in the private network costs nothing.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from medsam3.errors import InputError, require
from medsam3.store import JsonObject

if TYPE_CHECKING:
    from genai_prices.types import AbstractUsage

log = logging.getLogger(__name__)

Vendor = Literal["google", "openai", "anthropic"]

VENDORS: dict[str, Vendor] = {"google": "google", "openai": "openai", "anthropic": "anthropic"}


@dataclass(frozen=True)
class ToolSpec:
    """A tool the model may call; `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: JsonObject


@dataclass(frozen=True)
class ShownPicture:
    """A picture for the model.

    Attributes:
        png: The file.
        caption: The line of text that stands before it; its number and size in it.
        number: What the model calls it by; 0 before it has one.
        frame: Which frame of the image it shows.
        part: Left, top, right and bottom edge in the frame's pixels, from 0; None for the whole frame.
    """

    png: bytes
    caption: str
    number: int = 0
    frame: int = 0
    part: tuple[int, int, int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the PNG file states them."""
        return int.from_bytes(self.png[16:20]), int.from_bytes(self.png[20:24])


@dataclass(frozen=True)
class ToolCall:
    """A call as the model wrote it: `name` may be unknown, `arguments` is raw text that may not be JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolResult:
    """The result of a call; every call of a reply must get one, in the next `ask`."""

    call_id: str
    name: str
    text: str
    pictures: tuple[ShownPicture, ...] = ()


@dataclass(frozen=True)
class Usage:
    """The tokens, requests and dollars that answers were billed for; adds up.

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
        self, text: str, pictures: Sequence[ShownPicture] = (), results: Sequence[ToolResult] = (), *, timeout_s: float
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
    """The place of a model: at a vendor, or behind the URL of an OpenAI-compatible server.

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


def open_chat(
    model: str, *, system: str, tools: Sequence[ToolSpec], send_images: bool, max_output_tokens: int = 8192
) -> Chat:
    """Start a conversation; nothing is sent before the first `ask`, but a URL without a name is asked for its models.

    Keys are taken from the environment: OPENAI_API_KEY, GOOGLE_API_KEY (or GEMINI_API_KEY), ANTHROPIC_API_KEY, and
    MEDSAM3_API_KEY for a server by URL, which needs none as a rule. OPENAI_BASE_URL, GOOGLE_GEMINI_BASE_URL and
    ANTHROPIC_BASE_URL lead to another server that speaks the vendor's format.

    Args:
        model: See `parse_address`.
        system: The system prompt.
        tools: The tools that the model may call.
        send_images: False makes an `ask` with pictures fail before anything is sent.
        max_output_tokens: The most that one answer may have, thinking included.

    Raises:
        InputError: An unknown model, no key, or the extra `agent` is not installed.
    """
    address = parse_address(model)
    require("pydantic_ai", extra="agent")
    from medsam3.agent.providers import ProviderChat, Terms  # noqa: PLC0415  pydantic-ai is an extra

    return ProviderChat.open(address, Terms(system, tuple(tools), send_images, max_output_tokens))


def is_local(provider: str) -> bool:
    """Whether host:port is this machine or lies in the private network, by its address or its name without a domain."""
    if provider in VENDORS:
        return False
    host = urlsplit(f"//{provider}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".localhost"))


def price_usd(provider: str, model: str, tokens: AbstractUsage) -> float | None:
    """The price of one answer in US dollars; None, with one warning per model, where no price is known.

    Args:
        provider: As in `Chat.provider`.
        model: As in `Chat.model`.
        tokens: What the provider counted; cached tokens have their own price.
    """
    price = _price(provider, model, tokens)
    if price is None:
        _warn_once(provider, model)
    return price


def check_money_budget(provider: str, model: str) -> None:
    """Refuse a budget in dollars for a model whose price is not known.

    Raises:
        InputError: The price is not known; names models of like names that have one.
    """
    prices: Any = require("genai_prices", extra="agent")
    if _price(provider, model, prices.Usage(input_tokens=1, output_tokens=1)) is not None:
        return
    near = _like(provider, model)
    hint = f" or take a model with a known price, such as {', '.join(near)}" if near else ""
    raise InputError(
        f"the price of {model!r} at {provider} is not known, so a budget in dollars cannot be kept: "
        f"leave the budget in dollars out (rounds, tokens and time stay bounded){hint}"
    )


def _price(provider: str, model: str, tokens: AbstractUsage) -> float | None:
    if is_local(provider):
        return 0.0
    prices: Any = require("genai_prices", extra="agent")
    try:
        return float(prices.calc_price(tokens, model, **_whose(provider)).total_price)
    except LookupError:
        return None


def _whose(provider: str) -> dict[str, str]:
    return {"provider_id": provider} if provider in VENDORS else {"provider_api_url": f"https://{provider}/"}


@lru_cache
def _warn_once(provider: str, model: str) -> None:
    log.warning("the price of %r at %s is not known: costs in dollars are not counted", model, provider)


def _like(provider: str, model: str) -> list[str]:
    data: Any = require("genai_prices.data", extra="agent")
    names = [each.id for owner in data.providers if owner.id == provider for each in owner.models]
    longer = [name for name in names if name.startswith(model)]
    return [*longer, *difflib.get_close_matches(model, names, n=3, cutoff=0.5)][:3]
