"""How phrases are read that the weights were not taught, and how near in meaning they have to be to be read at all.

Run: python benchmarks/phrases.py                 # the grid, on phrases that were written for this choice
     python benchmarks/phrases.py --held-out      # those of `medsam3 eval --synonyms`, once, at the chosen limits

The choice is made on `phrases.json`, written by somebody who had seen neither the listed nor the held-out phrasings:
seven a concept, and what no weights here were taught, some of it next door to what was. Those that are listed or held
out are left out. Read right: as the concept that is meant; wrong: as another; the rest is asked as it stands. No image
is looked at.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam3.concepts import CONCEPTS, normalised
from medsam3.eval.phrasings import held_out_phrases
from medsam3.models.mini.encoder_files import locate
from medsam3.models.mini.text_encoder import TextEncoder
from medsam3.models.phrase_reader import LEAST_LIKENESS, PhraseReader, Vectors

WRITTEN = Path(__file__).with_name("phrases.json")
LIKENESS = (0.5, 0.6, 0.65, 0.7, 0.725, 0.75, 0.775, 0.8, 0.825, 0.85, 0.9)
MOST_FOREIGN = 0.05
"""Share of foreign phrases that may be taken for a concept."""


@dataclass(frozen=True)
class Asked:
    """A phrase, its kind, and the concept that it means; None for what was never taught."""

    text: str
    kind: str
    concept: str | None


def written() -> Iterator[Asked]:
    """The phrases that the limit is chosen by."""
    content = json.loads(WRITTEN.read_text(encoding="utf-8"))
    left_out = {normalised(text) for phrases in held_out_phrases().values() for text in phrases.values()}
    left_out |= {normalised(text) for concept in CONCEPTS for text in concept.recognised}
    for concept, kinds in content["concepts"].items():
        for kind, texts in kinds.items():
            some = [texts] if isinstance(texts, str) else texts
            yield from (Asked(text, kind, concept) for text in some if normalised(text) not in left_out)
    yield from (Asked(text, "foreign", None) for text in content["foreign"])


def held_out() -> Iterator[Asked]:
    """The phrases of the panel that training never sees."""
    for concept, phrases in held_out_phrases().items():
        yield from (Asked(text, str(kind), concept) for kind, text in phrases.items())


def remembering(texts: TextEncoder) -> dict[str, Vectors]:
    """Vectors by phrase, computed when they are first asked for."""

    class Vectored(dict[str, Vectors]):
        def __missing__(self, phrase: str) -> Vectors:
            self[phrase] = texts.encode([phrase]).mean().numpy()[0]
            return self[phrase]

    return Vectored()


def shares(reader: PhraseReader, asked: Sequence[Asked]) -> dict[str, tuple[int, float, float]]:
    """By kind: how many, and the share of them that is read right and wrong."""
    table = {}
    for kind in dict.fromkeys(one.kind for one in asked):
        some = [one for one in asked if one.kind == kind]
        readings = [reader.read(one.text) for one in some]
        right = np.mean([r.is_taught and r.text == one.concept for r, one in zip(readings, some, strict=True)])
        wrong = np.mean([r.is_taught and r.text != one.concept for r, one in zip(readings, some, strict=True)])
        table[kind] = (len(some), float(right), float(wrong))
    return table


def row(likeness: float, table: dict[str, tuple[int, float, float]]) -> str:
    """One line of the grid."""
    cells = [f"{kind} {right:.3f}/{wrong:.3f}" for kind, (_, right, wrong) in table.items()]
    return f"likeness {likeness:.3f}: " + ", ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--misread", action="store_true", help="name what is read wrong, or not at all")
    parser.add_argument("--held-out", action="store_true", help="the phrases of medsam3 eval --synonyms")
    args = parser.parse_args()
    files = locate()
    known = remembering(TextEncoder.from_files(files.text_model, files.tokenizer))
    names = [concept.name for concept in CONCEPTS]

    def reader(likeness: float) -> PhraseReader:
        return PhraseReader(names, lambda phrases: np.stack([known[phrase] for phrase in phrases]), likeness)

    asked = list(held_out() if args.held_out else written())
    print("share read right/wrong, by kind:", {k: sum(a.kind == k for a in asked) for k in {a.kind: 0 for a in asked}})
    grid = [LEAST_LIKENESS] if args.held_out else LIKENESS
    results = [(likeness, shares(reader(likeness), asked)) for likeness in grid]
    for likeness, table in results:
        print(row(likeness, table))
    if args.misread:
        chosen = reader(LEAST_LIKENESS)
        for one in asked:
            reading = chosen.read(one.text)
            if (reading.text if reading.is_taught else None) != one.concept:
                print(f"{one.kind}: {one.text} -> {reading.text if reading.is_taught else '-'} ({one.concept})")
    if args.held_out:
        return
    allowed = [pair for pair in results if pair[1]["foreign"][2] <= MOST_FOREIGN]

    def gain(table: dict[str, tuple[int, float, float]]) -> float:
        return float(np.mean([right - wrong for kind, (_, right, wrong) in table.items() if kind != "foreign"]))

    best = max(allowed, key=lambda pair: gain(pair[1]))
    print(f"best with at most {MOST_FOREIGN:.0%} of foreign phrases read: {row(*best)}")


if __name__ == "__main__":
    main()
