"""HTML pages from templates that lie beside the modules that fill them; every value is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from PIL.Image import Image


def render(template: str, *, shown: Callable[[Any], Any] | None = None, **values: object) -> str:
    """Fill a template, named by its path below the package such as `eval/report.html.jinja`.

    Args:
        template: The path.
        shown: Changes each value before it is escaped.
        **values: What the template names.
    """
    environment = _environment() if shown is None else _environment().overlay(finalize=shown)
    return environment.get_template(template).render(**values)


def data_url(picture: Image, kind: str = "PNG", **options: Any) -> str:
    """Give a picture as the address of an `img` that needs no file; options are those of Pillow's `save`."""
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


@cache
def _environment() -> jinja2.Environment:
    import jinja2  # noqa: PLC0415

    return jinja2.Environment(
        autoescape=True,
        loader=jinja2.PackageLoader("medsam3", "."),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
