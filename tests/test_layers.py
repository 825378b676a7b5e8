"""The arrows of the layout: who may import whom, who owns which heavy library, and what `import medsam3` brings."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import medsam3

ROOT = Path(medsam3.__file__).parent

CORE = {"errors", "geometry", "image", "prompts", "concepts", "lexicon", "phrases", "store", "page"}
BASE = CORE | {"view", "io", "models", "segmentation"}
MAY_IMPORT = {
    "errors": set(),
    "store": {"errors"},
    "page": set(),
    "geometry": {"errors"},
    "image": {"errors", "geometry"},
    "prompts": {"errors", "geometry"},
    "concepts": {"errors", "geometry"},
    "lexicon": {"concepts"},
    "phrases": {"errors", "lexicon"},
    "view": CORE,
    "io": CORE | {"view"},
    "models": CORE | {"view"},
    "segmentation": CORE | {"view", "models", "io"},  # io only to read a path
    "measure": CORE,
    "data": BASE | {"measure"},
    "agent": BASE | {"measure"},  # models: the protocol; io: whole files
    "eval": BASE | {"measure", "data", "agent"},  # agent: it is measured beside the plain phrase
    "train": BASE | {"measure", "data", "eval"},
    "server": BASE | {"agent"},
    "batch": BASE,
    "pacs": BASE,
    "cli": BASE | {"measure", "data", "eval", "train", "agent", "server", "batch", "client", "pacs"},
    "clients": BASE,
    "client": BASE | {"agent"},
    "__main__": {"cli"},
}
"""By layer, the first name below `medsam3`; a layer may always import itself."""

OWNERS = {
    "torch": ("models", "train", "cli"),
    "transformers": ("models",),
    "tokenizers": ("models",),
    "rapidfuzz": ("lexicon",),
    "safetensors": ("models", "train"),
    "openvino": ("models",),
    "pydicom": ("io",),
    "highdicom": ("io",),
    "nibabel": ("io",),
    "SimpleITK": ("io.itk", "io.in_memory", "models.objects"),
    "cachetools": ("models", "segmentation", "agent.frames", "server.modelling", "server.mcp"),
    "pycocotools": ("io", "data.coco"),
    "pydantic": (
        "data.coco",
        "train.recipes",
        "agent",
        "cli.outputs",
        "eval.results",
        "server.schemas",
        "server.mcp",
        "server.clients",
    ),
    "cyclopts": ("cli",),
    "av": ("io.video",),
    "accelerate": ("train",),
    "peft": ("train", "models"),
    "tensorboard": ("train.board",),
    "ray": ("batch.crew",),
    "pyarrow": ("batch.target",),
    "fsspec": ("batch.pieces",),
    "fastapi": ("server",),
    "starlette": ("server",),
    "uvicorn": ("server.app",),
    "fastapi_swagger": ("server.app",),
    "prometheus_client": ("server.app", "server.guard"),
    "rich": ("cli", "train", "eval", "segmentation.run"),
    "jinja2": ("page",),
    "mcp": ("server.mcp",),
    "pydantic_ai": ("agent.providers",),
    "httpx": ("client.connection",),
    "httpx2": ("agent.providers", "pacs.dicomweb"),
    "python_multipart": ("pacs.multipart",),
    "pynetdicom": ("pacs.dimse",),
    "genai_prices": ("agent.chat", "agent.providers"),
    "monai": (),
}
"""Where each heavy library may be imported, as dotted prefixes below `medsam3`."""


@dataclass(frozen=True)
class Import:
    """One import: in which module below `medsam3`, of what, and whether it runs when the module is imported."""

    module: str
    target: str
    is_at_top: bool


def _imports() -> Iterator[Import]:
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module == "__init__":  # the public names, imported when they are first used
            continue
        yield from _imports_of(module, ast.parse(path.read_text(encoding="utf-8")))


def _imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (Import(module, name, node in tree.body) for name in names)


IMPORTS = tuple(_imports())


def test_there_is_something_to_check() -> None:
    assert Import("image", "medsam3.errors.InputError", is_at_top=True) in IMPORTS


def test_every_layer_imports_only_what_it_may() -> None:
    wrong = []
    for found in IMPORTS:
        if not found.target.startswith("medsam3."):
            continue
        layer, target = found.module.split(".")[0], found.target.split(".")[1]
        if target not in MAY_IMPORT[layer] | {layer, "__version__"}:
            wrong.append(f"{found.module} imports {found.target}")
    assert wrong == []


def test_only_the_view_knows_how_a_frame_is_shown() -> None:
    rule = {"medsam3.view.grey.automatic_window", "medsam3.view.grey.shown_grey", "medsam3.view.planes.turn_for"}
    assert {found.module for found in IMPORTS if found.target in rule} == {"view.view"}


def test_segmentation_and_the_agent_take_the_model_protocols_only() -> None:
    for layer in ("segmentation", "agent"):
        wanted = {
            found.target
            for found in IMPORTS
            if found.is_at_top and found.module.startswith(layer) and found.target.startswith("medsam3.models")
        }
        names = ("segmenter", "tracker", "refiner", "phrase_reader", "objects")
        protocols = tuple(f"medsam3.models.{name}." for name in names)
        assert all(target.startswith(protocols) for target in wanted), wanted


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_a_heavy_library_is_imported_only_by_its_owner(library: str) -> None:
    wrong = [
        found.module
        for found in IMPORTS
        if found.target.split(".")[0] == library
        and not any(f"{found.module}.".startswith(f"{owner}.") for owner in OWNERS[library])
    ]
    assert wrong == []


def test_the_package_is_imported_without_torch_or_any_heavy_library() -> None:
    code = f"import sys, medsam3; print(*sorted(set(sys.modules) & {set(OWNERS) | {'numpy'}}))"
    assert _python(code) == ""


def test_the_command_line_is_imported_without_torch_or_rich() -> None:
    code = f"import sys, medsam3.cli.main; print(*sorted(set(sys.modules) & {set(OWNERS) | {'numpy'}}))"
    assert _python(code) == ""


def test_every_public_name_is_there() -> None:
    missing = [name for name in medsam3.__all__ if not hasattr(medsam3, name)]
    assert missing == []


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
