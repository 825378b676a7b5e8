"""Every argument of every command: its names, what it takes, and its default."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

import pytest

from medsam3.cli.main import COMMANDS, Command, app_for, parse

SAM3 = """--lora; Path; -
--lora-config; Path; -
--alpha; float; -
--rank; int; -
--vocabulary; Path; -"""
MODEL = f"""--model; str; mini
--weights; Path; -
--flips; flag; -
{SAM3}
--device; str; cpu
--precision; fp32|bf16|fp16; -
--image-size; int; -"""
STACKS = """--propagate; flag; -
--each-slice; flag; -
--at; int; -
--key-every; int; 1
--plane; auto|native|axial|coronal|sagittal|vote; auto
--window; str; -
--neighbours; flag; -"""
ARCHIVE = """--archive-token --token; str; -
--ca-file; Path; -
--timeout; float; 60.0"""
SERVER = """--server; str; -
--token-file; Path; -"""
SLIDE = """--level; int; -
--region; str; -"""
INTAKE = """--dicom-port; int; -
--ae-title; str; MEDSAM3
--dicom-host; str; 127.0.0.1
--allow-ae; str, repeated; -
--send-to; str; -
--max-waiting; str; 50GiB"""
"""Arguments that commands share, one a line."""

ARGUMENTS = {
    "segment": f"""
FILES; str, several; required
--text; str, repeated; -
--box; str, repeated; -
--point; str, repeated; -
--exemplar; str, repeated; -
--frame --slice; str, repeated; -
--series; str, repeated; -
{SLIDE}
--threshold; float; -
{STACKS}
--out; Path; medsam3_out
--format; str; -
--json; flag; -
--report; Path; -
--store; flag; -
--overwrite; flag; -
--workers; int; -
{ARCHIVE}
{MODEL}
{SERVER}
""",
    "watch": f"""
ADDRESS; str; -
--rule; Path; -
--out; Path; medsam3_watch
--once; flag; -
--every; float; 30.0
--settle; float; -
--days; int; -
--threshold; float; -
{INTAKE}
{STACKS}
{ARCHIVE}
{MODEL}
""",
    "agent": f"""
FILE; str; required
INSTRUCTION; str; required
--model; str; offline
--send-images; str; -
--rounds; int; 3
--budget-usd; float; -
--budget-tokens; int; -
--budget-seconds; float; -
--out; Path; medsam3_out
--transcript; Path; -
--json; flag; -
--segmenter; str; mini
--weights; Path; -
{SAM3}
--device; str; cpu
{SERVER}
""",
    "serve": f"""
--host; str; 127.0.0.1
--port; int; 8080
--model; str; mini
--workers; int; 1
--data; Path; -
--token-file; Path; -
--allow-host; str, repeated; -
--allow-origin; str, repeated; -
--enable; str, repeated; -
--archive; str; -
--ca-file; Path; -
--max-upload; str; 2GiB
--max-memory; str; 8GiB
--llm; str; -
--send-images; flag; -
--open; flag; -
--rule; Path; -
--dicom-out; Path; medsam3_watch
{INTAKE}
""",
    "convert": f"""
MASKS; Path; required
TARGET; Path; required
--image; Path; -
--series; str; -
{SLIDE}
--format; str; -
--resample; flag; -
--overwrite; flag; -
""",
    "info": f"""
FILE; Path; required
--series; str; -
--frame --slice; str; -
{SLIDE}
--json; flag; -
""",
    "concepts": """
QUERY; str; -
--json; flag; -
""",
    "weights fetch": """
--from; Path, repeated; -
--training; flag; -
""",
    "weights list": """
--json; flag; -
""",
    "weights convert": f"""
SOURCE; str; required
--out; Path; required
{SAM3}
--dtype; fp32|bf16|fp16; fp32
--json; flag; -
""",
    "train": """
