"""Reading, refusing and converting weights; the full list of Meta's names; adapters worked out by hand."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsam3.errors import InputError
from medsam3.models.sam3.checkpoints import convert, read_adapter, read_checkpoint
from medsam3.models.sam3.keys import places, rename
from medsam3.models.sam3.lora import LoraSource, adapter_from, merge
from medsam3.models.sam3.network import TRUNK_LAYER_NORM_EPS, architecture_from_json, blank_network, full_size
from sam3_small import KEYS, needs_parity, parity, random_tensors, small_architecture

WEIGHTS = random_tensors(small_architecture())
QKV = "backbone.vision_backbone.trunk.blocks.0.attn.qkv"


def folder(path: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    save_file(WEIGHTS if tensors is None else tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(small_architecture().to_json(), default=str))
    return path


# names


def test_every_tensor_of_metas_full_size_model_finds_its_place_and_shape() -> None:
    shapes = json.loads(KEYS.read_text())["tensors"]
    assert len(shapes) == 1465
    renamed = rename({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    expected = blank_network(full_size()).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in renamed.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    assert len(expected) == 1797


def test_only_the_rotary_buffers_and_the_point_projections_are_left_over() -> None:
    shapes = json.loads(KEYS.read_text())["tensors"]
    left_over = rename({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}).left_over
    assert sum(name.endswith(".attn.freqs_cis") for name in left_over) == 32
    assert sum(".geometry_encoder.points_" in name for name in left_over) == 6
    assert len(left_over) == 38


def test_a_fused_projection_is_cut_into_query_key_and_value() -> None:
    renamed = rename({f"detector.{QKV}.bias": torch.arange(6.0)}).tensors
    start = "detector_model.vision_encoder.backbone.layers.0.attention"
    assert {name: tensor.tolist() for name, tensor in renamed.items()} == {
        f"{start}.q_proj.bias": [0, 1],
        f"{start}.k_proj.bias": [2, 3],
        f"{start}.v_proj.bias": [4, 5],
    }


def test_the_cls_row_is_dropped_and_the_text_projection_transposed() -> None:
    table = rename({"detector.backbone.vision_backbone.trunk.pos_embed": torch.arange(6.0).view(1, 3, 2)}).tensors
    assert next(iter(table.values())).tolist() == [[[2, 3], [4, 5]]]
    projection = rename({"detector.backbone.language_backbone.encoder.text_projection": torch.zeros(3, 5)}).tensors
    assert projection["detector_model.text_encoder.text_projection.weight"].shape == (5, 3)


def test_point_embeddings_become_rows_in_their_order() -> None:
    rows = {f"tracker.sam_prompt_encoder.point_embeddings.{n}.weight": torch.full((1, 2), n) for n in (2, 0, 3, 1)}
    table = rename(rows).tensors["tracker_model.prompt_encoder.point_embed.weight"]
    assert table[:, 0].tolist() == [0, 1, 2, 3]


def test_an_unknown_name_has_no_place() -> None:
    assert places("detector.something.new.weight") == ()
    assert places("optimizer.step") == ()


# reading


def test_a_folder_and_its_shards_and_its_file_give_the_same_tensors(tmp_path: Path) -> None:
    whole = read_checkpoint(folder(tmp_path / "whole"))
    shards = folder(tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    halves: dict[str, dict[str, Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (name, tensor) in enumerate(WEIGHTS.items()):
        halves[sorted(halves)[number % 2]][name] = tensor
    for name, part in halves.items():
        save_file(part, shards / name)
    index = {name: file for file, part in halves.items() for name in part}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    split = read_checkpoint(shards)
    single = read_checkpoint(tmp_path / "whole" / "model.safetensors")
    for other in (split, single):
        assert other.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(other.tensors[name], tensor) for name, tensor in whole.tensors.items())
    (shards / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"1 of 2 shards are missing .*b\.safetensors"):
        read_checkpoint(shards)


def test_a_detector_alone_is_read_with_and_without_its_prefix(tmp_path: Path) -> None:
    detector = {name: tensor for name, tensor in WEIGHTS.items() if name.startswith("detector_model.")}
    prefixed = read_checkpoint(folder(tmp_path / "prefixed", detector))
    bare = read_checkpoint(
        folder(tmp_path / "bare", {name.removeprefix("detector_model."): tensor for name, tensor in detector.items()})
    )
    assert prefixed.tensors.keys() == bare.tensors.keys() == detector.keys()
    assert prefixed.architecture.tracker is None


def test_the_trunks_epsilon_is_metas_whatever_the_configuration_says() -> None:
    fields = small_architecture().to_json()
    fields["detector_config"]["vision_config"]["backbone_config"]["layer_norm_eps"] = 1e-6
    made = architecture_from_json(fields)
    assert made.detector.vision_config.backbone_config.layer_norm_eps == TRUNK_LAYER_NORM_EPS == 1e-5
    assert full_size().detector.vision_config.backbone_config.layer_norm_eps == 1e-5


def test_missing_extra_and_misshapen_tensors_are_counted_and_named(tmp_path: Path) -> None:
    wrong = dict(WEIGHTS)
    del wrong["detector_model.text_projection.bias"], wrong["detector_model.text_projection.weight"]
    wrong["detector_model.added"] = torch.zeros(1)
    wrong["tracker_model.no_memory_embedding"] = torch.zeros(1, 1, 7)
    with pytest.raises(InputError) as caught:
        read_checkpoint(folder(tmp_path / "wrong", wrong))
    message = str(caught.value)
    assert f"2 of {len(WEIGHTS)} tensors are missing (detector_model.text_projection.bias" in message
    assert "1 tensors are too many (detector_model.added)" in message
    assert "1 tensors have another shape" in message
    assert "(1, 1, 7), allowed (1, 1, 128)" in message


def test_weights_of_another_size_than_the_published_say_so_without_a_config(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"tensors have another shape .*config\.json beside them"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file({"image_encoder.patch.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="1 tensors and none of SAM 3's"):
        read_checkpoint(tmp_path / "other.safetensors")
    made = folder(tmp_path / "kind")
    (made / "config.json").write_text('{"model_type": "sam2"}')
    with pytest.raises(InputError, match="of type 'sam2', allowed are 'sam3' and 'sam3_video'"):
        read_checkpoint(made)


def test_tensors_of_metas_layout_that_no_sam3_has_are_counted_and_named(tmp_path: Path) -> None:
    names = (
        "detector.added.weight",
        "optimizer.step",
        "detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis",
    )
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "sam3.pt")
    with pytest.raises(InputError, match=r"2 tensors are too many \(detector\.added\.weight, optimizer\.step\)"):
        read_checkpoint(tmp_path / "sam3.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"detector.a": torch.zeros(500)}, path)
    else:
        save_file({"detector.a": torch.zeros(500)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"cut short|empty|more than tensors"):
        read_checkpoint(path)


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    path = tmp_path / "sam3.pt"
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(InputError, match="can run code"):
        read_checkpoint(path)
    torch.save({"model": Attack()}, path)
    with pytest.raises(InputError, match="can run code"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sam3.pt", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("sam3.onnx", b"onnx", r"end in '\.onnx'"),
    ],
)
def test_a_file_that_is_no_weights_says_what_to_do(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / name)


def test_an_empty_folder_and_a_table_of_other_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        read_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="not a table of tensors"):
        read_checkpoint(tmp_path / "list.pt")


# the hub


def test_a_gated_repository_names_the_page_the_login_and_what_works_now() -> None:
    class NoAccessError(GatedRepoError):
        def __init__(self) -> None:
            OSError.__init__(self, "no access")

    def gated(name: str, **_: object) -> str:
        raise NoAccessError

    with pytest.raises(InputError) as caught:
        read_checkpoint("facebook/sam3", download=gated)
    for part in ("https://huggingface.co/facebook/sam3", "hf auth login", "medsam3.load('mini')"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_network_says_so() -> None:
    def offline(name: str, **_: object) -> str:
        raise LocalEntryNotFoundError(name)

    with pytest.raises(InputError, match=r"cannot be fetched .* check the network"):
        read_checkpoint("facebook/sam3", download=offline)


def test_a_repository_is_read_from_where_it_was_fetched(tmp_path: Path) -> None:
    asked = []

    def fetched(name: str, **options: object) -> str:
        asked.append((name, options))
        return str(folder(tmp_path / "fetched"))

    assert read_checkpoint("facebook/sam3", download=fetched).tensors.keys() == WEIGHTS.keys()
    assert asked[0][0] == "facebook/sam3"
    assert "*.pt" not in str(asked[0][1])


def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub() -> None:
    def never(name: str, **_: object) -> str:
        raise AssertionError(name)

    for missing in ("nowhere/sam3.pt", "/nowhere/at/all", "sam3"):
        with pytest.raises(InputError, match="are not there"):
            read_checkpoint(missing, download=never)


# converting


def test_a_converted_folder_holds_the_same_weights_configuration_and_vocabulary(tmp_path: Path) -> None:
    source = folder(tmp_path / "source")
    (source / "vocab.json").write_text("{}")
    (source / "merges.txt").write_text("#version\n")
    done = convert(source, tmp_path / "deep" / "out")
    assert (done.tensors, done.has_tracker, done.has_vocabulary, done.adapted) == (len(WEIGHTS), True, True, 0)
    assert sorted(path.name for path in done.folder.iterdir()) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "vocab.json",
    ]
    again = read_checkpoint(done.folder)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in WEIGHTS.items())
    assert json.loads((done.folder / "config.json").read_text())["model_type"] == "sam3_video"


def test_a_folder_is_converted_to_half_precision_in_half_the_bytes(tmp_path: Path) -> None:
    source = folder(tmp_path / "source")
    done = convert(source, tmp_path / "out", dtype=torch.bfloat16)
    sizes = [(place / "model.safetensors").stat().st_size for place in (source, done.folder)]
    assert 1.9 < sizes[0] / sizes[1] < 2.1
    assert load_file(done.folder / "model.safetensors")["tracker_model.no_object_pointer"].dtype == torch.bfloat16


def test_an_out_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file, a folder is needed"):
        convert(folder(tmp_path / "source"), tmp_path / "out")


@needs_parity
def test_a_fixture_of_metas_converts_and_the_second_neck_is_left_out(tmp_path: Path) -> None:
    done = convert(parity("tiny") / "sam3.pt", tmp_path, lora=LoraSource(parity("tiny_lora") / "best_lora_weights.pt"))
    assert done.adapted == 125  # of 128, three point projections have no home
    assert sum(name.startswith("tracker_neck.") for name in done.left_over) == 22
    assert not any(name.startswith("detector_model.") for name in load_file(tmp_path / "model.safetensors"))


# adapters


def qkv_factors() -> dict[str, Tensor]:
    """Rank 1 on a 2 -> 6 projection: A = (1, 2), B = (1, 2, 3, 4, 5, 6)."""
    return {f"{QKV}.lora.lora_A": torch.tensor([[1.0], [2.0]]), f"{QKV}.lora.lora_B": torch.arange(1.0, 7.0)[None]}


def test_a_merge_adds_alpha_over_rank_times_the_product_to_each_third() -> None:
    adapter = adapter_from(qkv_factors(), LoraSource(Path("lora.pt"), alpha=3))
    start = "detector_model.vision_encoder.backbone.layers.0.attention"
    merged = merge({f"{start}.{letter}_proj.weight": torch.ones(2, 2) for letter in "qkv"}, adapter)
    # alpha 3, rank 1: (A B) transposed times 3, rows 1, 2 for q, 3, 4 for k, 5, 6 for v, columns times 1 and 2
    assert merged[f"{start}.q_proj.weight"].tolist() == [[1 + 3, 1 + 6], [1 + 6, 1 + 12]]
    assert merged[f"{start}.k_proj.weight"].tolist() == [[1 + 9, 1 + 18], [1 + 12, 1 + 24]]
    assert merged[f"{start}.v_proj.weight"].tolist() == [[1 + 15, 1 + 30], [1 + 18, 1 + 36]]


def test_alpha_and_rank_come_from_the_yaml_and_a_flag_goes_first(tmp_path: Path) -> None:
    torch.save(qkv_factors(), tmp_path / "best_lora_weights.pt")
    source = LoraSource(tmp_path / "best_lora_weights.pt")
    with pytest.raises(InputError, match=r"is unknown.* rank 16 and alpha 32"):
        read_adapter(source)
    (tmp_path / "full_lora_config.yaml").write_text("lora:\n  rank: 1\n  alpha: 5\n")
    assert read_adapter(source).scale == 5
    assert read_adapter(LoraSource(source.weights, alpha=2.0)).scale == 2
    (tmp_path / "full_lora_config.yaml").write_text("lora:\n  rank: 16\n  alpha: 32\n")
    with pytest.raises(InputError, match="rank is said to be 16, the weights have 1"):
        read_adapter(source)
    (tmp_path / "full_lora_config.yaml").write_text("model: {}\n")
    with pytest.raises(InputError, match="no section 'lora'"):
        read_adapter(source)


def test_a_file_that_is_no_adapter_and_half_a_pair_are_refused() -> None:
    source = LoraSource(Path("lora.pt"), alpha=1)
    with pytest.raises(InputError, match="holds no adapter"):
        adapter_from({"detector.a": torch.zeros(1)}, source)
    half = qkv_factors()
    half["transformer.encoder.layers.0.linear1.lora.lora_A"] = torch.zeros(4, 1)
    with pytest.raises(InputError, match="1 tensors without a partner"):
        adapter_from(half, source)
    with pytest.raises(InputError, match="alpha is -1"):
        adapter_from(qkv_factors(), LoraSource(Path("lora.pt"), alpha=-1))


def test_an_adapter_of_other_weights_is_refused() -> None:
    adapter = adapter_from(qkv_factors(), LoraSource(Path("lora.pt"), alpha=1))
    with pytest.raises(InputError, match=r"of shape \(2, 2\), the weights have none"):
        merge({}, adapter)


# what others publish


def meta_tensors() -> dict[str, Tensor]:
    """Meta's own small model: names `detector.*`."""
    loaded = torch.load(parity("tiny") / "sam3.pt", weights_only=True)
    tensors: dict[str, Tensor] = loaded["model"]
    return tensors


