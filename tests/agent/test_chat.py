"""The conversation without a wire: addresses, keys, prices, and pydantic-ai's own test models."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

pytest.importorskip("pydantic_ai")

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from medsam3.agent import chat as pricing
from medsam3.agent.chat import Address, ChatError, ShownPicture, ToolResult, ToolSpec, Usage, open_chat, parse_address
from medsam3.agent.providers import ProviderChat, Terms
from medsam3.errors import InputError

SEGMENT = ToolSpec("segment", "Segment.", {"type": "object", "properties": {"phrase": {"type": "string"}}})
TERMS = Terms("You segment.", (SEGMENT,), send_images=True, max_output_tokens=100)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("google:gemini-3-pro-preview", Address("google", "gemini-3-pro-preview")),
        ("openai:ft:gpt-4o:me", Address("openai", "ft:gpt-4o:me")),
        ("http://localhost:8000/v1", Address("localhost:8000", None, "http://localhost:8000/v1")),
        ("https://llm.example.org/v1/#a/b", Address("llm.example.org", "a/b", "https://llm.example.org/v1")),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "gemini", "google:", "mistral:large", "http://", "ftp://x/v1"])
def test_other_addresses_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(InputError, match="allowed are google:NAME, openai:NAME, anthropic:NAME or http://HOST:PORT"):
        parse_address(text)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="MEDSAM3_API_KEY") as raised:
        parse_address("http://me:hunter2@localhost/v1")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "variable"),
    [("openai:gpt-4o", "OPENAI_API_KEY"), ("google:x", "GOOGLE_API_KEY"), ("anthropic:x", "ANTHROPIC_API_KEY")],
)
def test_a_missing_key_is_named(model: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"^{variable} is not set: [^\n]*$"):
        open_chat(model, system="s", tools=(), send_images=False)


def test_a_broken_key_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-12 34\n56")
    with pytest.raises(InputError, match="OPENAI_API_KEY holds blanks") as raised:
        open_chat("openai:gpt-4o", system="s", tools=(), send_images=False)
    assert "34" not in str(raised.value)


def test_usage_adds_up_and_an_unknown_price_stays_unknown() -> None:
    assert Usage(10, 1, 1, 0.5) + Usage(20, 2, 1, 0.25) == Usage(30, 3, 2, 0.75)
    assert Usage(10, 1, 1, 0.5) + Usage(20, 2, 1, None) == Usage(30, 3, 2, None)
    assert Usage() + Usage() == Usage(0, 0, 0, 0.0)


def test_an_error_of_the_chat_is_bad_input_with_its_usage() -> None:
    error = ChatError("it is busy", Usage(1, 2, 3, None))
    assert isinstance(error, InputError)
    assert error.usage == Usage(1, 2, 3, None)


@pytest.mark.parametrize(
    ("provider", "is_local"),
    [
        ("localhost:8000", True),
        ("127.0.0.1:1", True),
        ("[::1]:8000", True),
        ("192.168.1.7:11434", True),
        ("ollama:11434", True),
        ("box.local", True),
        ("8.8.8.8", False),
        ("openrouter.ai", False),
        ("google", False),
    ],
)
def test_what_is_local_is_told_by_its_address(provider: str, is_local: bool) -> None:
    assert pricing.is_local(provider) is is_local


def test_a_model_without_a_price_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    chat = ProviderChat("openai", "gpt-unheard-of", lambda client: TestModel(call_tools=[]), TERMS)
    with caplog.at_level(logging.WARNING):
        usages = [chat.ask("?", timeout_s=5).usage, chat.ask("?", timeout_s=5).usage]
    assert [usage.usd for usage in usages] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [
        "the price of 'gpt-unheard-of' at openai is not known: costs in dollars are not counted"
    ]


def test_a_budget_in_dollars_needs_a_known_price() -> None:
    pricing.check_money_budget("openai", "gpt-4o")
    pricing.check_money_budget("localhost:8000", "anything")
    with pytest.raises(InputError, match=r"'gemini-3-pro' at google is not known.*such as .*gemini-3-pro-preview"):
        pricing.check_money_budget("google", "gemini-3-pro")
    with pytest.raises(InputError, match="leave the budget in dollars out"):
        pricing.check_money_budget("llm.example.org", "x")


def test_the_conversation_is_remembered() -> None:
    seen: list[int] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(len(messages))
        assert [tool.name for tool in info.function_tools] == ["segment"]
        if len(messages) == 1:
            return ModelResponse([TextPart("look"), ToolCallPart("cure", "{not json", "c1")])
        return ModelResponse([TextPart("done")])

    chat = ProviderChat("localhost", "m", lambda client: FunctionModel(answer), TERMS)
    first = chat.ask("?", [ShownPicture(b"png", "raw")], timeout_s=5)
    last = chat.ask("", results=[ToolResult("c1", "cure", "no such tool")], timeout_s=5)
    assert (first.text, [(call.id, call.name, call.arguments) for call in first.calls]) == (
        "look",
        [("c1", "cure", "{not json")],
    )
    assert (last.text, seen) == ("done", [1, 3])


def test_a_bug_of_ours_is_not_taken_for_the_provider() -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        raise KeyError("ours")

    chat = ProviderChat("localhost", "m", lambda client: FunctionModel(answer), TERMS)
    with pytest.raises(KeyError, match="ours"):
        chat.ask("?", timeout_s=5)


def test_nothing_to_say_is_refused() -> None:
    chat = ProviderChat("localhost", "m", lambda client: TestModel(call_tools=[]), TERMS)
    with pytest.raises(InputError, match="there is nothing to ask"):
        chat.ask("", timeout_s=5)
    with pytest.raises(InputError, match="1 results do not fit the 0 calls"):
        chat.ask("?", results=[ToolResult("c1", "segment", "x")], timeout_s=5)


def test_the_contract_is_imported_without_the_providers_libraries() -> None:
    code = (
        "import sys, medsam3.agent.chat; print(*{'pydantic_ai', 'httpx2', 'genai_prices', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
