from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import Script, ScriptedPolicy, two_blocks

from blocks_segmenter import BlocksSegmenter
from medsam3.agent.chat import ChatError, ShownPicture, ToolCall, Usage
from medsam3.agent.loop import AgentResult, RunOptions, replay, run
from medsam3.agent.transcript import (
    FILE_NAME,
    Ending,
    Heading,
    RecordedRun,
    page_of,
    read_transcript,
    write_html,
)
from medsam3.agent.values import Budget, Decision, Observation, Situation, ToolStep, Verdict
from medsam3.errors import InputError

ACCEPT: list[tuple[str, Any]] = [("accept", {"masks": [1], "reason": "the larger one"})]
GOOD: Script = [[("segment", {"phrase": "nodule"})], [("measure", {"mask": 1}), ("measure", {"mask": 2})], ACCEPT]


def done(script: Script, folder: Path | None = None, **options: Any) -> AgentResult:
    return run(
        two_blocks(), "nodule", BlocksSegmenter(), ScriptedPolicy(script), RunOptions(transcript=folder, **options)
    )


def test_a_run_ends_with_the_accepted_masks() -> None:
    result = done(GOOD)
    assert result.verdict.outcome == "found" and result.verdict.reason == "the larger one"
    assert [part.voxels for part in result.masks.objects] == [80]
    assert (result.rounds, result.turns) == (1, 3)
    assert result.masks.concept == "nodule" and result.masks.is_present


def test_absence_is_an_answer() -> None:
    result = done([[("segment", {"phrase": "absent"})], [("report_absent", {"reason": "looked, there is none"})]])
    assert result.verdict.outcome == "absent" and len(result.masks) == 0 and result.masks.is_present is False


def test_mistakes_go_back_as_observations_and_the_run_goes_on() -> None:
    policy = ScriptedPolicy(
        [
            [("fly", {})],
            [("segment", "{bad")],
            [],
            [("measure", {"mask": 7})],
            [("segment", {"phrase": "nodule"})],
            ACCEPT,
        ]
    )
    result = run(two_blocks(), "nodule", BlocksSegmenter(), policy)
    steps = policy.seen[-1].steps
    assert [step.seen.is_mistake for step in steps] == [True, True, True, True, False]
    assert "no tool was called" in steps[2].seen.text
    assert result.verdict.outcome == "found" and result.rounds == 1  # mistakes use no round


def test_an_endless_loop_of_one_call_is_ended_by_the_turns() -> None:
    result = done([[("segment", {"phrase": "nodule"})]])
    assert result.verdict.outcome == "undecided" and "14 turns" in result.verdict.reason  # 4 x 3 + 2
    assert result.turns == 14 and result.rounds == 1
    assert [part.voxels for part in result.masks.objects] == [80, 24]  # the best so far


def test_a_model_that_only_talks_is_asked_three_times_and_quoted() -> None:
    policy = ScriptedPolicy([[]])
    result = run(two_blocks(), "nodule", BlocksSegmenter(), policy)
    assert result.verdict.outcome == "undecided" and len(policy.seen) == 3
    assert "3 answers in a row called no tool, the last said 'so be it'" in result.verdict.reason


def test_rounds_are_counted_by_turns_that_segment() -> None:
    three = [[("segment", {"phrase": name}), ("segment", {"phrase": f"{name} again"})] for name in "abc"]
    policy = ScriptedPolicy([*three, [("segment", {"phrase": "d"})], ACCEPT])
    result = run(two_blocks(), "nodule", BlocksSegmenter(), policy, RunOptions(Budget(rounds=3)))
    assert result.rounds == 3 and result.verdict.outcome == "found"
    assert "all 3 rounds are used" in policy.seen[-1].steps[-1].seen.text


@pytest.mark.parametrize(
    ("budget", "usage", "says"),
    [
        (Budget(tokens=100), Usage(60, 40, 1, 0.1), "100 tokens are used"),
        (Budget(usd=0.05), Usage(1, 1, 1, 0.05), "0.0500 dollars are spent"),
        (Budget(usd=0.05), Usage(1, 1, 1, None), "price of this model is not known"),
        (Budget(seconds=1e-9), Usage(), "s have passed"),
    ],
)
def test_a_budget_ends_the_run_undecided(budget: Budget, usage: Usage, says: str) -> None:
    policy = ScriptedPolicy(GOOD, usage)
    result = run(two_blocks(), "nodule", BlocksSegmenter(), policy, RunOptions(budget))
    assert result.verdict.outcome == "undecided" and says in result.verdict.reason
    assert len(policy.seen) <= 1


