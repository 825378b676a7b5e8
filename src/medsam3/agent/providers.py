"""Conversations over the wire: Gemini, OpenAI and its like, Anthropic; the only module that uses pydantic-ai.

It works at the level of single requests, not of pydantic-ai's agents, so that unknown tools and bad JSON reach our
loop. What became of a request is judged by what came over the wire, never by a library's exception, whose text may
hold a key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
from genai_prices import Usage as TokenCounts
from pydantic_ai.direct import model_request
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from medsam3.agent import pricing
from medsam3.agent.chat import Address, ChatError, Picture, Reply, ToolCall, ToolResult, ToolSpec, Usage
from medsam3.errors import InputError, require

log = logging.getLogger(__name__)

LONGEST_ANSWER = 8 * 2**20
"""Bytes of an answer, unpacked; the longest that is read."""

PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Before each further try, where the provider names no time of its own; its length bounds the tries."""

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504, 529})
"""Statuses after which the same request may succeed (529 is Anthropic's word for overloaded)."""

KEYS = {
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
}
URL_KEY = "MEDSAM3_API_KEY"
"""The key for a server by URL; OPENAI_API_KEY is not sent there, it is not for strangers."""

_COUNTED = (
    ("input_tokens", rb"prompt_tokens|promptTokenCount|input_tokens"),
    ("output_tokens", rb"completion_tokens|candidatesTokenCount|thoughtsTokenCount|output_tokens"),
)

T = TypeVar("T")
Connect = Callable[[httpx2.AsyncClient], Model]


@dataclass(frozen=True)
class Terms:
    """What a conversation is held under; see `open_chat`."""

    system: str
    tools: tuple[ToolSpec, ...]
    send_images: bool
    max_output_tokens: int


@dataclass(frozen=True)
class Answer:
    """What came over the wire for one request.

    Attributes:
        wait_s: What the provider asks to wait before the next try, where it does.
        is_too_long: It is longer than `LONGEST_ANSWER`; `body` is empty then.
    """

    status: int
    body: bytes
    wait_s: float | None = None
    is_too_long: bool = False


