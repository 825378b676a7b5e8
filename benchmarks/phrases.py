"""How phrases are read that the weights were not taught, and how near in meaning they have to be to be read at all.

Run: python benchmarks/phrases.py                 # the grid, on phrases that were written for this choice
     python benchmarks/phrases.py --held-out      # those of `medsam3 eval --synonyms`, once, at the chosen limits
     python benchmarks/phrases.py --panel         # phrases that deny, join, take away or name sides

The choice is made on `phrases.json`, written by somebody who had seen neither the listed nor the held-out phrasings:
seven a concept, and what no weights here were taught, some of it next door to what was. Those that are listed or held
out are left out. Read right: as the concept that is meant; wrong: as another; the rest is asked as it stands. No image
is looked at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam3.concepts import CONCEPTS, find, normalised
from medsam3.errors import InputError
from medsam3.eval.phrasings import held_out_phrases
from medsam3.models.mini.encoder_files import locate
from medsam3.models.mini.phrase_table import vectors_of
from medsam3.models.mini.text_encoder import TextEncoder
from medsam3.models.phrase_reader import LEAST_LIKENESS, PhraseReader, Reading, Vectors

WRITTEN = Path(__file__).with_name("phrases.json")
LIKENESS = (0.5, 0.6, 0.65, 0.7, 0.725, 0.75, 0.775, 0.8, 0.85, 0.9)
PANEL = Path(__file__).with_name("phrase_panel.json")
PLAIN = ("plain", "translated")
LEAST_PLAIN = 0.95
"""Share of the panel's plain phrases, in all languages, that must be read right."""
MOST_FOREIGN = 0.02
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
        right = np.mean([r.is_taught and name_of(r.text) == one.concept for r, one in zip(readings, some, strict=True)])
        wrong = np.mean([r.is_taught and name_of(r.text) != one.concept for r, one in zip(readings, some, strict=True)])
        table[kind] = (len(some), float(right), float(wrong))
    return table


def name_of(text: str) -> str:
    """The name of the concept that a detector is asked by a training phrase."""
    concept = find(text)
    return text if concept is None else concept.name


def panel_reading(reader: PhraseReader, phrase: str) -> str:
    """What a phrase is read as, in the panel's signs."""
    try:
        return " + ".join(map(_in_signs, reader.readings(phrase)))
    except InputError:
        return "!"


def _in_signs(reading: Reading) -> str:
    if not reading.is_taught:
        return "?"
    signs = [name_of(reading.text), *(f"- {name_of(text)}" for text in reading.without)]
    signs += [f"@image {' '.join(reading.image_sides)}"] if reading.image_sides else []
    signs += [f"@patient {reading.patient_side}"] if reading.patient_side else []
    return " ".join(signs)


def show_panel(reader: PhraseReader) -> int:
    """Print what is not read right and the counts by kind; 1 if the panel is not passed."""
    panel = json.loads(PANEL.read_text(encoding="utf-8"))
    read = [(one["kind"], one["phrase"], one["reading"], panel_reading(reader, one["phrase"])) for one in panel]
    for kind, phrase, wanted, got in read:
        if got != wanted:
            print(f"{kind}: {phrase!r} is read as {got}, right is {wanted}")
    others = [phrase for _, phrase, wanted, got in read if got not in (wanted, "?", "!")]
    for kind in dict.fromkeys(kind for kind, *_ in read):
        some = [wanted == got for own, _, wanted, got in read if own == kind]
        print(f"{kind}: {sum(some)} of {len(some)} right")
    plain = [wanted == got for kind, _, wanted, got in read if kind in PLAIN]
    print(f"{len(read)} phrases, answered as something else: {len(others)}; plain ones right: {np.mean(plain):.3f}")
    return int(bool(others) or float(np.mean(plain)) < LEAST_PLAIN)


def row(likeness: float, table: dict[str, tuple[int, float, float]]) -> str:
    """One line of the grid."""
    cells = [f"{kind} {right:.3f}/{wrong:.3f}" for kind, (_, right, wrong) in table.items()]
    return f"likeness {likeness:.3f}: " + ", ".join(cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--misread", action="store_true", help="name what is read wrong, or not at all")
    parser.add_argument("--held-out", action="store_true", help="the phrases of medsam3 eval --synonyms")
    parser.add_argument("--panel", action="store_true", help="phrases with their right readings")
    args = parser.parse_args()
    files = locate()
    texts = TextEncoder.from_files(files.text_model, files.tokenizer)
    known = remembering(texts)
    names = [concept.name for concept in CONCEPTS]

    def reader(likeness: float) -> PhraseReader:
        return PhraseReader(
            names, lambda phrases: np.stack([known[phrase] for phrase in phrases]), likeness, texts.knows_word
        )

    if args.panel:
        return show_panel(PhraseReader(names, lambda phrases: vectors_of(phrases, texts), is_word=texts.knows_word))
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
            if (name_of(reading.text) if reading.is_taught else None) != one.concept:
                print(f"{one.kind}: {one.text} -> {reading.text if reading.is_taught else '-'} ({one.concept})")
    if args.held_out:
        return 0
    allowed = [pair for pair in results if pair[1]["foreign"][2] <= MOST_FOREIGN]

    def gain(table: dict[str, tuple[int, float, float]]) -> float:
        return float(np.mean([right - wrong for kind, (_, right, wrong) in table.items() if kind != "foreign"]))

    best = max(allowed, key=lambda pair: gain(pair[1]))
    print(f"best with at most {MOST_FOREIGN:.0%} of foreign phrases read: {row(*best)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
