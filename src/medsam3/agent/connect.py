"""From a model's address to a conversation with it."""

from __future__ import annotations

from collections.abc import Sequence

from medsam3.agent.chat import Chat, ToolSpec, parse_address
from medsam3.errors import require


def open_chat(
    model: str, *, system: str, tools: Sequence[ToolSpec], send_images: bool, max_output_tokens: int = 4096
) -> Chat:
    """Start a conversation; nothing is sent before the first `ask`, but a URL without a name is asked for its models.

    Keys are taken from the environment: OPENAI_API_KEY, GOOGLE_API_KEY (or GEMINI_API_KEY), ANTHROPIC_API_KEY, and
    MEDSAM3_API_KEY for a server by URL, which needs none as a rule. OPENAI_BASE_URL, GOOGLE_GEMINI_BASE_URL and
    ANTHROPIC_BASE_URL lead to another server that speaks the vendor's format.

    Args:
        model: See `parse_address`.
        system: The system prompt.
        tools: The tools that the model may call.
        send_images: False makes an `ask` with pictures fail before anything is sent.
        max_output_tokens: The most that one answer may have.

    Raises:
        InputError: An unknown model, no key, or the extra `agent` is not installed.
    """
    address = parse_address(model)
    require("pydantic_ai", extra="agent")
    from medsam3.agent.providers import ProviderChat, Terms  # noqa: PLC0415  pydantic-ai is an extra

    return ProviderChat.open(address, Terms(system, tuple(tools), send_images, max_output_tokens))
