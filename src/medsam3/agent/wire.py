"""The reading of an LLM provider's HTTP answers, in the dialects of OpenAI and its like, Gemini and Anthropic.

It decides from the bytes alone, so that no library's exception stands between the provider's own words and the user.
An answer is first mended where its meaning is plain (calls written as text, arguments as an object, null ids); then it
is either a reply, or a `Trouble` that says whether asking again can help.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from uuid import uuid4

from medsam3.agent.written_calls import calls_in_text
from medsam3.store import JsonObject

Dialect = Literal["openai", "google", "anthropic"]

LONGEST_ANSWER = 8 * 2**20
"""The most bytes of an answer, unpacked, that are read."""

KEYS = {
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
}
URL_KEY = "MEDSAM3_API_KEY"
"""The key for a server by URL; OPENAI_API_KEY is not sent there, it is not for strangers."""

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Statuses after which the same request may succeed (529: Anthropic is overloaded; 520 to 524: Cloudflare)."""
_STATUS_OF = {
    **dict.fromkeys(("overloaded_error", "overloaded", "UNAVAILABLE"), 503),
    **dict.fromkeys(("rate_limit_error", "rate_limit_exceeded", "RESOURCE_EXHAUSTED"), 429),
    **dict.fromkeys(("api_error", "server_error", "internal_error", "INTERNAL"), 500),
    **dict.fromkeys(("timeout_error", "timeout", "DEADLINE_EXCEEDED"), 504),
    **dict.fromkeys(("authentication_error", "invalid_api_key", "UNAUTHENTICATED"), 401),
}
"""The status that an error's type or code stands for, when it comes with status 200."""
_EXHAUSTED = re.compile(
    r"insufficient_quota|billing_hard_limit|billing_not_active|credit balance|insufficient (?:funds|balance|credits)"
    r"|PerDay|\blimit: 0\b|usage limits?\b|spend(?:ing)? (?:limit|cap)",
    re.IGNORECASE,
)
"""Words of a quota that no waiting mends: of a day, of money, or none at all."""
_TOLD_WAIT = re.compile(r"(?:retry|try again) (?:in|after) ((?:[\d.]+ ?(?:ms|h|m|s)[a-z]* ?)+)", re.IGNORECASE)
_TIME = re.compile(r"([\d.]+) ?(ms|h|m|s)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_WORDS = 400
_LONGEST_TEXT = 20_000


@dataclass(frozen=True)
class Trouble:
    """The reason why a request gave no reply.

    Attributes:
        what: In words, the provider's own where it gave some.
        hope: `later`: the same request may succeed after a pause, and this one was not billed. `once`: it was
            answered, perhaps billed, but not usable; one more try is worth it. `none`: asking again cannot help.
        wait_s: The pause that the provider asks for.
    """

    what: str
    hope: Literal["later", "once", "none"] = "none"
    wait_s: float | None = None


@dataclass(frozen=True)
class HttpAnswer:
    """One HTTP answer, read whole.

    Attributes:
        headers: Names in lower case.
        is_too_long: It is longer than `LONGEST_ANSWER`; `body` is empty then.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    is_too_long: bool = False


def read_answer(answer: HttpAnswer, dialect: Dialect, tools: Collection[str]) -> tuple[bytes, Trouble | None]:
    """Read an answer.

    Args:
        answer: What came.
        dialect: The format that was asked in.
        tools: Names of the tools; a call written as text must name one of them.

    Returns:
        The body, mended where it is a reply, and why it is none.
    """
    content = _json(answer.body)
    trouble = _before_reading(answer, content)
    if trouble is not None:
        return answer.body, trouble
    mend, judge = _DIALECTS[dialect]
    try:
        mend(content, tools)
        trouble = judge(content)
    except (AttributeError, KeyError, TypeError, IndexError) as error:  # a stranger's JSON of another shape
        return answer.body, Trouble(f"an answer that cannot be read ({type(error).__name__})", "once")
    return json.dumps(content).encode(), trouble


def _before_reading(answer: HttpAnswer, content: Any) -> Trouble | None:
    """The trouble that shows before an answer is read in its dialect."""
    if answer.is_too_long:
        return Trouble(f"an answer of more than {LONGEST_ANSWER >> 20} MB, which is not read", "once")
    if 300 <= answer.status < 400:
        return Trouble(f"a redirect (status {answer.status}), which is not followed: give the URL it leads to")
    if answer.status >= 400:
        return _refused(answer.status, content, answer)
    if not isinstance(content, dict):
        is_page = b"<html" in answer.body[:2000].lower()
        kind = "an HTML page in place of an answer" if is_page else "an answer that cannot be read"
        return Trouble(f"{kind}: {own_words(content, answer.body)}", "once")
    if content.get("error") or content.get("type") == "error":
        return _refused(_status_in(content), content, answer)
    return None


def own_words(content: Any, body: bytes) -> str:
    """A provider's own words on an error, as one short line without keys, markup or control characters."""
    text = next(_messages(content), "") or body[:_LONGEST_TEXT].decode("utf-8", "replace")
    if "<html" in text[:2000].lower() or text.lstrip().lower().startswith("<!doctype"):
        text = re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", text)
        text = html.unescape(text)
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return _without_keys(text)[:_LONGEST_WORDS] or "no words"


def counted(body: bytes) -> tuple[int, int]:
    """The input and output tokens that an answer names, even one that is no JSON; 0 for none."""
    total = []
    for names in (
        rb"prompt_tokens|promptTokenCount|input_tokens",
        rb"completion_tokens|candidatesTokenCount|thoughtsTokenCount|output_tokens",
    ):
        found = {name: int(count) for name, count in re.findall(rb'(?<!\\)"(%s)"\s*:\s*(\d{1,9})' % names, body)}
        total.append(sum(found.values()))
    return total[0], total[1]


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _messages(content: Any) -> Iterator[str]:
    """The places where servers put an error's words, the likeliest first."""
    if isinstance(content, list):  # Gemini wraps some errors in a list
        content = content[0] if content else None
    if not isinstance(content, dict):
        return
    error = content.get("error")
    for holder in (error, content, {"message": error}):
        if isinstance(holder, dict):
            raw = (holder.get("metadata") or {}).get("raw") if isinstance(holder.get("metadata"), dict) else None
            for words in (holder.get("message"), raw, holder.get("detail"), holder.get("type"), holder.get("code")):
                if words:
                    yield words if isinstance(words, str) else json.dumps(words)


def _without_keys(text: str) -> str:
    """Hide keys of the environment, their parts, and what providers show of a key in asterisks."""
    keys = [os.environ.get(name, "").strip() for name in (URL_KEY, *(name for own in KEYS.values() for name in own))]
    parts = {key[at : at + 8] for key in keys for at in range(max(1, len(key) - 7)) if key}
    words = (
        "***" if "***" in word or any(part in word for part in parts) else word
        for word in re.split(r"([\s\"',:;()]+)", text)
    )
    return "".join(words)


def _status_in(content: JsonObject) -> int:
    """The status that an error in the body of a success stands for."""
    error = content["error"] if isinstance(content.get("error"), dict) else content
    for name in ("code", "status", "type"):
        value = str(error.get(name))
        if re.fullmatch(r"[45]\d\d", value):
            return int(value)
        if value in _STATUS_OF:
            return _STATUS_OF[value]
    return 400


def _refused(status: int, content: Any, answer: HttpAnswer) -> Trouble:
    words = own_words(content, answer.body)
    told = f"status {answer.status}" if answer.status >= 400 else f"status {answer.status} with an error"
    if status in (401, 403):
        return Trouble(f"{told}: the key is refused, or not allowed this model ({words})")
    if status not in _TRANSIENT or _EXHAUSTED.search(answer.body[:_LONGEST_TEXT].decode("utf-8", "replace")):
        return Trouble(f"{told}: {words}")
    return Trouble(f"{told}: {words}", "later", _wait_s(answer.headers, content))


def _wait_s(headers: Mapping[str, str], content: Any) -> float | None:
    """The longest wait that headers (RFC 9110, 10.2.3), Gemini's RetryInfo or the words ask for, in seconds."""
    waits = [_after_s(headers.get("retry-after", "")), _number(headers.get("retry-after-ms", ""), 0.001)]
    for one in content if isinstance(content, list) else [content]:
        error = one.get("error") if isinstance(one, dict) else None
        details = error.get("details") if isinstance(error, dict) else None
        for detail in details if isinstance(details, list) else []:
            if isinstance(detail, dict) and str(detail.get("@type", "")).endswith("RetryInfo"):
                waits.append(_number(str(detail.get("retryDelay", "")).removesuffix("s")))
    for told in _TOLD_WAIT.findall(next(_messages(content), "")):
        waits.append(sum((_number(count) or 0.0) * _SECONDS[unit.lower()] for count, unit in _TIME.findall(told)))
    return max((wait for wait in waits if wait is not None), default=None)


def _number(text: str, unit: float = 1.0) -> float | None:
    try:
        value = float(text) * unit
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def _after_s(text: str) -> float | None:
    """Retry-After in seconds, given as a number or as a date."""
    seconds = _number(text)
    if seconds is not None or not text:
        return seconds
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _new_id() -> str:
    """An id for a call that came without: nine letters, which Mistral wants and all others take."""
    return uuid4().hex[:9]


def _as_object(arguments: Any) -> Any:
    """Arguments as an object; a model that encoded them twice or more is understood."""
    for _ in range(3):
        if not isinstance(arguments, str):
            break
        arguments = _json(arguments.encode()) if arguments.strip() else {}
    return arguments


def _has_whole_call(calls: list[JsonObject]) -> bool:
    return any(isinstance(_as_object(call["function"]["arguments"]), dict) for call in calls)


def _mend_openai(content: JsonObject, tools: Collection[str]) -> None:
    content.update(id=content.get("id") or "none", created=content.get("created") or 0)
    content.update(object="chat.completion", model=content.get("model") or "unknown")
    content["usage"] = _counts(content.get("usage"), ("prompt_tokens", "completion_tokens", "total_tokens"))
    for index, choice in enumerate(content.get("choices") or ()):
        message = choice["message"]
        choice["index"], message["role"] = index, "assistant"
        parts = message.get("content")
        if isinstance(parts, list):  # Mistral's and others' content in parts
            texts = [str(part.get("text") or "") for part in parts if part.get("type") == "text"]
            message["content"] = "".join(texts)
        calls = list(message.get("tool_calls") or ())
        if not calls and message.get("function_call"):  # before 2024
            calls = [{"function": message.pop("function_call")}]
        if not calls and message.get("content"):
            written = calls_in_text(message["content"], tools)
            calls = [{"function": {"name": name, "arguments": arguments}} for name, arguments in written]
            message["content"] = None if calls else message["content"]
        message["tool_calls"] = _openai_calls(calls) or None
        if choice.get("finish_reason") not in ("stop", "length", "tool_calls", "content_filter", "error"):
            choice["finish_reason"] = "tool_calls" if calls else "stop"


def _openai_calls(calls: list[JsonObject]) -> list[JsonObject]:
    """Calls with ids of their own and arguments as text."""
    seen: set[str] = set()
    mended = []
    for call in calls:
        function, own = call["function"], call.get("id")
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps({} if arguments is None else arguments)
        number = str(own) if own and own not in seen else _new_id()
        seen.add(number)
        mended.append(
            {"id": number, "type": "function", "function": {"name": str(function["name"]), "arguments": text}}
        )
    return mended


def _counts(usage: Any, names: tuple[str, ...]) -> JsonObject:
    known = usage if isinstance(usage, dict) else {}
    return {
        **{name: value for name, value in known.items() if value is not None},
        **{n: known.get(n) or 0 for n in names},
    }


def _mend_google(content: JsonObject, tools: Collection[str]) -> None:
    for candidate in content.get("candidates") or ():
        body = candidate.get("content") or {}
        parts = body.get("parts") or []
        calls = [part["functionCall"] for part in parts if part.get("functionCall")]
        for call in calls:
            call["args"] = _as_object(call.get("args")) or {}
            if not isinstance(call["args"], dict):
                call["args"] = {"arguments": call["args"]}  # the tool says what it takes
        if not calls:
            text = "".join(str(part.get("text") or "") for part in parts if not part.get("thought"))
            written = [{"name": name, "args": _as_object(own)} for name, own in calls_in_text(text, tools)]
            parts = [{"functionCall": call} for call in written] or parts
        candidate["content"] = {**body, "parts": parts}


def _mend_anthropic(content: JsonObject, tools: Collection[str]) -> None:
    content["usage"] = _counts(content.get("usage"), ("input_tokens", "output_tokens"))
    blocks = [block for block in content.get("content") or () if isinstance(block, dict)]
    if content.get("stop_reason") == "max_tokens" and blocks and blocks[-1].get("type") == "tool_use":
        blocks.pop()  # the limit fell into its input
    calls = [block for block in blocks if block.get("type") == "tool_use"]
    if not calls:
        text = "".join(str(block.get("text") or "") for block in blocks if block.get("type") == "text")
        calls = [{"type": "tool_use", "name": name, "input": own} for name, own in calls_in_text(text, tools)]
        blocks = calls or blocks
    seen: set[str] = set()
    for call in calls:
        own = _as_object(call.get("input"))
        call["input"] = own if isinstance(own, dict) else {} if own is None else {"arguments": own}
        call["id"] = call["id"] if call.get("id") and call["id"] not in seen else f"toolu_{_new_id()}"
        seen.add(call["id"])
    content["content"] = blocks


def _judge_openai(content: JsonObject) -> Trouble | None:
    choices = content.get("choices")
    if not choices:
        return Trouble("an answer without any choice", "once")
    choice, message = choices[0], choices[0]["message"]
    said, reason = message.get("content") or "", choice["finish_reason"]
    if message.get("refusal"):
        return Trouble(f"the model refuses: {_quoted(message['refusal'])}")
    if reason == "content_filter":
        return Trouble(f"the answer was stopped by the content filter (finish_reason: content_filter){_after(said)}")
    if choice.get("error") or reason == "error":
        inner = {"error": choice.get("error") or said or "error"}
        status = _status_in(inner)
        hope: Literal["once", "none"] = "once" if status in _TRANSIENT or not choice.get("error") else "none"
        return Trouble(f"the answer ended in an error: {own_words(inner, b'')}", hope)
    if reason == "length" and not _has_whole_call(message["tool_calls"] or []):
        return _cut("finish_reason: length", content["usage"]["completion_tokens"], said)
    return None if said.strip() or message["tool_calls"] else _empty(f"finish_reason: {reason}")


_GOOGLE_ASK_AGAIN = frozenset({"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "OTHER"})


def _judge_google(content: JsonObject) -> Trouble | None:
    feedback = content.get("promptFeedback") or {}
    blocked = feedback.get("blockReason")
    if blocked and blocked != "BLOCK_REASON_UNSPECIFIED":
        return Trouble(f"the request was blocked ({blocked}){_after(feedback.get('blockReasonMessage'))}")
    if not content.get("candidates"):
        return Trouble("an answer without any candidate", "once")
    candidate = content["candidates"][0]
    reason, words = candidate.get("finishReason") or "STOP", candidate.get("finishMessage")
    parts = candidate["content"]["parts"]
    has_call = any(part.get("functionCall") for part in parts)
    said = "".join(str(part.get("text") or "") for part in parts if not part.get("thought"))
    if reason == "MAX_TOKENS":
        counts = content.get("usageMetadata") or {}
        tokens = (counts.get("candidatesTokenCount") or 0) + (counts.get("thoughtsTokenCount") or 0)
        return None if has_call else _cut("finishReason: MAX_TOKENS", tokens, said)
    if reason not in ("STOP", "FINISH_REASON_UNSPECIFIED"):
        hope: Literal["once", "none"] = "once" if reason in _GOOGLE_ASK_AGAIN else "none"
        return Trouble(f"the answer was stopped ({reason}){_after(words)}", hope)
    return None if has_call or said.strip() else _empty(f"finishReason: {reason}")


def _judge_anthropic(content: JsonObject) -> Trouble | None:
    blocks, reason = content["content"], content.get("stop_reason")
    said = "".join(str(block.get("text") or "") for block in blocks if block.get("type") == "text")
    has_call = any(block.get("type") == "tool_use" for block in blocks)
    if reason == "refusal":
        details = content.get("stop_details")
        why = details.get("explanation") if isinstance(details, dict) else None
        return Trouble(f"the model refuses (stop_reason: refusal){_after(why or said)}")
    if reason == "model_context_window_exceeded":
        return Trouble(f"the conversation is longer than the model can read (stop_reason: {reason})")
    if reason == "max_tokens" and not has_call:
        return _cut("stop_reason: max_tokens", content["usage"]["output_tokens"], said)
    return None if has_call or said.strip() else _empty(f"stop_reason: {reason}")


def _cut(reason: str, tokens: int, said: str) -> Trouble:
    return Trouble(
        f"the answer was cut off at the limit of tokens before it called a tool ({reason}, {tokens} tokens written)"
        f"{_after(said)}; take a model that thinks less, or one that answers more briefly"
    )


def _empty(reason: str) -> Trouble:
    return Trouble(f"an empty answer ({reason})", "once")


def _after(words: Any) -> str:
    return f": {_quoted(words)}" if words else ""


def _quoted(words: Any) -> str:
    return own_words({"message": words}, b"")[:200]


_DIALECTS: Mapping[
    Dialect, tuple[Callable[[JsonObject, Collection[str]], None], Callable[[JsonObject], Trouble | None]]
] = {
    "openai": (_mend_openai, _judge_openai),
    "google": (_mend_google, _judge_google),
    "anthropic": (_mend_anthropic, _judge_anthropic),
}
