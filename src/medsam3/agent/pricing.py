"""What an answer costs in US dollars, from the dated price list of genai-prices, which is read offline.

Knows no wire format; a server on this machine or in the private network costs nothing.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medsam3.agent.chat import VENDORS
from medsam3.errors import InputError, require

if TYPE_CHECKING:
    from genai_prices.types import AbstractUsage

log = logging.getLogger(__name__)


def is_local(provider: str) -> bool:
    """Whether host:port is this machine or lies in the private network, by its address or its name without a domain."""
    if provider in VENDORS:
        return False
    host = urlsplit(f"//{provider}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".localhost"))


def usd(provider: str, model: str, tokens: AbstractUsage) -> float | None:
    """The price of one answer in US dollars; None, with one warning per model, where no price is known.

    Args:
        provider: As in `Chat.provider`.
        model: As in `Chat.model`.
        tokens: What the provider counted; cached tokens have their own price.
    """
    price = _price(provider, model, tokens)
    if price is None:
        _warn_once(provider, model)
    return price


def check_money_budget(provider: str, model: str) -> None:
    """Refuse a budget in dollars for a model whose price is not known.

    Raises:
        InputError: The price is not known; names models of like names that have one.
    """
    prices: Any = require("genai_prices", extra="agent")
    if _price(provider, model, prices.Usage(input_tokens=1, output_tokens=1)) is not None:
        return
    near = _like(provider, model)
    hint = f" or take a model with a known price, such as {', '.join(near)}" if near else ""
    raise InputError(
        f"the price of {model!r} at {provider} is not known, so a budget in dollars cannot be kept: "
        f"leave the budget in dollars out (rounds, tokens and time stay bounded){hint}"
    )


def _price(provider: str, model: str, tokens: AbstractUsage) -> float | None:
    if is_local(provider):
        return 0.0
    prices: Any = require("genai_prices", extra="agent")
    try:
        return float(prices.calc_price(tokens, model, **_whose(provider)).total_price)
    except LookupError:
        return None


def _whose(provider: str) -> dict[str, str]:
    return {"provider_id": provider} if provider in VENDORS else {"provider_api_url": f"https://{provider}/"}


@lru_cache
def _warn_once(provider: str, model: str) -> None:
    log.warning("the price of %r at %s is not known: costs in dollars are not counted", model, provider)


def _like(provider: str, model: str) -> list[str]:
    data: Any = require("genai_prices.data", extra="agent")
    names = [each.id for owner in data.providers if owner.id == provider for each in owner.models]
    longer = [name for name in names if name.startswith(model)]
    return [*longer, *difflib.get_close_matches(model, names, n=3, cutoff=0.5)][:3]
