"""What crosses a module border has a type: no public signature, field or alias is a dict of anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import medsam3

ROOT = Path(medsam3.__file__).parent
UNTYPED = ("dict[str, Any]", "Mapping[str, Any]")
OPEN = "JsonObject"
"""The one alias for JSON whose keys others choose."""
MOST_OPEN = 27


def annotated(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Public names of a module with what they are annotated with: arguments, results, fields, values, aliases."""
    for node in tree.body:
        yield from _of_node(node, "")
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for child in node.body:
                yield from _of_node(child, f"{node.name}.")


def _of_node(node: ast.stmt, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(node.name):
        given = node.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        yield from (
            (f"{prefix}{node.name}", ast.unparse(one.annotation))
            for one in named
            if one is not None and one.annotation is not None
        )
        if node.returns is not None:
            yield f"{prefix}{node.name}", ast.unparse(node.returns)
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_public(node.target.id):
        yield f"{prefix}{node.target.id}", ast.unparse(node.annotation)
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _is_public(node.targets[0].id):
        yield f"{prefix}{node.targets[0].id}", ast.unparse(node.value)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__")


def found(wanted: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT).as_posix()}: {name}: {text}"
        for path in sorted(ROOT.rglob("*.py"))
        for name, text in annotated(ast.parse(path.read_text(encoding="utf-8")))
        if any(one in text for one in wanted)
    ]


def test_public_annotations_are_found_as_worked_out_by_hand() -> None:
    source = (
        "A = dict[str, Any]\n_B = dict[str, Any]\n"
        "def f(a: int, *b: A) -> None:\n    x: dict[str, Any] = {}\n"
        "class C:\n    d: float\n    _e: int\n    def g(self, h: bytes): ...\n    def _i(self, j: int): ...\n"
        "class _K:\n    def l(self, m: int): ...\n"
    )
    assert list(annotated(ast.parse(source))) == [
        ("A", "dict[str, Any]"),
        ("f", "int"),
        ("f", "A"),
        ("f", "None"),
        ("C.d", "float"),
        ("C.g", "bytes"),
    ]


def test_no_dict_of_anything_crosses_a_border() -> None:
    assert found(UNTYPED) == ["store.py: JsonObject: dict[str, Any]"]


def test_open_json_stays_where_others_choose_its_keys() -> None:
    places = found((OPEN,))
    assert len(places) <= MOST_OPEN, places
