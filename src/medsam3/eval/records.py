"""One measured case, and the journal that keeps cases as they are made, so that a killed run can go on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medsam3.errors import InputError
from medsam3.eval.cases import EvalMode, Phrasing
from medsam3.eval.phrasings import PhraseKind
from medsam3.measure.instances import ObjectMatch

CaseKey = tuple[str, str, str, str, str, float]


@dataclass(frozen=True)
class CaseResult:
    """How one question about one image and concept was answered.

    Attributes:
        dataset: Name of the data set.
        image: Path of the image, relative to the data folder.
        concept: The concept asked about.
        group: What the bootstrap draws together.
        mode: How it was asked.
        phrase: The phrase that was used.
        phrasing: The concept's name, a synonym, or one kept out of training.
        kind: Clinical, lay, plural or misspelt, of a phrasing kept out of training; else "".
        jitter_percent: Of the oracle boxes.
        is_present: The truth.
        is_foreign: The concept belongs to another kind of image and is absent for that reason alone.
        says_present: The model's verdict; in modes without a phrase, whether it returned anything.
        presence: Its probability in 0..1; None in modes without a phrase.
        dice: In [0, 1]; this and the distances are None where the concept is absent.
        iou: In [0, 1].
        nsd: In [0, 1], at the configuration's tolerance.
        hd95: In `unit`; the image's diagonal where nothing was found.
        assd: In `unit`; likewise.
        unit: `mm` where the image has a spacing, else `px`.
        reference_px: Pixels of the truth.
        predicted_px: Pixels of the union of what was returned.
        references: Objects in the truth.
        predictions: Objects returned.
        overlaps: IoU of matched objects, best first.
        rivals: Confusable concepts that are in the image too.
        rival_dices: Dice of this answer with each of theirs.
        seconds: Time of decoding.
    """

    dataset: str
    image: str
    concept: str
    group: str
    mode: EvalMode
    phrase: str
    phrasing: Phrasing
    kind: PhraseKind
    jitter_percent: float
    is_present: bool
    is_foreign: bool
    says_present: bool
    presence: float | None
    dice: float | None
    iou: float | None
    nsd: float | None
    hd95: float | None
    assd: float | None
    unit: str
    reference_px: int
    predicted_px: int
    references: int
    predictions: int
    overlaps: tuple[float, ...]
    rivals: tuple[str, ...]
    rival_dices: tuple[float, ...]
    seconds: float

    @property
    def key(self) -> CaseKey:
        """What tells this case from all others."""
        return self.dataset, self.image, self.concept, self.mode, self.phrase, self.jitter_percent

    @property
    def draw_group(self) -> str:
        """The group's name among all data sets."""
        return f"{self.dataset}/{self.group}"

    @property
    def match(self) -> ObjectMatch:
        """The matched objects."""
        return ObjectMatch(self.references, self.predictions, self.overlaps)

    @property
    def is_missed(self) -> bool:
        """The concept is there and nothing was returned."""
        return self.is_present and self.predicted_px == 0

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it, reals to six digits."""
        return {name: _rounded(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave.

        Raises:
            InputError: Of another form.
        """
        names = {field.name for field in fields(cls)}
        if set(entry) != names:
            odd = ", ".join(sorted(set(entry) ^ names))
            raise InputError(f"a case has other fields than this version writes ({odd}): run the evaluation again")
        tuples = {name: tuple(entry[name]) for name in ("overlaps", "rivals", "rival_dices")}
        return cls(**{**entry, **tuples})


class Journal:
    """Cases in a file of JSON lines, one written and flushed at a time; the first line says what the run is."""

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume: bool) -> None:
        """Open a journal, made where there is none.

        Args:
            path: The file.
            header: What must be equal for a run to go on: configuration, weights, data.
            resume: Go on with a journal that is there.

        Raises:
            InputError: A journal is there and `resume` is not wanted, it belongs to another run, or the place cannot be
                written.
        """
        self._path = path
        self.cases: list[CaseResult] = []
        line = json.dumps({"header": header}, sort_keys=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._kept(line) if path.exists() else None
            if kept is not None and not resume:
                raise InputError(f"{path} holds an earlier run: go on with it by --resume, or give another --out")
            self._stream = path.open("a" if kept is not None else "w", encoding="utf-8")
            if kept is None:
                self._write(line)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}): give --out a folder you may write to"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def add(self, case: CaseResult) -> None:
        """Write one case so that it outlives this process."""
        self._write(json.dumps(case.to_json()))
        self.cases.append(CaseResult.from_json(case.to_json()))  # as a resumed run would read it

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _kept(self, header_line: str) -> int | None:
        """Read the cases of whole lines and cut off a line that a killed run left half written.

        Returns:
            Bytes that were kept; None where not even the header is whole.
        """
        whole = self._path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if not end:
            return None
        lines = whole[:end].decode("utf-8").splitlines()
        if lines[0] != header_line:
            raise InputError(f"{self._path} belongs to a run with other settings, weights or data: give another --out")
        try:
            self.cases = [CaseResult.from_json(json.loads(line)) for line in lines[1:]]
        except json.JSONDecodeError as error:
            raise InputError(f"{self._path} is damaged ({error}): give another --out") from error
        if end < len(whole):
            os.truncate(self._path, end)
        return end


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return value
