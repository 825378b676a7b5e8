"""The agent's loop: a policy decides, tools are run, every step is written down, until a verdict or a limit.

A caller's mistakes go back as observations; any other error ends the run, with the transcript kept.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medsam3.agent.chat import ChatError, ToolCall, Usage
from medsam3.agent.frames import QueriedImage
from medsam3.agent.session import OPENING, ToolSession
from medsam3.agent.tools import TOOLS, result_masks
from medsam3.agent.transcript import Ending, Heading, Transcript, read_transcript
from medsam3.agent.values import Budget, Decision, Observation, Policy, Situation, ToolStep, Verdict
from medsam3.image import Image, Masks
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import check_phrase

LONGEST_WAIT_S = 180.0
MOST_SILENT = 3
"""Answers in a row without any call, after which a model is not asked any more."""
_NO_CALL = ToolCall("", "(none)", "{}")
MOST_CALLS = 8
"""Calls of one turn that are run; more of them are answered as mistakes."""


@dataclass(frozen=True)
class AgentResult:
    """The outcome of a run.

    Attributes:
        masks: The accepted ones; of a run that a limit ended, the best so far; none where nothing is there.
        verdict: How it ended.
        usage: Of the LLM; nothing without one.
        rounds: Turns in which the segmenter was asked.
        turns: All turns.
        seconds: Time of all parts of the run.
        transcript: Where it was kept, if it was.
    """

    masks: Masks
    verdict: Verdict
    usage: Usage
    rounds: int
    turns: int
    seconds: float
    transcript: Path | None


@dataclass(frozen=True)
class RunOptions:
    """How a run is done.

    Attributes:
        budget: What it may cost.
        transcript: A folder to keep it in, and to take it up from; None keeps nothing.
        sent_to: The provider that pictures may go to, as it stands in the transcript.
        weights: What tells the segmenter's weights from others.
        on_step: Called after each step.
        progress: Told how much of a stack is segmented, as `medsam3.segment` tells it.
    """

    budget: Budget = field(default_factory=Budget)
    transcript: Path | None = None
    sent_to: str | None = None
    weights: str = ""
    on_step: Callable[[ToolStep], None] = lambda step: None
    progress: Callable[[int, int], None] | None = None


def run(
    image: Image,
    instruction: str,
    segmenter: Segmenter,
    policy: Policy | None = None,
    options: RunOptions | None = None,
) -> AgentResult:
    """Find in an image what an instruction asks for.

    Args:
        image: A picture, or a volume whose slices can be gone through.
        instruction: In words, such as "the larger of the two nodules".
        segmenter: A model, as `medsam3.load` gives.
        policy: Who decides; None takes the rules that need no LLM.
        options: Budget and transcript.

    Raises:
        InputError: A bad instruction, a transcript of another run, or an LLM provider that failed for good.
    """
    chosen = options or RunOptions()
    return run_on(QueriedImage(image, segmenter, chosen.progress), instruction, policy, chosen)


def run_on(
    queried: QueriedImage, instruction: str, policy: Policy | None = None, options: RunOptions | None = None
) -> AgentResult:
    """`run` with an image that was queried already, so that several instructions share its features."""
    image, chosen = queried.image, options or RunOptions()
    if policy is None:
        from medsam3.agent.offline import OfflinePolicy  # noqa: PLC0415

        policy = OfflinePolicy()
    heading = Heading(
        instruction=check_phrase(instruction),
        image=_hash(image),
        shape=queried.shape,
        model=queried.segmenter.name,
        weights=chosen.weights,
        policy=policy.name,
        budget=chosen.budget,
        sent_to=chosen.sent_to,
    )
    record = Transcript(chosen.transcript, heading)
    try:
        return _Run(queried, policy, record, chosen).finish()
    finally:
        record.close()


class _Run:
    """One run on its way."""

    def __init__(self, queried: QueriedImage, policy: Policy, transcript: Transcript, options: RunOptions) -> None:
        self.policy, self.transcript, self.record, self.options = policy, transcript, transcript.run, options
        self.session = ToolSession(queried, has_pictures=policy.is_shown_pictures)
        self.session.keep(self.record.opening or ())
        for step in self.record.steps:
            self.session.replay(step, TOOLS)
        self._earlier_s = sum(step.seconds for step in self.record.steps)
        self._started = self._last = time.monotonic()

    def finish(self) -> AgentResult:
        """Go on until it ends."""
        ending = self.record.ending
        if ending is not None and ending.verdict is not None:
            return self._result(ending.verdict, ending.seconds)
        if self.record.opening is None:
            opening = self.session.numbered(self.session.shown(OPENING))
            self.session.keep(opening)
            self.transcript.add("opening", opening)
        try:
            verdict = self._until_verdict()
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                why = f"{type(error).__name__}: {error}" if isinstance(error, ChatError) else type(error).__name__
                self.transcript.add("ending", Ending(None, why, self.usage, self.seconds))
            raise
        self.transcript.add("ending", Ending(verdict, None, self.usage, self.seconds))
        return self._result(verdict, self.seconds)

    @property
    def usage(self) -> Usage:
        """The usage of all decisions, and of asking that failed."""
        total = self.record.lost
        for decision in self.record.decisions:
            total = total + decision.usage
        return total

    @property
    def seconds(self) -> float:
        """Earlier parts of the run included."""
        return self._earlier_s + time.monotonic() - self._started

    @property
    def rounds(self) -> int:
        """Turns in which the segmenter was asked."""
        return len({step.turn for step in self.record.steps if step.is_round})

    def _until_verdict(self) -> Verdict:
        budget = self.options.budget
        while True:
            verdict = self._run_open_calls()
            if verdict is not None:
                return verdict
            limit = budget.spent(self.usage, self.seconds)
            if limit is None and len(self.record.decisions) >= budget.turns:
                limit = f"{budget.turns} turns passed without a decision"
            if limit is None and self._is_silent():
                said = " ".join(self.record.decisions[-1].said.split())[:200]
                limit = f"{MOST_SILENT} answers in a row called no tool, the last said {said!r}"
            if limit is not None:
                return self._undecided(limit)
            self.transcript.add("decision", self._decided())

    def _is_silent(self) -> bool:
        last = self.record.decisions[-MOST_SILENT:]
        return len(last) == MOST_SILENT and not any(decision.calls for decision in last)

    def _decided(self) -> Decision:
        try:
            return self.policy.decide(self._situation())
        except ChatError as error:
            self.transcript.add("lost", error.usage)
            raise

    def _run_open_calls(self) -> Verdict | None:
        """Run those calls of the last decision that have no step yet."""
        if not self.record.decisions:
            return None
        turn = len(self.record.decisions)
        calls = self.record.decisions[-1].calls or (_NO_CALL,)
        done = sum(step.turn == turn for step in self.record.steps)
        for place, call in enumerate(calls[done:], start=done):
            seen = self._seen(call, turn, place)
            now = time.monotonic()
            is_round = not seen.is_mistake and call.name in TOOLS and TOOLS[call.name].is_round
            step = ToolStep(len(self.record.steps) + 1, turn, call, seen, now - self._last, is_round)
            self._last = now
            self.transcript.add("step", step)
            self.options.on_step(step)
        own = [step.seen.verdict for step in self.record.steps if step.turn == turn]
        return next((verdict for verdict in own if verdict is not None), None)

    def _seen(self, call: ToolCall, turn: int, place: int) -> Observation:
        if call is _NO_CALL:
            return Observation("mistake: no tool was called; call one, accept or report_absent to end", is_mistake=True)
        if place >= MOST_CALLS:
            return Observation(f"mistake: at most {MOST_CALLS} calls are run in a turn", is_mistake=True)
        own = [step for step in self.record.steps if step.turn == turn]
        if any(step.seen.verdict is not None for step in own):
            return Observation("mistake: the run has ended by the call before", is_mistake=True)
        tool = TOOLS.get(call.name)
        is_new_round = tool is not None and tool.is_round and not any(step.is_round for step in own)
        if is_new_round and self.rounds >= self.options.budget.rounds:
            return Observation(
                f"mistake: all {self.options.budget.rounds} rounds are used; accept masks or report_absent",
                is_mistake=True,
            )
        return self.session.run(call, TOOLS)

    def _situation(self) -> Situation:
        budget, left = self.options.budget, LONGEST_WAIT_S
        if budget.seconds is not None:
            left = min(left, max(1.0, budget.seconds - self.seconds))
        return Situation(
            instruction=self.record.heading.instruction,
            opening=self.record.opening or (),
            shape=self.record.heading.shape,
            decisions=tuple(self.record.decisions),
            steps=tuple(self.record.steps),
            marks=dict(self.session.marks),
            rounds_left=budget.rounds - self.rounds,
            turns_left=budget.turns - len(self.record.decisions),
            timeout_s=left,
        )

    def _undecided(self, limit: str) -> Verdict:
        """The last masks of a phrase that the model calls present, and said to be no decision."""
        steps = [step for step in self.record.steps if step.is_round and step.seen.marks]
        best = steps[-1].seen.marks if steps else ()
        numbers = tuple(mark.number for mark in best if mark.is_present is not False)
        return Verdict("undecided", numbers, f"ended by a limit: {limit}")

    def _result(self, verdict: Verdict, seconds: float) -> AgentResult:
        shown = result_masks(self.session.marks, verdict.marks, self.record.heading.shape)
        masks = self.session.queried.view.masks_back(shown)
        usage, turns = self.usage, len(self.record.decisions)
        return AgentResult(masks, verdict, usage, self.rounds, turns, seconds, self.options.transcript)


@dataclass(frozen=True)
class Difference:
    """A step that gave something else than was recorded."""

    step: int
    call: str
    what: str


def replay(folder: Path, image: Image, segmenter: Segmenter) -> list[Difference]:
    """Run every recorded call again without the policy; an empty list says that the transcript holds.

    Args:
        folder: The transcript's.
        image: The image that it was made on.
        segmenter: The model that it was made with.

    Raises:
        InputError: No transcript, or one that is damaged.
    """
    saved = read_transcript(folder)
    session = ToolSession(QueriedImage(image, segmenter), has_pictures=False)
    session.keep(saved.opening or ())
    found: list[Difference] = []
    for step in saved.steps:
        if step.call.name not in TOOLS or step.seen.is_mistake or step.call.name == "look":
            session.keep(step.seen.pictures)
            continue
        what = _difference(step, session.run(step.call, TOOLS))
        if what is not None:
            found.append(Difference(step.number, f"{step.call.name} {step.call.arguments}", what))
        session.marks.update({mark.number: mark for mark in step.seen.marks})  # one difference does not breed others
        session.keep(step.seen.pictures)
    return found


def _difference(step: ToolStep, now: Observation) -> str | None:
    if len(now.marks) != len(step.seen.marks):
        return f"{len(now.marks)} masks, recorded are {len(step.seen.marks)}"
    for mark, then in zip(now.marks, step.seen.marks, strict=True):
        if mark.mask.start != then.mask.start or not np.array_equal(mark.mask.crop, then.mask.crop):
            return f"mask {then.number} has another shape"
    return None if now.text == step.seen.text else f"it said {json.dumps(now.text)}"


def _hash(image: Image) -> str:
    digest = hashlib.sha256(f"{image.shape}{image.window}".encode())
    for n in range(image.shape[0]):
        plane = image.pixels(n)
        digest.update(str(plane.dtype).encode() + np.ascontiguousarray(plane).tobytes())
    return digest.hexdigest()
