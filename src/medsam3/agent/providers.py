"""Conversations over the wire: Gemini, OpenAI and its like, Anthropic; the only module that uses pydantic-ai.

It works at the level of single requests, not of pydantic-ai's agents, so that unknown tools and bad JSON reach our
loop. `wire` judges what came; a library's exception, whose text may hold a key, never reaches the user.
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

from medsam3.agent.chat import (
    VENDORS,
    Address,
    ChatError,
    Reply,
    ShownPicture,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
    price_usd,
)
from medsam3.agent.wire import (
    KEYS,
    LONGEST_ANSWER,
    URL_KEY,
    Dialect,
    HttpAnswer,
    Trouble,
    counted,
    read_answer,
)
from medsam3.errors import InputError, require

log = logging.getLogger(__name__)

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses before each further try, or longer if the provider says so; their count bounds the tries."""

T = TypeVar("T")
Connect = Callable[[httpx2.AsyncClient], Model]
_FRAMING = frozenset({"content-encoding", "content-length", "transfer-encoding"})
_ORDER = re.compile(r"\brole\W{0,3}user\W{0,3}\s+after\s+(?:\w+\s+)?role\W{0,3}tool|must alternate", re.IGNORECASE)
"""Mistral's templates, and others, refuse a user's message right after a tool's."""
_TOO_MANY = re.compile(
    r"max_?(?:completion_?|output_?)?tokens\b.{0,80}(?:large|at most|maximum|>|range)|in the completion", re.I
)
"""Some models may write less than others, and say so; what they read is not at fault."""
_LEAST_OUTPUT_TOKENS = 1024


@dataclass(frozen=True)
class Terms:
    """The terms of a conversation; see `open_chat`."""

    system: str
    tools: tuple[ToolSpec, ...]
    send_images: bool
    max_output_tokens: int