@pytest.mark.parametrize(
    "values", [{"rounds": 0}, {"rounds": 21}, {"usd": 0.0}, {"seconds": float("nan")}, {"tokens": -1}]
)
def test_a_bad_budget_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="allowed is"):
        Budget(**values)


def test_the_transcript_holds_everything_and_replays(tmp_path: Path) -> None:
    policy = ScriptedPolicy(GOOD, Usage(10, 5, 1, 0.25), is_shown_pictures=True)
    run(two_blocks(), "nodule", BlocksSegmenter(), policy, RunOptions(transcript=tmp_path))
    saved = read_transcript(tmp_path)
    assert [step.call.name for step in saved.steps] == ["segment", "measure", "measure", "accept"]
    assert saved.ending is not None and saved.ending.usage == Usage(30, 15, 3, 0.75)
    assert np.array_equal(saved.steps[0].seen.marks[1].mask.crop, np.ones((1, 4, 6), dtype=np.bool_))
    assert saved.opening is not None and saved.opening[0].png.startswith(b"\x89PNG")
    assert replay(tmp_path, two_blocks(), BlocksSegmenter()) == []


def test_a_replay_on_another_picture_tells_what_differs(tmp_path: Path) -> None:
    done(GOOD, tmp_path)
    other = two_blocks()
    other.array()[0, 10, 5] = 0  # one pixel less
    found = replay(tmp_path, other, BlocksSegmenter())
    assert next((difference.step, difference.what) for difference in found) == (1, "mask 1 has another shape")


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = done(GOOD, tmp_path)
    segmenter, policy = BlocksSegmenter(), ScriptedPolicy(GOOD)
    again = run(two_blocks(), "nodule", segmenter, policy, RunOptions(transcript=tmp_path))
    assert policy.seen == [] and segmenter.encoded == 0
    assert [part.voxels for part in again.masks.objects] == [80] and again.verdict == first.verdict


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    done(GOOD, tmp_path)
    with pytest.raises(InputError, match="belongs to other work"):
        run(two_blocks(), "lesion", BlocksSegmenter(), ScriptedPolicy(GOOD), RunOptions(transcript=tmp_path))


def test_our_error_stops_the_run_and_keeps_the_transcript(tmp_path: Path) -> None:
    script: Script = [[("segment", {"phrase": "nodule"})], [("segment", {"phrase": "crash"})]]
    with pytest.raises(RuntimeError, match="the model broke"):
        done(script, tmp_path)
    saved = read_transcript(tmp_path)
    assert len(saved.steps) == 1 and saved.ending is not None and saved.ending.error == "RuntimeError"


def test_a_provider_that_fails_stops_the_run_with_its_cost_counted(tmp_path: Path) -> None:
    class Failing(ScriptedPolicy):
        def decide(self, situation: Situation) -> Decision:
            if situation.decisions:
                raise ChatError("the provider is down", Usage(7, 0, 1, 0.5))
            return super().decide(situation)

    policy = Failing(GOOD, Usage(10, 5, 1, 0.25))
    with pytest.raises(ChatError):
        run(two_blocks(), "nodule", BlocksSegmenter(), policy, RunOptions(transcript=tmp_path))
    saved = read_transcript(tmp_path)
    assert saved.ending is not None and saved.ending.usage == Usage(17, 5, 2, 0.75)
    again = done(GOOD, tmp_path)  # mended by now: it goes on after the first step, with the lost answer still counted
    assert again.verdict.outcome == "found" and again.usage == Usage(17, 5, 2, 0.75)


def test_a_line_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    done(GOOD, tmp_path)
    path = tmp_path / FILE_NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(
        "".join(lines[:6]) + lines[6][:40]
    )  # heading, opening, decision, step, decision, step | half a step
    assert [next(iter(json.loads(line))) for line in lines[2:7]] == ["decision", "step", "decision", "step", "step"]
    policy = ScriptedPolicy(GOOD)
    result = run(two_blocks(), "nodule", BlocksSegmenter(), policy, RunOptions(transcript=tmp_path))
    assert result.verdict.outcome == "found" and len(policy.seen) == 1  # the second turn was not asked for again
    assert len(read_transcript(tmp_path).steps) == 4


