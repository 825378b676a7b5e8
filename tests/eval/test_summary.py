from __future__ import annotations

import math
from dataclasses import replace

import pytest

from medsam3.eval.case_result import CaseResult
from medsam3.eval.summary import Scope, summarise

PRESENT = CaseResult(
    dataset="gut",
    image="gut/images/a.png",
    concept="polyp",
    group="p1",
    mode="T",
    phrase="polyp",
    phrasing="name",
    kind="",
    jitter_percent=0.0,
    is_present=True,
    is_foreign=False,
    says_present=True,
    presence=0.9,
    dice=0.8,
    iou=0.7,
    nsd=0.6,
    hd95=4.0,
    assd=2.0,
    unit="px",
    reference_px=40,
    predicted_px=50,
    references=1,
    predictions=1,
    overlaps=(0.7,),
    rivals=(),
    rival_dices=(),
    seconds=0.1,
)
ABSENT = replace(
    PRESENT,
    image="gut/images/n.png",
    group="p9",
    is_present=False,
    says_present=False,
    presence=0.1,
    dice=None,
    iou=None,
    nsd=None,
    hd95=None,
    assd=None,
    reference_px=0,
    predicted_px=0,
    references=0,
    predictions=0,
    overlaps=(),
)
MISSED = replace(
    PRESENT,
    image="gut/images/b.png",
    group="p2",
    says_present=False,
    presence=0.3,
    dice=0.0,
    iou=0.0,
    nsd=0.0,
    hd95=36.0,
    assd=36.0,
    predicted_px=0,
    predictions=0,
    overlaps=(),
)


def test_outline_rows_are_means_over_positives_with_misses_counted() -> None:
    (row,) = summarise([PRESENT, MISSED, ABSENT]).overlap
    assert row.scope == Scope("gut", "polyp")
    assert row.dice.value == pytest.approx(0.4)
    assert (row.dice.cases, row.dice.groups) == (2, 2)
    assert (row.dice.low, row.dice.high) == pytest.approx((0, 0.8))
    assert (row.hd95.value, row.unit, row.missed) == (20, "px", 1)
    assert row.f1.value == pytest.approx(0.5)  # 1 and 0
    assert row.pq.value == pytest.approx(0.35)  # .7 and 0


def test_presence_counts_positives_and_true_negatives() -> None:
    (row,) = summarise([PRESENT, MISSED, ABSENT]).presence
    assert (row.positives, row.negatives) == (2, 1)
    assert row.auroc.value == 1  # .9 and .3 above .1
    assert (row.sensitivity, row.specificity, row.unsure) == (0.5, 1, 0)
    (unsure,) = summarise([replace(PRESENT, is_sure=False), MISSED, ABSENT]).presence
    assert unsure.sensitivity == 0.5 and unsure.unsure == pytest.approx(1 / 3)  # masks are given: it counts as a yes
    # TP 1, FN 1, TN 1, FP 0: 1 / sqrt(2 * 1 * 1 * 2)
    assert row.mcc == pytest.approx(0.5)
    # at IoU .50 to .70: 2 TP / (2 references + 1 prediction) = 2/3, above: 0; five of ten thresholds
    assert row.pmf1 == pytest.approx(2 / 3 / 2)
    assert row.cgf1 == pytest.approx(0.5 / 3)


def test_rows_join_concepts_data_sets_and_everything() -> None:
    other = replace(PRESENT, dataset="gut2", image="gut2/images/a.png", dice=0.6)
    disc = replace(PRESENT, concept="optic disc", phrase="optic disc", dice=0.1)
    rows = {(row.scope.dataset, row.scope.concept): row.dice for row in summarise([PRESENT, other, disc]).overlap}
    assert set(rows) == {
        ("gut", "polyp"),
        ("gut", "optic disc"),
        ("gut2", "polyp"),
        ("all", "polyp"),
        ("gut", "all"),
        ("all", "all"),
    }
    assert rows["all", "polyp"].value == pytest.approx(0.7)
    assert rows["all", "polyp"].groups == 2  # the group p1 of one data set is not that of the other
    assert rows["all", "all"].value == pytest.approx(0.5)


def test_modes_and_jitters_have_rows_of_their_own_in_a_fixed_order() -> None:
    cases = [
        replace(PRESENT, mode="TI", jitter_percent=10.0),
        replace(PRESENT, mode="TI"),
        replace(PRESENT, mode="I", phrase=""),
        PRESENT,
    ]
    rows = summarise(cases).overlap
    assert [(row.mode, row.jitter_percent) for row in rows] == [("T", 0), ("I", 0), ("TI", 0), ("TI", 10)]


