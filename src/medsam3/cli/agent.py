"""`medsam3 agent`: an instruction in words over one image, answered with masks, or with the finding of nothing."""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import Parameter

from medsam3.cli.inputs import find_inputs
from medsam3.cli.job import FLAT, Help, ModelChoice, Sam3Choice
from medsam3.cli.remote import ServerChoice
from medsam3.cli.terminal import progress_bar, say, say_json
from medsam3.errors import InputError
from medsam3.store import cannot_write

if TYPE_CHECKING:
    from medsam3.agent.loop import AgentResult
    from medsam3.agent.values import Policy, ToolStep
    from medsam3.cli.inputs import Input
    from medsam3.client.client import Client
    from medsam3.image import Image

OFFLINE = "offline"
UNDECIDED = 3


@dataclass(frozen=True)
class Agent:
    """Arguments of `medsam3 agent`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 agent breast.png "breast tumor"
  medsam3 agent chest.png "the larger of the two nodules, not the vessel" --transcript run1
  medsam3 agent scan.png "all lesions touching the pleura" --model google:gemini-3-pro-preview --send-images google
  medsam3 agent scan.png "liver" --model http://localhost:8000/v1 --send-images localhost:8000
  medsam3 agent scan.png "liver" --server http://127.0.0.1:8080

Without --model no LLM is asked, and nothing leaves this machine. With one, your instruction and measures of masks go to
it; pictures go only with --send-images, which names where to, after text burnt into their borders is masked. File names
and DICOM metadata are never sent. Keys come from the environment: GOOGLE_API_KEY, OPENAI_API_KEY, ANTHROPIC_API_KEY,
and MEDSAM3_API_KEY for a server by its URL.
--transcript keeps every step; the same command with the same folder takes a broken run up again, and writes index.html.
Exit codes: 0 found, or nothing is there; 1 an error of ours; 2 bad input; 3 a limit ended it without a decision."""

    file: Annotated[str, Parameter(name="FILE"), Help("a picture, a volume, or a folder with a DICOM series")]
    instruction: Annotated[str, Parameter(name="INSTRUCTION"), Help("what is wanted, in words")]
    _: KW_ONLY
    model: Annotated[
        str,
        Help(
            "who decides: offline (default, no LLM), google:NAME, openai:NAME, anthropic:NAME, http://HOST:PORT/v1[#NAME]"
        ),
    ] = OFFLINE
    send_images: Annotated[str | None, Help("let pictures go to this provider, and to no other")] = None
    rounds: Annotated[int, Help("rounds of segmenting, default: 3")] = 3
    budget_usd: Annotated[float | None, Help("most that the LLM may cost")] = None
    budget_tokens: Annotated[int | None, Help("most tokens, in and out together")] = None
    budget_seconds: Annotated[float | None, Help("longest time")] = None
    out: Annotated[Path, Help("folder of the masks, default: medsam3_out")] = Path("medsam3_out")
    transcript: Annotated[Path | None, Help("keep all steps in this folder, and resume from them")] = None
    json: Annotated[bool, Help("print the result as JSON to stdout")] = False
    segmenter: Annotated[str, Help("what segments: mini (default) or SAM 3, as --model of medsam3 segment")] = "mini"
    weights: Annotated[Path | None, Help("weights of your own, made by medsam3 train")] = None
    sam3: Annotated[Sam3Choice, FLAT] = field(default_factory=Sam3Choice)
    device: Annotated[str, Help("where the segmenter runs: cpu (default), cuda, cuda:1 or mps")] = "cpu"
    server: Annotated[ServerChoice, FLAT] = field(default_factory=ServerChoice)

    def run(self) -> int:
        """Follow the instruction, write and show what was found."""
        from medsam3.cli.outputs import check_can_hold  # noqa: PLC0415  numpy, not for --help

        check_can_hold(self.out)  # before anything is paid for
        client = self.server.client()
        inputs = find_inputs([self.file], leave_out=self.out)
        if len(inputs) != 1:
            raise InputError(f"{self.file} holds {len(inputs)} images, the agent works on one: name one")
        result, image = self._run_here(inputs[0]) if client is None else self._run_there(inputs[0], client)
        written = _write(result, image, self.out, inputs[0].stem)
        if result.transcript is not None:
            written.append(result.transcript)
        _show(result, written, as_json=self.json)
        return UNDECIDED if result.verdict.outcome == "undecided" else 0

    def _run_here(self, item: Input) -> tuple[AgentResult, Image]:
        from medsam3.agent import Budget, RunOptions  # noqa: PLC0415  numpy, not for --help
        from medsam3.agent import run as run_agent  # noqa: PLC0415
        from medsam3.io import read  # noqa: PLC0415

        budget = Budget(self.rounds, self.budget_tokens, self.budget_seconds, self.budget_usd)
        self.sam3.check()
        policy = self._policy()
        choice = ModelChoice(self.segmenter, self.weights, sam3=self.sam3, device=self.device)
        with progress_bar(1) as bar:
            image = read(item.path, series=item.series)
            weights = "+".join(digest[:16] for digest in choice.sha256.values())
            bar.start("loading the model")
            segmenter = choice.load()
            bar.start(item.path.name)
            options = RunOptions(
                budget, self.transcript, self.send_images, weights, lambda step: bar.tell(_line(step)), bar.show_slices
            )
            result = run_agent(image, self.instruction, segmenter, policy, options)
        if self.transcript is not None:
            from medsam3.agent import write_html  # noqa: PLC0415

            page = self.transcript / "index.html"
            write_html(self.transcript, page)
            result = replace(result, transcript=page)
        return result, image

    def _run_there(self, item: Input, client: Client) -> tuple[AgentResult, Image]:
        """Ask a server; an LLM of its own only if it is the one that was named."""
        budgets = (self.budget_usd, self.budget_tokens, self.budget_seconds)
        choice = ModelChoice(self.segmenter, self.weights, sam3=self.sam3, device=self.device)
        if any(one is not None for one in budgets) or choice != ModelChoice():
            raise InputError("the server has its own limits and model: leave --budget-... and --segmenter out")
        llm = None
        if self.model != OFFLINE:
            there = client.policies()
            if there["llm"] != self.model:
                raise InputError(f"the server's LLM is {there['llm'] or 'none'}, not {self.model}: name that, or none")
            llm = there["sent_to"]
        if self.send_images is not None and self.send_images != llm:
            raise InputError(f"pictures would go to {llm or 'nobody'}, not to {self.send_images}: name that, or none")
        with progress_bar(1) as bar, client.open(item.path, series=item.series) as remote:
            bar.start(item.path.name)
            result = client.agent(
                remote,
                self.instruction,
                llm=llm,
                send_images=self.send_images is not None,
                rounds=self.rounds,
                transcript=self.transcript,
                on_step=lambda step: bar.tell(_told(step["number"], step["call"], step["arguments"], step["text"])),
            )
        return result, remote.image

    def _policy(self) -> Policy | None:
        """Choose who decides; a budget in dollars is refused if the model's price is not known."""
        if self.model == OFFLINE:
            if self.send_images is not None:
                raise InputError(
                    "--send-images names a provider, but no LLM is asked: give one with --model, or leave it out"
                )
            return None
        from medsam3.agent import llm_policy  # noqa: PLC0415
        from medsam3.agent.chat import check_money_budget  # noqa: PLC0415

        policy = llm_policy(self.model, send_images_to=self.send_images)
        if self.budget_usd is not None:
            check_money_budget(policy.chat.provider, policy.chat.model)
        return policy


def _write(result: AgentResult, image: Any, out: Path, stem: str) -> list[Path]:
    """Write masks as `segment` does; nothing if nothing was found."""
    from medsam3.io import write_format  # noqa: PLC0415

    if not len(result.masks):
        return []
    formats = ("png", "overlay") if image.kind == "picture" else ("nifti",)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    return [write_format(name, [result.masks], image, out, f"{stem}_agent") for name in formats]


def _line(step: ToolStep) -> str:
    return _told(step.number, step.call.name, step.call.arguments, step.seen.text)


def _told(number: int, name: str, arguments: str, text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return f"{number}. {name} {arguments[:120]}: {first[:160]}"


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
        say_json(entry)
        return
    say(f"{result.verdict.outcome}: {len(result.masks)} objects; {result.verdict.reason}")
    cost = "no LLM"
    if usage.requests:
        price = "price not known" if usage.usd is None else f"${usage.usd:.4f}"
        cost = f"{usage.input_tokens + usage.output_tokens} tokens, {price}"
    say(f"{result.rounds} rounds, {result.seconds:.1f} s, {cost}")
    if written:
        say("written: " + ", ".join(map(str, written)))
