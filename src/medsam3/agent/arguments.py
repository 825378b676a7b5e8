"""The arguments of a tool call: from the text that a model wrote to checked values. Every mistake is a `ToolError`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from medsam3.agent.values import ToolError

LONGEST_TEXT = 20_000
_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def parse(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as a dictionary that fits the schema.

    Of JSON schema, what the tools use is understood: type, enum, minItems, maxItems, items, required, properties.

    Raises:
        ToolError: Not JSON, no object, or a value that the schema does not allow.
    """
    if len(text) > LONGEST_TEXT:
        raise ToolError(f"the arguments have {len(text)} characters, allowed are {LONGEST_TEXT}")
    try:
        values = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ToolError(f"the arguments are not JSON ({error}): write one JSON object") from error
    _check("arguments", values, schema)
    found: dict[str, Any] = values
    return found


def _check(name: str, value: Any, schema: Mapping[str, Any]) -> None:
    kind = schema["type"]
    is_bool = isinstance(value, bool)
    if not isinstance(value, _KINDS[kind]) or (is_bool and kind != "boolean"):
        raise ToolError(f"{name} is {_short(value)}, it must be of type {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ToolError(f"{name} is {value}, it must be finite")
    if "enum" in schema and value not in schema["enum"]:
        raise ToolError(f"{name} is {_short(value)}, allowed are {', '.join(map(str, schema['enum']))}")
    if isinstance(value, list):
        _check_array(name, value, schema)
    if isinstance(value, dict):
        _check_object(name, value, schema)


def _check_array(name: str, value: list[Any], schema: Mapping[str, Any]) -> None:
    least, most = schema.get("minItems", 0), schema.get("maxItems", 100)
    if not least <= len(value) <= most:
        raise ToolError(f"{name} has {len(value)} entries, allowed are {least} to {most}")
    for n, item in enumerate(value):
        _check(f"{name}[{n}]", item, schema["items"])


def _check_object(name: str, value: dict[str, Any], schema: Mapping[str, Any]) -> None:
    properties: Mapping[str, Any] = schema.get("properties", {})
    missing = [key for key in schema.get("required", ()) if key not in value]
    unknown = [key for key in value if key not in properties]
    if missing or unknown:
        what = f"lack {', '.join(missing)}" if missing else f"have the unknown {_short(', '.join(unknown))}"
        raise ToolError(f"{name} {what}; known are {', '.join(properties) or 'none'}")
    for key, item in value.items():
        _check(key, item, properties[key])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
