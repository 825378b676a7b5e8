"""The offline agent's numbers: collect what each way to answer gains on the validation split, fit, and store.

    python benchmarks/agent.py collect DATA --out DIR [--limit 20] [--cache DIR]   # resumes
    python benchmarks/agent.py fit DIR [--write]                                   # --write stores offline.json
    medsam3 eval DATA --agent offline --out runs/agent                 # test, against the plain answer

Never run `collect` on the test split: it refuses it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import medsam3
from medsam3.agent.bench import Bench
from medsam3.agent.loop import Options, run_on
from medsam3.agent.policies import offline
from medsam3.agent.policies.offline import FEATURES, KINDS, Candidate, Gain, Kind, OfflinePolicy, Selection, candidates
from medsam3.agent.values import Budget, Situation, Step
from medsam3.data.index import IndexRow, read_index
from medsam3.eval.cases import EvalConfig, load_truth, select
from medsam3.eval.provenance import weights_hash
from medsam3.measure.intervals import mean_interval
from medsam3.measure.outline import dice

RIDGE = 3.0
"""Cases that the penalty weighs; the constant term is not spared, so few cases gain little."""
LEAST_CROSS_VALIDATED_GAIN = 0.005
"""Of a kind, over the questions that it is tried on."""
FOLDS = 5
LEAST_GAINS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)
MOST_LOST = 0.005
"""Of a data set's mean Dice, in cross-validation."""
Row = dict[str, Any]


