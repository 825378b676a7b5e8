"""Dialects of tools that people already have: each module takes one in, over the same sessions and jobs.

This file says which there are and where each answers, for the settings and the guard; it imports none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medsam3.errors import InputError

if TYPE_CHECKING:
    from fastapi import APIRouter


@dataclass(frozen=True)
class Dialect:
    """Place of a dialect.

    Attributes:
        name: The name by which it is switched on, and its module.
        prefix: Where its routes begin.
        open_paths: Routes that answer without a token, because the client asks for one there.
    """

    name: str
    prefix: str
    open_paths: tuple[str, ...] = ()

    def router(self) -> APIRouter:
        """Import the module and give its routes."""
        router: APIRouter = importlib.import_module(f"{__name__}.{self.name}").router
        return router


DIALECTS = {
    one.name: one
    for one in (
        Dialect("monailabel", "/monailabel", ("/monailabel/auth/", "/monailabel/auth/token")),
        Dialect("labelstudio", "/labelstudio"),
        Dialect("cvat", "/api"),
        Dialect("qupath", "/sam"),
        Dialect("nninteractive", "/nninteractive", ("/nninteractive/healthz",)),
        Dialect("voxtell", "/voxtell", ("/voxtell/healthz",)),
    )
}


def dialects_named(names: Iterable[str]) -> tuple[Dialect, ...]:
    """Find dialects by their names, which may stand in one text with commas between.

    Raises:
        InputError: There is none of that name.
    """
    wanted = [name.strip().lower() for text in names for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in DIALECTS:
            raise InputError(f"there is no client {name!r} to enable, allowed are {', '.join(DIALECTS)}")
    return tuple(DIALECTS[name] for name in dict.fromkeys(wanted))
