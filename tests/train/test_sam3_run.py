"""A whole run by its command: from weights and COCO data to weights that `medsam3.load` takes; eight real images."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sam3_tiny as tiny
import torch

import medsam3
from medsam3.cli.main import run as command
from medsam3.data.samples import samples_from_index
from medsam3.errors import InputError
from medsam3.measure.outline import dice
from medsam3.models.sam3.checkpoints import read_checkpoint
from medsam3.models.sam3.segmenter import Sam3Segmenter
from medsam3.prompts import Prompt
from medsam3.train.config import Sam3FitConfig, SamplingConfig
from medsam3.train.sam3_run import Sam3Settings, read_start, train_sam3
from medsam3.train.workers import OneProcess

CPU = torch.device("cpu")
DATA = os.environ.get("MEDSAM3_DATA", "")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `weights`, `pictures`, and `train.json` and `val.json` in COCO's format."""
    pytest.importorskip("pycocotools", reason="needs pycocotools: pip install 'medsam3[coco]'")
    folder = tmp_path_factory.mktemp("place")
    tiny.weights_folder(folder / "weights")
    for split, count in (("train", 3), ("val", 2)):
        categories = [{"id": 1, "name": "polyp"}, {"id": 2, "name": "needle"}]
        content: dict[str, Any] = {"categories": categories, "images": [], "annotations": []}
        for number, sample in enumerate(tiny.bright_squares(folder / "pictures", count, split=split)):
            rows, columns = np.nonzero(sample.targets[0].load())
            x0, x1, y0, y1 = (int(v) for v in (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1))
            content["images"].append({"id": number, "file_name": sample.name, "height": 90, "width": 120})
            polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            content["annotations"].append({"id": number, "image_id": number, "category_id": 1, "segmentation": polygon})
        needle = {"id": 99, "image_id": 0, "category_id": 2, "segmentation": [[0, 0, 30, 0, 30, 4, 0, 4]]}
        content["annotations"].append(needle)  # on the first picture of each file, so absent in the others
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def run(place: Path, out: Path, *options: str) -> int:
    data = ["--coco", str(place / "train.json"), "--coco-val", str(place / "val.json")]
    data += ["--images", str(place / "pictures"), "--base", "sam3", "--weights", str(place / "weights")]
    return command(["train", *data, "--out", str(out), "--device", "cpu", *options])


def quick(place: Path, out: Path, *options: str) -> int:
    return run(place, out, "--steps", "2", "--images-per-step", "2", "--prompts", "2", "--no-bf16", *options)


def test_a_dry_run_tells_what_is_frozen_and_what_it_will_take(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place, tmp_path / "out", "--dry-run") == 0
    told = capsys.readouterr().err.splitlines()
    rows = {line[:24].strip(): line[24:].split() for line in told}
    assert rows["image encoder"][-1] == rows["text encoder"][-1] == "frozen"
    parts = ("exemplar encoder", "fusion encoder", "decoder and presence", "mask head", "scoring")
    assert all(rows[part][0] == rows[part][1] for part in parts)
    trained = sum(int(rows[part][1].replace(",", "")) for part in parts)
    assert rows["all"][1] == f"{trained:,}"
    for start in ("features to cache: 3 views", "measured: ", "run folder: "):
        assert any(line.startswith(start) for line in told)
    assert any("s a view to encode (1 pass)" in line and "3 views that are not cached" in line for line in told)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"data.html", "data.json"}


@pytest.mark.parametrize("trains", ["detector", "all"])
def test_the_result_loads_and_differs_from_the_start_only_in_what_trained(
    place: Path, tmp_path: Path, trains: str
) -> None:
    assert quick(place, tmp_path, "--trains", trains) == 0
    before, after = (read_checkpoint(folder).tensors for folder in (place / "weights", tmp_path / "model"))
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    detector = {"geometry_encoder", "detr_encoder", "detr_decoder", "mask_decoder", "dot_product_scoring"}
    encoders = {"vision_encoder", "text_encoder", "text_projection"}
    assert changed == (detector if trains == "detector" else detector | encoders)
    image = medsam3.read(place / "pictures" / "train0.png")
    masks = medsam3.segment(image, ["polyp"], medsam3.load(str(tmp_path / "model")))
    assert masks[0].shape == (1, 90, 120)


