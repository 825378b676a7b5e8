"""Calls of tools that a model wrote as text, since its server knows no calls. It knows no wire format and no tool."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from medsam3.store import JsonObject

LONGEST_TEXT = 20_000
_MARK = r"<[|｜][^<>]*[|｜]>"
_NAMED = re.compile(
    rf"(?:\bfunction=|\[TOOL_CALLS\]|\bfunctions\.|Action:|{_MARK})\s*([\w-]+)(?::\d+)?"
    rf"(?:[\s>]|\[ARGS\]|Action Input:|```(?:json)?|{_MARK}(?:json\b)?)*$"
)
"""A name before its arguments as JSON, with the marks of servers around it."""
_THOUGHT = re.compile(r"(?s)<think(?:ing)?>.*?(?:</think(?:ing)?>|$)|^.*</think(?:ing)?>")
_TAGGED = re.compile(
    r"(?s)<function=(?P<name>[\w-]+)>(?P<of>(?:\s*<parameter=.*?</parameter>)*)\s*</function>|"
    r'<invoke name="(?P<invoked>[\w-]+)">(?P<with>(?:\s*<parameter name=.*?</parameter>)*)\s*</invoke>|'
    r"<tool_call>\s*(?P<called>[\w-]+)(?P<by>(?:\s*<arg_key>.*?</arg_value>)+)\s*</tool_call>"
)
_PARAMETER = re.compile(
    r'(?s)<parameter(?:=| name=)"?([\w-]+)"?>\s*(.*?)\s*</parameter>|'
    r"<arg_key>\s*([\w-]+)\s*</arg_key>\s*<arg_value>\s*(.*?)\s*</arg_value>"
)


def calls_in_text(text: str, tools: Collection[str]) -> list[tuple[str, Any]]:
    """Read tool calls that a model wrote as text, since its server knows no calls: names and arguments.

    Understood are JSON objects with a name and arguments (bare, in a list, in a fence, behind any server's marks), a
    name before a JSON object or before XML parameters, and Python's notation. Text that goes on in words after its
    calls is taken for talk about them.
    """
    said = _as_json(_THOUGHT.sub("", text[:LONGEST_TEXT]).strip())
    python = _python_calls(said, tools)
    if python:
        return python
    found: list[tuple[str, Any]] = []
    end = 0
    for start, stop, name, arguments in (*_xml_calls(said, tools), *_json_calls(said, tools)):
        if start >= end:
            found.append((name, arguments))
            end = stop
    rest = re.sub(r"<[^>]*(?:>|$)|\[/?\w+\]", "", said[end:])
    return found if not re.search(r"\w", rest) else []


def _json_calls(said: str, tools: Collection[str]) -> Iterator[tuple[int, int, str, Any]]:
    """Calls as JSON: from where to where, the name, and the arguments."""
    decoder, at = json.JSONDecoder(), 0
    while (at := said.find("{", at)) >= 0:
        try:
            value, stop = decoder.raw_decode(said, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        name, arguments = _call_in(value)
        named = _NAMED.search(said[:at])
        if named is not None and named[1] in tools:
            name, arguments = named[1], value
        if name in tools and arguments is not None:
            yield at, stop, str(name), arguments
            at = stop
        else:
            at += 1


def _call_in(value: JsonObject) -> tuple[Any, Any]:
    """The name and the arguments of a call as JSON; an object without arguments is none."""
    inner = value.get("function")
    call = inner if isinstance(inner, dict) else value
    keys = ("name", "tool", "tool_name", "function", "recipient_name")
    name = next((call[key].removeprefix("functions.") for key in keys if isinstance(call.get(key), str)), None)
    kinds = ("arguments", "parameters", "args", "input", "tool_input")
    return name, next((call[key] for key in kinds if isinstance(call.get(key), (dict, str))), None) if name else None


def _xml_calls(said: str, tools: Collection[str]) -> Iterator[tuple[int, int, str, Any]]:
    """Calls with parameters in tags, as Qwen's coders, MiniMax and GLM write them."""
    for call in _TAGGED.finditer(said):
        name, inside = next(
            (call[a], call[b]) for a, b in (("name", "of"), ("invoked", "with"), ("called", "by")) if call[a]
        )
        if name in tools:
            pairs = [(one[1] or one[3], one[2] if one[1] else one[4]) for one in _PARAMETER.finditer(inside)]
            yield call.start(), call.end(), name, {key: _value(text) for key, text in pairs}


def _as_json(said: str) -> str:
    """Write again as JSON what is a dictionary in Python's notation, and all that was said."""
    source = re.sub(r"^```\w*\n|\n?```$", "", said).strip()
    if source[:1] not in ("{", "["):
        return said
    try:
        return json.dumps(ast.literal_eval(source))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return said


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
        nodes = [_printed(node) for node in (body.elts if isinstance(body, ast.List) else [body])]
        calls = [
            (node.func.id, {str(one.arg): ast.literal_eval(one.value) for one in node.keywords})
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args
        ]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return calls if len(calls) == len(nodes) and all(name in tools for name, _ in calls) else []


def _printed(node: ast.expr) -> ast.expr:
    """What a `print` prints: models that write code print what their tools give."""
    is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    if isinstance(node, ast.Call) and is_print and len(node.args) == 1 and not node.keywords:
        return node.args[0]
    return node
