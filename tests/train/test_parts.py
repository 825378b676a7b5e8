"""The table of what is frozen: counted by hand on small modules, and the small model's own."""

from torch import nn

from medsam3.models.mini.detector import MiniDetector, MiniDetectorConfig
from medsam3.models.mini.text_encoder import blank_text_model
from medsam3.models.mini.tinyvit import TinyViT
from medsam3.train.parts import PartSize, mini_sizes, part_sizes, table_of


def small() -> nn.Module:
    model = nn.ModuleDict({"eye": nn.Linear(2, 3), "head": nn.Linear(3, 5), "tail": nn.Linear(1, 1, bias=False)})
    model["head"].lora = nn.Linear(3, 2, bias=False)  # 6, an adapter's, on top of 3 * 5 + 5
    return model


def test_each_part_is_counted_once_and_an_adapter_on_top() -> None:
    parts = (("eye", ("eye.",)), ("head", ("head.",)))
    assert part_sizes(small(), ("eye.", "tail."), parts) == [
        PartSize("eye", 2 * 3 + 3, 0),
        PartSize("head", 20, 26),
        PartSize("other", 1, 0),
    ]
    assert [size.trained for size in part_sizes(small(), (), parts)] == [9, 26, 1]


def test_a_model_without_parameters_has_parts_of_0() -> None:
    assert part_sizes(nn.Identity(), ("a",), (("a", ("a",)),)) == [PartSize("a", 0, 0)]


def test_the_small_model_trains_all_of_its_detector_and_nothing_else() -> None:
    detector = MiniDetector(MiniDetectorConfig())
    sizes = mini_sizes(TinyViT(), blank_text_model(), detector)
    assert [size.name for size in sizes] == [
        *("image encoder", "text encoder", "level adapter", "text projection", "geometry encoder", "encoder"),
        *("decoder and presence", "mask head", "scoring"),
    ]
    assert [size.trained for size in sizes[:2]] == [0, 0]
    assert all(size.trained == size.total > 0 for size in sizes[2:])
    assert sum(size.trained for size in sizes) == sum(p.numel() for p in detector.parameters())
    # norm 384 + 384, first 384 * 192 + 192, second 192 * 96 + 96
    assert sizes[3].total == 768 + 384 * 192 + 192 + 192 * 96 + 96


def test_the_table_says_frozen_and_adds_up() -> None:
    lines = table_of([PartSize("eye", 1200, 0), PartSize("head", 20, 26)])
    assert [line.split() for line in lines] == [
        ["part", "parameters", "trained"],
        ["eye", "1,200", "frozen"],
        ["head", "20", "26"],
        ["all", "1,220", "26"],
    ]
