"""Tasks of a model process for the agent: a run with its transcript, and what a run would send before it is begun."""

from __future__ import annotations

import base64
from pathlib import Path

from medsam3.agent import Budget, RunOptions, llm_policy, run, write_html
from medsam3.agent.chat import parse_address
from medsam3.agent.llm import first_message, system_prompt
from medsam3.agent.tools import TOOLS
from medsam3.agent.values import Policy
from medsam3.server.modelling import found_in, model
from medsam3.server.pool import report
from medsam3.server.reader import opened, save_masks
from medsam3.server.schemas import AgentAnswer, AgentAsked, Found, PreviewAnswer, PreviewPicture, Source


def follow(
    source: Source, asked: AgentAsked, llm: str | None, masks: Path, transcript: Path
) -> tuple[AgentAnswer, Found]:
    """Follow an instruction, and keep masks and transcript.

    Raises:
        InputError: As `medsam3.agent.run`.
    """
    image, budget = opened(source), Budget(asked.rounds)
    options = RunOptions(
        budget,
        transcript,
        _pictures_to(asked, llm),
        on_step=lambda step: report(step.number, max(step.number, budget.turns)),
        progress=report,
    )
    report(0, 0)
    result = run(image, asked.instruction, model(), _policy(asked, llm), options)
    save_masks([result.masks], masks)
    ended = AgentAnswer(
        outcome=result.verdict.outcome,
        reason=result.verdict.reason,
        rounds=result.rounds,
        turns=result.turns,
        seconds=result.seconds,
        usage=result.usage,
    )
    return ended, found_in([result.masks], image)


def preview(source: Source, asked: AgentAsked, llm: str) -> PreviewAnswer:
    """Give what an LLM would be sent first; nothing is sent.

    Raises:
        InputError: As `medsam3.agent.llm_policy`.
    """
    text, pictures = first_message(
        opened(source), asked.instruction, Budget(asked.rounds), model(), send_images=asked.send_images
    )
    address = parse_address(llm)
    shown = [
        PreviewPicture(
            caption=one.caption, width=one.size[0], height=one.size[1], png=base64.b64encode(one.png).decode()
        )
        for one in pictures
    ]
    return PreviewAnswer(
        sent_to=address.provider,
        model=address.model,
        system=system_prompt(),
        text=text,
        tools=list(TOOLS),
        pictures=shown,
    )


def transcript_page(folder: Path) -> Path:
    """Write a transcript as one page.

    Raises:
        InputError: There is none yet.
    """
    write_html(folder, folder / "index.html")
    return folder / "index.html"


def _policy(asked: AgentAsked, llm: str | None) -> Policy | None:
    return (
        None if asked.policy == "offline" or llm is None else llm_policy(llm, send_images_to=_pictures_to(asked, llm))
    )


def _pictures_to(asked: AgentAsked, llm: str | None) -> str | None:
    is_sent = asked.policy == "llm" and asked.send_images and llm is not None
    return parse_address(llm).provider if is_sent and llm is not None else None
