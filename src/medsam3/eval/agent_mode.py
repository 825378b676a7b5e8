"""`medsam3 eval --agent`: the agent and the plain phrase over the same cases, with rounds, time and cost of each.

Both answers come from the same features, so that a difference is the agent's. Cases are kept as they are made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.agent.bench import Bench
from medsam3.agent.loop import AgentResult, Options, run_on
from medsam3.agent.policies.offline import OfflinePolicy
from medsam3.agent.policies.oracle import OraclePolicy
from medsam3.agent.values import Budget, Policy
from medsam3.data.index import IndexRow, read_index
from medsam3.errors import InputError
from medsam3.eval.cases import EvalConfig, Truth, load_truth, select
from medsam3.eval.provenance import provenance
from medsam3.eval.run import Progress
from medsam3.eval.tables import Table
from medsam3.geometry import BoolArray
from medsam3.io import read
from medsam3.measure.intervals import Estimate, paired_interval
from medsam3.measure.outline import dice
from medsam3.models.registry import load
from medsam3.store import replacing, without_nan

ALL = "all"


@dataclass(frozen=True)
class AgentCase:
    """One question, answered by the plain phrase and by the agent.

    Attributes:
        dataset, image, concept, group, is_present: As of `CaseResult`.
        plain_dice, agent_dice: In [0, 1], 0 where nothing was returned; None where the concept is absent.
        plain_says, agent_says: Whether something was found.
        outcome: The agent's verdict.
        rounds: Turns in which the segmenter was asked.
        encodings: Frames and windows that were encoded for this case; features of an image are shared by its cases.
        seconds: The agent's time, encoding included.
        tokens: Of the LLM.
        usd: Of the LLM; None where the price is not known.
    """

    dataset: str
    image: str
    concept: str
    group: str
    is_present: bool
    plain_dice: float | None
    agent_dice: float | None
    plain_says: bool
    agent_says: bool
    outcome: str
    rounds: int
    encodings: int
    seconds: float
    tokens: int
    usd: float | None


def evaluate_agent(args: argparse.Namespace, config: EvalConfig, progress: Progress) -> tuple[list[Table], int]:
    """Measure what is not yet in the journal, and write `agent.json`.

    Returns:
        The tables, and the exit code.

    Raises:
        InputError: An unknown policy or data set, or a journal of another run.
    """
    budget = Budget(args.rounds)
    policy_for = _policies(args.agent, args.send_images)
    chosen = select(read_index(args.data), config)
    about = provenance(args.model, args.weights, args.data, chosen.rows, f"medsam3 eval --agent {args.agent}")
    header = {
        "agent": args.agent,
        "rounds": args.rounds,
        "model": about.model,
        "weights": about.weights_sha256,
        "data": about.data_sha256,
        "split": config.split,
    }
    segmenter = load(args.model, weights=args.weights, flips=args.flips)
    journal = args.out / "agent-cases.jsonl"
    cases = _kept(journal, header, resume=args.resume)
    failures: list[str] = []
    done = {(case.image, case.concept) for case in cases}
    images = [(image, list(own)) for image, own in groupby(chosen.rows, key=lambda row: row.image)]
    for count, (path, rows) in enumerate(images):
        progress(count, len(images), rows[0].dataset)
        name = path.relative_to(args.data).as_posix()
        open_rows = [row for row in rows if (name, row.concept) not in done]
        if not open_rows:
            continue
        try:
            bench = Bench(read(path), segmenter)
            for row in open_rows:
                case = _case(bench, row, name, policy_for, budget)
                cases.append(case)
                _append(journal, asdict(case))
        except InputError as error:
            failures.append(f"{name}: {error}")
    rows_of_table = difference_rows(cases, seed=config.seed)
    entry: dict[str, Any] = {"about": asdict(about), "run": header, "failures": failures}
    entry |= {"rows": [asdict(row) for row in rows_of_table], "cases": [asdict(case) for case in cases]}
    with replacing(args.out / "agent.json", ".json") as temporary:
        temporary.write_text(json.dumps(without_nan(entry), indent=1) + "\n", encoding="utf-8")
    for failure in failures:
        print(f"medsam3: error: {failure}", file=sys.stderr)
    return [_table(rows_of_table, f"{args.agent} agent, {args.rounds} rounds")], 2 if failures else 0


PolicyFor = Callable[[Truth], Policy]


def _policies(name: str, send_images_to: str | None) -> PolicyFor:
    if name == "offline":
        return lambda truth: OfflinePolicy(is_shown_pictures=False)
    if name == "oracle":
        return lambda truth: OraclePolicy(_judge(truth.mask), is_absent=not truth.mask.any())
    from medsam3.agent.policies.llm import llm_policy  # noqa: PLC0415

    llm_policy(name, send_images_to=send_images_to)  # what is wrong with it is said before anything is measured
    return lambda truth: llm_policy(name, send_images_to=send_images_to)


def _judge(mask: BoolArray) -> Callable[[BoolArray], float]:
    return lambda found: dice(mask, found)


def _case(bench: Bench, row: IndexRow, name: str, policy_for: PolicyFor, budget: Budget) -> AgentCase:
    truth = load_truth(row)
    if truth.mask.shape != bench.image.shape[1:]:
        raise InputError(f"{row.mask.name} is {truth.mask.shape}, the image is {bench.image.shape[1:]} (rows, columns)")
    before = bench.encodings
    result = run_on(bench, row.concept, policy_for(truth), Options(budget))
    plain = bench.ask(0, row.concept)
    plain_mask = plain.masks.union()[0] if plain.is_present else np.zeros_like(truth.mask)
    return AgentCase(
        dataset=row.dataset,
        image=name,
        concept=row.concept,
        group=row.group,
        is_present=row.is_present,
        plain_dice=float(dice(truth.mask, plain_mask)) if row.is_present else None,
        agent_dice=float(dice(truth.mask, result.masks.union()[0])) if row.is_present else None,
        plain_says=plain.is_present,
        agent_says=len(result.masks) > 0,
        rounds=result.rounds,
        encodings=bench.encodings - before,
        **_cost(result),
    )


def _cost(result: AgentResult) -> dict[str, Any]:
    usage = result.usage
    tokens = usage.input_tokens + usage.output_tokens
    return {"outcome": result.verdict.outcome, "seconds": result.seconds, "tokens": tokens, "usd": usage.usd}


@dataclass(frozen=True)
class AgentRow:
    """Means over the cases of one data set and concept; `all` joins them.

    Attributes:
        plain, agent: Mean Dice of the positives.
        difference: Agent minus plain, paired, with its interval.
        negatives: Cases without the concept; false alarms are among these.
        rounds, encodings, seconds: Means of a case.
        usd: In all; None where a price is not known.
    """

    dataset: str
    concept: str
    positives: int
    plain: float
    agent: float
    difference: Estimate
    negatives: int
    plain_alarms: int
    agent_alarms: int
    rounds: float
    encodings: float
    seconds: float
    usd: float | None


def difference_rows(cases: Sequence[AgentCase], *, seed: int = 0) -> list[AgentRow]:
    """A row for each data set and concept, each data set as a whole, and all together."""
    return [_row(dataset, concept, own, seed) for dataset, concept, own in _scopes(cases)]


def _scopes(cases: Sequence[AgentCase]) -> Iterator[tuple[str, str, list[AgentCase]]]:
    for dataset, concept in sorted({(case.dataset, case.concept) for case in cases}):
        yield dataset, concept, [case for case in cases if (case.dataset, case.concept) == (dataset, concept)]
    for dataset in sorted({case.dataset for case in cases}):
        own = [case for case in cases if case.dataset == dataset]
        if len({case.concept for case in own}) > 1:
            yield dataset, ALL, own
    if len({case.dataset for case in cases}) > 1:
        yield ALL, ALL, list(cases)


def _row(dataset: str, concept: str, cases: Sequence[AgentCase], seed: int) -> AgentRow:
    positives = [case for case in cases if case.is_present]
    negatives = [case for case in cases if not case.is_present]
    before = [case.plain_dice or 0.0 for case in positives]
    after = [case.agent_dice or 0.0 for case in positives]
    groups = [f"{case.dataset}/{case.group}" for case in positives]
    prices = [case.usd for case in cases]
    return AgentRow(
        dataset=dataset,
        concept=concept,
        positives=len(positives),
        plain=_mean(before),
        agent=_mean(after),
        difference=paired_interval(before, after, groups, seed=seed),
        negatives=len(negatives),
        plain_alarms=sum(case.plain_says for case in negatives),
        agent_alarms=sum(case.agent_says for case in negatives),
        rounds=_mean([case.rounds for case in cases]),
        encodings=_mean([case.encodings for case in cases]),
        seconds=_mean([case.seconds for case in cases]),
        usd=None if None in prices else float(sum(price or 0.0 for price in prices)),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _table(rows: Sequence[AgentRow], title: str) -> Table:
    headings = (
        "data set",
        "concept",
        "n",
        "plain",
        "agent",
        "difference",
        "absent",
        "false alarms",
        "rounds",
        "s",
        "USD",
    )
    return Table(
        title=title,
        headings=headings,
        rows=tuple(_cells(row) for row in rows),
        note="Dice of positives, agent minus plain phrase with 95 % interval by bootstrap over groups; false alarms "
        "plain -> agent among absent; rounds and seconds a case, USD in all",
    )


def _cells(row: AgentRow) -> tuple[str, ...]:
    gap = row.difference
    return (
        row.dataset,
        row.concept,
        str(row.positives),
        _dice_text(row.plain),
        _dice_text(row.agent),
        "-" if np.isnan(gap.value) else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
        str(row.negatives),
        f"{row.plain_alarms} -> {row.agent_alarms}",
        f"{row.rounds:.1f}",
        f"{row.seconds:.1f}",
        "?" if row.usd is None else f"{row.usd:.2f}",
    )


def _dice_text(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _kept(path: Path, header: dict[str, Any], *, resume: bool) -> list[AgentCase]:
    """Cases of an earlier part of the same run; begins the journal where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, {"header": header})
        return []
    if not resume:
        raise InputError(f"{path} holds an earlier run: go on with it by --resume, or give another --out")
    content = path.read_text(encoding="utf-8")
    whole = content[: content.rfind("\n") + 1]
    lines = [json.loads(line) for line in whole.splitlines()]
    if not lines or lines[0].get("header") != header:
        raise InputError(f"{path} belongs to a run with other settings, weights or data: give another --out")
    path.write_text(whole, encoding="utf-8")  # without a line that was cut off
    return [AgentCase(**line) for line in lines[1:]]


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
