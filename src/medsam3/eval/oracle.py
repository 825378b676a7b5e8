"""A policy that looks at the truth: the most that the tools could give to whoever chose best. For evaluation only.

It asks in fixed ways and never puts the truth into a prompt; it chooses by the truth among the answers, and among their
objects.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medsam3.agent.frames import box_around, plane_of, relative_box, relative_crop, union_of
from medsam3.agent.offline import decision
from medsam3.agent.values import Decision, Mark, Situation
from medsam3.concepts import find
from medsam3.geometry import BoolArray
from medsam3.store import JsonObject
from medsam3.view.crops import closer_window

Judge = Callable[[BoolArray], float]
"""How good a mask (H, W) is, such as its Dice with the truth."""
MOST_BOXED = 12
MOST_PRUNED = 40


class OraclePolicy:
    """A way of asking for each round: phrase; synonyms and a closer look; boxes; boxes with the phrase; a click."""

    name = "oracle"
    is_shown_pictures = False

    def __init__(self, judge: Judge, *, is_absent: bool) -> None:
        self.judge, self.is_absent = judge, is_absent

    def decide(self, situation: Situation) -> Decision:
        """Ask while rounds are left, then choose by the truth."""
        if self.is_absent:
            return decision(situation, "", [("report_absent", {"reason": "the truth is empty"})])
        if situation.rounds_left > 0:
            wanted = self._next(situation)
            if wanted:
                return decision(situation, "", wanted)
        chosen = self._chosen(situation)
        if not chosen:
            return decision(situation, "", [("report_absent", {"reason": "no answer was right in any pixel"})])
        numbers = [mark.number for mark in chosen]
        return decision(situation, "", [("accept", {"masks": numbers, "reason": "best by the truth"})])

    def _next(self, situation: Situation) -> list[tuple[str, JsonObject]]:
        turn, phrase = len(situation.decisions) + 1, situation.instruction
        if turn == 1:
            return [("segment", {"phrase": phrase})]
        best = self._chosen(situation)
        if turn == 2:
            concept = find(phrase)
            others = [] if concept is None else [text for text in concept.phrases if text != phrase][:4]
            calls: list[tuple[str, JsonObject]] = [("segment", {"phrase": phrase, "also": others})] if others else []
            calls.append(("segment", {"phrase": phrase, "tiles": True}))
            window = closer_window(box_around(best), situation.shape[1:]) if best else None
            if window is not None:
                region = relative_crop(window, situation.shape[1:])
                calls.append(("segment", {"phrase": phrase, "region": region}))
            return calls
        boxes = [relative_box(mark.mask.box, situation.shape[1:], digits=6) for mark in best[:MOST_BOXED]]
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
        score = self.judge(union_of(kept, shape))
        for mark in sorted(marks, key=lambda mark: mark.mask.score)[:MOST_PRUNED]:
            rest = [other for other in kept if other is not mark]
            if rest and (without := self.judge(union_of(rest, shape))) >= score:
                kept, score = rest, without
        return tuple(kept), score


def _centre(mark: Mark, shape: tuple[int, int]) -> list[float]:
    """The pixel of a mark that is nearest to its centre, in relative coordinates."""
    rows, columns = np.nonzero(plane_of(mark, shape))
    middle = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    x, y = float(columns[middle]), float(rows[middle])
    return relative_box((x, y, x, y), shape, digits=6)[:2]