class CachedNecks:
    """LiteMedSAM with its encoder's answers on disk, by the content of the square and the encoder's weights."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model, self.folder, self.decode = model, folder, model.decode
        folder.mkdir(parents=True, exist_ok=True)
        weights = b"".join(value.float().numpy().tobytes() for value in list(model.encoder.state_dict().values())[-4:])
        self.key = hashlib.sha256(weights)

    def neck(self, square: NDArray[np.uint8]) -> Tensor:
        """As `LiteMedSam.neck`, rounded to half precision."""
        key = self.key.copy()
        key.update(square.tobytes())
        path = self.folder / f"{key.hexdigest()[:24]}.npy"
        if not path.exists():
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, self.model.neck(square).half().numpy())
            temporary.replace(path)
        return torch.from_numpy(np.load(path)).float()


def collect(args: argparse.Namespace) -> None:
    """Ask in all ways about every row, and note Dice and features of each answer."""
    if args.split == "test":
        raise SystemExit("the test split is not for fitting")
    chosen = select(
        read_index(args.data), EvalConfig(split=args.split, datasets=tuple(args.datasets), limit=args.limit)
    )
    segmenter: Any = medsam3.load("mini", weights=args.weights)
    if args.cache is not None and hasattr(segmenter, "lite_medsam"):
        segmenter.lite_medsam = CachedNecks(segmenter.lite_medsam, args.cache)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "rows.jsonl"
    weights = weights_hash("mini", args.weights)
    done = {(row["image"], row["concept"]) for row in _read(path) if row["weights"] == weights}
    grouped = [(image, list(own)) for image, own in groupby(chosen.rows, key=lambda row: row.image)]
    first = ("busi", "dsb2018", "kvasir_seg", "hc18", "isic2017", "cvc_clinicdb")
    grouped.sort(key=lambda pair: first.index(pair[1][0].dataset) if pair[1][0].dataset in first else len(first))
    started = time.perf_counter()
    for count, (image, rows) in enumerate(grouped, start=1):
        open_rows = [row for row in rows if (image.relative_to(args.data).as_posix(), row.concept) not in done]
        if open_rows:
            bench = Bench(medsam3.read(image), segmenter)
            with path.open("a", encoding="utf-8") as stream:
                for row in open_rows:
                    stream.write(
                        json.dumps({"weights": weights, **_collected(bench, row, args.data, args.tries or KINDS)})
                        + "\n"
                    )
        print(f"{count}/{len(grouped)} {rows[0].dataset} {time.perf_counter() - started:.0f} s", flush=True)


def _collected(bench: Bench, row: IndexRow, data: Path, tries: Sequence[Kind]) -> Row:
    steps: list[Step] = []
    policy = OfflinePolicy(Selection(votes_to_affirm=1.0, votes_to_keep=0.01), tries=tries, is_shown_pictures=False)
    run_on(bench, row.concept, policy, Options(Budget(rounds=3), on_step=steps.append))
    truth = load_truth(row).mask
    every = candidates(_situation(bench, row.concept, steps))
    votes = [step.seen.facts["votes"] for step in steps if len(step.seen.facts.get("votes", ())) > 1]
    return {
        "dataset": row.dataset,
        "image": row.image.relative_to(data).as_posix(),
        "concept": row.concept,
        "group": f"{row.dataset}/{row.group}",
        "is_present": row.is_present,
        "says_present": bool(steps[0].seen.facts["is_present"]) and bool(steps[0].seen.marks),
        "votes": votes[0] if votes else None,
        "answers": [_answer(one, every, truth) for one in every],
    }


def _answer(one: Candidate, every: Sequence[Candidate], truth: NDArray[np.bool_]) -> Row:
    found = float(dice(truth, one.union)) if truth.any() else None
    return {"kind": one.kind, "dice": found, "parts": len(one.marks), "features": offline.features_of(one, every)}


def _situation(bench: Bench, instruction: str, steps: Sequence[Step]) -> Situation:
    marks = {mark.number: mark for step in steps for mark in step.seen.marks}
    return Situation(instruction, (), bench.image.shape, (), steps, marks, 0, 1, 1.0)


def fit(args: argparse.Namespace) -> None:
    """Fit the selection on what was collected, print what it gains in cross-validation, and store it if wanted."""
    rows = list(_read(args.dir / "rows.jsonl"))
    weights = weights_hash("mini", args.weights)
    rows = [row for row in rows if row["weights"] == weights]
    votes = _fit_votes(rows)
    kinds = [kind for kind in KINDS if _own_gain(rows, kind) >= LEAST_CROSS_VALIDATED_GAIN]
    print("kinds that gain alone in cross-validation:", ", ".join(kinds) or "none")
    for kind in KINDS:
        print(f"  {kind}: {_cross_validated(rows, (kind,)):+.4f} Dice over all positives, {_mean_gain(rows, kind)}")
    least = _least_gain(rows, kinds)
    if least is None:
        print("no data set may lose more than", MOST_LOST, "and nothing is gained without: the plain answer stays")
        kinds, least = [], 0.0
    gains = tuple(Gain(kind, tuple(round(float(w), 5) for w in _fitted(rows, kind))) for kind in kinds)
    about = (
        f"benchmarks/agent.py fit, val, {len(rows)} questions on {len({row['image'] for row in rows})} images, "
        f"weights {weights}, ridge {RIDGE:g}, {FOLDS} folds by group"
    )
    selection = Selection(gains, least, *votes, about)
    _report(rows, kinds, least)
    text = json.dumps(selection.to_json(), indent=1) + "\n"
    print(text)
    if args.write:
        Path(offline.__file__).with_name("offline.json").write_text(text, encoding="utf-8")


def _fit_votes(rows: Sequence[Row]) -> tuple[float, float]:
    """Shares of votes that keep or overturn the plain verdict; false alarms may not rise, so affirming has to pay."""
    voted = [row for row in rows if row["votes"] is not None]
    best, chosen = 0.0, (1.1, 0.0)
    for affirm in (1.1, 1.0, 0.8, 0.6):
        for keep in (0.0, 0.3, 0.5, 0.7):
            gain, alarms = 0.0, 0
            for row in voted:
                share = float(np.mean(row["votes"]))
                after = share >= (keep if row["says_present"] else affirm)
                if not row["is_present"]:
                    alarms += int(after) - int(row["says_present"])
                else:
                    gain += (int(after) - int(row["says_present"])) * row["answers"][0]["dice"]
            if alarms <= 0 and gain > best + 1e-9:
                best, chosen = gain, (affirm, keep)
    print(
        f"votes: affirm {chosen[0]}, keep {chosen[1]}; gain {best / max(1, len(voted)):+.4f} on {len(voted)} questions"
    )
    return chosen


def _pairs(rows: Sequence[Row], kind: str) -> Iterator[tuple[Row, Row, Row]]:
    for row in rows:
        other = next((one for one in row["answers"] if one["kind"] == kind and one["parts"]), None)
        is_tried = kind != "tiles" or row["answers"][0]["parts"] > offline.MANY
        if row["is_present"] and row["says_present"] and other is not None and is_tried:
            yield row, row["answers"][0], other


def _fitted(rows: Sequence[Row], kind: str) -> NDArray[np.float64]:
    pairs = list(_pairs(rows, kind))
    if not pairs:
        return np.zeros(len(FEATURES))
    x = np.array([other["features"] for _, _, other in pairs])
    y = np.array([other["dice"] - plain["dice"] for _, plain, other in pairs])
    solved: NDArray[np.float64] = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
    return solved


def _chosen_gains(train: Sequence[Row], test: Sequence[Row], kinds: Sequence[str], least: float) -> dict[int, float]:
    """Gain in Dice of each positive of `test`, by its place, with weights of `train`."""
    weights = {kind: _fitted(train, kind) for kind in kinds}
    gained: dict[int, float] = {}
    for place, row in enumerate(test):
        if not row["is_present"]:
            continue
        expected, got = least, 0.0
        for _, plain, other in (pair for kind in kinds for pair in _pairs([row], kind)):
            gain = float(np.dot(weights[other["kind"]], other["features"]))
            if gain > expected:
                expected, got = gain, other["dice"] - plain["dice"]
        gained[place] = got
    return gained


def _folds(rows: Sequence[Row]) -> Iterator[tuple[list[Row], list[Row]]]:
    fold = [int(hashlib.sha256(row["group"].encode()).hexdigest(), 16) % FOLDS for row in rows]
    for number in range(FOLDS):
        yield (
            [row for row, own in zip(rows, fold, strict=True) if own != number],
            [row for row, own in zip(rows, fold, strict=True) if own == number],
        )


def _gained(rows: Sequence[Row], kinds: Sequence[str], least: float) -> list[tuple[Row, float]]:
    """Positives with what cross-validation gains on them."""
    return [
        (test[place], gain)
        for train, test in _folds(rows)
        for place, gain in _chosen_gains(train, test, kinds, least).items()
    ]


def _cross_validated(rows: Sequence[Row], kinds: Sequence[str]) -> float:
    gains = [gain for _, gain in _gained(rows, kinds, 0.0)]
    return float(np.mean(gains)) if gains else 0.0


def _own_gain(rows: Sequence[Row], kind: str) -> float:
    """What cross-validation gains over the questions that the kind is tried on."""
    tried = len(list(_pairs(rows, kind)))
    gains = [gain for _, gain in _gained(rows, (kind,), 0.0)]
    return float(np.sum(gains)) / tried if tried else 0.0


def _least_gain(rows: Sequence[Row], kinds: Sequence[str]) -> float | None:
    """What must be expected, so that most is gained with no data set the worse for it; None where nothing is gained."""
    best, chosen = 0.0, None
    for least in LEAST_GAINS:
        gained = _gained(rows, kinds, least)
        means = [
            float(np.mean([gain for row, gain in gained if row["dataset"] == name]))
            for name in {row["dataset"] for row, _ in gained}
        ]
        mean = float(np.mean([gain for _, gain in gained])) if gained else 0.0
        if mean > best and min(means) >= -MOST_LOST:
            best, chosen = mean, least
    return chosen


def _mean_gain(rows: Sequence[Row], kind: str) -> str:
    gains = [other["dice"] - plain["dice"] for _, plain, other in _pairs(rows, kind)]
    return f"always taken {np.mean(gains):+.4f} on its {len(gains)}" if gains else "never there"


def _room(row: Row) -> float:
    """What the best of the answers gains over the plain one, where that says present."""
    own = [float(one["dice"]) for one in row["answers"]]
    return max(own) - own[0] if row["says_present"] else 0.0


def _report(rows: Sequence[Row], kinds: Sequence[str], least: float) -> None:
    gained = _gained(rows, kinds, least)
    best = [(row, _room(row)) for row, _ in gained]
    for name in [*sorted({row["dataset"] for row, _ in gained}), "all"]:
        own = [(row, gain) for row, gain in gained if name in (row["dataset"], "all")]
        room = float(np.mean([gain for row, gain in best if name in (row["dataset"], "all")]))
        estimate = mean_interval([gain for _, gain in own], [row["group"] for row, _ in own])
        print(
            f"  {name}: n {len(own)}, cross-validated {estimate.value:+.4f} "
            f"[{estimate.low:+.4f}, {estimate.high:+.4f}], best of the answers {room:+.4f}"
        )


def _read(path: Path) -> Iterator[Row]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def main() -> None:
    """Run the asked part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("collect")
    one.add_argument("data", type=Path)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--split", default="val", choices=("train", "val", "test"))
    one.add_argument("--datasets", nargs="*", default=())
    one.add_argument("--tries", nargs="*", choices=KINDS, help="default: all ways to answer")
    one.add_argument("--limit", type=int)
    one.add_argument("--cache", type=Path)
    one.add_argument("--weights", type=Path)
    one.set_defaults(run=collect)
    two = parts.add_parser("fit")
    two.add_argument("dir", type=Path)
    two.add_argument("--weights", type=Path)
    two.add_argument("--write", action="store_true")
    two.set_defaults(run=fit)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()