class BoundedClient(httpx2.AsyncClient):
    """An HTTP client that reads every answer whole up to a bound, mends it, and keeps what it came to.

    It follows no redirect, so that pictures reach nobody but the provider that was named.
    """

    def __init__(self, timeout_s: float, dialect: Dialect = "openai", tools: Sequence[str] = ()) -> None:
        super().__init__(timeout=httpx2.Timeout(timeout_s, pool=None), follow_redirects=False)
        self._dialect, self._tools = dialect, tools
        self.forget()

    def forget(self) -> None:
        """Forget the last answer."""
        self.has_sent = False
        self.answer: HttpAnswer | None = None
        self.trouble: Trouble | None = None

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send as `httpx2.AsyncClient.send` does, and give the answer read and mended, or empty if it is too long."""
        self.forget()
        self.has_sent = True
        response = await super().send(request, **{**options, "stream": True, "follow_redirects": False})
        try:
            body, is_too_long = await _read(response)
        finally:
            await response.aclose()
        headers = {name.lower(): value for name, value in response.headers.items()}
        self.answer = HttpAnswer(response.status_code, body, headers, is_too_long)
        if request.method == "POST":
            body, self.trouble = read_answer(self.answer, self._dialect, self._tools)
        kept = [(name, value) for name, value in response.headers.items() if name.lower() not in _FRAMING]
        return httpx2.Response(response.status_code, headers=kept, content=body, request=request)


async def _read(response: httpx2.Response) -> tuple[bytes, bool]:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > LONGEST_ANSWER:
            return b"", True
    return bytes(body), False


@dataclass
class Attempts:
    """The tries of one `ask`: what they cost, what went wrong last, and how many answers were of no use."""

    timeout_s: float
    usage: Usage = field(default_factory=Usage)
    trouble: str = "no answer"
    unusable: int = 0


class ProviderChat:
    """A `Chat` with a provider; each `ask` has its own connections, and nothing is left open between them."""

    def __init__(self, provider: str, model: str, connect: Connect, terms: Terms) -> None:
        self._provider = provider
        self._model = model
        self._connect = connect
        self._terms = terms
        self._history: list[ModelMessage] = []
        self._has_bridges = False
        self._max_tokens = terms.max_output_tokens

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
        self, text: str, pictures: Sequence[ShownPicture] = (), results: Sequence[ToolResult] = (), *, timeout_s: float
    ) -> Reply:
        """See `Chat.ask`."""
        messages = [*self._history, self._request(text, pictures, results)]
        attempts = Attempts(timeout_s)
        response = _run(self._until_answered(messages, attempts))
        if response is None:
            raise ChatError(f"{self._model} at {self._provider}: {attempts.trouble}", attempts.usage)
        self._history = [*messages, response]
        return Reply(_text(response), _calls(response), attempts.usage)

    def _request(self, text: str, pictures: Sequence[ShownPicture], results: Sequence[ToolResult]) -> ModelRequest:
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

    async def _until_answered(self, messages: list[ModelMessage], attempts: Attempts) -> ModelResponse | None:
        """Ask until there is a response, or no hope of one: None, with `attempts.trouble` said."""
        loop, timeout_s = asyncio.get_running_loop(), attempts.timeout_s
        end_s = loop.time() + timeout_s
        dialect: Dialect = VENDORS.get(self._provider, "openai")
        names = [tool.name for tool in self._terms.tools]
        try:
            async with asyncio.timeout(timeout_s), BoundedClient(timeout_s, dialect, names) as client:
                model = self._connect(client)
                for pause_s in (*PAUSES_S, None):
                    found = await self._once(model, client, messages, attempts)
                    if isinstance(found, ModelResponse):
                        return found
                    attempts.trouble = found.what
                    wait_s = self._pause_s(found, pause_s, attempts, end_s - loop.time())
                    if wait_s is None:
                        return None
                    log.warning("%s at %s: %s; asking again in %g s", self._model, self._provider, found.what, wait_s)
                    await asyncio.sleep(wait_s)
        except TimeoutError:
            attempts.trouble = f"no answer within {timeout_s:g} s (before that: {attempts.trouble})"
        return None

    def _pause_s(self, found: Trouble, pause_s: float | None, attempts: Attempts, left_s: float) -> float | None:
        """The pause before the next try; None if there is to be none."""
        if found.hope == "none" and self._adapts(found.what):
            return 0.0
        attempts.unusable += found.hope == "once"
        if found.hope == "none" or attempts.unusable > 1 or pause_s is None:
            return None
        wait_s = max(found.wait_s or 0.0, pause_s)
        if wait_s >= left_s:
            attempts.trouble += f"; the next try in {wait_s:g} s is past the limit of {attempts.timeout_s:g} s"
            return None
        return wait_s

    def _adapts(self, what: str) -> bool:
        """Change what a provider cannot take, and say whether there was something to change."""
        if not self._has_bridges and _ORDER.search(what):
            self._has_bridges = True
        elif self._max_tokens > _LEAST_OUTPUT_TOKENS and _TOO_MANY.search(what):
            self._max_tokens //= 4
        else:
            return False
        return True

    async def _once(
        self, model: Model, client: BoundedClient, messages: list[ModelMessage], attempts: Attempts
    ) -> ModelResponse | Trouble:
        client.forget()
        try:
            response = await model_request(
                model,
                _bridged(messages) if self._has_bridges else messages,
                model_settings=ModelSettings(max_tokens=self._max_tokens, max_retries=0),
                model_request_parameters=ModelRequestParameters(function_tools=_definitions(self._terms.tools)),
                instrument=False,
            )
        except Exception as error:  # three libraries that read what a stranger sent may raise anything
            if not client.has_sent:
                raise
            name = type(error).__name__
        else:
            if client.trouble is None:
                attempts.usage += self._billed(response.usage)
                return response
            name = ""
        answer = client.answer
        if answer is None:
            return Trouble(f"the connection failed ({name})", "later")
        if answer.status < 300:
            tokens = counted(answer.body)
            attempts.usage += self._billed(TokenCounts(input_tokens=tokens[0], output_tokens=tokens[1]))
        return client.trouble or Trouble(f"an answer that cannot be read ({name})", "once")

    def _billed(self, tokens: Any) -> Usage:
        price = price_usd(self._provider, self._model, tokens)
        return Usage(tokens.input_tokens or 0, tokens.output_tokens or 0, 1, price)


def _bridged(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """The messages with a word of the assistant between the results of tools and what the user says next."""
    bridged: list[ModelMessage] = []
    for message in messages:
        returns = [part for part in message.parts if isinstance(part, ToolReturnPart)]
        if not isinstance(message, ModelRequest) or not returns:
            bridged.append(message)
            continue
        shown: list[Any] = []
        for at, each in enumerate(returns):
            if isinstance(each.content, list):
                shown += each.content[1:]
                returns[at] = ToolReturnPart(each.tool_name, each.content[0], each.tool_call_id)
        for part in message.parts:
            if isinstance(part, UserPromptPart):
                shown += [part.content] if isinstance(part.content, str) else part.content
        bridged.append(ModelRequest(returns))
        if shown:
            bridged += [ModelResponse([TextPart("I see.")]), ModelRequest([UserPromptPart(shown)])]
    return bridged


def _content(result: ToolResult) -> str | list[str | BinaryContent]:
    return [result.text, *_shown(result.pictures)] if result.pictures else result.text


def _shown(pictures: Sequence[ShownPicture]) -> list[str | BinaryContent]:
    return [part for each in pictures for part in (each.caption, BinaryContent(each.png, media_type="image/png"))]


def _definitions(tools: Sequence[ToolSpec]) -> list[ToolDefinition]:
    return [
        ToolDefinition(name=tool.name, parameters_json_schema=tool.parameters, description=tool.description)
        for tool in tools
    ]


def _text(response: ModelResponse) -> str:
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


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


async def _models(address: Address, key: str) -> HttpAnswer | None:
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
