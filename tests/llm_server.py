"""An LLM provider on loopback for tests: real HTTP, scripted answers, every request kept.

It speaks the wire formats of OpenAI's chat completions (`POST /v1/chat/completions`, `GET /v1/models`), of Gemini's
`generateContent` and of Anthropic's messages, told apart by the path, so one script serves all of them:

    def test_it(monkeypatch):
        script = [
            Answer(calls=(Call("segment", {"phrase": "polyp"}),)),     # the model calls a tool
            Refuse(429, retry_after_s=1),                              # then the provider is busy
            Answer("One polyp.", input_tokens=900, output_tokens=12),  # then it answers
        ]
        with LlmServer(script) as server:
            model = server.model(monkeypatch, "google")  # sets key and base URL; gives the name for --model
            chat = open_chat(model, system="...", tools=(...), send_images=True)
            ...
        assert server.requests[0].pictures == (png,)  # every picture of the request, byte for byte
        assert "polyp" in server.requests[-1].text    # every text of the request: system, history, tool results

The script is one of:

- a sequence of steps, one per request; the request after the last is answered 400 (which no client asks again), or,
  with `LlmServer(script, repeats=True)`, by the last step again, for endless loops of the same call;
- a function from the request to a step, for a model that reacts: one that obeys what it reads in a picture, say.

Steps: `Answer` (text, calls, tokens), `Refuse` (a status, with or without Retry-After), `Raw` (any bytes: malformed
JSON, 10 MB, a redirect), `Hang` (no answer until the server closes), `Cut` (the connection ends in the answer).
Requests are kept in the order of arrival in `requests`, those that were refused, hung or cut among them.
The server stops with its `with` block, waits on nothing, and uses only the standard library.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

import pytest

Format = Literal["openai", "google", "anthropic"]

KEY = "sk-secret-0123456789abcdef"
"""The key that `LlmServer.model` puts into the environment; it must turn up nowhere but in a request's headers."""

HANG_S = 60.0


@dataclass(frozen=True)
class Call:
    """A tool call; raw text as `arguments` reaches OpenAI's format as it is (the other two carry JSON objects)."""

    name: str
    arguments: Mapping[str, Any] | str
    id: str = ""


@dataclass(frozen=True)
class Answer:
    """What the model says."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    input_tokens: int = 100
    output_tokens: int = 10


@dataclass(frozen=True)
class Refuse:
    """An error as providers give it."""

    status: int
    retry_after_s: float | None = None
    message: str = "no"


@dataclass(frozen=True)
class Raw:
    """Any bytes, with any status and headers."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hang:
    """Nothing comes back."""


@dataclass(frozen=True)
class Cut:
    """The connection ends after the first bytes of an answer."""

    sent: bytes = b'{"id": "1", "cho'


Step = Answer | Refuse | Raw | Hang | Cut


@dataclass(frozen=True)
class Request:
    """A request as it came in.

    Attributes:
        format: Whose wire format it is in.
        headers: Names in lower case.
        body: The JSON, whole.
        at_s: When it came, by `time.monotonic`.
    """

    format: Format
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    at_s: float

    @property
    def pictures(self) -> tuple[bytes, ...]:
        """Every picture in it, in order; the history is sent again each time, so old ones are among them."""
        return tuple(_pictures(self.body))

    @property
    def text(self) -> str:
        """Every text in it but tools and pictures, a line each: system prompt, history, tool calls and results."""
        return "\n".join(_texts({key: value for key, value in self.body.items() if key != "tools"}))


def _own_picture(node: dict[str, Any]) -> bytes | None:
    """The picture that a part of a message is, in any of the three formats."""
    inline = node.get("inlineData") or node.get("inline_data")
    if isinstance(inline, dict):
        return base64.urlsafe_b64decode(
            inline["data"].replace("+", "-").replace("/", "_")
        )  # Gemini's client has either
    if node.get("type") == "image_url":
        return base64.b64decode(node["image_url"]["url"].partition(",")[2])
    if node.get("type") == "image":
        return base64.b64decode(node["source"]["data"])
    return None


def _pictures(node: Any) -> Iterator[bytes]:
    if isinstance(node, list):
        for item in node:
            yield from _pictures(item)
    elif isinstance(node, dict):
        own = _own_picture(node)
        if own is not None:
            yield own
        else:
            yield from _pictures(list(node.values()))


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from _texts(item)
    elif isinstance(node, dict) and _own_picture(node) is None:
        yield from _texts(list(node.values()))