def saved(folder: Path, content: object, name: str = "sam3.pt") -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / name)
    shutil.copyfile(parity("tiny") / "config.json", folder / "config.json")
    return folder / name


def trainer_names(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {start + name.removeprefix("detector."): tensor for name, tensor in tensors.items()}


@needs_parity
@pytest.mark.parametrize(
    "kind", ["bare", "module.detector", "module.bare", "state_dict", "model in state_dict", "real"]
)
def test_checkpoints_of_trainers_hold_the_same_tensors(tmp_path: Path, kind: str) -> None:
    tensors = meta_tensors()
    contents: dict[str, object] = {
        "bare": {"model": trainer_names(tensors, ""), "epoch": 3},
        "module.detector": trainer_names(tensors, "module.detector."),
        "module.bare": trainer_names(tensors, "module."),
        "state_dict": {"state_dict": tensors},
        "model in state_dict": {"state_dict": {"model": trainer_names(tensors, "")}},
        "real": {
            name: tensor
            for old, given in tensors.items()
            for name, tensor in (
                [(f"{old}_real", given.real.contiguous()), (f"{old}_imag", given.imag.contiguous())]
                if old.endswith("freqs_cis")
                else [(old, given)]
            )
        },
    }
    expected = read_checkpoint(parity("tiny") / "sam3.pt").tensors
    found = read_checkpoint(saved(tmp_path / "published", contents[kind])).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@needs_parity
def test_of_sam_3_1_the_detector_is_loaded_and_what_is_left_out_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trunk = "detector.backbone.vision_backbone"
    more = {f"{trunk}.{neck}_convs.0.conv_1x1.weight": torch.zeros(2) for neck in ("interactive", "propagation")}
    more["tracker.model.multiplex.weight"] = torch.zeros(3)
    with caplog.at_level("WARNING"):
        found = read_checkpoint(saved(tmp_path / "new", {**meta_tensors(), **more}))
    expected = read_checkpoint(parity("tiny") / "sam3.pt").tensors
    assert found.tensors.keys() == expected.keys()
    assert found.architecture.tracker is None
    assert set(more) <= set(found.left_over)
    assert "SAM 3.1" in caplog.text and "interactive_convs" in caplog.text
    other = {**meta_tensors(), "detector.extra.weight": torch.zeros(2)}
    with pytest.raises(InputError, match=r"1 tensors are too many \(detector\.extra\.weight\)"):
        read_checkpoint(saved(tmp_path / "other", other))


@needs_parity
def test_a_repository_with_a_dot_in_its_name_and_only_a_pickle_is_fetched(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == "facebook/sam3.1"
        asked.append(allow_patterns)
        (tmp_path / "hub").mkdir(exist_ok=True)
        if "*.pt" in allow_patterns:
            saved(tmp_path / "hub", meta_tensors(), "sam3.1_multiplex.pt")
        return str(tmp_path / "hub")

    assert len(read_checkpoint("facebook/sam3.1", download=download).tensors) > 100
    assert ["*.pt" in patterns for patterns in asked] == [False, True]
    saved(tmp_path / "hub", {}, "other.pt")
    with pytest.raises(InputError, match=r"holds 2 files of weights \(other\.pt, sam3\.1_multiplex\.pt\)"):
        read_checkpoint(tmp_path / "hub")


def test_sizes_that_make_no_network_are_one_line(tmp_path: Path) -> None:
    made = folder(tmp_path)
    fields = json.loads((made / "config.json").read_text())
    fields["detector_config"]["detr_encoder_config"]["hidden_size"] = -1
    (made / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"config\.json does not describe a SAM 3 \(.*negative") as raised:
        read_checkpoint(made)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), "wide", [1], None])
def test_a_size_of_another_kind_is_one_line(value: object) -> None:
    fields = small_architecture().to_json()
    fields["tracker_config"]["memory_encoder_output_channels"] = value
    with pytest.raises(
        InputError, match=r"config\.json does not describe a SAM 3 \(.*memory_encoder_output_channels"
    ) as raised:
        architecture_from_json(fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"), [("num_hidden_layers", 10**6), ("hidden_size", 10**9), ("image_size", -(10**9))]
)
def test_absurd_sizes_are_refused_at_once(name: str, value: int) -> None:
    fields = small_architecture().to_json()
    fields["detector_config"]["vision_config"]["backbone_config"][name] = value
    with pytest.raises(InputError, match=rf"config\.json says {name} = {value}, allowed is up to"):
        architecture_from_json(fields)


def test_a_list_of_200000_tensors_is_refused_at_once(tmp_path: Path) -> None:
    header = json.dumps({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(200_000)})
    path = tmp_path / "many.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(InputError, match=r"their list of tensors takes [\d,]+ bytes, allowed are 8,000,000"):
        read_checkpoint(path)
