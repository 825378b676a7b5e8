"""`medsam3 agent`: an instruction in words over one image, answered with masks, or with the finding of nothing."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam3.cli.inputs import find_inputs
from medsam3.cli.model_choice import ModelChoice, adapter_from, add_sam3_arguments, vocabulary_from
from medsam3.cli.terminal import progress_bar
from medsam3.errors import InputError, printable

if TYPE_CHECKING:
    from medsam3.agent.loop import AgentResult
    from medsam3.agent.values import Policy, ToolStep

OFFLINE = "offline"
_EXAMPLES = """examples:
  medsam3 agent breast.png "breast tumor"
  medsam3 agent chest.png "the larger of the two nodules, not the vessel" --transcript run1
  medsam3 agent scan.png "all lesions touching the pleura" --model google:gemini-3-pro-preview --send-images google
  medsam3 agent scan.png "liver" --model http://localhost:8000/v1 --send-images localhost:8000

Without --model no LLM is asked, and nothing leaves this machine. With one, your instruction and measures of masks go to
it; pictures go only with --send-images, which names where to, after text burnt into their borders is masked. File names
and DICOM metadata are never sent. Keys come from the environment: GOOGLE_API_KEY, OPENAI_API_KEY, ANTHROPIC_API_KEY,
and MEDSAM3_API_KEY for a server by its URL.
--transcript keeps every step; the same command with the same folder takes a broken run up again, and writes index.html.
Exit codes: 0 found, or nothing is there; 1 an error of ours; 2 bad input; 3 a limit ended it without a decision."""
UNDECIDED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medsam3 agent`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("file", metavar="FILE", help="a picture, a volume, or a folder with a DICOM series")
    parser.add_argument("instruction", metavar="INSTRUCTION", help="what is wanted, in words")
    decide = parser.add_argument_group("who decides")
    decide.add_argument(
        "--model",
        default=OFFLINE,
        metavar="NAME",
        help="offline (default, no LLM), google:NAME, openai:NAME, anthropic:NAME, or http://HOST:PORT/v1[#NAME]",
    )
    decide.add_argument("--send-images", metavar="PROVIDER", help="let pictures go to this provider, and to no other")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--rounds", type=int, default=3, metavar="R", help="rounds of segmenting, default: 3")
    limits.add_argument("--budget-usd", type=float, metavar="USD", help="most that the LLM may cost")
    limits.add_argument("--budget-tokens", type=int, metavar="N", help="most tokens, in and out together")
    limits.add_argument("--budget-seconds", type=float, metavar="S", help="longest time")
    give = parser.add_argument_group("what to write")
    give.add_argument("--out", type=Path, default=Path("medsam3_out"), metavar="DIR", help="default: %(default)s")
    give.add_argument("--transcript", type=Path, metavar="DIR", help="keep all steps there, and take them up again")
    give.add_argument("--json", action="store_true", help="print the result as JSON to stdout")
    segmenter = parser.add_argument_group("what segments")
    segmenter.add_argument("--segmenter", default="mini", metavar="NAME", help="mini (default) or SAM 3, as in segment")
    segmenter.add_argument("--weights", type=Path, metavar="FILE", help="weights of your own, made by medsam3 train")
    add_sam3_arguments(segmenter)
    segmenter.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1 or mps")


def run(args: argparse.Namespace) -> int:
    """Run `medsam3 agent`."""
    from medsam3.agent import Budget, RunOptions  # noqa: PLC0415  numpy, not for --help
    from medsam3.agent import run as run_agent  # noqa: PLC0415
    from medsam3.io import read  # noqa: PLC0415

    budget = Budget(args.rounds, args.budget_tokens, args.budget_seconds, args.budget_usd)
    policy = _policy(args)
    inputs = find_inputs([args.file], leave_out=args.out)
    if len(inputs) != 1:
        raise InputError(f"{args.file} holds {len(inputs)} images, the agent works on one: name one")
    image = read(inputs[0].path, series=inputs[0].series)
    choice = ModelChoice(args.segmenter, args.weights, adapter_from(args), vocabulary_from(args), args.device)
    weights = "+".join(digest[:16] for digest in choice.sha256.values())
    segmenter = choice.load()
    with progress_bar(1) as bar:
        options = RunOptions(budget, args.transcript, args.send_images, weights, _tell, bar.show_slices)
        result = run_agent(image, args.instruction, segmenter, policy, options)
    written = _write(result, image, args.out, inputs[0].stem)
    if args.transcript is not None:
        from medsam3.agent import write_html  # noqa: PLC0415

        page = args.transcript / "index.html"
        write_html(args.transcript, page)
        written.append(page)
    _show(result, written, as_json=args.json)
    return UNDECIDED if result.verdict.outcome == "undecided" else 0


def _policy(args: argparse.Namespace) -> Policy | None:
    """Choose who decides; a budget in dollars for a model whose price is not known is refused before it is asked."""
    if args.model == OFFLINE:
        if args.send_images is not None:
            raise InputError(
                "--send-images names a provider, but no LLM is asked: give one with --model, or leave it out"
            )
        return None
    from medsam3.agent import llm_policy  # noqa: PLC0415
    from medsam3.agent.chat import check_money_budget  # noqa: PLC0415

    policy = llm_policy(args.model, send_images_to=args.send_images)
    if args.budget_usd is not None:
        check_money_budget(policy.chat.provider, policy.chat.model)
    return policy


def _write(result: AgentResult, image: Any, out: Path, stem: str) -> list[Path]:
    """Masks as `segment` writes them; nothing where nothing was found."""
    from medsam3.io import write_format  # noqa: PLC0415

    if not len(result.masks):
        return []
    formats = ("png", "overlay") if image.kind == "picture" else ("nifti",)
    out.mkdir(parents=True, exist_ok=True)
    return [write_format(name, [result.masks], image, out, f"{stem}_agent") for name in formats]


def _tell(step: ToolStep) -> None:
    first = step.seen.text.splitlines()[0] if step.seen.text else ""
    line = " ".join(f"{step.number}. {step.call.name} {step.call.arguments[:120]}: {first[:160]}".split("\n"))
    print(printable(line), file=sys.stderr)


def _show(result: AgentResult, written: list[Path], *, as_json: bool) -> None:
    usage = result.usage
    if as_json:
        entry = {
            "outcome": result.verdict.outcome,
            "reason": result.verdict.reason,
            "objects": [
                {"score": part.score, "box": part.box, "area_px": part.voxels} for part in result.masks.objects
            ],
            "rounds": result.rounds,
            "turns": result.turns,
            "seconds": round(result.seconds, 2),
            "usage": asdict(usage),
            "written": [str(path) for path in written],
        }
        print(json.dumps(entry, indent=2))
        return
    print(printable(f"{result.verdict.outcome}: {len(result.masks)} objects; {result.verdict.reason}"))
    cost = "no LLM"
    if usage.requests:
        price = "price not known" if usage.usd is None else f"${usage.usd:.4f}"
        cost = f"{usage.input_tokens + usage.output_tokens} tokens, {price}"
    print(f"{result.rounds} rounds, {result.seconds:.1f} s, {cost}")
    if written:
        print(printable("written: " + ", ".join(map(str, written))))