class LlmServer:
    """See the module's docstring."""

    def __init__(
        self,
        script: Sequence[Step] | Callable[[Request], Step],
        *,
        repeats: bool = False,
        models: Sequence[str] = ("vision-1",),
    ) -> None:
        self.requests: list[Request] = []
        self.models = models
        self._script = script
        self._repeats = repeats
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Listener(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> LlmServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def model(self, monkeypatch: pytest.MonkeyPatch, format: Format | Literal["url"], name: str | None = None) -> str:
        """Lead a provider's client here through the environment; the model's name as `open_chat` takes it.

        Args:
            monkeypatch: Undoes the environment after the test.
            format: A vendor, or `url` for an OpenAI-compatible server by its URL (which needs no key).
            name: Of the model; by default one whose price is known, or the server's only one.
        """
        for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
            monkeypatch.delenv(proxy.lower(), raising=False)
        if format == "url":
            return f"{self.origin}/v1" + (f"#{name}" if name else "")
        key, base, path, default = {
            "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL", "/v1", "gpt-4o"),
            "google": ("GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL", "", "gemini-2.5-pro"),
            "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "", "claude-sonnet-4-6"),
        }[format]
        monkeypatch.setenv(key, KEY)
        monkeypatch.setenv(base, self.origin + path)
        return f"{format}:{name or default}"

    def step(self, request: Request) -> Step:
        """Keep the request, and say what it is answered with."""
        with self._lock:
            self.requests.append(request)
            index = len(self.requests) - 1
        if callable(self._script):
            return self._script(request)
        if index < len(self._script) or self._repeats:
            return self._script[min(index, len(self._script) - 1)]
        return Refuse(400, message="the script is at its end")

    def wait(self) -> None:
        """Give no answer until the server is closed."""
        self._closing.wait(HANG_S)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, owner: LlmServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def owner(self) -> LlmServer:
        assert isinstance(self.server, _Listener)
        return self.server.owner

    def do_GET(self) -> None:
        listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.owner.models]}
        self._send(json.dumps(listed).encode(), 200, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(_format(self.path), self.path, headers, json.loads(body), time.monotonic())
        self._answer(self.owner.step(request), request.format)

    def _answer(self, step: Step, format: Format) -> None:
        if isinstance(step, Answer):
            self._send(json.dumps(_body(step, format)).encode(), 200, {})
        elif isinstance(step, Refuse):
            wait = {} if step.retry_after_s is None else {"Retry-After": f"{step.retry_after_s:g}"}
            self._send(json.dumps({"error": {"message": step.message}}).encode(), step.status, wait)
        elif isinstance(step, Raw):
            self._send(step.body, step.status, step.headers)
        elif isinstance(step, Hang):
            self.owner.wait()
            self.close_connection = True
        else:
            self._send(step.sent, 200, {}, announced=len(step.sent) + 1000)
            self.close_connection = True

    def _send(self, body: bytes, status: int, headers: Mapping[str, str], announced: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        try:
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client has had enough
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _format(path: str) -> Format:
    if path.endswith("/chat/completions"):
        return "openai"
    return "google" if ":generateContent" in path else "anthropic"


def _body(answer: Answer, format: Format) -> dict[str, Any]:
    return {"openai": _openai, "google": _google, "anthropic": _anthropic}[format](answer)


def _calls(answer: Answer) -> Iterator[tuple[str, Call]]:
    for number, call in enumerate(answer.calls):
        yield call.id or f"call_{time.monotonic_ns()}_{number}", call


def _object(arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    read = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
    assert isinstance(read, dict), "this format carries only JSON objects as arguments"
    return read


def _openai(answer: Answer) -> dict[str, Any]:
    calls = [
        {
            "id": call_id,
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": call.arguments if isinstance(call.arguments, str) else json.dumps(dict(call.arguments)),
            },
        }
        for call_id, call in _calls(answer)
    ]
    message = {"role": "assistant", "content": answer.text or None, **({"tool_calls": calls} if calls else {})}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "vision-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}],
        "usage": {
            "prompt_tokens": answer.input_tokens,
            "completion_tokens": answer.output_tokens,
            "total_tokens": answer.input_tokens + answer.output_tokens,
        },
    }


def _google(answer: Answer) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"text": answer.text}] if answer.text else []
    parts += [{"functionCall": {"name": call.name, "args": _object(call.arguments)}} for call in answer.calls]
    return {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {
            "promptTokenCount": answer.input_tokens,
            "candidatesTokenCount": answer.output_tokens,
            "totalTokenCount": answer.input_tokens + answer.output_tokens,
        },
        "modelVersion": "gemini-2.5-pro",
        "responseId": "r1",
    }


def _anthropic(answer: Answer) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
    content += [
        {"type": "tool_use", "id": call_id, "name": call.name, "input": _object(call.arguments)}
        for call_id, call in _calls(answer)
    ]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": content,
        "stop_reason": "tool_use" if answer.calls else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens},
    }
