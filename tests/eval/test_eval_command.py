from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from colour_data import ColourSegmenter, DataFolder, polyp_folder

from medsam3.cli.main import run
from medsam3.data.index import read_index
from medsam3.errors import InputError
from medsam3.eval.compare import compare
from medsam3.eval.plots import box_plots_svg, calibration_svg
from medsam3.eval.provenance import data_hash, weights_hash
from medsam3.eval.results import read_results
from medsam3.eval.tables import interval, markdown, number, signed
from medsam3.measure.intervals import Estimate
from medsam3.measure.presence import calibration
from medsam3.models import registry


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    monkeypatch.setitem(registry.LOADERS, "colour", lambda weights, device: ColourSegmenter())
    return polyp_folder(tmp_path / "data")


def command(*arguments: str | Path) -> int:
    return run(["eval", *map(str, arguments)])


def test_a_run_prints_its_tables_and_writes_its_files(
    data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command(data.path, "--model", "colour", "--modes", "T,TI", "--out", out) == 0
    printed = capsys.readouterr().out
    assert re.search(r"gut +polyp +text +3 +\.500 ", printed)  # Dice 1, .5, 0
    assert "text + box (oracle)" in printed
    assert "results.json" in printed
    entry = json.loads((out / "results.json").read_text())
    assert entry["about"]["model"] == "colour" and len(entry["about"]["data_sha256"]) == 64
    assert entry["summary"]["overlap"][0]["dice"]["value"] == 0.5
    assert entry["summary"]["presence"][0]["scope"] == {"dataset": "gut", "concept": "optic disc"}
    assert entry["summary"]["presence"][0]["auroc"]["value"] is None  # no positives: null, not NaN
    with (out / "cases.csv").open(newline="") as stream:
        cases = list(csv.DictReader(stream))
    assert [case["dice"] for case in cases if case["mode"] == "T" and case["concept"] == "polyp"] == [
        "1",
        "0.5",
        "0",
        "",
    ]
    with (out / "outline.csv").open(newline="") as stream:
        assert next(csv.DictReader(stream))["dice_value"] == "0.5"
    assert "| gut | polyp | text | 3 | .500" in (out / "report.md").read_text()


class PageCheck(HTMLParser):
    """Collects what a page refers to, and tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.places += [f"#{value}" for name, value in attrs if name == "id"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_with_tables_plots_and_pictures(data: DataFolder, tmp_path: Path) -> None:
    command(data.path, "--model", "colour", "--out", tmp_path / "out", "--json")
    page = (tmp_path / "out" / "report.html").read_text()
    check = PageCheck()
    check.feed(page)
    assert check.open == []
    within = [link for link in check.links if link.startswith("#")]
    assert within == check.places != []
    pictures = [link for link in check.links if link not in within]
    assert len(pictures) == 3 and all(link.startswith("data:image/png;base64,") for link in pictures)
    assert page.count("<svg") == 2
    assert "polyp, c.png: Dice 0.000" in page


def test_json_is_strict_and_goes_to_stdout_alone(
    data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(data.path, "--model", "colour", "--out", tmp_path / "out", "--json", "--synonyms")
    printed = capsys.readouterr().out
    assert "NaN" not in printed
    assert json.loads(printed)["summary"]["synonyms"]


def test_a_finished_run_is_resumed_to_the_same_numbers_and_not_overwritten(data: DataFolder, tmp_path: Path) -> None:
    arguments = (data.path, "--model", "colour", "--out", tmp_path / "out", "--json")
    command(*arguments)
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    with pytest.raises(InputError, match="--resume"):
        command(*arguments)
    command(*arguments, "--resume")
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["summary"] == first["summary"] and again["cases"] == first["cases"]
    with pytest.raises(InputError, match="other work"):
        command(*arguments, "--resume", "--modes", "I")


def coco_file(data: DataFolder) -> Path:
    """The four pictures in COCO JSON: a polyp of 4 x 8 pixels as a polygon in a, b and c, nothing in d."""
    corners = [5.5, 3.5, 13.5, 3.5, 13.5, 7.5, 5.5, 7.5]  # rows 4 to 7, columns 6 to 13, by pixel centres
    images = [{"id": n, "file_name": f"{name}.png", "height": 20, "width": 30} for n, name in enumerate("abcd")]
    ring = [value + 0.5 for value in corners]  # COCO counts from the corner of the first pixel
    boxes = [{"id": n, "image_id": n, "category_id": 1, "segmentation": [ring], "area": 32} for n in range(3)]
    path = data.path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "polyp"}]}))
    return path


def test_coco_is_measured_like_the_index_of_the_same_pictures(data: DataFolder, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="needs the extra `coco`")
    images = data.path / "gut/images"
    arguments = ("--model", "colour", "--modes", "T,I", "--json", "--out")
    assert command("--coco", coco_file(data), "--images", images, *arguments, tmp_path / "coco") == 0
    found = json.loads((tmp_path / "coco" / "results.json").read_text())
    dices = {(case["image"], case["mode"]): case["dice"] for case in found["cases"]}
    assert [dices[f"{name}.png", "T"] for name in "abcd"] == [1, 0.5, 0, None]
    assert [dices[f"{name}.png", "I"] for name in "abc"] == [1, 1, 1]
    assert (tmp_path / "coco" / "report.html").read_text().count("<img") == 3


@pytest.mark.parametrize("absent", [0, 1])
def test_plain_folders_are_measured_whole_or_by_the_split_of_training(
    data: DataFolder, tmp_path: Path, absent: int
) -> None:
    folder = ("--folder", data.path / "gut/images", data.path / "gut/masks", "--concept", "polyp", "--model", "colour")
    assert command(*folder, "--split", "all", "--absent", str(absent), "--out", tmp_path / "all", "--json") == 0
    found = json.loads((tmp_path / "all" / "results.json").read_text())
    dices = {case["image"]: case["dice"] for case in found["cases"] if case["concept"] == "polyp"}
    assert dices == {"a.png": 1, "b.png": 0.5, "c.png": 0, "d.png": None}
    assert sum(case["is_foreign"] for case in found["cases"]) == 4 * absent
    command(*folder, "--split", "train", "--out", tmp_path / "train", "--json")
    part = json.loads((tmp_path / "train" / "results.json").read_text())
    assert 0 < len({case["image"] for case in part["cases"]}) < 4


def test_changed_masks_are_other_data(data: DataFolder, tmp_path: Path) -> None:
    folder = (
        *("--folder", data.path / "gut/images", data.path / "gut/masks", "--concept", "polyp", "--model", "colour"),
        *("--split", "all", "--out", tmp_path / "out", "--json"),
    )
    command(*folder)
    (data.path / "gut/masks/a.png").write_bytes((data.path / "gut/masks/d.png").read_bytes())
    with pytest.raises(InputError, match="other work"):
        command(*folder, "--resume")


def test_names_that_are_formulas_or_escapes_are_shown_and_not_obeyed(
    data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    formula, red = '=HYPERLINK("http://x")', "\x1b[31mgut"
    for kind in ("images", "masks"):
        (data.path / "gut" / kind / f"{formula.replace('/', '_')}.png").write_bytes(
            (data.path / "gut" / kind / "a.png").read_bytes()
        )
    name = formula.replace("/", "_").replace('"', '""')
    line = f'"gut/images/{name}.png","gut/masks/{name}.png",polyp,1,test,p9,1'
    data.lines += [f"=1+1,{line}", f"{red},{line}"]
    data.write()
    command(data.path, "--model", "colour", "--out", tmp_path / "out")
    assert "\x1b" not in capsys.readouterr().out + (tmp_path / "out" / "report.md").read_text()
    with (tmp_path / "out" / "cases.csv").open(newline="") as stream:
        assert "'=1+1" in {case["dataset"] for case in csv.DictReader(stream)}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "HYPERLINK(&#34;" in page and '("http' not in page


def test_failures_are_told_and_give_exit_code_2(
    data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data.path / "gut/images/a.png").write_text("no picture")
    assert command(data.path, "--model", "colour", "--out", tmp_path / "out") == 2
    assert "medsam3: error: gut/images/a.png" in capsys.readouterr().err
    assert "Not evaluated" in (tmp_path / "out" / "report.html").read_text()


def test_volumes_that_cannot_be_asked_are_counted_not_dropped_in_silence(
    data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.lines.append("brain,brain/images/v.nii.gz,brain/masks/v.nii.gz,hippocampus,1,test,p1,1")
    data.write()
    command(data.path, "--model", "colour", "--modes", "I", "--out", tmp_path / "out")
    assert "left out: 1 rows of volumes" in capsys.readouterr().out


def test_two_runs_are_compared_case_by_case(
    data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        command(data.path, "--model", "colour", "--out", tmp_path / name, "--json")
    path = tmp_path / "b" / "results.json"
    entry = json.loads(path.read_text())
    for case in entry["cases"]:
        case["dice"] = None if case["dice"] is None else case["dice"] / 2 + 0.5
    path.write_text(json.dumps(entry))
    capsys.readouterr()
    assert command("--compare", tmp_path / "a" / "results.json", path, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    # Dice 1 .5 0 against 1 .75 .5: gains 0 .25 .5
    assert (row["first"], row["second"], row["difference"]["value"]) == (0.5, 0.75, 0.25)
    assert row["difference"]["groups"] == 2 and row["holds"] is True
    assert command("--compare", tmp_path / "a" / "results.json", path) == 0
    assert "+.250" in capsys.readouterr().out


def test_comparison_leaves_out_and_counts_what_only_one_run_has(data: DataFolder, tmp_path: Path) -> None:
    command(data.path, "--model", "colour", "--out", tmp_path / "a", "--json")
    whole = read_results(tmp_path / "a" / "results.json")
    about = replace(whole.about, data_sha256="other")
    part = replace(whole, cases=tuple(case for case in whole.cases if "/a.png" not in case.image), about=about)
    found = compare(whole, part)
    assert (found.unpaired, found.is_same_data) == (1, False)
    assert found.rows[0].difference.value == 0 and not found.rows[0].holds
    with pytest.raises(InputError, match="have no case in common"):
        compare(whole, replace(whole, cases=()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no data folder was given"),
        (("DATA", "--modes", "T,X"), "mode X is not known, allowed are T, TB, I, TI"),
        (("DATA", "--modes", ""), "no mode was chosen"),
        (("DATA", "--jitter", "5,x"), "--jitter is '5,x'"),
        (("DATA", "--datasets", "eye"), "there is no data set eye, allowed are gut"),
        (("DATA", "--model", "none"), "there is no model 'none'"),
        (("DATA", "--fold", "6/5"), "fold is 6/5, allowed are 1/n to n/n"),
        (("DATA", "--fold", "x"), "fold is 'x', allowed are 1/n to n/n"),
        (("DATA", "--absent", "-1"), "absent is -1"),
        (("DATA", "--model", "colour", "--flips"), "model colour does not ask mirrored pictures"),
        (("DATA", "--compare", "a", "b"), "--compare takes two results.json and no data folder"),
        (("nowhere",), "nowhere does not exist"),
        (("DATA", "--coco", "a.json"), "data was given in more than one way"),
        (("DATA", "--images", "pictures"), "give --coco too"),
        (("DATA", "--concept", "polyp"), "give --folder too"),
        (("--folder", "DATA", "DATA"), "needs either --concept PHRASE or --labels"),
        (("--coco", "a.json", "--agent", "offline"), "--agent takes a DATA_DIR"),
        (("--compare", "a", "b"), "a cannot be read"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    data: DataFolder, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [str(data.path) if argument == "DATA" else argument for argument in arguments]
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        command(*given, "--out", str(tmp_path / "out"))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, message in (("{", "is no results.json"), ("[]", "is no results.json"), ('{"form": 9}', "is of form 9")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_results(path)


def test_the_data_hash_follows_content_not_place(tmp_path: Path) -> None:
    first, second = polyp_folder(tmp_path / "x"), polyp_folder(tmp_path / "y")
    hashes = [data_hash(folder.path, read_index(folder.path)) for folder in (first, second)]
    assert hashes[0] == hashes[1]
    (second.path / "gut/masks/a.png").write_bytes(b"other")
    assert data_hash(second.path, read_index(second.path)) != hashes[0]


def test_weights_are_named_by_their_sha256(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"")
    assert weights_hash("mini", tmp_path / "w") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert weights_hash("no such model", None) is None


def test_numbers_are_printed_without_a_leading_0() -> None:
    assert [number(value) for value in (0.8534, 1.0, 0.9999, -0.02, 0.0, float("nan"))] == [
        ".853",
        "1.000",
        "1.000",
        "-.020",
        ".000",
        "-",
    ]
    assert interval(Estimate(0.5, 0.25, 0.75, 9, 4)) == ".500 [.250, .750]"
    assert interval(Estimate(0.5, float("nan"), float("nan"), 9, 1)) == ".500"
    assert signed(Estimate(0.5, 0.25, 0.75, 9, 4)) == "+.500 [.250, .750]"
    assert markdown([]) == ""


def test_plots_escape_names_and_place_values() -> None:
    plot = box_plots_svg({"a<b": [0.0, 0.5, 1.0], "none": []}, "Dice")
    assert "a&lt;b (3)" in plot and "none" not in plot
    assert 'x1="620.0"' in plot  # the median .5 of a scale from 340 to 900
    dots = calibration_svg(calibration([1, 0], [0.95, 0.15]))
    assert dots.count("<circle") == 2


def test_foreign_concepts_are_asked_counted_and_joined_into_one_mcc(data: DataFolder, tmp_path: Path) -> None:
    data.lines = [line for line in data.lines if "optic disc" not in line]  # two families at once leave less foreign
    data.write()
    command(data.path, "--model", "colour", "--absent", "2", "--out", tmp_path / "out", "--json")
    entry = json.loads((tmp_path / "out" / "results.json").read_text())
    foreign = [case for case in entry["cases"] if case["is_foreign"]]
    assert len(foreign) == 4 * 2 and not any(case["is_present"] for case in foreign)
    joined = entry["summary"]["everything"]
    assert (joined["positives"], joined["negatives"]) == (3, 1 + 8)
    assert "False alarms on foreign concepts" in (tmp_path / "out" / "report.html").read_text()


def test_other_runs_stand_beside_this_one(data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(data.path, "--model", "colour", "--modes", "I", "--out", tmp_path / "boxes", "--json")
    other = tmp_path / "boxes" / "results.json"
    capsys.readouterr()
    command(data.path, "--model", "colour", "--out", tmp_path / "out", "--beside", other)
    # text has Dice 1 .5 0, oracle boxes 1 1 1
    assert re.search(r"gut +polyp +3 +text +\.500 +colour, box \(oracle\) +1\.000 +-\.500", capsys.readouterr().out)
    entry = json.loads((tmp_path / "out" / "results.json").read_text())
    assert entry["extras"]["beside"][0]["difference"]["value"] == -0.5


def test_a_fold_splits_anew_and_says_what_it_needs(data: DataFolder, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        command(data.path, "--model", "colour", "--fold", f"{n}/3", "--out", tmp_path / str(n), "--json")
    entries = [json.loads((tmp_path / str(n) / "results.json").read_text()) for n in (1, 2, 3)]
    images = [case["image"] for entry in entries for case in entry["cases"] if case["concept"] == "polyp"]
    assert sorted(images) == [f"gut/images/{name}.png" for name in "abcd"]
    assert "trained without this fold" in entries[0]["extras"]["notes"][0]


def test_near_duplicates_of_evaluated_pictures_are_in_the_report(data: DataFolder, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (data.path / "gut" / kind / "e.png").write_bytes((data.path / "gut" / kind / "a.png").read_bytes())
    data.lines.append("gut,gut/images/e.png,gut/masks/e.png,polyp,1,train,p9,1")
    data.write()
    command(data.path, "--model", "colour", "--out", tmp_path / "out", "--json")
    entry = json.loads((tmp_path / "out" / "results.json").read_text())
    pairs = {(pair["first"], pair["second"]) for pair in entry["extras"]["duplicates"]}
    assert ("gut/images/a.png", "gut/images/e.png") in pairs
    assert "near-duplicates of evaluated pictures" in entry["extras"]["notes"][0]


def test_a_comparison_of_several_concepts_ends_with_all_of_them_joined(data: DataFolder, tmp_path: Path) -> None:
    command(data.path, "--model", "colour", "--out", tmp_path / "a", "--json")
    whole = read_results(tmp_path / "a" / "results.json")
    more = replace(whole, cases=(*whole.cases, *(replace(case, concept="liver") for case in whole.cases)))
    rows = compare(more, more).rows
    assert [(row.dataset, row.concept, row.difference.cases) for row in rows] == [
        ("gut", "liver", 3),
        ("gut", "polyp", 3),
        ("all", "all", 6),
    ]