def test_the_card_names_start_recipe_data_and_what_val_gives(place: Path, tmp_path: Path) -> None:
    quick(place, tmp_path)
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["started_from"]["name"] == "weights"
    assert card["training"]["trains"] == "detector"
    assert card["data"]["images"] == {"pictures": {"train": 3, "val": 2}}
    assert card["val"]["images"] == 2
    assert card["val"]["absent_prompts"] == 1
    assert set(card["val"]["dice_text"]) == {"needle", "polyp"}
    assert len(card["curve"]) == 2


def test_an_adapter_goes_on_the_start_as_the_authors_file_does(place: Path, tmp_path: Path) -> None:
    quick(place, tmp_path, "--trains", "lora", "--rank", "2", "--alpha", "4")
    merged = medsam3.load(str(tmp_path / "model"))
    on_top = medsam3.load(str(place / "weights"), lora=tmp_path / "adapter" / "best_lora_weights.pt")
    assert isinstance(merged, Sam3Segmenter) and isinstance(on_top, Sam3Segmenter)
    state = on_top.network.state_dict()
    for name, tensor in merged.network.state_dict().items():
        assert torch.allclose(state[name], tensor), name
    start = read_checkpoint(place / "weights").tensors
    moved = [name for name, tensor in start.items() if not torch.equal(merged.network.state_dict()[name], tensor)]
    assert any("vision_encoder" in name for name in moved) and any("text_encoder" in name for name in moved)


def test_the_same_command_again_reads_the_cache_and_makes_the_same_weights(place: Path, tmp_path: Path) -> None:
    quick(place, tmp_path / "one", "--cache", str(tmp_path / "cache"))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert len(files) == 3
    quick(place, tmp_path / "two", "--cache", str(tmp_path / "cache"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")} == files
    one, two = (read_checkpoint(tmp_path / name / "model").tensors for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--steps", "0"), "--steps. Must be >= 1"),
        (("--rank", "4"), "belong to the adapter"),
        (("--init", "mini.safetensors"), "belongs to the small model"),
        (("--image-size", "100"), "multiples of 14 from 56"),
        (("--images-per-step", "9", "--no-bf16"), "only 3 train images"),
        (("--device", "abacus"), "is not here"),
    ],
)
def test_an_option_that_cannot_be_is_refused(place: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(place, tmp_path, *options)


def test_weights_are_asked_for_by_name(place: Path, tmp_path: Path) -> None:
    coco = ["--coco", str(place / "train.json"), "--coco-val", str(place / "val.json")]
    data = [*coco, "--images", str(place / "pictures"), "--out", str(tmp_path)]
    with pytest.raises(InputError, match="without --weights"):
        command(["train", *data, "--base", "sam3"])
    with pytest.raises(InputError, match="add --base sam3"):
        command(["train", *data, "--alpha", "16"])


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="needs the data pack: set MEDSAM3_DATA to its folder")
def test_a_tiny_sam3_learns_eight_real_images_by_heart(tmp_path: Path) -> None:
    weights = tiny.weights_folder(tmp_path / "weights", tiny.architecture(image_size=168, width=64))
    found = [sample for sample in samples_from_index(Path(DATA)) if sample.dataset == "isic2017"]
    train = [sample for sample in found if sample.split == "train"][:8]
    assert len(train) == 8
    rate = 1e-3
    config = Sam3FitConfig(
        trains="all",
        steps=500,
        learning_rate=rate,
        vision_learning_rate=rate,
        text_learning_rate=rate,
        warmup_steps=20,
        weight_decay=0.0,
        clip_norm=1.0,
        bf16=False,
        is_cached=False,
        is_checkpointed=False,
        save_every=500,
        sampling=SamplingConfig(images=4, prompts=2, exemplar=0.0, dataset_power=1.0),
    )
    settings = Sam3Settings(str(weights), tmp_path / "run", tmp_path / "cache", config, val_images=0)
    samples = [*train, replace(train[0], split="val")]
    train_sam3(samples, settings, read_start(settings), OneProcess(CPU))
    model = medsam3.load(str(tmp_path / "run" / "model"))
    overlaps, alarms = [], []
    for sample in train:
        features = model.encode(sample.load_rgb())
        for target in sample.targets:
            masks = model.decode(features, Prompt(text=target.concept))
            if target.is_present:
                overlaps.append(dice(target.load() > 0, masks.union()[0]))
            else:
                alarms.append(len(masks) > 0)
    assert np.mean(overlaps) > 0.95
    assert not any(alarms)
