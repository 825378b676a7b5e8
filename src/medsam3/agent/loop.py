"""The agent's loop: a policy decides, tools are run, every step is written down, until a verdict or a limit.

A caller's mistakes go back as observations; any other error ends the run, with the transcript kept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medsam3.agent.bench import Bench
from medsam3.agent.chat import ChatError, ShownPicture, ToolCall, Usage
from medsam3.agent.toolbox import TOOLS, result_masks
from medsam3.agent.tools import Session
from medsam3.agent.transcript import Ending, Heading, Transcript
from medsam3.agent.values import Budget, Decision, Observation, Policy, Situation, Step, Verdict
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
    """What a run came to.

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
class Options:
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
    on_step: Callable[[Step], None] = lambda step: None
    progress: Callable[[int, int], None] | None = None


def run(
    image: Image, instruction: str, segmenter: Segmenter, policy: Policy | None = None, options: Options | None = None
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
    chosen = options or Options()
    return run_on(Bench(image, segmenter, chosen.progress), instruction, policy, chosen)


def run_on(bench: Bench, instruction: str, policy: Policy | None = None, options: Options | None = None) -> AgentResult:
    """`run` with an image that is on the bench already, so that several instructions share its features."""
    image, chosen = bench.image, options or Options()
    if policy is None:
        from medsam3.agent.policies.offline import OfflinePolicy  # noqa: PLC0415

        policy = OfflinePolicy()
    heading = Heading(
        instruction=check_phrase(instruction),
        image=_hash(image),
        shape=bench.shape,
        model=bench.segmenter.name,
        weights=chosen.weights,
        policy=policy.name,
        budget=chosen.budget,
        sent_to=chosen.sent_to,
    )
    return _Run(bench, policy, Transcript(chosen.transcript, heading), chosen).finish()


class _Run:
    """One run on its way."""

    def __init__(self, bench: Bench, policy: Policy, record: Transcript, options: Options) -> None:
        self.policy, self.record, self.options = policy, record, options
        self.session = Session(bench, has_pictures=policy.is_shown_pictures)
        for step in record.steps:
            self.session.replay(step, TOOLS)
        self._earlier_s = sum(step.seconds for step in record.steps)
        self._started = self._last = time.monotonic()

    def finish(self) -> AgentResult:
        """Go on until it ends."""
        ending = self.record.ending
        if ending is not None and ending.verdict is not None:
            return self._result(ending.verdict, ending.seconds)
        if self.record.opening is None:
            self.record.open_with(self._opening())
        try:
            verdict = self._until_verdict()
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                self.record.end(Ending(None, type(error).__name__, self.usage, self.seconds))
            raise
        self.record.end(Ending(verdict, None, self.usage, self.seconds))
        return self._result(verdict, self.seconds)

    @property
    def usage(self) -> Usage:
        """Of all decisions, and of asking that failed."""
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
            self.record.decide(self._decided())

    def _is_silent(self) -> bool:
        last = self.record.decisions[-MOST_SILENT:]
        return len(last) == MOST_SILENT and not any(decision.calls for decision in last)

    def _decided(self) -> Decision:
        try:
            return self.policy.decide(self._situation())
        except ChatError as error:
            self.record.lose(error.usage)
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
            step = Step(len(self.record.steps) + 1, turn, call, seen, now - self._last, is_round)
            self._last = now
            self.record.add(step)
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

    def _opening(self) -> tuple[ShownPicture, ...]:
        return self.session.shown("the image as it is")

    def _undecided(self, limit: str) -> Verdict:
        """The last masks of a phrase that the model calls present, and said to be no decision."""
        steps = [step for step in self.record.steps if step.is_round and step.seen.marks]
        best = steps[-1].seen.marks if steps else ()
        numbers = tuple(mark.number for mark in best if mark.is_present is not False)
        return Verdict("undecided", numbers, f"ended by a limit: {limit}")

    def _result(self, verdict: Verdict, seconds: float) -> AgentResult:
        shown = result_masks(self.session.marks, verdict.marks, self.record.heading.shape)
        masks = self.session.bench.view.masks_back(shown)
        usage, turns = self.usage, len(self.record.decisions)
        return AgentResult(masks, verdict, usage, self.rounds, turns, seconds, self.options.transcript)


def _hash(image: Image) -> str:
    digest = hashlib.sha256(f"{image.shape}{image.window}".encode())
    for n in range(image.shape[0]):
        plane = image.pixels(n)
        digest.update(str(plane.dtype).encode() + np.ascontiguousarray(plane).tobytes())
    return digest.hexdigest()