def test_a_damaged_transcript_is_refused(tmp_path: Path) -> None:
    done(GOOD, tmp_path)
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().replace('"turn"', '"tern"'))
    with pytest.raises(InputError, match="is damaged"):
        done(GOOD, tmp_path)


_KILLED = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from blocks_segmenter import BlocksSegmenter
from scripted import ScriptedPolicy, two_blocks
from medsam3.agent.chat import Usage
from medsam3.agent.loop import RunOptions, run
from test_loop import GOOD

def slow(step):
    print(step.number, flush=True)
    if step.number == 2:
        time.sleep(60)

policy = ScriptedPolicy(GOOD, Usage(10, 5, 1, 0.25))
run(two_blocks(), "nodule", BlocksSegmenter(), policy,RunOptions(transcript=Path(sys.argv[1]), on_step=slow))
"""


def test_a_run_that_was_killed_goes_on_and_costs_nothing_twice(tmp_path: Path) -> None:
    here = Path(__file__).parent
    code = _KILLED.format(paths=[str(here), *(entry for entry in sys.path if entry)])
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n" and process.stdout.readline() == "2\n"
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert read_transcript(tmp_path).ending is None
    segmenter, policy = BlocksSegmenter(), ScriptedPolicy(GOOD, Usage(10, 5, 1, 0.25))
    started = time.monotonic()
    result = run(two_blocks(), "nodule", segmenter, policy, RunOptions(transcript=tmp_path))
    assert time.monotonic() - started < 30
    assert result.verdict.outcome == "found" and [part.voxels for part in result.masks.objects] == [80]
    assert len(policy.seen) == 1 and segmenter.asked == []  # only the last turn was decided, nothing segmented again
    assert result.usage == Usage(30, 15, 3, 0.75)
    assert [step.call.name for step in read_transcript(tmp_path).steps] == ["segment", "measure", "measure", "accept"]


def test_the_page_holds_each_picture_and_runs_nothing_that_a_model_wrote(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    script: Script = [[("segment", {"phrase": "nodule"})], [("accept", {"masks": [1], "reason": evil})]]
    policy = ScriptedPolicy(script, Usage(10, 5, 1, None), is_shown_pictures=True)
    run(two_blocks(), "nodule", BlocksSegmenter(), policy, RunOptions(transcript=tmp_path / "run", sent_to="fake"))
    write_html(tmp_path / "run", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img") == 3  # the image, the marks, what was accepted
    assert "the whole frame" not in page and "coordinates in calls" in page
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "price not known" in page and "pictures were sent to</th><td>fake" in page


def test_the_instruction_and_the_pixels_make_the_run(tmp_path: Path) -> None:
    done(GOOD, tmp_path)
    darker = two_blocks()
    with pytest.raises(InputError, match="belongs to other work"):
        run(
            replace(darker, frames=darker.array() // 2 + 60),
            "nodule",
            BlocksSegmenter(),
            ScriptedPolicy(GOOD),
            RunOptions(transcript=tmp_path),
        )


def test_every_field_of_the_page_is_escaped() -> None:
    evil: Any = "<script>\x1b[2J</script>"
    budget, usage = Budget(), Usage(1, 1, 1, None)
    heading = Heading(evil, evil * 9, (1, 40, 60), evil, evil * 9, evil, budget, evil)
    shown = (ShownPicture(b"png", evil),)
    verdict = Verdict(evil, (evil, evil), evil)
    seen = Observation(evil, shown, (), {evil: evil}, verdict)
    step = ToolStep(1, 1, ToolCall(evil, evil, evil), seen, 0.1, True)
    called = Decision(evil, (ToolCall(evil, evil, evil),), usage)
    for ending in (Ending(verdict, None, usage, 1.0), Ending(None, evil, usage, 1.0)):
        page = page_of(RecordedRun(heading, shown, [called], [step], usage, ending))
        assert "<script" not in page and "\x1b" not in page
        assert page.count("&lt;script&gt;") >= 13
