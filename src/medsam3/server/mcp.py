"""The Model Context Protocol: tools by which any LLM client segments, corrects, measures and converts.

It is a server of its own, with the model in its own process; it knows no HTTP API.
Paths come in; numbers and files in a folder of results go out. Pictures go to the client, and so to whoever runs its
LLM, only if the user asked for that at the start.
"""

from __future__ import annotations

import glob
import io
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio.from_thread
import PIL.Image
from cachetools import LRUCache
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver import Image as McpPicture
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel

from medsam3 import __version__
from medsam3.concepts import search
from medsam3.errors import InputError, reason_of
from medsam3.image import Image
from medsam3.io import DEFAULT_FORMATS, FORMATS, facts, read, write, write_format
from medsam3.io.measures import Measures, measure
from medsam3.io.read_masks import read_masks
from medsam3.models.segmenter import Segmenter
from medsam3.segmentation.session import Session
from medsam3.server.modelling import apply_step, found_by
from medsam3.server.schemas import Found, Step
from medsam3.store import JsonObject, slug

MOST_SESSIONS = 8
_LONGEST_SIDE_PX = 800
_ABOUT = """medsam3 segments medical images by concept: a phrase such as "polyp", "optic cup" or "liver" gives masks,
scores and whether the concept is there at all. Begin with `segment`; correct with `session` (clicks, boxes, scribbles,
undo); then `save`. A concept that is not present is an answer, not an error. Positions are pixels (x, y) of the file,
from the upper left; frames and slices count from 0. For research only: this is not a medical device."""


class Opened(BaseModel):
    """A session and what it has found."""

    session: str
    kind: Literal["picture", "volume", "video"]
    frames: int
    height: int
    width: int
    found: Found


class Listed(BaseModel):
    """A concept that the model may be asked for."""

    name: str
    synonyms: list[str]


@dataclass(frozen=True)
class Places:
    """What may be read and written.

    Attributes:
        roots: Folders whose files may be read.
        out: Folder that results are written to.
    """

    roots: tuple[Path, ...]
    out: Path

    def readable(self, path: str) -> Path:
        """Resolve a path that may be read.

        Raises:
            InputError: It lies elsewhere, or is not there.
        """
        place = (Path(path) if Path(path).is_absolute() else self.roots[0] / path).resolve()
        allowed = [root.resolve() for root in (*self.roots, self.out)]
        if not any(place.is_relative_to(root) for root in allowed):
            raise InputError(f"{path} lies outside the folders that may be read: start medsam3 mcp with --data FOLDER")
        if not place.exists():
            raise InputError(f"{path} does not exist: correct the path")
        return place

    def free_stem(self, stem: str) -> str:
        """Give a stem that no file in the folder of results begins with."""
        self.out.mkdir(parents=True, exist_ok=True)
        number, name = 1, stem
        while any(self.out.glob(f"{glob.escape(name)}[._]*")):
            number += 1
            name = f"{stem}-{number}"
        return name