class BoundedClient(httpx2.AsyncClient):
    """An HTTP client that reads every answer whole up to a bound, and keeps the last one.

    It follows no redirect, so that pictures reach nobody but the provider that was named.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout=httpx2.Timeout(timeout_s, pool=None), follow_redirects=False)
        self.has_sent = False
        self.answer: Answer | None = None

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """As `httpx2.AsyncClient.send`, with the answer read, or emptied where it is too long."""
        self.has_sent, self.answer = True, None
        response = await super().send(request, **{**options, "stream": True, "follow_redirects": False})
        try:
            body, is_too_long = await _read(response)
        finally:
            await response.aclose()
        self.answer = Answer(response.status_code, body, _wait_s(response.headers), is_too_long)
        kept = [(name, value) for name, value in response.headers.items() if name not in _FRAMING]
        return httpx2.Response(response.status_code, headers=kept, content=body, request=request)


_FRAMING = frozenset({"content-encoding", "content-length", "transfer-encoding"})


async def _read(response: httpx2.Response) -> tuple[bytes, bool]:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > LONGEST_ANSWER:
            return b"", True
    return bytes(body), False


def _wait_s(headers: httpx2.Headers) -> float | None:
    """Retry-After, in seconds or as a date (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


@dataclass(frozen=True)
class Trouble:
    """Why a request gave no reply.

    Attributes:
        wait_s: See `Answer`.
        is_final: Asking again is of no use.
    """

    what: str
    wait_s: float | None = None
    is_final: bool = False


@dataclass
class Asking:
    """One `ask` under way: what it has cost, and what went wrong last."""

    usage: Usage = field(default_factory=Usage)
    trouble: str = "no answer"


class ProviderChat:
    """A `Chat` with a provider; each `ask` has its own connections, and nothing is left open between them."""

    def __init__(self, provider: str, model: str, connect: Connect, terms: Terms) -> None:
        self._provider = provider
        self._model = model
        self._connect = connect
        self._terms = terms
        self._history: list[ModelMessage] = []

    @classmethod
    def open(cls, address: Address, terms: Terms) -> ProviderChat:
        """See `open_chat`."""
        key = _key(address)
        model = address.model or _only_model(address, key)
        return cls(address.provider, model, _connector(address, model), terms)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._provider!r}, {self._model!r})"

    @property
    def model(self) -> str:
        """The model's name, without its provider."""
        return self._model

    @property
    def provider(self) -> str:
        """`google`, `openai`, `anthropic`, or host:port of an OpenAI-compatible server."""
        return self._provider

    def ask(
        self, text: str, pictures: Sequence[Picture] = (), results: Sequence[ToolResult] = (), *, timeout_s: float
    ) -> Reply:
        """See `Chat.ask`."""
        messages = [*self._history, self._request(text, pictures, results)]
        asking = Asking()
        response = _run(self._until_answered(messages, asking, timeout_s))
        if response is None:
            raise ChatError(f"{self._model} at {self._provider}: {asking.trouble}", asking.usage)
        self._history = [*messages, response]
        return Reply(_text(response), _calls(response), asking.usage)

    def _request(self, text: str, pictures: Sequence[Picture], results: Sequence[ToolResult]) -> ModelRequest:
        if not self._terms.send_images and (pictures or any(result.pictures for result in results)):
            raise InputError(f"pictures may not be sent to {self._provider}: allow it by name with --send-images")
        last = self._history[-1] if self._history else None
        called = sorted(call.id for call in _calls(last)) if isinstance(last, ModelResponse) else []
        if called != sorted(result.call_id for result in results):
            raise InputError(f"{len(results)} results do not fit the {len(called)} calls of the last reply")
        if not (text or pictures or results):
            raise InputError("there is nothing to ask: give a text, pictures or results")
        parts: list[ModelRequestPart] = [] if self._history else [SystemPromptPart(self._terms.system)]
        parts += [ToolReturnPart(result.name, _content(result), result.call_id) for result in results]
        if text or pictures:
            parts.append(UserPromptPart([*([text] if text else []), *_shown(pictures)]))
        return ModelRequest(parts)

    async def _until_answered(
        self, messages: list[ModelMessage], asking: Asking, timeout_s: float
    ) -> ModelResponse | None:
        """The response, or None with `asking.trouble` said."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        try:
            async with asyncio.timeout(timeout_s), BoundedClient(timeout_s) as client:
                model = self._connect(client)
                for pause_s in (*PAUSES_S, None):
                    found = await self._once(model, client, messages, asking)
                    if isinstance(found, ModelResponse):
                        return found
                    asking.trouble = found.what
                    wait_s = found.wait_s if found.wait_s is not None else pause_s
                    if found.is_final or pause_s is None or wait_s is None:
                        return None
                    if loop.time() + wait_s >= end_s:
                        asking.trouble += f"; the next try in {wait_s:g} s is past the limit of {timeout_s:g} s"
                        return None
                    log.warning("%s at %s: %s; asking again in %g s", self._model, self._provider, found.what, wait_s)
                    await asyncio.sleep(wait_s)
        except TimeoutError:
            asking.trouble = f"no answer within {timeout_s:g} s (before that: {asking.trouble})"
        return None

    async def _once(
        self, model: Model, client: BoundedClient, messages: list[ModelMessage], asking: Asking
    ) -> ModelResponse | Trouble:
        client.has_sent, client.answer = False, None
        try:
            response = await model_request(
                model,
                messages,
                model_settings=ModelSettings(max_tokens=self._terms.max_output_tokens, max_retries=0),
                model_request_parameters=ModelRequestParameters(function_tools=_definitions(self._terms.tools)),
                instrument=False,
            )
        except Exception as error:  # three libraries that read what a stranger sent may raise anything
            if not client.has_sent:
                raise
            name = type(error).__name__
        else:
            if client.answer is None or client.answer.body:
                asking.usage += self._billed(response.usage)
                return response
            name = "it is empty"  # which google-genai takes for an answer
        answer = client.answer
        if answer is not None and answer.status < 300:
            asking.usage += self._billed(_counted(answer.body))
        return _trouble(answer, name)

    def _billed(self, tokens: Any) -> Usage:
        price = pricing.usd(self._provider, self._model, tokens)
        return Usage(tokens.input_tokens or 0, tokens.output_tokens or 0, 1, price)


def _trouble(answer: Answer | None, error_name: str) -> Trouble:
    """What went wrong, told from what came over the wire."""
    if answer is None:
        return Trouble(f"the connection failed ({error_name})")
    if answer.status < 300:
        if answer.is_too_long:
            return Trouble(f"an answer of more than {LONGEST_ANSWER >> 20} MB, which is not read")
        return Trouble(f"an answer that cannot be read ({error_name})")
    if answer.status < 400:
        return Trouble(
            f"a redirect (status {answer.status}), which is not followed: give the URL it leads to", None, True
        )
    if answer.status in (401, 403):  # its text may repeat the key
        return Trouble(f"status {answer.status}: the key is refused, or not allowed this model", is_final=True)
    what = f"status {answer.status}: {_message(answer.body)}"
    return Trouble(what, answer.wait_s, is_final=answer.status not in TRANSIENT)


def _message(body: bytes) -> str:
    """A provider's own words on an error, as one short line without keys."""
    text = body[:4000].decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        pass
    for name in (URL_KEY, *(name for names in KEYS.values() for name in names)):
        key = os.environ.get(name, "").strip()
        text = text.replace(key, "***") if key else text
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:300]


