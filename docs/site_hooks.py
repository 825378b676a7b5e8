"""Adds the pages that lie beside docs/ to the site, and makes links to them lead there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
BESIDE = ("CONVENTIONS.md", "THIRD_PARTY.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md")


def on_files(files: Any, config: Any) -> Any:
    """Take the pages in."""
    for name in BESIDE:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at the pages' places in the site."""
    for name in BESIDE:
        markdown = markdown.replace(f"(../{name}", f"({name}")
    return markdown.replace("](docs/", "](") if page.file.src_uri in BESIDE else markdown