def test_a_synonym_is_compared_with_the_name_on_the_same_images() -> None:
    worse = replace(PRESENT, phrase="polyps", phrasing="synonym", dice=0.7)
    unseen = replace(PRESENT, phrase="adenomatous polyp", phrasing="unseen synonym", dice=0.5)
    alone = replace(MISSED, phrase="polyps", phrasing="synonym")  # its name was not asked
    summary = summarise([PRESENT, worse, unseen, alone])
    rows = {row.phrase: row for row in summary.synonyms}
    assert rows["polyps"].difference.value == pytest.approx(-0.1) and rows["polyps"].dice.cases == 1
    assert rows["every unseen synonym"].difference.value == pytest.approx(-0.3)
    assert len(summary.overlap) == 1 and summary.overlap[0].dice.cases == 1  # synonyms stay out of the main table


def test_calibration_is_of_text_answers() -> None:
    found = summarise([PRESENT, ABSENT, replace(PRESENT, mode="TI", presence=0.0)]).calibration
    assert [(bin_.count, bin_.share_present) for bin_ in found.bins] == [(1, 0), (1, 1)]
    assert found.error == pytest.approx(0.1)


def test_units_that_differ_are_told() -> None:
    rows = summarise([PRESENT, replace(PRESENT, image="x.png", unit="mm")]).overlap
    assert rows[0].unit == "mixed"


def test_no_cases_give_empty_tables() -> None:
    summary = summarise([])
    assert (summary.overlap, summary.presence, summary.synonyms) == ((), (), ())
    assert math.isnan(summary.calibration.error)


def test_a_case_is_read_back_from_json_as_it_was() -> None:
    assert CaseResult.from_json(PRESENT.to_json()) == PRESENT
    assert CaseResult.from_json(ABSENT.to_json()) == ABSENT


def test_foreign_absences_stay_out_of_the_annotated_rows_and_are_joined_once() -> None:
    alarm = replace(ABSENT, concept="liver", phrase="liver", is_foreign=True, says_present=True, presence=0.8)
    quiet = replace(ABSENT, concept="glioma", phrase="glioma", is_foreign=True)
    summary = summarise([PRESENT, MISSED, ABSENT, alarm, quiet])
    assert [row.negatives for row in summary.presence] == [1]
    rows = {(row.scope.dataset, row.scope.concept): row for row in summary.foreign}
    assert rows["all", "all"].alarms.value == 0.5 and rows["gut", "all"].alarms.cases == 2
    assert (rows["all", "liver"].alarms.value, rows["all", "glioma"].alarms.value) == (1, 0)
    assert summary.everything is not None
    # TP 1, FN 1, FP 1, TN 2: (1 * 2 - 1 * 1) / sqrt(2 * 3 * 2 * 3)
    assert summary.everything.mcc == pytest.approx(1 / 6)
    assert summarise([PRESENT, ABSENT]).everything is None


def test_confusions_are_counted_apart_for_both_there_and_the_other_alone() -> None:
    cup = replace(PRESENT, concept="optic cup", rivals=("optic disc",))
    cases = [
        replace(cup, dice=0.8, rival_dices=(0.6,)),
        replace(cup, image="b", group="p2", dice=0.3, rival_dices=(0.9,)),
        replace(ABSENT, concept="optic cup", says_present=True, rivals=("optic disc",), rival_dices=(0.7,)),
        replace(ABSENT, image="c", concept="optic cup", rivals=("optic disc",), rival_dices=(0.0,)),
    ]
    (row,) = summarise(cases).confusions
    assert (row.concept, row.rival) == ("optic cup", "optic disc")
    assert (row.both, row.taken, row.without, row.alarms) == (2, 1, 2, 1)
    assert (row.dice.value, row.rival_dice.value) == pytest.approx((0.55, 0.75))


def test_phrasings_are_joined_by_kind() -> None:
    misspelt = replace(PRESENT, phrase="polypp", phrasing="unseen synonym", kind="misspelt", dice=0.6)
    plural = replace(PRESENT, phrase="intestinal polyps", phrasing="unseen synonym", kind="plural", dice=0.8)
    rows = {row.phrase: row for row in summarise([PRESENT, misspelt, plural]).synonyms if row.concept == "all"}
    assert rows["every other phrasing"].difference.value == pytest.approx(-0.1)
    assert rows["every unseen synonym, misspelt"].difference.value == pytest.approx(-0.2)
    assert rows["every unseen synonym, plural"].difference.value == 0
