"""Errors that the user can mend, text that may be printed, and the check for optional packages.

It knows nothing of images or models.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_LONGEST_VALUE = 80


class InputError(ValueError):
    """Bad input: the message says in one line what was got, what is allowed, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # what a file says may hold line breaks


def check_frame(frame: int, count: int) -> int:
    """Give back the number of one of `count` frames or slices, counted from 0.

    Raises:
        InputError: There is no such frame.
    """
    if not hasattr(frame, "__index__") or not 0 <= frame < count:  # what a file says may be a fraction
        raise InputError(f"frame {frame} was asked for, allowed is 0 to {count - 1}")
    return frame


def printable(text: str) -> str:
    """Show what cannot be printed, such as a terminal's control codes or a change of direction, as Python's escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)


def first_few(names: Iterable[object], *, most: int = 3, joined_by: str = ", ") -> str:
    """List the first of some names, each once, with "..." for the rest."""
    listed = list(dict.fromkeys(str(name) for name in names))
    return joined_by.join([*listed[:most], *(["..."] if len(listed) > most else [])])


def reason_of(error: Exception) -> str:
    """Give what an error says, in one line; its kind if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def value_error(details: ErrorDetails) -> str:
    """Say what pydantic holds against one value: `images[0].height is "a": input should be a valid integer`.

    What stands there is shown in JSON; of a text that is no JSON at all, nothing.
    """
    # A union's place holds the kind that was tried, `_Rle` or `list[float]`, which nobody wrote.
    names = [part for part in details["loc"] if isinstance(part, int) or (part.isidentifier() and part[:1] != "_")]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names).removeprefix(".")
    if details["type"] == "missing":
        return f"{place} is missing"
    said = details["msg"].removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    if not place:
        return said
    value = json.dumps(details["input"], default=str)
    return f"{place} is {value if len(value) <= _LONGEST_VALUE else f'{value[: _LONGEST_VALUE - 3]}...'}: {said}"


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: Name to import, for example `pydicom`.
        extra: The extra of this package that installs it.

    Raises:
        InputError: The package is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (None, module, module.partition(".")[0]):
            raise InputError(f"{module} is not installed; do: pip install 'medsam3[{extra}]'") from error
        package = module.partition(".")[0]
        raise InputError(
            f"{module} is installed and does not load ({reason_of(error)}): install what that names, or {package} anew"
        ) from error
