"""Calls of tools that a model wrote as text, since its server knows no calls. It knows no wire format and no tool."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterator
from typing import Any

LONGEST_TEXT = 20_000


def calls_in_text(text: str, tools: Collection[str]) -> list[tuple[str, Any]]:
    """Read tool calls that a model wrote as text, since its server knows no calls: names and arguments.

    Understood are JSON objects with a name and arguments (bare, in a list, in a fence, behind any server's marks), a
    name before a JSON object or before XML parameters, and Python's notation. Text that goes on in words after its
    calls is taken for talk about them.
    """
    said = re.sub(r"(?s)<think(?:ing)?>.*?</think(?:ing)?>", "", text[:LONGEST_TEXT]).strip()
    python = _python_calls(said, tools)
    if python:
        return python
    found: list[tuple[str, Any]] = []
    end = 0
    for start, stop, name, arguments in (*_xml_calls(said, tools), *_json_calls(said, tools)):
        if start >= end:
            found.append((name, arguments))
            end = stop
    rest = re.sub(r"<[^>]*>|\[/?\w+\]", "", said[end:])
    return found if not re.search(r"\w", rest) else []


def _json_calls(said: str, tools: Collection[str]) -> Iterator[tuple[int, int, str, Any]]:
    """Calls as JSON: from where to where, the name, and the arguments."""
    decoder, at = json.JSONDecoder(), 0
    before = re.compile(
        r"(?:\bfunction=|\[TOOL_CALLS\]|\bfunctions\.|Action:)\s*([\w-]+)(?:[\s>]|\[ARGS\]|Action Input:)*$"
    )
    while (at := said.find("{", at)) >= 0:
        try:
            value, stop = decoder.raw_decode(said, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        name, arguments = _call_in(value)
        named = before.search(said[:at])
        if named is not None and named[1] in tools:
            name, arguments = named[1], value
        if name in tools and arguments is not None:
            yield at, stop, str(name), arguments
            at = stop
        else:
            at += 1


def _call_in(value: dict[str, Any]) -> tuple[Any, Any]:
    """The name and the arguments of a call as JSON; an object without arguments is none."""
    inner = value.get("function")
    call = inner if isinstance(inner, dict) else value
    name = next(
        (call[key] for key in ("name", "tool", "tool_name", "function") if isinstance(call.get(key), str)), None
    )
    kinds = ("arguments", "parameters", "args", "input", "tool_input")
    return name, next((call[key] for key in kinds if isinstance(call.get(key), (dict, str))), None) if name else None


def _xml_calls(said: str, tools: Collection[str]) -> Iterator[tuple[int, int, str, Any]]:
    """Calls with parameters in tags, as Qwen's coders write them."""
    for call in re.finditer(r"(?s)<function=([\w-]+)>((?:\s*<parameter=.*?</parameter>)+)\s*</function>", said):
        if call[1] in tools:
            pairs = re.findall(r"(?s)<parameter=([\w-]+)>\s*(.*?)\s*</parameter>", call[2])
            yield call.start(), call.end(), call[1], {name: _value(text) for name, text in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _python_calls(said: str, tools: Collection[str]) -> list[tuple[str, Any]]:
    """Calls in Python's notation, such as `[segment(phrase="polyp")]`, when they are all that was said."""
    source = re.sub(r"^```\w*\n|\n?```$|<\|python_\w+\|>", "", said).strip()
    if not re.match(r"\[?\s*\w+\(", source):
        return []
    try:
        body = ast.parse(source, mode="eval").body
        nodes = body.elts if isinstance(body, ast.List) else [body]
        calls = [
            (node.func.id, {str(one.arg): ast.literal_eval(one.value) for one in node.keywords})
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args
        ]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return calls if len(calls) == len(nodes) and all(name in tools for name, _ in calls) else []