DATA; Path, several; -
--coco; Path; -
--coco-val; Path; -
--images; Path; -
--folder; Path Path, repeated; -
--concept; str, repeated; -
--labels; str, repeated; -
--group-pattern; str, repeated; -
--datasets; str; -
--leave-out; str; -
--fold; str; -
--only-open; flag; -
--weight; str, repeated; -
--no-data-report; flag; -
--slices-every; int; 2
--out; Path; required
--cache; Path; -
--init; Path; -
--join; Path, several; -
--recipe; str; -
--steps; int; -
--views; int; -
--views-of; str; -
--images-per-step; int; -
--learning-rate; float; -
--dataset-power; float; -
--seed; int; -
--no-bf16; flag; -
--image-encoder; lite0|lite-medsam; lite0
--trains; detector|text|lora|all; -
--prompts; int; -
--negative; float; -
--closer; float; -
--absent; int; -
--accumulate; int; -
--warmup-steps; int; -
--save-every; int; -
--val-every; int; -
--patience; int; -
--board; flag; -
--dry-run; flag; -
--base; mini|sam3; mini
--weights; str; -
--rank; int; -
--alpha; float; -
--image-size; int; -
--no-cache; flag; -
--keep-activations; flag; -
--vocabulary; Path; -
--device; str; -
--val-images; int; 32
""",
    "eval": """
DATA_DIR; Path; -
--coco; Path; -
--images; Path; -
--folder; Path Path; -
--concept; str; -
--labels; str; -
--group-pattern; str; -
--model; str; mini
--weights; Path; -
--flips; flag; -
--datasets; str; -
--split; train|val|test|all; test
--fold; str; -
--modes; str; T
--synonyms; flag; -
--absent; int; -
--jitter; str; 0
--boxes; parts|whole; parts
--volumes; slices|follow|vote; slices
--tolerance; float; 2.0
--limit; int; -
--seed; int; -
--out; Path; eval-results
--resume; flag; -
--beside; Path, several; -
--duplicates; flag; -
--json; flag; -
--agent; str; -
--rounds; int; 3
--send-images; str; -
--pool; Path, several; -
--compare; Path Path; -
""",
    "batch": f"""
SOURCE; str, several; required
--out; str; required
--text; str, repeated; -
--box; str, repeated; -
--format; str; -
--threshold; float; -
--ca-file; Path; -
--retry-failed; flag; -
--json; flag; -
{STACKS}
--cluster; str; auto
--workers; int; -
--gpus; float; -
--memory; str; -
--timeout; float; 3600.0
--shard; str; -
{MODEL}
""",
    "mcp": f"""
--data; Path, repeated; -
--out; Path; medsam3_out
--show; flag; -
--transport; stdio|http; stdio
--port; int; 8090
{MODEL}
""",
    "doctor": """
--json; flag; -
--no-test; flag; -
""",
    "demo": """
--out; Path; demo_out
--open; flag; -
""",
    "completion": """
SHELL; bash|zsh|fish; required
""",
}
"""By command: names, values, default (`-` for none, nothing, or off), one argument a line."""


def kind(argument: Any) -> str:
    """What an argument takes, in the words of `ARGUMENTS`."""
    hint, parameter = argument.hint, argument.parameter
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    if hint is bool:
        return "flag"
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if get_origin(hint) is not tuple:
        return str(hint.__name__)
    inner = [one for one in get_args(hint) if one is not ...]
    names = " ".join(one.__name__ for item in inner for one in (get_args(item) or (item,)))
    if ... not in get_args(hint):
        return names
    is_several = parameter.consume_multiple or not argument.name.startswith("--") or argument.name[2:].isupper()
    return f"{names}, {'several' if is_several else 'repeated'}"


def described(command: Command) -> list[str]:
    lines = []
    for argument in app_for(command).assemble_argument_collection():
        if not argument.children and argument.parse:
            names = [name.removeprefix("--") if name[2:].isupper() else name for name in argument.names]
            default = argument.field_info.default
            is_none = default in (None, False, "", (), 0) or default is argument.field_info.empty
            told = "required" if argument.required else "-" if is_none else str(default)
            lines.append("; ".join((" ".join(names), kind(argument), told)))
    return lines


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_arguments_of_a_command_are_these(command: Command) -> None:
    assert sorted(described(command)) == sorted(ARGUMENTS[command.name].split("\n")[1:-1])


def test_of_an_option_that_is_given_twice_the_last_counts_and_lists_grow() -> None:
    made: Any = parse(
        ["segment", "a", "--device", "x", "--device", "cpu", "--text", "p", "--text", "q", "--json", "--json"]
    )
    assert (made.model.device, made.text, made.json) == ("cpu", ("p", "q"), True)
