"""Conversations over real sockets, against the scripted provider on loopback."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
import traceback
from dataclasses import replace
from typing import get_args

import pytest
from PIL import Image

from llm_server import KEY, Answer, Call, Cut, Format, Hang, LlmServer, Raw, Refuse, Step
from medsam3.agent.chat import Chat, ChatError, Reply, ShownPicture, ToolResult, ToolSpec, Usage, open_chat
from medsam3.errors import InputError

pytest.importorskip("pydantic_ai")

FORMATS = get_args(Format)
SEGMENT = ToolSpec(
    "segment",
    "Segment every object that the phrase names.",
    {"type": "object", "properties": {"phrase": {"type": "string"}}, "required": ["phrase"]},
)
ASKED = [Answer("One.", input_tokens=50, output_tokens=5)]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    from medsam3.agent import providers  # noqa: PLC0415

    monkeypatch.setattr(providers, "PAUSES_S", (0.01, 0.02, 0.03))


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 3), (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


def chat_with(server: LlmServer, monkeypatch: pytest.MonkeyPatch, format: Format = "openai") -> Chat:
    model = server.model(monkeypatch, format)
    return open_chat(model, system="You segment.", tools=(SEGMENT,), send_images=True)


def one_ask(step: Step, monkeypatch: pytest.MonkeyPatch, format: Format = "openai", timeout_s: float = 5) -> Reply:
    """The reply to a question that is first met by `step`, then answered."""
    with LlmServer([step, *ASKED]) as server:
        return chat_with(server, monkeypatch, format).ask("How many?", timeout_s=timeout_s)


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_with_pictures_calls_and_usage(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [
        Answer("I look.", (Call("segment", {"phrase": "polyp"}),), input_tokens=1000, output_tokens=20),
        Answer("One polyp.", input_tokens=1500, output_tokens=30),
    ]
    with LlmServer(script) as server:
        chat = chat_with(server, monkeypatch, format)
        first = chat.ask("Find polyps.", (ShownPicture(png(1), "the raw picture"),), timeout_s=10)
        result = ToolResult(first.calls[0].id, "segment", "mask 1 found", (ShownPicture(png(2), "the overlay"),))
        last = chat.ask("Go on.", results=(result,), timeout_s=10)

    assert (first.text, last.text, last.calls) == ("I look.", "One polyp.", ())
    assert (first.calls[0].name, json.loads(first.calls[0].arguments)) == ("segment", {"phrase": "polyp"})
    assert replace(first.usage, usd=None) == Usage(1000, 20, 1, None)
    assert replace(last.usage, usd=None) == Usage(1500, 30, 1, None)
    one, two = server.requests
    assert (one.format, one.pictures, two.pictures) == (format, (png(1),), (png(1), png(2)))
    assert "You segment." in one.text
    assert "Find polyps." in one.text
    assert "the raw picture" in one.text
    for said in ("mask 1 found", "the overlay", "Go on.", "I look."):
        assert said in two.text
    assert "segment" in json.dumps(one.body["tools"])


@pytest.mark.parametrize(
    ("format", "usd"),
    [
        ("openai", 0.0026),  # gpt-4o: 1000 x 2.50 + 10 x 10.00 dollars per million
        ("google", 0.00135),  # gemini-2.5-pro: 1000 x 1.25 + 10 x 10.00
        ("anthropic", 0.00315),  # claude-sonnet-4-6: 1000 x 3.00 + 10 x 15.00
    ],
)
def test_answers_are_priced(format: Format, usd: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer([Answer("x", input_tokens=1000, output_tokens=10)]) as server:
        reply = chat_with(server, monkeypatch, format).ask("?", timeout_s=5)
    assert replace(reply.usage, usd=None) == Usage(1000, 10, 1, None)
    assert reply.usage.usd == pytest.approx(usd)


@pytest.mark.parametrize("format", FORMATS)
def test_a_busy_provider_is_asked_again_when_it_says(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer([Refuse(429, retry_after_s=0.6), *ASKED]) as server:
        reply = chat_with(server, monkeypatch, format).ask("How many?", timeout_s=5)
    assert server.requests[1].at_s - server.requests[0].at_s >= 0.6
    assert replace(reply.usage, usd=None) == Usage(50, 5, 1, None)


def test_a_wait_beyond_the_limit_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    start_s = time.monotonic()
    with pytest.raises(ChatError, match=r"status 429: no; the next try in 300 s is past the limit of 5 s"):
        one_ask(Refuse(429, retry_after_s=300), monkeypatch)
    assert time.monotonic() - start_s < 4


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("step", [Refuse(500), Refuse(502), Refuse(503), Cut()], ids=["500", "502", "503", "cut"])
def test_a_failure_that_passes_is_asked_again(step: Step, format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = one_ask(step, monkeypatch, format)
    assert (reply.text, replace(reply.usage, usd=None)) == ("One.", Usage(50, 5, 1, None))


@pytest.mark.parametrize("format", FORMATS)
def test_a_failure_that_stays_ends_after_a_few_tries(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer([Refuse(500)], repeats=True) as server, pytest.raises(ChatError, match="status 500: no") as raised:
        chat_with(server, monkeypatch, format).ask("How many?", timeout_s=20)
    assert len(server.requests) == 4  # three pauses, one more try than pauses
    assert raised.value.usage == Usage()


@pytest.mark.parametrize("format", FORMATS)
def test_a_hang_ends_at_the_limit(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    start_s = time.monotonic()
    with pytest.raises(ChatError, match=r"no answer within 0\.7 s"):
        one_ask(Hang(), monkeypatch, format, timeout_s=0.7)
    assert 0.7 <= time.monotonic() - start_s < 5


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("body", [b'{"id": "1", "choices": [', b"<html>busy</html>"], ids=["half", "html"])
def test_malformed_json_is_survived(format: Format, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = one_ask(Raw(body), monkeypatch, format)
    assert (reply.text, replace(reply.usage, usd=None)) == ("One.", Usage(50, 5, 2, None))


@pytest.mark.parametrize(
    ("format", "counts"),
    [
        ("openai", b'"usage": {"prompt_tokens": 40, "completion_tokens": 6}'),
        ("google", b'"usageMetadata": {"promptTokenCount": 40, "candidatesTokenCount": 2, "thoughtsTokenCount": 4}'),
        ("anthropic", b'"usage": {"input_tokens": 40, "output_tokens": 6}'),
    ],
)
def test_unreadable_answers_are_counted_once(format: Format, counts: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = one_ask(Raw(b'{"choices": [{"message": {]}, ' + counts + b"}"), monkeypatch, format)
    assert replace(reply.usage, usd=None) == Usage(40 + 50, 6 + 5, 2, None)


def test_a_failed_parse_of_good_json_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"choices": [{"message": 7}], "usage": {"prompt_tokens": 40, "completion_tokens": 6}}
    reply = one_ask(Raw(json.dumps(wrong).encode()), monkeypatch)
    assert replace(reply.usage, usd=None) == Usage(90, 11, 2, None)
    assert reply.usage.usd == pytest.approx((90 * 2.5 + 11 * 10) / 1e6)


def test_unreadable_answers_to_the_end_are_billed_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"usage": {"prompt_tokens": 40, "completion_tokens": 6}, '
    with LlmServer([Raw(body)], repeats=True) as server, pytest.raises(ChatError, match="cannot be read") as raised:
        chat_with(server, monkeypatch).ask("?", timeout_s=20)
    assert replace(raised.value.usage, usd=None) == Usage(80, 12, 2, None)  # one more try has hope, no third


@pytest.mark.parametrize("format", FORMATS)
def test_an_answer_of_ten_megabytes_is_survived(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = one_ask(Raw(b'{"a": "' + b"x" * 10_000_000 + b'"}'), monkeypatch, format)
    assert (reply.text, replace(reply.usage, usd=None)) == ("One.", Usage(50, 5, 2, None))


def test_answers_of_ten_megabytes_to_the_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [Raw(b'{"a": "' + b"x" * 10_000_000 + b'"}')]
    with LlmServer(script, repeats=True) as server, pytest.raises(ChatError, match="more than 8 MB"):
        chat_with(server, monkeypatch).ask("?", timeout_s=20)


@pytest.mark.parametrize("format", FORMATS)
def test_unknown_tools_come_back_as_written(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer([Answer(calls=(Call("cure", {"who": "all"}),)), *ASKED]) as server:
        chat = chat_with(server, monkeypatch, format)
        (call,) = chat.ask("?", timeout_s=5).calls
        chat.ask("", results=[ToolResult(call.id, call.name, "there is no tool cure")], timeout_s=5)
    assert (call.name, json.loads(call.arguments)) == ("cure", {"who": "all"})
    assert "there is no tool cure" in server.requests[1].text


def test_bad_arguments_come_back_as_written_and_go_on_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer([Answer(calls=(Call("segment", '{"phrase": '),)), *ASKED]) as server:
        chat = chat_with(server, monkeypatch)
        (call,) = chat.ask("?", timeout_s=5).calls
        chat.ask("", results=[ToolResult(call.id, call.name, "no JSON")], timeout_s=5)
    assert call.arguments == '{"phrase": '
    sent = server.requests[1].body["messages"][2]["tool_calls"][0]["function"]["arguments"]
    assert '{"phrase": ' in str(json.loads(sent))  # servers refuse a history whose arguments are no JSON


def test_two_calls_are_answered_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = (Call("segment", {"phrase": "a"}, "c1"), Call("segment", {"phrase": "b"}, "c2"))
    with LlmServer([Answer(calls=calls), *ASKED]) as server:
        chat = chat_with(server, monkeypatch)
        assert [call.id for call in chat.ask("?", timeout_s=5).calls] == ["c1", "c2"]
        with pytest.raises(InputError, match="1 results do not fit the 2 calls"):
            chat.ask("", results=[ToolResult("c1", "segment", "one")], timeout_s=5)
        chat.ask("", results=[ToolResult(each, "segment", f"of {each}") for each in ("c2", "c1")], timeout_s=5)
    tools = [each for each in server.requests[1].body["messages"] if each["role"] == "tool"]
    assert [(each["tool_call_id"], each["content"]) for each in tools] == [("c2", "of c2"), ("c1", "of c1")]


def test_a_failed_ask_leaves_the_conversation_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer([Refuse(400, message="too long"), *ASKED]) as server:
        chat = chat_with(server, monkeypatch)
        with pytest.raises(ChatError, match="gpt-4o at openai: status 400: too long"):
            chat.ask("first", timeout_s=5)
        assert chat.ask("second", timeout_s=5).text == "One."
    assert "first" not in server.requests[1].text
    assert "You segment." in server.requests[1].text


@pytest.mark.parametrize("format", FORMATS)
def test_pictures_do_not_follow_a_redirect(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer(ASKED) as other:
        away = Raw(b"", 307, {"Location": other.origin + "/v1/chat/completions"})
        with (
            LlmServer([away]) as server,
            pytest.raises(ChatError, match=r"a redirect \(status 307\), which is not followed"),
        ):
            chat_with(server, monkeypatch, format).ask("?", [ShownPicture(png(1), "raw")], timeout_s=5)
    assert other.requests == []


def test_no_picture_leaves_without_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer([Answer(calls=(Call("segment", {}, "c1"),)), *ASKED]) as server:
        chat = open_chat(server.model(monkeypatch, "openai"), system="s", tools=(SEGMENT,), send_images=False)
        shown = ShownPicture(png(1), "raw")
        with pytest.raises(InputError, match="pictures may not be sent to openai: allow it by name with --send-images"):
            chat.ask("?", [shown], timeout_s=5)
        assert server.requests == []
        chat.ask("?", timeout_s=5)
        with pytest.raises(InputError, match="--send-images"):
            chat.ask("", results=[ToolResult("c1", "segment", "found", (shown,))], timeout_s=5)
    assert [request.pictures for request in server.requests] == [()]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "step", [*ASKED, Refuse(401, message=f"wrong key {KEY}"), Refuse(400, message=f"bad {KEY}"), Raw(KEY.encode())]
)
def test_the_key_goes_to_the_provider_and_nowhere_else(
    step: Step, format: Format, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = ""
    with LlmServer([step], repeats=True) as server:
        chat = chat_with(server, monkeypatch, format)
        try:
            chat.ask("?", timeout_s=5)
        except ChatError as error:
            shown = "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))
    assert any(KEY in value for value in server.requests[0].headers.values())
    assert KEY not in server.requests[0].path
    assert KEY not in shown + repr(chat) + str(vars(chat)) + caplog.text


def test_a_server_by_url_is_not_given_the_key_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("MEDSAM3_API_KEY", raising=False)
    with LlmServer(ASKED, models=("qwen3-vl",)) as server:
        chat = open_chat(server.model(monkeypatch, "url"), system="s", tools=(), send_images=True)
        reply = chat.ask("?", timeout_s=5)
    assert (chat.model, chat.provider) == ("qwen3-vl", server.origin.removeprefix("http://"))
    assert server.requests[0].body["model"] == "qwen3-vl"
    assert KEY not in str(server.requests[0].headers)
    assert reply.usage == Usage(50, 5, 1, 0.0)  # what runs on this machine costs nothing


def test_a_server_by_url_gets_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSAM3_API_KEY", "mine")
    with LlmServer(ASKED) as server:
        open_chat(server.model(monkeypatch, "url", "m"), system="s", tools=(), send_images=True).ask("?", timeout_s=5)
    assert server.requests[0].headers["authorization"] == "Bearer mine"


def test_a_server_of_several_models_wants_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        LlmServer([], models=("a", "b")) as server,
        pytest.raises(InputError, match="choose one with #NAME: a, b"),
    ):
        open_chat(server.model(monkeypatch, "url"), system="s", tools=(), send_images=True)


def test_a_server_that_is_not_up_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer([]) as server:
        model = server.model(monkeypatch, "url")
    with pytest.raises(InputError, match=r"lists no models: is the server up\?"):
        open_chat(model, system="s", tools=(), send_images=True)
    chat = open_chat(model + "#m", system="s", tools=(), send_images=True)
    with pytest.raises(ChatError, match="the connection failed"):
        chat.ask("?", timeout_s=5)


def test_it_works_where_a_loop_runs_already(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cell() -> tuple[str, str]:
        chat = chat_with(server, monkeypatch)
        said = chat.ask("?", timeout_s=5).text
        with pytest.raises(ChatError, match="at its end") as raised:
            chat.ask("?", timeout_s=5)
        return said, str(raised.value)

    with LlmServer(ASKED) as server:
        assert asyncio.run(cell())[0] == "One."
