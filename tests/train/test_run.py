"""`medsam3 train` as a user gives it: from a data folder, or COCO JSON, to weights that segment."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import medsam3
from made_data import SIZE, data_folder, picture
from medsam3.cli.main import main
from medsam3.errors import InputError
from medsam3.models.mini.card import MiniThresholds
from medsam3.models.mini.segmenter import SHIPPED_WEIGHTS, MiniSegmenter
from medsam3.train.calibrate import Calibration
from medsam3.train.config import KNOWN, NEW, FitConfig
from medsam3.train.loop import RunFolder
from medsam3.train.run import starting_weights, write_weights


def coco_file(folder: Path, numbers: tuple[int, ...], name: str) -> Path:
    box = [10.0, 8.0, 40.0, 30.0]
    polygon = [box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]
    images = [{"id": n, "file_name": picture(folder, n)[0].name, "height": 48, "width": 64} for n in numbers]
    annotations = [
        {"id": n, "image_id": n, "category_id": 1, "segmentation": [polygon], "bbox": [10, 8, 30, 22]} for n in numbers
    ]
    path = folder / name
    categories = [{"id": 1, "name": "polyp"}, {"id": 2, "name": "ulcer"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.mark.weights
@pytest.mark.parametrize("encoder", ["lite0", "lite-medsam"])
def test_a_data_folder_gives_weights_with_a_card_that_segment(
    tmp_path: Path, feature_cache: Path, capsys: pytest.CaptureFixture[str], encoder: str
) -> None:
    data, out = data_folder(tmp_path / "data"), tmp_path / "run"
    command = ["train", str(data), "--out", str(out), "--steps", "2", "--images-per-step", "1", "--views", "1"]
    command += ["--image-encoder", encoder, "--cache", str(feature_cache)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert f"trains: 2 steps of 1 images, encoder {encoder}" in printed.err
    assert json.loads(printed.out)["weights"] == str(out / "mini.safetensors")
    card = json.loads((out / "mini.json").read_text())
    assert card["data"]["images"] == {"one": {"train": 2, "val": 1}}
    assert card["training"]["steps"] == 2
    assert card["concepts"] == ["polyp"]  # the ulcer is nowhere there
    assert card["detector"]["image_encoder"] == encoder
    assert ("trained_encoder" in card) == (encoder == "lite0")
    assert [point["step"] for point in card["curve"]] == [0, 1]
    assert set(card["val"]["dice_text"]) == {"one/polyp"}
    model = medsam3.load("mini", weights=out / "mini.safetensors")
    [masks] = medsam3.segment(data / "2.png", "polyp", model)
    assert masks.shape == (1, *SIZE)
    assert isinstance(model, MiniSegmenter)
    assert model.read("polypp").text == "polyp"
    assert model.read("a spleen").is_taught is False


@pytest.mark.weights
def test_coco_json_gives_weights_and_they_can_be_trained_further(
    tmp_path: Path, feature_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "coco"
    folder.mkdir()
    train, val = coco_file(folder, (0, 1), "train.json"), coco_file(folder, (2,), "val.json")
    command = ["train", "--coco", str(train), "--coco-val", str(val), "--images", str(folder)]
    command += ["--steps", "1", "--images-per-step", "1", "--views", "1", "--cache", str(feature_cache)]
    assert main([*command, "--out", str(tmp_path / "first")]) == 0
    assert "! the presence threshold stays at 0.5, and no AUROC is given" in capsys.readouterr().err
    weights = tmp_path / "first" / "mini.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text())
    card["thresholds"] |= {"presence": 0.37, "closer_presence": 0.3}
    weights.with_suffix(".json").write_text(json.dumps(card))
    assert main([*command, "--out", str(tmp_path / "second"), "--init", str(weights)]) == 0
    first, second = (json.loads((tmp_path / run / "mini.json").read_text()) for run in ("first", "second"))
    assert second["started_from"]["sha256"] == first["sha256"]
    assert second["training"]["initial_sha256"] == first["sha256"]
    assert first["concepts"] == second["concepts"] == ["polyp"]
    assert [second["thresholds"][name] for name in ("presence", "closer_presence")] == [0.37, 0.3]  # no negatives


@pytest.mark.weights
@pytest.mark.parametrize("trains", ["detector", "text", "lora"])
def test_only_what_is_said_trains_and_the_weights_segment(
    tmp_path: Path, feature_cache: Path, capsys: pytest.CaptureFixture[str], trains: str
) -> None:
    data, out = data_folder(tmp_path / "data"), tmp_path / "run"
    command = ["train", str(data), "--out", str(out), "--steps", "2", "--images-per-step", "1", "--trains", trains]
    command += ["--cache", str(feature_cache)]
    assert main(command) == 0
    table = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().err.splitlines()}
    assert table["image encoder"][1] == "frozen"
    assert table["text encoder"][1] == ("147,456" if trains == "lora" else "frozen")  # 24 projections x 8 x 2 x 384
    assert (table["mask head"][1] == "frozen") == (trains == "text")
    assert table["text projection"][1] != "frozen"
    model = medsam3.load("mini", weights=out / "mini.safetensors")
    [masks] = medsam3.segment(data / "2.png", "polyp", model)
    assert masks.presence is not None


@pytest.mark.slow
@pytest.mark.weights
def test_joined_weights_are_one_file_that_segments(tmp_path: Path, feature_cache: Path) -> None:
    data, runs = data_folder(tmp_path / "data"), [tmp_path / "lite0", tmp_path / "lite-medsam"]
    shared = ["--images-per-step", "1", "--views", "1", "--cache", str(feature_cache)]
    for run in runs:
        assert main(["train", str(data), "--out", str(run), "--steps", "1", "--image-encoder", run.name, *shared]) == 0
    out, weights = tmp_path / "both", [str(run / "mini.safetensors") for run in runs]
    assert main(["train", str(data), "--out", str(out), "--join", *weights, *shared]) == 0
    card = json.loads((out / "mini.json").read_text())
    assert [detector["image_encoder"] for detector in card["detector"]] == ["lite0", "lite-medsam"]
    assert [made["training"]["steps"] for made in card["joined"]] == [1, 1]
    assert card["concepts"] == ["polyp"]
    model = medsam3.load("mini", weights=out / "mini.safetensors")
    [masks] = medsam3.segment(data / "2.png", "polyp", model)
    assert masks.shape == (1, *SIZE)
    anew, kept = tmp_path / "anew", ("sha256", "training", "curve")
    assert main(["train", str(data), "--out", str(anew), "--join", weights[0], *shared]) == 0
    before, after = (json.loads((run / "mini.json").read_text()) for run in (runs[0], anew))
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    [again] = medsam3.segment(data / "2.png", "polyp", medsam3.load("mini", weights=anew / "mini.safetensors"))
    assert again.shape == (1, *SIZE)


def test_a_card_says_why_presence_was_not_calibrated_and_holds_no_nan(tmp_path: Path) -> None:
    calibration = Calibration(MiniThresholds(), {"one/polyp": 0.5}, {}, None, "no image lacks it")
    write_weights(tmp_path, {"a": torch.zeros(2)}, {}, calibration)
    text = (tmp_path / "mini.json").read_text()
    assert "NaN" not in text
    card = json.loads(text)
    assert card["val"]["presence_auroc"] is None and card["val"]["presence_kept"] == "no image lacks it"
    write_weights(tmp_path, {"a": torch.zeros(2)}, {}, replace(calibration, presence_auroc=0.98765, presence_kept=""))
    val = json.loads((tmp_path / "mini.json").read_text())["val"]
    assert val["presence_auroc"] == 0.9877 and "presence_kept" not in val


def test_a_run_on_other_data_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = data_folder(tmp_path / "data"), tmp_path / "run"
    RunFolder(out, FitConfig(), "the digest of other data").__exit__(None, None, None)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["train", str(data), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "holds a run on other data: choose another --out" in line
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.weights
def test_a_finished_run_given_pictures_of_the_same_names_keeps_its_card(tmp_path: Path, feature_cache: Path) -> None:
    data, out = data_folder(tmp_path / "data"), tmp_path / "run"
    command = ["train", str(data), "--cache", str(feature_cache), "--out", str(out)]
    command += ["--steps", "1", "--images-per-step", "1"]
    assert main(command) == 0
    card = (out / "mini.json").read_bytes()
    picture(data, 1)[0].write_bytes((data / "2.png").read_bytes())
    assert main(command) == 2
    assert (out / "mini.json").read_bytes() == card
    picture(data, 1)
    assert main([*command[:-4], "--steps", "2", *command[-2:]]) == 0  # the first data again, and more steps
    assert json.loads((out / "mini.json").read_text())["training"]["steps"] == 2


def test_shipped_weights_are_named_and_a_file_of_that_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert starting_weights(Path("mini")) == SHIPPED_WEIGHTS
    assert starting_weights(Path("mini-open")).name == "mini-open.safetensors"
    save_file({"a": torch.zeros(1)}, tmp_path / "mini")
    assert starting_weights(Path("mini")) == Path("mini")
    with pytest.raises(InputError, match="are not a file"):
        starting_weights(tmp_path / "runs" / "mini")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps. Must be >= 1"),
        (["--images-per-step", "3"], "there are only 2 train images"),
        (["--datasets", "two"], "there is no data set two"),
        (["--views-of", "one=x"], "allowed is SET=N"),
        (["--init", "nothing.safetensors"], "are not a file"),
        (["--trains", "all", "--image-encoder", "lite-medsam"], "lite-medsam stays frozen"),
        (["--rank", "4"], "belongs to --trains lora"),
        (["--join", "nothing.safetensors"], "are not both there"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    data = data_folder(tmp_path / "data")
    assert main(["train", str(data), "--out", str(tmp_path / "run"), *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_describes_and_writes_the_report_on_the_data_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "nowhere"))  # no encoders, so nothing is timed
    data = data_folder(tmp_path / "data")
    command = [
        "train",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--dry-run",
        "--views-of",
        "one=4",
        "--image-encoder",
        "lite-medsam",
    ]
    assert main(command) == 0
    shown = capsys.readouterr().err
    assert "1600 steps of 2 images" in shown  # there are no more
    assert "features to cache: 9 views" in shown  # 4 of each of 2 train images, 1 of the val image
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data.html", "data.json"}


@pytest.mark.parametrize(
    ("concept", "least", "rate", "of_many"),
    [("polyp", 24, 1e-4, [24, 24, 25, 700, 1600]), ("neuroretinal rim", 48, 2e-4, [48, 48, 50, 1400, 1600])],
)
def test_weights_that_know_something_are_trained_shortly_and_what_is_new_to_them_longer(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    concept: str,
    least: int,
    rate: float,
    of_many: list[int],
) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "nowhere"))  # no encoders, so nothing is timed
    data = data_folder(tmp_path / "data", concept)
    command = ["train", str(data), "--out", str(tmp_path / "run"), "--dry-run", "--init", "mini"]
    assert main(command) == 0
    assert f"{least} steps of 2 images" in capsys.readouterr().err
    assert main([*command, "--steps", "30"]) == 0
    assert "30 steps of 2 images" in capsys.readouterr().err
    further = KNOWN if concept == "polyp" else NEW
    assert further.learning_rate == rate
    assert [further.steps(images) for images in (1, 24, 25, 700, 5000)] == of_many
