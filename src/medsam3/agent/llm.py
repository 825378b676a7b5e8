"""The policy that asks a vision LLM through `agent.chat`. Its system prompt is a data file.

The conversation lives in the chat; a run that is resumed tells a new one what was done so far.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from medsam3.agent.chat import Chat, ShownPicture, ToolResult, ToolSpec, open_chat, parse_address
from medsam3.agent.frames import FULL, QueriedImage
from medsam3.agent.session import OPENING, ToolSession
from medsam3.agent.tools import TOOLS
from medsam3.agent.values import Budget, Decision, Situation, ToolStep
from medsam3.errors import InputError
from medsam3.image import Image
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import check_phrase

SYSTEM_PROMPT = "medical.md"
MOST_PICTURES_RETOLD = 4


class LlmPolicy:
    """Turns situations into messages, and replies into decisions."""

    def __init__(self, chat: Chat, *, send_images: bool) -> None:
        """Speak through `chat`.

        Args:
            chat: A fresh conversation.
            send_images: Whether pictures may go to it; without them it works from words and measures.
        """
        self.chat = chat
        self.is_shown_pictures = send_images
        self._told = 0  # decisions that this conversation knows

    @property
    def name(self) -> str:
        """Provider and model."""
        return f"{self.chat.provider}:{self.chat.model}"

    def decide(self, situation: Situation) -> Decision:
        """Ask for the next calls.

        Raises:
            ChatError: The provider failed for good.
        """
        left = _left(situation)
        if self._told and self._told == len(situation.decisions):
            steps = [step for step in situation.steps if step.turn == self._told]
            calls = situation.decisions[-1].calls
            results = [self._result(step) for step in steps] if calls else []
            text = left if calls else f"{steps[-1].seen.text} {left}"
            reply = self.chat.ask(text, (), results, timeout_s=situation.timeout_s)
        else:
            text, pictures = _retold(situation)
            shown = pictures if self.is_shown_pictures else ()
            reply = self.chat.ask(f"{text}\n{left}", shown, timeout_s=situation.timeout_s)
        self._told = len(situation.decisions) + 1
        return Decision(reply.text, reply.calls, reply.usage)

    def _result(self, step: ToolStep) -> ToolResult:
        pictures = step.seen.pictures if self.is_shown_pictures else ()
        return ToolResult(step.call.id, step.call.name, step.seen.text, pictures)


def llm_policy(model: str, *, send_images_to: str | None) -> LlmPolicy:
    """Make the policy for a model's address.

    Args:
        model: As `chat.parse_address` takes it.
        send_images_to: The provider that the user allowed pictures to go to; None sends none.

    Raises:
        InputError: The provider is not the one that was named, or `open_chat` refuses.
    """
    provider = parse_address(model).provider
    if send_images_to is not None and send_images_to != provider:
        raise InputError(
            f"images may go to {send_images_to!r}, but the model is at {provider!r}: name that one, or leave it out"
        )
    specs: Sequence[ToolSpec] = [tool.spec for tool in TOOLS.values()]
    chat = open_chat(model, system=system_prompt(), tools=specs, send_images=send_images_to is not None)
    return LlmPolicy(chat, send_images=send_images_to is not None)


def first_message(
    image: Image, instruction: str, budget: Budget, segmenter: Segmenter, *, send_images: bool
) -> tuple[str, tuple[ShownPicture, ...]]:
    """Make what an LLM is asked first, without asking it: the text, and the pictures that go with it.

    Raises:
        InputError: A bad instruction.
    """
    session = ToolSession(QueriedImage(image, segmenter), has_pictures=send_images)
    situation = Situation(
        instruction=check_phrase(instruction),
        opening=session.numbered(session.shown(OPENING)),
        shape=session.queried.shape,
        decisions=(),
        steps=(),
        marks={},
        rounds_left=budget.rounds,
        turns_left=budget.turns,
        timeout_s=0.0,
    )
    text, pictures = _retold(situation)
    return f"{text}\n{_left(situation)}", pictures


def _left(situation: Situation) -> str:
    return f"{situation.rounds_left} rounds and {situation.turns_left} turns are left."


def system_prompt(path: Path | None = None) -> str:
    """Read the system prompt that comes with the package, or a user's own."""
    place = resources.files("medsam3.agent").joinpath("prompts", SYSTEM_PROMPT) if path is None else path
    return place.read_text(encoding="utf-8")


def _retold(situation: Situation) -> tuple[str, tuple[ShownPicture, ...]]:
    """The request, and for a run that was broken off what was done before."""
    count, height, width = situation.shape
    size = f"The image has {width} x {height} pixels" + (f" and {count} slices, numbered from 0." if count > 1 else ".")
    for picture in situation.opening:
        size += f" Picture {picture.number} shows " + (f"slice {picture.frame} of it" if count > 1 else "all of it")
        size += f" at {picture.size[0]} x {picture.size[1]} pixels."
    size += f" In calls and results, x runs from 0 at the left to {FULL} at the right edge of the picture, y from 0 at"
    size += f" the top to {FULL} at the bottom, whatever its size in pixels."
    text = f"Request: {json.dumps(situation.instruction, ensure_ascii=False)}\n{size}"
    pictures = situation.opening
    if situation.steps:
        lines = [f"{step.call.name} {step.call.arguments} -> {step.seen.text}" for step in situation.steps]
        text += "\nThe conversation was broken off. Done so far, with all masks kept:\n" + "\n".join(lines)
        later = [picture for step in situation.steps for picture in step.seen.pictures]
        pictures = (*pictures, *later[-MOST_PICTURES_RETOLD:])
    return text, pictures