def _counted(body: bytes) -> TokenCounts:
    """The tokens that an answer names, even where it is no JSON; 0 where it names none."""
    counts = {}
    for kind, names in _COUNTED:
        found = {name: int(count) for name, count in re.findall(rb'(?<!\\)"(%s)"\s*:\s*(\d{1,9})' % names, body)}
        counts[kind] = sum(found.values())
    return TokenCounts(**counts)


def _content(result: ToolResult) -> str | list[str | BinaryContent]:
    return [result.text, *_shown(result.pictures)] if result.pictures else result.text


def _shown(pictures: Sequence[Picture]) -> list[str | BinaryContent]:
    return [part for each in pictures for part in (each.caption, BinaryContent(each.png, media_type="image/png"))]


def _definitions(tools: Sequence[ToolSpec]) -> list[ToolDefinition]:
    return [
        ToolDefinition(name=tool.name, parameters_json_schema=tool.parameters, description=tool.description)
        for tool in tools
    ]


def _text(response: ModelResponse) -> str:
    """What the model said; where it refuses in a field of its own (OpenAI), that."""
    said = "".join(part.content for part in response.parts if isinstance(part, TextPart))
    return said or str((response.provider_details or {}).get("refusal", ""))


def _calls(response: ModelResponse) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(part.tool_call_id, part.tool_name, _as_written(part.args))
        for part in response.parts
        if isinstance(part, ToolCallPart)
    )


def _as_written(arguments: object) -> str:
    """Raw text where the format carries text (OpenAI); nothing at all means no arguments."""
    return arguments if isinstance(arguments, str) and arguments else json.dumps(arguments or {})


def _key(address: Address) -> str:
    """The key from the environment; servers by URL need none.

    Raises:
        InputError: A vendor's key is not set, or is no key; never says what it is.
    """
    names = (URL_KEY,) if address.url else KEYS[address.provider]
    found = [(name, os.environ[name].strip()) for name in names if os.environ.get(name, "").strip()]
    if not found:
        if address.url:
            return "none"  # the client's library wants some
        raise InputError(f"{names[0]} is not set: put the key of {address.provider} into this environment variable")
    name, key = found[0]
    if not re.fullmatch(r"[!-~]+", key):
        raise InputError(f"{name} holds blanks or letters that no key has: correct this environment variable")
    return key


def _connector(address: Address, model: str) -> Connect:
    """How to reach a model through a given HTTP client; keys are read from the environment each time, and not kept."""
    if address.url is not None:
        return _connector_to_url(address.provider, address.url, model)
    if address.provider == "google":
        require("google.genai", extra="agent")
        from pydantic_ai.models.google import GoogleModel  # noqa: PLC0415
        from pydantic_ai.providers.google import GoogleProvider  # noqa: PLC0415

        return lambda client: GoogleModel(model, provider=GoogleProvider(api_key=_key(address), http_client=client))
    if address.provider == "anthropic":
        require("anthropic", extra="agent")
        from pydantic_ai.models.anthropic import AnthropicModel  # noqa: PLC0415
        from pydantic_ai.providers.anthropic import AnthropicProvider  # noqa: PLC0415

        return lambda client: AnthropicModel(
            model, provider=AnthropicProvider(api_key=_key(address), http_client=client)
        )
    require("openai", extra="agent")
    from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415
    from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415

    return lambda client: OpenAIChatModel(model, provider=OpenAIProvider(api_key=_key(address), http_client=client))


def _connector_to_url(provider: str, url: str, model: str) -> Connect:
    require("openai", extra="agent")
    from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider  # noqa: PLC0415

    key_of = Address(provider, model, url)
    return lambda client: OpenAIChatModel(
        model,
        provider=OpenAICompatibleProvider(provider, base_url=url, api_key=_key(key_of), http_client=client),
    )


def _only_model(address: Address, key: str) -> str:
    """The model that a server by URL has.

    Raises:
        InputError: It does not answer, or has none or several.
    """
    answer = _run(_models(address, key))
    try:
        names = [str(each["id"]) for each in json.loads(answer.body)["data"]] if answer is not None else []
    except (ValueError, KeyError, TypeError):
        names = []
    if len(names) == 1:
        return names[0]
    if not names:
        raise InputError(f"{address.url} lists no models: is the server up? A name can be given as {address.url}#NAME")
    raise InputError(f"{address.url} has {len(names)} models, choose one with #NAME: {', '.join(names[:10])}")


async def _models(address: Address, key: str) -> Answer | None:
    async with BoundedClient(timeout_s=10) as client:
        try:
            await client.get(f"{address.url}/models", headers={"Authorization": f"Bearer {key}"})
        except httpx2.HTTPError:
            return None
        return client.answer


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Wait for `work`, also where this thread already runs a loop (as in a notebook): then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    outcome: list[T | BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
