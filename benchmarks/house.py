"""Count how large the house is, and how much of it one picture and one phrase run through.

Run: python benchmarks/house.py            # needs the weights of mini (medsam3 weights fetch)
     python benchmarks/house.py --no-path  # what can be counted without running anything

It prints a table, and exits with 1 if a goal is missed. A file is on the path if one of its functions is called;
bodies of modules and classes, which every import runs, do not count.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import re
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import PIL.Image

import medsam3

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "medsam3"
MOST_ON_PATH, MOST_LINES, MOST_FILES = 18, 22_000, 110
COMMANDS = re.compile(r"(?:--function-module|-m)\s+(medsam3[\w.]*)")
"""In a page for users, a command of another program that imports a module of ours."""


def check_copy() -> None:
    """Stop if Python imports another copy of the package than the one that is counted."""
    imported = Path(medsam3.__file__).resolve().parent
    if imported != PACKAGE.resolve():
        raise SystemExit(f"medsam3 is imported from {imported}, not from {PACKAGE}: set PYTHONPATH to {PACKAGE.parent}")


@dataclass(frozen=True)
class Count:
    """One measure against its goal, and what makes it up as far as that helps to lower it."""

    name: str
    found: int
    goal: int
    parts: Sequence[str] = ()

    @property
    def is_missed(self) -> bool:
        return self.found > self.goal


def files_on_the_path(model: str, folder: Path) -> list[str]:
    """Name the files of the package in which a function runs while one PNG is segmented by one phrase."""
    from medsam3.cli.main import main as command  # noqa: PLC0415  imports are no part of the path

    picture = folder / "one.png"
    grey = np.linspace(40, 200, 256 * 320).reshape(256, 320).astype(np.uint8)
    PIL.Image.fromarray(np.stack([grey] * 3, axis=-1)).save(picture)
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_flags & CO_OPTIMIZED:
            seen.add(frame.f_code.co_filename)

    arguments = ["segment", str(picture), "--text", "polyp", "--model", model, "--out", str(folder / "out")]
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            code = command(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    if code != 0:
        raise SystemExit(f"medsam3 {' '.join(arguments)} ended with {code}")
    paths = (Path(name).resolve() for name in seen)
    package = PACKAGE.resolve()
    return sorted(path.relative_to(package).as_posix() for path in paths if path.is_relative_to(package))


@cache
def trees(folder: Path) -> dict[Path, ast.Module]:
    """Parse every Python file below a folder, once."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}


def module_name(path: Path) -> str:
    """Give the dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def names_of_two_things(modules: dict[Path, ast.Module]) -> list[str]:
    """List public classes that are defined in more than one module, each with where."""
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(PACKAGE).as_posix())
    return [f"{name} ({', '.join(own)})" for name, own in sorted(places.items()) if len(own) > 1]


def mentioned(tree: ast.Module) -> Iterator[str]:
    """Give the modules that a file imports, and every text in it that may name one to be imported later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("medsam3."):
            yield node.value


@cache
def mentioned_below(folder: Path) -> frozenset[str]:
    """Give the modules that any file below a folder mentions."""
    return frozenset(name for tree in trees(folder).values() for name in mentioned(tree))


def put_together(tree: ast.Module, own: str) -> Iterator[str]:
    """Give the modules that a file names in two parts: f"{__name__}.{part}" or f"medsam3.room.{part}", and a text.

    Args:
        tree: The file.
        own: Its dotted name.
    """
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and len(node.values) > 1:
            start = ast.unparse(node)[2:].replace("{__name__}", own).partition("{")[0]
            if start.startswith("medsam3.") and start.endswith("."):
                yield from (start + text for text in texts)


def modules_for_tests_alone(
    modules: dict[Path, ast.Module], others: Iterable[ast.Module], pages: Iterable[str] = ()
) -> list[str]:
    """List modules that tests import, but nothing else does.

    Args:
        modules: The package.
        others: Files that count like the package: benchmarks, examples.
        pages: Texts for users, whose commands count too.
    """
    used = {name for tree in others for name in mentioned(tree)}
    used.update(name for page in pages for name in COMMANDS.findall(page))
    for path, tree in modules.items():
        own = module_name(path)
        used.update({*mentioned(tree), *put_together(tree, own)} - {own})
    tested = mentioned_below(ROOT / "tests")
    return sorted(
        name
        for path in modules
        if (name := module_name(path)) not in used and name in tested and path.name not in ("__init__.py", "main.py")
    )


def counts(model: str | None) -> list[Count]:
    """Count everything; without a model, all but the path."""
    modules = trees(PACKAGE)
    found = []
    if model is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = files_on_the_path(model, Path(folder))
        found.append(Count("files that one PNG and one phrase run through", len(path), MOST_ON_PATH, path))
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules)
    others = [*trees(ROOT / "benchmarks").values(), *trees(ROOT / "examples").values()]
    pages = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md"))]
    twice, unused = names_of_two_things(modules), modules_for_tests_alone(modules, others, pages)
    return [
        *found,
        Count("lines of src", lines, MOST_LINES),
        Count("files of src", len(modules), MOST_FILES),
        Count("class names that stand for two things", len(twice), 0, twice),
        Count("modules whose only importers are tests", len(unused), 0, unused),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="that the path is counted with, default: mini")
    parser.add_argument("--no-path", action="store_true", help="run nothing")
    args = parser.parse_args()
    check_copy()
    found = counts(None if args.no_path else args.model)
    print("| measure | found | goal | |\n| --- | --- | --- | --- |")
    for count in found:
        print(f"| {count.name} | {count.found:,} | {count.goal:,} | {'missed' if count.is_missed else 'reached'} |")
    for count in found:
        if count.is_missed and count.parts:
            print(f"\n{count.name}:\n" + "\n".join(f"  {part}" for part in count.parts))
    return int(any(count.is_missed for count in found))


if __name__ == "__main__":
    sys.exit(main())
