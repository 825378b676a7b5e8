from __future__ import annotations

from dataclasses import replace

from test_summary import ABSENT, MISSED, PRESENT

from medsam3.eval.case_result import CaseResult
from medsam3.eval.cases import EvalConfig
from medsam3.eval.compare import beside_rows
from medsam3.eval.provenance import Provenance
from medsam3.eval.results import Results


def unet(*cases: CaseResult) -> Results:
    about = Provenance("unet", None, "", None, "", "", {})
    return Results(about, EvalConfig(), 0, (), cases)


def test_text_is_set_against_everything_and_an_oracle_against_oracles_alone() -> None:
    boxes = [replace(PRESENT, mode="I", phrase="", dice=0.9), replace(MISSED, mode="I", phrase="", dice=0.7)]
    other = unet(replace(PRESENT, dice=0.6), replace(MISSED, dice=0.6), *boxes)
    rows = beside_rows([PRESENT, MISSED, ABSENT, *boxes], [other])
    pairs = {(row.mode, row.other_mode) for row in rows}
    assert pairs == {("T", "T"), ("T", "I"), ("I", "I")}
    text = next(row for row in rows if (row.dataset, row.mode, row.other_mode) == ("gut", "T", "T"))
    # .8 and 0 against .6 and .6
    assert (text.ours, text.theirs, round(text.difference.value, 6)) == (0.4, 0.6, -0.2)
    assert (text.other, text.difference.cases, text.holds) == ("unet", 2, False)
    assert [row.dataset for row in rows if row.other_mode == "T"] == ["gut", "all"]


def test_only_shared_positives_without_jitter_by_name_count() -> None:
    other = unet(replace(PRESENT, dice=0.5), ABSENT)
    mine = [
        PRESENT,
        MISSED,
        replace(PRESENT, phrasing="synonym", phrase="polyps"),
        replace(PRESENT, jitter_percent=5.0),
    ]
    rows = beside_rows(mine, [other])
    assert [row.difference.cases for row in rows] == [1, 1]
    assert beside_rows(mine, []) == []
    assert beside_rows([ABSENT], [other]) == []
