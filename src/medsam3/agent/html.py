"""A transcript as one HTML page that needs nothing else: every picture, every call, every answer, the verdict."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from medsam3.agent.chat import ShownPicture, Usage
from medsam3.agent.transcript import Heading, SavedRun, read_transcript
from medsam3.agent.values import Step
from medsam3.store import replacing

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; }
th { text-align: left; padding-right: 1rem; vertical-align: top; font-weight: 600; }
section { border-top: 1px solid #8886; margin-top: 1.5rem; padding-top: .5rem; }
code, pre { font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; max-width: 32rem; }
figure img { max-width: 100%; } figcaption { font-size: 13px; opacity: .8; }
.mistake { border-left: 3px solid #d55e00; padding-left: .7rem; }
.verdict { border-left: 3px solid #009e73; padding-left: .7rem; }
"""


def write_html(folder: Path, page: Path) -> None:
    """Write the page of the transcript in a folder.

    Raises:
        InputError: No transcript, or a place that cannot be written.
    """
    text = page_of(read_transcript(folder))
    page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(page, ".html") as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_of(run: SavedRun) -> str:
    """The whole page; whatever a model or an image said is shown as text."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>medsam3 agent: {html.escape(run.heading.instruction)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(run.heading.instruction)}</h1>",
        _heading_table(run.heading),
        _verdict(run),
        *(_figures(run.opening or ())),
    ]
    for turn, decision in enumerate(run.decisions, start=1):
        steps = [step for step in run.steps if step.turn == turn]
        parts.append(f"<section><h2>Turn {turn}</h2>")
        if decision.said:
            parts.append(f"<p>{html.escape(decision.said)}</p>")
        if decision.usage.requests:
            parts.append(f"<p>{_usage(decision.usage)}</p>")
        parts += [_step(step) for step in steps]
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>", ""])


def _heading_table(heading: Heading) -> str:
    sent = "nowhere: all pictures stayed on this machine" if heading.sent_to is None else heading.sent_to
    frames, height, width = heading.shape
    rows: Sequence[tuple[str, str]] = (
        (
            "image",
            f"{width} x {height} pixels, {frames} frame{'' if frames == 1 else 's'}, SHA-256 {heading.image[:16]}",
        ),
        ("segmenter", f"{heading.model} {heading.weights[:16]}"),
        ("policy", heading.policy),
        ("rounds allowed", str(heading.budget.rounds)),
        ("pictures were sent to", sent),
    )
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def _verdict(run: SavedRun) -> str:
    ending = run.ending
    if ending is None:
        return '<p class="mistake">This run has not ended.</p>'
    if ending.verdict is None:
        return f'<p class="mistake">Stopped by an error: {html.escape(ending.error or "")}</p>'
    verdict = ending.verdict
    marks = f", masks {', '.join(map(str, verdict.marks))}" if verdict.marks else ""
    return (
        f'<p class="verdict"><strong>{verdict.outcome}{marks}</strong><br>{html.escape(verdict.reason)}<br>'
        f"{ending.seconds:.1f} s; {_usage(ending.usage)}</p>"
    )


def _usage(usage: Usage) -> str:
    if not usage.requests:
        return "no LLM was asked"
    price = "price not known" if usage.usd is None else f"${usage.usd:.4f}"
    return f"{usage.requests} requests, {usage.input_tokens} + {usage.output_tokens} tokens, {price}"


def _step(step: Step) -> str:
    kind = "mistake" if step.seen.is_mistake else "verdict" if step.seen.verdict is not None else "seen"
    call = html.escape(f"{step.call.name} {step.call.arguments}")
    head = f"<h3>{step.number}. <code>{call}</code></h3>"
    body = f"<pre>{html.escape(step.seen.text)}</pre>{''.join(_figures(step.seen.pictures))}"
    return f'<div class="{kind}">{head}{body}</div>'


def _figures(pictures: Iterable[ShownPicture]) -> list[str]:
    return [
        f'<figure><img alt="{html.escape(picture.caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(picture.png).decode()}"><figcaption>{html.escape(picture.caption)}</figcaption></figure>'
        for picture in pictures
    ]
