"""The agent: plans, segments, looks, refines, accepts, or says that nothing is there. `run` is the way in."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsam3.agent.llm import llm_policy as llm_policy
    from medsam3.agent.loop import RunOptions as RunOptions
    from medsam3.agent.loop import replay as replay
    from medsam3.agent.loop import run as run
    from medsam3.agent.offline import OfflinePolicy as OfflinePolicy
    from medsam3.agent.transcript import write_html as write_html
    from medsam3.agent.values import Budget as Budget

_FROM = {
    "run": "loop",
    "replay": "loop",
    "RunOptions": "loop",
    "Budget": "values",
    "OfflinePolicy": "offline",
    "llm_policy": "llm",
    "write_html": "transcript",
}
__all__ = ["Budget", "OfflinePolicy", "RunOptions", "llm_policy", "replay", "run", "write_html"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: they bring numpy."""
    if name not in _FROM:
        raise AttributeError(f"module 'medsam3.agent' has no attribute {name!r}")
    return getattr(importlib.import_module(f"medsam3.agent.{_FROM[name]}"), name)
