"""`medsam3 eval --agent`: the agent and the plain phrase over the same cases, with rounds, time and cost of each.

Both answers come from the same features, so that a difference is the agent's. Cases are kept as they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import numpy as np

from medsam3.agent.frames import QueriedImage
from medsam3.agent.loop import RunOptions, run_on
from medsam3.agent.offline import OfflinePolicy
from medsam3.agent.values import Budget, Policy
from medsam3.data.index import IndexRow
from medsam3.errors import InputError
from medsam3.eval.cases import Truth
from medsam3.eval.oracle import OraclePolicy
from medsam3.eval.provenance import provenance
from medsam3.eval.run import EvalJob, Progress, Truths, run_journal
from medsam3.eval.tables import Table
from medsam3.geometry import BoolArray
from medsam3.io import read
from medsam3.measure.intervals import Estimate, paired_interval
from medsam3.measure.outline import dice
from medsam3.models.registry import load
from medsam3.store import without_nan, write_json

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


@dataclass(frozen=True)
class AgentChoice:
    """Which agent is measured.

    Attributes:
        policy: Its name: `offline`, `oracle`, or an LLM's.
        rounds: At most so many.
        sent_to: The provider that pictures may go to; None sends none.
    """

    policy: str
    rounds: int
    sent_to: str | None


def evaluate_agent(job: EvalJob, agent: AgentChoice, progress: Progress) -> tuple[list[Table], list[str]]:
    """Measure what is not yet in the journal, and write `agent.json`.

    Returns:
        The tables, and what could not be evaluated.

    Raises:
        InputError: An unknown policy or data set, or a journal of another run.
    """
    budget = Budget(agent.rounds)
    policy_for = _policies(agent.policy, agent.sent_to)
    about = provenance(job.model, job.weights, job.folder, job.chosen.rows, f"medsam3 eval --agent {agent.policy}")
    header = {
        "agent": agent.policy,
        "rounds": agent.rounds,
        "model": about.model,
        "weights": about.weights_sha256,
        "data": about.data_sha256,
        "split": job.config.split,
    }
    segmenter = load(job.model, weights=job.weights, flips=job.flips)
    failures: list[str] = []
    images = [(image, list(own)) for image, own in groupby(job.chosen.rows, key=lambda row: row.image)]
    with run_journal(job, "agent-cases.jsonl", header) as journal:
        done = {(case["image"], case["concept"]) for case in journal.records}
        for count, (image, rows) in enumerate(images):
            progress(count, len(images), rows[0].dataset)
            name = image.relative_to(job.folder).as_posix()
            open_rows = [row for row in rows if (name, row.concept) not in done]
            if not open_rows:
                continue
            try:
                queried = QueriedImage(read(image), segmenter)
                for row in open_rows:
                    journal.append(asdict(_case(queried, row, name, policy_for, budget)))
            except InputError as error:
                failures.append(f"{name}: {error}")
        cases = [AgentCase(**case) for case in journal.records]
    rows_of_table = difference_rows(cases, seed=job.config.seed)
    entry = {
        "about": asdict(about),
        "run": header,
        "failures": failures,
        "rows": [asdict(row) for row in rows_of_table],
        "cases": [asdict(case) for case in cases],
    }
    write_json(job.out / "agent.json", without_nan(entry))
    return [_table(rows_of_table, f"{agent.policy} agent, {agent.rounds} rounds")], failures


PolicyFor = Callable[[Truth], Policy]


def _policies(name: str, send_images_to: str | None) -> PolicyFor:
    if name == "offline":
        return lambda truth: OfflinePolicy(is_shown_pictures=False)
    if name == "oracle":
        return lambda truth: OraclePolicy(_judge(truth.mask), is_absent=not truth.mask.any())
    from medsam3.agent.llm import llm_policy  # noqa: PLC0415

    llm_policy(name, send_images_to=send_images_to)  # what is wrong with it is said before anything is measured
    return lambda truth: llm_policy(name, send_images_to=send_images_to)


def _judge(mask: BoolArray) -> Callable[[BoolArray], float]:
    return lambda found: dice(mask, found)


def _case(queried: QueriedImage, row: IndexRow, name: str, policy_for: PolicyFor, budget: Budget) -> AgentCase:
    truth = Truths(queried.image, [row]).of(row)
    before = queried.encodings
    result = run_on(queried, row.concept, policy_for(truth), RunOptions(budget))
    plain = queried.ask(0, row.concept)
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
        encodings=queried.encodings - before,
        outcome=result.verdict.outcome,
        seconds=result.seconds,
        tokens=result.usage.input_tokens + result.usage.output_tokens,
        usd=result.usage.usd,
    )


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
    headings = [
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
    ]
    return Table(
        title=title,
        headings=tuple(headings),
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
