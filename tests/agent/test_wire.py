"""What providers answer instead of a reply, over real sockets: understood, or said at once in their own words."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest

from llm_server import KEY, Answer, Format, LlmServer, Raw, Step
from medsam3.agent.chat import Chat, ChatError, Reply, ShownPicture, ToolResult, ToolSpec, open_chat
from medsam3.agent.wire import HttpAnswer, Trouble, read_answer
from medsam3.agent.written_calls import calls_in_text

pytest.importorskip("pydantic_ai")

TOOLS = (
    ToolSpec("segment", "Segment.", {"type": "object", "properties": {"phrase": {"type": "string"}}}),
    ToolSpec("accept", "Accept.", {"type": "object", "properties": {"masks": {"type": "array"}}}),
)
FINE = Answer("One.", input_tokens=50, output_tokens=5)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    from medsam3.agent import providers  # noqa: PLC0415

    monkeypatch.setattr(providers, "PAUSES_S", (0.01, 0.02, 0.03))


def raw(content: Any, status: int = 200, **headers: str) -> Raw:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Raw(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def opened(server: LlmServer, monkeypatch: pytest.MonkeyPatch, format: Format) -> Chat:
    return open_chat(server.model(monkeypatch, format), system="s", tools=TOOLS, send_images=True)


def refused(step: Step, format: Format, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 5) -> tuple[ChatError, int]:
    """The error when a provider answers so and so again, and how often it was asked."""
    with LlmServer([step], repeats=True) as server, pytest.raises(ChatError) as raised:
        opened(server, monkeypatch, format).ask("?", timeout_s=timeout_s)
    return raised.value, len(server.requests)


def answered(step: Step, format: Format, monkeypatch: pytest.MonkeyPatch) -> tuple[Reply, int, float]:
    """The reply when a provider answers so once and well then, how often it was asked, and after how long."""
    with LlmServer([step, FINE]) as server:
        reply = opened(server, monkeypatch, format).ask("?", timeout_s=20)
    return reply, len(server.requests), server.requests[-1].at_s - server.requests[0].at_s


def openai(finish: Any = "stop", usage: Any = None, **message: Any) -> Raw:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": finish}
    counts = {"prompt_tokens": 40, "completion_tokens": 6, "total_tokens": 46} if usage is None else usage
    return raw(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": counts}
    )


def google(finish: str, parts: list[Any] | None = None, **rest: Any) -> Raw:
    candidate = {
        "finishReason": finish,
        "index": 0,
        **({"content": {"role": "model", "parts": parts}} if parts else {}),
    }
    counts = {"promptTokenCount": 40, "candidatesTokenCount": 2, "thoughtsTokenCount": 4}
    return raw({"candidates": [{**candidate, **rest}], "usageMetadata": counts})


def anthropic(stop: str, *content: Any, **rest: Any) -> Raw:
    usage = {"input_tokens": 40, "output_tokens": 6}
    about = {"id": "m", "type": "message", "role": "assistant", "model": "c", "stop_sequence": None, "usage": usage}
    return raw({**about, "content": list(content), "stop_reason": stop, **rest})


def error(message: str, **rest: Any) -> dict[str, Any]:
    return {"error": {"message": message, **rest}}


BLOCKED = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 40}}
DAY = [
    {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
    },
    {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "21s"},
]
HOPELESS: list[tuple[Format, Raw, str]] = [
    ("google", raw(BLOCKED), r"the request was blocked \(PROHIBITED_CONTENT\)"),
    ("google", google("PROHIBITED_CONTENT"), r"the answer was stopped \(PROHIBITED_CONTENT\)"),
    ("google", google("SAFETY", finishMessage="seen as harmful"), r"stopped \(SAFETY\): seen as harmful"),
    ("google", google("RECITATION", [{"text": "once upon"}]), r"stopped \(RECITATION\)"),
    (
        "google",
        google("MAX_TOKENS"),
        r"cut off at the limit of tokens .*\(finishReason: MAX_TOKENS, 6 tokens written\)",
    ),
    ("google", google("MAX_TOKENS", [{"text": "Let me"}]), r"MAX_TOKENS, 6 tokens written\): Let me"),
    ("google", raw(error("quota of the day", code=429, details=DAY), 429), "status 429: quota of the day"),
    ("google", raw(error("API key not valid.", code=400, status="INVALID_ARGUMENT"), 400), "API key not valid"),
    ("google", raw(error("models/x is not found for API version v1beta", code=404), 404), "models/x is not found"),
    ("google", raw(error("limit: 0, model: gemini-3-pro", code=429), 429), "limit: 0, model: gemini-3-pro"),
    ("google", raw(error("token count (2000000) exceeds the maximum", code=400), 400), "exceeds the maximum"),
    ("openai", openai(refusal="I can't look at patients."), "the model refuses: I can't look at patients"),
    ("openai", openai("content_filter"), "stopped by the content filter"),
    ("openai", openai("content_filter", content="The lesion"), "content filter .*: The lesion"),
    ("openai", openai("length", content="I think that"), r"finish_reason: length, 6 tokens written\): I think that"),
    (
        "openai",
        openai("length", tool_calls=[{"id": "c", "function": {"name": "segment", "arguments": '{"phra'}}]),
        "cut off",
    ),
    ("openai", raw(error("No endpoints found", code=404)), "status 200 with an error: No endpoints found"),
    ("openai", raw({"error": "model 'x' not found"}, 404), "status 404: model 'x' not found"),
    ("openai", raw({"detail": "Not Found"}, 404), "status 404: Not Found"),
    ("openai", raw({"object": "error", "message": "max context is 4096"}, 400), "status 400: max context is 4096"),
    ("openai", raw(error("You exceeded your quota", code="insufficient_quota"), 429), "status 429: You exceeded"),
    ("openai", raw(error("This model's maximum context length is 8192", code="context_length_exceeded"), 400), "8192"),
    ("openai", raw(error("The model `gpt-9` does not exist", code="model_not_found"), 404), "`gpt-9` does not exist"),
    (
        "openai",
        raw(b"<html><head><style>a{}</style></head><body><h1>Forbidden</h1> zone</body></html>", 403),
        "Forbidden zone",
    ),
    ("anthropic", anthropic("refusal", {"type": "text", "text": "I will not."}), "refuses .*: I will not"),
    ("anthropic", anthropic("refusal", stop_details={"explanation": "bio"}), r"\(stop_reason: refusal\): bio"),
    ("anthropic", anthropic("max_tokens", {"type": "text", "text": "First"}), "stop_reason: max_tokens, 6 tokens"),
    (
        "anthropic",
        anthropic("max_tokens", {"type": "tool_use", "id": "t", "name": "segment", "input": {}}),
        "cut off",
    ),
    ("anthropic", anthropic("model_context_window_exceeded"), "longer than the model can read"),
    (
        "anthropic",
        raw({"type": "error", **error("Your credit balance is too low", type="invalid_request_error")}, 400),
        "credit balance is too low",
    ),
    ("anthropic", raw({"type": "error", **error("model: claude-9", type="not_found_error")}, 404), "model: claude-9"),
]


@pytest.mark.parametrize(("format", "step", "says"), HOPELESS)
def test_what_cannot_get_better_is_said_at_once_in_the_providers_words(
    format: Format, step: Raw, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = refused(step, format, monkeypatch)
    assert re.search(says, str(found)) and "\n" not in str(found)
    assert asked == 1
    assert found.usage.requests == (step.status == 200)  # what came with success is billed, once


ONCE_MORE: list[tuple[Format, Raw, str]] = [
    ("google", google("MALFORMED_FUNCTION_CALL", finishMessage="print(segment"), r"MALFORMED_FUNCTION_CALL\): print"),
    ("google", google("STOP"), r"an empty answer \(finishReason: STOP\)"),
    ("google", raw({"candidates": []}), "without any candidate"),
    ("openai", raw({"id": "1", "choices": []}), "without any choice"),
    ("openai", openai(content=""), r"an empty answer \(finish_reason: stop\)"),
    (
        "openai",
        raw(b"<html><body>Sign in to <b>Hotel WLAN</b></body></html>"),
        "an HTML page .*: Sign in to Hotel WLAN",
    ),
    ("openai", raw(b"[1, 2]"), "cannot be read"),
    ("anthropic", anthropic("end_turn"), "an empty answer"),
    ("anthropic", raw(b"<!doctype html><html><title>Down</title></html>"), "an HTML page in place of an answer: Down"),
]


@pytest.mark.parametrize(("format", "step", "says"), ONCE_MORE)
def test_an_unusable_answer_is_asked_for_once_more_and_no_third_time(
    format: Format, step: Raw, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = refused(step, format, monkeypatch)
    assert re.search(says, str(found))
    assert asked == 2 and found.usage.requests == 2
    reply, asked, _ = answered(step, format, monkeypatch)
    assert (reply.text, asked) == ("One.", 2)


RETRY_INFO = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.4s"}]
SOON = format_datetime(datetime.now(UTC) + timedelta(days=2), usegmt=True)
LATER: list[tuple[Format, Raw, float]] = [
    ("google", raw(error("slow down", code=429, details=RETRY_INFO), 429), 0.4),
    ("google", raw([error("slow down", code=429, details=RETRY_INFO)], 429), 0.4),  # some answers are in a list
    ("google", raw(error("The model is overloaded.", code=503, status="UNAVAILABLE"), 503), 0.0),
    ("google", raw(error("overloaded", code=503)), 0.0),  # within a success
    ("openai", raw(error("Rate limit reached. Please try again in 400ms."), 429), 0.4),
    ("openai", raw(error("busy"), 429, retry_after_ms="400"), 0.4),
    ("openai", raw(error("busy"), 503, Retry_After="0.4"), 0.4),
    ("openai", raw(error("upstream is busy", code=429, metadata={"raw": "x"})), 0.0),
    ("openai", raw(b"<html><body>Bad gateway</body></html>", 524), 0.0),
    ("anthropic", raw({"type": "error", **error("Overloaded", type="overloaded_error")}, 529), 0.0),
    ("anthropic", raw({"type": "error", **error("Overloaded", type="overloaded_error")}), 0.0),
    ("anthropic", raw({"type": "error", **error("limit", type="rate_limit_error")}, 429, retry_after="nan"), 0.0),
]


@pytest.mark.parametrize(("format", "step", "wait_s"), LATER)
def test_a_busy_provider_is_asked_again_after_the_time_it_names(
    format: Format, step: Raw, wait_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, asked, took_s = answered(step, format, monkeypatch)
    assert (reply.text, asked) == ("One.", 2)
    assert wait_s <= took_s < wait_s + 3


def test_a_wait_is_read_from_each_place_that_names_it() -> None:
    def wait(content: Any, **headers: str) -> float | None:
        body = json.dumps(content).encode()
        _, trouble = read_answer(HttpAnswer(429, body, headers), "openai", ())
        return None if trouble is None else trouble.wait_s

    long = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "21s"}]
    assert wait(error("x", details=long)) == 21
    assert wait(error("Please try again in 1m12.5s. Visit")) == 72.5
    assert wait(error("Please retry in 20 seconds.")) == 20
    assert wait(error("x", details=long), **{"retry-after": "30"}) == 30
    in_two_days = wait(error("x"), **{"retry-after": SOON})
    assert in_two_days is not None and 170_000 < in_two_days <= 172_800
    assert wait(error("x"), **{"retry-after": "soon"}) is None
    assert wait(error("x"), **{"retry-after": "-5"}) == 0


def test_a_date_too_far_off_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    start_s = time.monotonic()
    found, asked = refused(raw(error("busy"), 429, Retry_After=SOON), "openai", monkeypatch)
    assert asked == 1 and "busy" in str(found) and "past the limit of 5 s" in str(found)
    assert time.monotonic() - start_s < 4


def test_a_wrong_key_is_said_in_words_that_do_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"Incorrect API key provided: {KEY[:12]}. or sk-se***********cdef. Find yours at https://example.org"
    found, asked = refused(raw(error(said), 401), "openai", monkeypatch)
    assert asked == 1 and "the key is refused" in str(found) and "Incorrect API key provided: ***" in str(found)
    assert KEY[:12] not in str(found) and "cdef" not in str(found)


def call(name: Any, arguments: Any, **rest: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}, **rest}


TWICE = json.dumps(json.dumps({"phrase": "polyp"}))
UNDERSTOOD: list[tuple[Format, Raw]] = [
    ("openai", openai("tool_calls", tool_calls=[call("segment", {"phrase": "polyp"})])),
    ("openai", openai("tool_calls", tool_calls=[call("segment", '{"phrase": "polyp"}', id=None)])),
    ("openai", openai(None, tool_calls=[{"function": {"name": "segment", "arguments": '{"phrase": "polyp"}'}}])),
    ("openai", openai("eos", usage={"prompt_tokens": None}, tool_calls=[call("segment", '{"phrase": "polyp"}')])),
    ("openai", openai("length", tool_calls=[call("segment", '{"phrase": "polyp"}')])),
    ("openai", openai("function_call", function_call={"name": "segment", "arguments": '{"phrase": "polyp"}'})),
    ("openai", openai(content='<tool_call>\n{"name": "segment", "arguments": {"phrase": "polyp"}}\n</tool_call>')),
    ("openai", openai(content=[{"type": "text", "text": '{"name": "segment", "parameters": {"phrase": "polyp"}}'}])),
    (
        "openai",
        raw(
            {
                "id": None,
                "created": None,
                "model": None,
                "choices": [{"message": {"tool_calls": [call("segment", '{"phrase": "polyp"}')]}}],
                "usage": None,
            }
        ),
    ),
    ("google", google("STOP", [{"functionCall": {"name": "segment", "args": '{"phrase": "polyp"}'}}])),
    ("google", google("MAX_TOKENS", [{"functionCall": {"name": "segment", "args": {"phrase": "polyp"}}}])),
    ("google", google("STOP", [{"text": '```json\n{"name": "segment", "args": {"phrase": "polyp"}}\n```'}])),
    ("anthropic", anthropic("tool_use", {"type": "tool_use", "id": None, "name": "segment", "input": TWICE})),
    (
        "anthropic",
        anthropic("end_turn", {"type": "text", "text": '<tool_call>{"name":"segment","arguments":{"phrase":"polyp"}}'}),
    ),
]


@pytest.mark.parametrize(("format", "step"), UNDERSTOOD)
def test_a_call_that_can_mean_one_thing_only_is_understood(
    format: Format, step: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LlmServer([step, FINE]) as server:
        chat = opened(server, monkeypatch, format)
        (found,) = chat.ask("?", timeout_s=5).calls
        assert found.name == "segment" and json.loads(found.arguments) == {"phrase": "polyp"} and found.id
        assert chat.ask("", results=[ToolResult(found.id, found.name, "mask 1")], timeout_s=5).text == "One."
    assert "mask 1" in server.requests[1].text


def test_calls_of_one_id_get_two(monkeypatch: pytest.MonkeyPatch) -> None:
    step = openai(tool_calls=[call("segment", '{"phrase": "a"}'), call("segment", '{"phrase": "b"}')])
    with LlmServer([step]) as server:
        calls = opened(server, monkeypatch, "openai").ask("?", timeout_s=5).calls
    assert len({found.id for found in calls}) == 2 and len(calls) == 2


NAMES = ("segment", "accept")
SEGMENT = ("segment", {"phrase": "polyp"})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "segment", "arguments": {"phrase": "polyp"}}', [SEGMENT]),
        ('I segment first.\n```json\n{"name": "segment", "arguments": {"phrase": "polyp"}}\n```', [SEGMENT]),
        ('[TOOL_CALLS] [{"name": "segment", "arguments": {"phrase": "polyp"}}]', [SEGMENT]),
        ('[TOOL_CALLS]segment[ARGS]{"phrase": "polyp"}', [SEGMENT]),
        ('<|python_tag|>{"name": "segment", "parameters": {"phrase": "polyp"}}<|eom_id|>', [SEGMENT]),
        ('<function=segment>{"phrase": "polyp"}</function>', [SEGMENT]),
        ("<tool_call><function=segment>\n<parameter=phrase>\npolyp\n</parameter>\n</function></tool_call>", [SEGMENT]),
        (
            '<think>{"name": "accept", "arguments": {}}?</think>{"tool": "segment", "args": {"phrase": "polyp"}}',
            [SEGMENT],
        ),
        ('{"type": "function", "function": {"name": "segment", "arguments": "{}"}}', [("segment", "{}")]),
        ('{"tool_calls": [{"name": "segment", "arguments": {"phrase": "polyp"}}]}', [SEGMENT]),
        ('Action: segment\nAction Input: {"phrase": "polyp"}', [SEGMENT]),
        ('[segment(phrase="polyp"), accept(masks=[1, 2])]', [SEGMENT, ("accept", {"masks": [1, 2]})]),
        (
            '{"name": "segment", "arguments": {"phrase": "polyp"}}\n{"name": "accept", "arguments": {"masks": [1]}}',
            [SEGMENT, ("accept", {"masks": [1]})],
        ),
        ('<tool_call>{"name": "segment", "arguments": {"phrase": "polyp"}}</tool_ca', [SEGMENT]),
        ("<function=accept>\n</function>", [("accept", {})]),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>segment\n```json\n"
            '{"phrase": "polyp"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            [SEGMENT],
        ),
        (
            '<|tool_call_begin|>functions.segment:0<|tool_call_argument_begin|>{"phrase": "polyp"}<|tool_call_end|>',
            [SEGMENT],
        ),
        (
            '<|channel|>commentary to=functions.segment <|constrain|>json<|message|>{"phrase": "polyp"}<|call|>',
            [SEGMENT],
        ),
        (
            "<tool_call>segment\n<arg_key>phrase</arg_key>\n<arg_value>polyp</arg_value>\n</tool_call>",
            [SEGMENT],
        ),
        ('<invoke name="segment">\n<parameter name="phrase">polyp</parameter>\n</invoke>', [SEGMENT]),
        ('```tool_code\nprint(segment(phrase="polyp"))\n```', [SEGMENT]),
        ("{'name': 'segment', 'arguments': {'phrase': 'polyp',}}", [SEGMENT]),
        ('{"recipient_name": "functions.segment", "parameters": {"phrase": "polyp"}}', [SEGMENT]),
        ('so I segment.</think>{"name": "segment", "arguments": {"phrase": "polyp"}}', [SEGMENT]),
        ('<think>{"name": "segment", "arguments": {"phrase": "polyp"}}', []),  # a thought that has no end
        ('{"name": "cure", "arguments": {}}', []),  # no tool of ours
        ('{"name": "segment"}', []),  # a name alone is no call
        ('{"name": "segment", "arguments": {"phrase": "po', []),  # cut off
        ('{"name": "segment", "arguments": {}} would be wrong, since nothing is there.', []),  # talk
        ("segment the polyp", []),
        ("segment(phrase=open('x'))", []),
        ("{" * 30_000, []),
        ("", []),
    ],
)
def test_calls_written_as_text_are_read_when_they_can_be_nothing_else(text: str, calls: list[Any]) -> None:
    assert calls_in_text(text, NAMES) == calls


def test_a_server_that_wants_no_user_after_a_tool_gets_an_assistant_between(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistral(request: Any) -> Step:
        roles = [message["role"] for message in request.body["messages"]]
        if ("tool", "user") in pairwise(roles):
            return raw({"object": "error", "message": "Unexpected role 'user' after role 'tool'"}, 400)
        return FINE if "tool" in roles else openai("tool_calls", tool_calls=[call("segment", '{"phrase": "polyp"}')])

    with LlmServer(mistral) as server:
        chat = opened(server, monkeypatch, "openai")
        (found,) = chat.ask("?", timeout_s=5).calls
        result = ToolResult(found.id, found.name, "mask 1", (ShownPicture(b"\x89PNG", "drawn"),))
        assert chat.ask("2 rounds are left", results=[result], timeout_s=5).text == "One."
        assert chat.ask("and now?", timeout_s=5).text == "One."
    assert len(server.requests) == 4  # one was refused, and only one
    assert server.requests[2].pictures == (b"\x89PNG",) and "2 rounds are left" in server.requests[2].text
    roles = [message["role"] for message in server.requests[2].body["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user"]


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("openai", "max_tokens is too large: 8192. This model supports at most 4096 completion tokens"),
        ("openai", "you requested 8692 tokens (500 in the messages, 8192 in the completion)."),
        ("anthropic", "max_tokens: 8192 > 4096, which is the maximum allowed number of output tokens for claude-3"),
    ],
)
def test_a_model_that_may_write_less_is_asked_for_less(
    format: Format, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(request: Any) -> Step:
        wanted = request.body.get("max_tokens") or request.body["max_completion_tokens"]
        return FINE if wanted <= 4096 else raw(error(message), 400)

    with LlmServer(small) as server:
        chat = opened(server, monkeypatch, format)
        assert chat.ask("?", timeout_s=5).text == "One." and chat.ask("and?", timeout_s=5).text == "One."
    assert len(server.requests) == 3  # the limit is remembered


@pytest.mark.parametrize("body", [b'{"choices": [7]}', b'{"choices": {"a": 1}}', b'{"choices": [{"message": []}]}'])
def test_json_of_another_shape_is_no_reply(body: bytes) -> None:
    _, trouble = read_answer(HttpAnswer(200, body), "openai", ())
    assert isinstance(trouble, Trouble) and trouble.hope == "once"
