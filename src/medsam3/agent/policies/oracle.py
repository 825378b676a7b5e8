"""A policy that looks at the truth: the most that the tools could give to whoever chose best. For evaluation only.

It asks in fixed ways and never puts the truth into a prompt; it chooses by the truth among the answers, and among their
objects.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from medsam3.agent.bench import as_box
from medsam3.agent.chat import ToolCall
from medsam3.agent.measuring import plane_of
from medsam3.agent.values import Decision, Mark, Situation
from medsam3.concepts import find
from medsam3.geometry import BoolArray
from medsam3.view.crops import closer_window

Judge = Callable[[BoolArray], float]
"""How good a mask (H, W) is, such as its Dice with the truth."""
MOST_BOXED = 12
MOST_PRUNED = 40


class OraclePolicy:
    """A way of asking for each round: phrase; synonyms and a closer look; boxes; boxes with the phrase; a click."""

    is_shown_pictures = False

    def __init__(self, judge: Judge, *, is_absent: bool) -> None:
        self.judge, self.is_absent = judge, is_absent

    @property
    def name(self) -> str:
        """`oracle`."""
        return "oracle"

    def decide(self, situation: Situation) -> Decision:
        """Ask while rounds are left, then choose by the truth."""
        if self.is_absent:
            return _decision(situation, [("report_absent", {"reason": "the truth is empty"})])
        if situation.rounds_left > 0:
            wanted = self._next(situation)
            if wanted:
                return _decision(situation, wanted)
        chosen = self._chosen(situation)
        if not chosen:
            return _decision(situation, [("report_absent", {"reason": "no answer was right in any pixel"})])
        numbers = [mark.number for mark in chosen]
        return _decision(situation, [("accept", {"masks": numbers, "reason": "best by the truth"})])

    def _next(self, situation: Situation) -> list[tuple[str, dict[str, Any]]]:
        turn, phrase = len(situation.decisions) + 1, situation.instruction
        if turn == 1:
            return [("segment", {"phrase": phrase})]
        best = self._chosen(situation)
        if turn == 2:
            concept = find(phrase)
            others = [] if concept is None else [text for text in concept.phrases if text != phrase][:4]
            calls: list[tuple[str, dict[str, Any]]] = (
                [("segment", {"phrase": phrase, "also": others})] if others else []
            )
            calls.append(("segment", {"phrase": phrase, "tiles": True}))
            window = closer_window(_around(best), situation.shape[1:]) if best else None
            if window is not None:
                region = [window.left, window.top, window.right, window.bottom]
                calls.append(("segment", {"phrase": phrase, "region": region}))
            return calls
        boxes = [[round(edge, 1) for edge in as_box(mark.mask).xyxy] for mark in best[:MOST_BOXED]]
        if not boxes or turn > 5:
            return []
        if turn == 3:
            return [("segment_box", {"boxes": boxes})]
        if turn == 4:
            return [("segment_box", {"boxes": boxes, "phrase": phrase})]
        return [("refine", {"mask": best[0].number, "points": [[*_centre(best[0], situation.shape[1:]), 1]]})]

    def _chosen(self, situation: Situation) -> tuple[Mark, ...]:
        """The best answer, without those of its objects that only cost."""
        shape = situation.shape[1:]
        best: tuple[Mark, ...] = ()
        best_score = 0.0
        for step in situation.steps:
            marks, score = self._pruned(step.seen.marks, shape)
            if score > best_score:
                best, best_score = marks, score
        return best

    def _pruned(self, marks: tuple[Mark, ...], shape: tuple[int, int]) -> tuple[tuple[Mark, ...], float]:
        kept = list(marks)
        score = self.judge(_union(kept, shape))
        for mark in sorted(marks, key=lambda mark: mark.mask.score)[:MOST_PRUNED]:
            rest = [other for other in kept if other is not mark]
            if rest and (without := self.judge(_union(rest, shape))) >= score:
                kept, score = rest, without
        return tuple(kept), score


def _union(marks: list[Mark], shape: tuple[int, int]) -> BoolArray:
    union = np.zeros(shape, dtype=np.bool_)
    for mark in marks:
        union |= plane_of(mark, shape)
    return union


def _around(marks: tuple[Mark, ...]) -> tuple[float, float, float, float]:
    boxes = np.array([mark.mask.box for mark in marks])
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _centre(mark: Mark, shape: tuple[int, int]) -> tuple[float, float]:
    rows, columns = np.nonzero(plane_of(mark, shape))
    middle = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return float(columns[middle]), float(rows[middle])


def _decision(situation: Situation, wanted: list[tuple[str, dict[str, Any]]]) -> Decision:
    turn = len(situation.decisions) + 1
    calls = tuple(ToolCall(f"{turn}.{n}", name, json.dumps(values)) for n, (name, values) in enumerate(wanted, start=1))
    return Decision("", calls)
