"""The conventions' limits on files, functions and parameters hold for every file below src."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import medsam3

ROOT = Path(medsam3.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LONGEST_FILE = 500
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 7

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[tuple[Function, bool]]:
    """Every function at any depth, and whether it is a method."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield child, isinstance(node, ast.ClassDef)


def length(function: Function) -> int:
    """Lines from the `def` to the end, without those of the docstring and the decorators."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def parameters(function: Function, *, is_method: bool) -> int:
    """How many there are to give, `self` or `cls` of a method left out."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    gathered = [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    is_bound = is_method and bool(named) and named[0].arg in ("self", "cls")
    return len(named) + len(gathered) - is_bound


def found() -> Iterator[tuple[str, Function, bool]]:
    for path in FILES:
        for function, is_method in functions(ast.parse(path.read_text(encoding="utf-8"))):
            yield f"{path.relative_to(ROOT).as_posix()}:{function.name}", function, is_method


def test_the_measures_count_as_worked_out_by_hand() -> None:
    source = (
        "class A:\n"
        "    def f(self, a, /, b, *, c, **d):\n"  # line 1 of f; a, b, c, d
        '        """One.\n'  # two lines of docstring
        '        """\n'
        "        def g(self, *e):\n"  # line 2 of f, 1 of g; in a function, so self counts
        "            return 0\n"  # 3, 2
        "        return 1\n"  # 4
    )
    measured = {
        function.name: (length(function), parameters(function, is_method=is_method))
        for function, is_method in functions(ast.parse(source))
    }
    assert measured == {"f": (4, 4), "g": (2, 2)}


def test_there_are_files_and_functions() -> None:
    assert len(FILES) > 50
    assert sum(1 for _ in found()) > 300


def test_no_file_is_too_long() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    too_long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > LONGEST_FILE}
    assert too_long == {}


def test_no_function_is_too_long() -> None:
    assert {name: length(function) for name, function, _ in found() if length(function) > LONGEST_FUNCTION} == {}


def test_no_function_takes_too_many_parameters() -> None:
    counts = {name: parameters(function, is_method=is_method) for name, function, is_method in found()}
    assert {name: count for name, count in counts.items() if count > MOST_PARAMETERS} == {}