class Toolbox:
    """The tools, over one model and the sessions that were used last."""

    def __init__(self, load: Callable[[], Segmenter], places: Places) -> None:
        self._load, self._places = load, places
        self._model: Segmenter | None = None
        self._sessions: LRUCache[str, tuple[Session, str]] = LRUCache(MOST_SESSIONS)
        self._lock = threading.Lock()

    def segment(
        self,
        path: str,
        phrases: list[str],
        ctx: Context,
        frame: int | None = None,
        series: str | None = None,
    ) -> Opened:
        """Find the objects of each phrase in an image, a DICOM folder, a volume or a video, and open a session on it.

        Args:
            path: File or folder.
            phrases: Concepts, such as "polyp"; each answer says whether it is present.
            ctx: Given by the protocol.
            frame: Only this slice or frame.
            series: Of a folder with several DICOM series, the number of one.
        """
        with self._at_work():
            name = self._open(path, series)
            session = self._session(name)
            for phrase in phrases:
                session.segment(phrase, frame=frame, progress=_progress(ctx))
            return self._opened(name)

    def session(self, step: Step, ctx: Context, session: str | None = None, path: str | None = None) -> Opened:
        """Do one step: segment, click, box, scribble, select, remove, accept, propagate, undo, redo or reset.

        Args:
            step: What to do, by its "do"; a volume's clicks and boxes name their frame.
            ctx: Given by the protocol.
            session: A session that `segment` or an earlier step opened.
            path: An image to open a new session on, in place of `session`.
        """
        if (session is None) == (path is None):
            raise ToolError("give either session, or path for a new one")
        with self._at_work():
            name = session if session is not None else self._open(path or "", None)
            apply_step(self._session(name), step, progress=_progress(ctx))
            return self._opened(name)

    def save(self, session: str, formats: list[str] | None = None) -> list[str]:
        """Write a session's masks into the folder of results and give the files' paths.

        Args:
            session: Name of the session.
            formats: png, overlay, coco, nifti, nrrd, mha, seg, rtstruct, mp4, montage, planes, csv, json; none takes
                what suits the image.
        """
        with self._at_work():
            opened, stem = self._entry(session)
            masks = opened.masks_by_concept
            if not masks:
                raise InputError("the session has no masks yet: ask a phrase or draw something first")
            stem = self._places.free_stem(stem)
            names = formats or DEFAULT_FORMATS[opened.image.kind]
            return [str(write_format(name, masks, opened.image, self._places.out, stem)) for name in names]

    def look(self, session: str, frame: int | None = None) -> McpPicture:
        """Show a frame with the masks drawn over it, at most 800 pixels wide and high.

        Args:
            session: Name of the session.
            frame: The slice or frame; none takes the one that holds most of the objects.
        """
        with self._at_work():
            opened = self._session(session)
            picture = PIL.Image.fromarray(opened.masks.overlay(frame, image=opened.image))
        picture.thumbnail((_LONGEST_SIDE_PX, _LONGEST_SIDE_PX))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return McpPicture(data=stream.getvalue(), format="png")

    def measure(self, masks: str, image: str) -> list[Measures]:
        """Measure masks in a file: voxels, volume in mL, longest diameter in mm, range of slices.

        Args:
            masks: Label map, DICOM SEG, RTSTRUCT or COCO JSON.
            image: The image that they are over.
        """
        with _told():
            over = read(self._places.readable(image))
            found, _ = read_masks(self._places.readable(masks), over)
            return measure(found, over)

    def info(self, path: str) -> JsonObject:
        """Tell technical facts of an image: size, spacing, orientation, type. Never whose it is.

        Args:
            path: File or DICOM folder.
        """
        with _told():
            return dict(facts(read(self._places.readable(path))))

    def concepts(self, query: str = "", limit: int = 30) -> list[Listed]:
        """List known concepts with synonyms; any other phrase may be asked too, with less certainty.

        Args:
            query: A word or phrase to look for; empty lists all.
            limit: Most rows.
        """
        return [Listed(name=one.name, synonyms=list(one.synonyms)) for one in search(query)[: max(limit, 0)]]

    def convert(self, masks: str, to: str, image: str | None = None) -> str:
        """Convert masks to another format in the folder of results and give the file's path.

        Args:
            masks: Label map, DICOM SEG, RTSTRUCT or COCO JSON.
            to: Name of the format.
            image: The image that they are over; DICOM and COCO need it.
        """
        with _told():
            if to not in FORMATS:
                raise InputError(f"format {to!r} is not known, allowed are {', '.join(FORMATS)}")
            over = None if image is None else read(self._places.readable(image))
            source = self._places.readable(masks)
            found, base = read_masks(source, over)
            target = self._places.out / f"{self._places.free_stem(_stem(source))}{FORMATS[to].suffix}"
            write(found, target, base, format=to)
            return str(target)

    def _open(self, path: str, series: str | None) -> str:
        place = self._places.readable(path)
        image = read(place, series=series)
        if self._model is None:
            self._model = self._load()
        name = secrets.token_urlsafe(9)
        self._sessions[name] = (Session(image, self._model), _stem(place))
        return name

    def _entry(self, name: str) -> tuple[Session, str]:
        entry: tuple[Session, str] | None = self._sessions.get(name)
        if entry is None:
            raise InputError(f"there is no session {name!r} (any more): open one with segment, or with path")
        return entry

    def _session(self, name: str) -> Session:
        return self._entry(name)[0]

    def _opened(self, name: str) -> Opened:
        session = self._session(name)
        image: Image = session.image
        frames, height, width = image.shape
        return Opened(session=name, kind=image.kind, frames=frames, height=height, width=width, found=found_by(session))

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Let one call use the model at a time."""
        with self._lock, _told():
            yield


def mcp_server(load: Callable[[], Segmenter], places: Places, *, shows: bool) -> MCPServer[Any]:
    """Make the protocol's server.

    Args:
        load: Loads the model, at the first question.
        places: What may be read and written.
        shows: Pictures may go to the client.
    """
    server: MCPServer[Any] = MCPServer("medsam3", version=__version__, instructions=_ABOUT, log_level="WARNING")
    toolbox = Toolbox(load, places)
    reading: Sequence[Callable[..., Any]] = (
        toolbox.segment,
        toolbox.session,
        toolbox.measure,
        toolbox.info,
        toolbox.concepts,
    )
    for tool in (*reading, *((toolbox.look,) if shows else ())):
        server.add_tool(tool, annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    for tool in (toolbox.save, toolbox.convert):
        server.add_tool(tool, annotations=ToolAnnotations(destructive_hint=False, open_world_hint=False))
    return server


@contextmanager
def _told() -> Iterator[None]:
    """Tell the client what is wrong with its input, in one line."""
    try:
        yield
    except InputError as error:
        raise ToolError(reason_of(error)) from error


def _progress(ctx: Context) -> Callable[[int, int], None]:
    def tell(done: int, count: int) -> None:
        if count > 1:
            anyio.from_thread.run(ctx.report_progress, done, count)

    return tell


def _stem(path: Path) -> str:
    return slug(path.name.partition(".")[0]) or "image"
