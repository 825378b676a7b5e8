"""The agent: plans, segments, looks, refines, accepts, or says that nothing is there. `run` is the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsam3.agent.loop import run as run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    """Import `run` when it is first used: it brings numpy."""
    if name != "run":
        raise AttributeError(f"module 'medsam3.agent' has no attribute {name!r}")
    from medsam3.agent.loop import run  # noqa: PLC0415

    return run
