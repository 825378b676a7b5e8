"""`medsam3 serve`: the page and the HTTP API on this machine; `medsam3 mcp`: tools for LLM clients."""

from __future__ import annotations

import logging
import multiprocessing
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from medsam3.cli.archive import ArchiveChoice
from medsam3.cli.byte_sizes import bytes_from
from medsam3.cli.job import COUNT, FLAT, Help, ModelChoice
from medsam3.cli.terminal import say, tell
from medsam3.cli.watch import DEFAULT_OUT, IntakeChoice, Watch, take_in
from medsam3.errors import InputError, require
from medsam3.pacs.series import address_of

if TYPE_CHECKING:
    from medsam3.server.settings import ArchiveAccess, Settings


@dataclass(frozen=True)
class Serve:
    """Arguments of `medsam3 serve`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 serve --open
  medsam3 serve --data scans --workers 2
  medsam3 serve --data scans --enable monailabel
  medsam3 serve --archive dicomweb:https://host/dicom-web --enable monailabel --allow-origin https://viewer.example.org
  medsam3 serve --host 0.0.0.0 --allow-host images.example.org --token-file tokens.txt
  medsam3 serve --dicom-port 11112 --ae-title MEDSAM3 --rule rules.toml --send-to ARCHIVE@192.168.1.5:104

The page is at the address that is printed; the API is below /v1, described by /openapi.json. Nothing leaves this
machine.
Without a token only this machine can reach the server. The token file has one token a line, at least 16 characters, and
may be read by its owner alone; whoever asks sends one as "Authorization: Bearer TOKEN". Connections are not encrypted:
put a proxy with TLS before a server that other machines reach.
With --dicom-port, series that are sent here by C-STORE are segmented by rules, and the results go to --send-to, as
medsam3 watch does it, whose help shows a file of rules.
--enable takes monailabel (3D Slicer, OHIF), labelstudio, cvat, qupath, nninteractive and voxtell (napari, 3D Slicer);
docs/clients has a page on each. With --archive a tool may name a series that lies in an archive; who asks there is told
by MEDSAM3_DICOMWEB_TOKEN, or MEDSAM3_DICOMWEB_USER and MEDSAM3_DICOMWEB_PASSWORD.
With --llm the agent may also ask that LLM, after whoever asks has seen what would be sent; pictures go only with
--send-images, and keys come from the environment, as for medsam3 agent.
What is uploaded lies in a private temporary folder, and goes an hour after its last use and when the server ends."""

    _: KW_ONLY
    host: Annotated[str, Help("address to listen on, default: 127.0.0.1, this machine alone")] = "127.0.0.1"
    port: Annotated[int, Help("port, default: 8080; 0 takes a free one")] = 8080
    model: Annotated[str, Help("mini (default), mini-open, facebook/sam3, its folder, or sam3.pt")] = "mini"
    workers: Annotated[int, COUNT, Help("processes with a model, default: 1; each needs the memory of one")] = 1
    data: Annotated[Path | None, Help("folder whose files may be opened without an upload")] = None
    token_file: Annotated[Path | None, Help("file with the tokens of those who may ask")] = None
    allow_host: Annotated[tuple[str, ...], Help("a name by which browsers reach the server; may be repeated")] = ()
    allow_origin: Annotated[tuple[str, ...], Help("a site whose pages may ask, such as an OHIF viewer's")] = ()
    enable: Annotated[tuple[str, ...], Help("tools that may ask in their own dialect: NAME,NAME, see below")] = ()
    archive: Annotated[
        str | None, Help("archive of the series that tools name, and for their labels: dicomweb:https://HOST/dicom-web")
    ] = None
    ca_file: Annotated[Path | None, Help("certificates to trust for the archive, PEM; default: the system's")] = None
    max_upload: Annotated[str, Help("largest upload, default: 2GiB")] = "2GiB"
    max_memory: Annotated[str, Help("most memory of each process that reads or has a model, default: 8GiB")] = "8GiB"
    llm: Annotated[str | None, Help("an LLM that the agent may ask, as --model of medsam3 agent")] = None
    send_images: Annotated[bool, Help("pictures may go to that LLM, if who asks allows it too")] = False
    open: Annotated[bool, Help("open the page in the browser")] = False
    rule: Annotated[Path | None, Help("TOML file with the rules for what is sent by C-STORE")] = None
    dicom_out: Annotated[Path, Help("folder of what was sent and is under way, default: medsam3_watch")] = DEFAULT_OUT
    intake: Annotated[IntakeChoice, FLAT] = field(default_factory=IntakeChoice)

    def settings(self) -> Settings:
        """Check the arguments.

        Raises:
            InputError: An argument that is not allowed, or the extra `server` is not installed.
        """
        for module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "fastapi_swagger"):
            require(module, extra="server")
        from medsam3.models.registry import LOADERS, names  # noqa: PLC0415  numpy
        from medsam3.server.clients import dialects_named  # noqa: PLC0415
        from medsam3.server.settings import Limits, Settings, read_tokens  # noqa: PLC0415

        if self.model not in LOADERS and not Path(self.model).exists():
            raise InputError(f"there is no model {self.model!r}, allowed are {', '.join(names())}, or SAM 3's weights")
        if self.llm is not None:
            from medsam3.agent.chat import parse_address  # noqa: PLC0415

            parse_address(self.llm)
            require("pydantic_ai", extra="agent")
        return Settings(
            host=self.host,
            port=self.port,
            model=self.model,
            workers=self.workers,
            data=self.data,
            tokens=() if self.token_file is None else read_tokens(self.token_file),
            hosts=tuple(name.lower() for name in self.allow_host),
            origins=tuple(one.rstrip("/") for one in self.allow_origin),
            clients=dialects_named(self.enable),
            archive=self._archive_access(),
            llm=self.llm,
            sends_images=self.send_images,
            weights_sha256=ModelChoice(self.model).sha256,
            limits=Limits(upload_bytes=bytes_from(self.max_upload), worker_bytes=bytes_from(self.max_memory)),
        )

    def _archive_access(self) -> ArchiveAccess | None:
        """Give the ways to the archive and back; None if none is named."""
        if self.archive is None:
            return None
        access = ArchiveChoice(ca_file=self.ca_file).access()
        from medsam3.pacs.dicomweb import fetch_series, store_result  # noqa: PLC0415  an HTTP client
        from medsam3.server.settings import ArchiveAccess  # noqa: PLC0415

        address = address_of(self.archive)
        if address.study is not None or address.query:
            raise InputError(f"{self.archive} names a part of an archive: give its root, as dicomweb:{address.root}")
        return ArchiveAccess(partial(fetch_series, address.root, access), partial(store_result, address.root, access))

    def run(self) -> int:
        """Serve until interrupted."""
        settings = self.settings()
        from medsam3.server.app import serve  # noqa: PLC0415

        audit = logging.StreamHandler()
        audit.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logging.getLogger("medsam3.server").addHandler(audit)
        logging.getLogger("medsam3.server").setLevel(logging.INFO)

        def told(address: str) -> None:
            say(f"medsam3 answers at {address} (Ctrl+C ends it). Not a medical device: for research only.")
            if self.open and not webbrowser.open(address):
                tell(f"no browser was found: open {address} yourself")

        with self._taking_in():
            serve(settings, when_ready=told)
        return 0

    @contextmanager
    def _taking_in(self) -> Iterator[None]:
        """Take series in by C-STORE during the block, in a process of its own: this one holds no model."""
        if self.intake == IntakeChoice() and self.rule is None:
            yield
            return
        watch = Watch(None, rule=self.rule, out=self.dicom_out, intake=self.intake, model=ModelChoice(self.model))
        watch.check()
        process = multiprocessing.get_context("spawn").Process(target=take_in, args=(watch,), daemon=True)
        process.start()
        try:
            yield
        finally:
            process.terminate()
            process.join(10)


@dataclass(frozen=True)
class Mcp:
    """Arguments of `medsam3 mcp`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 mcp --data scans
  medsam3 mcp --data scans --out masks --show
  medsam3 mcp --transport http --port 8090 --data scans

In the settings of an MCP client, a server that is started as a program:
  {"mcpServers": {"medsam3": {"command": "medsam3", "args": ["mcp", "--data", "/path/to/scans"]}}}

Tools: segment, session (clicks, boxes, scribbles, undo ...), save, measure, info, concepts, convert; with --show, look.
Only files below --data and --out can be read, and only --out is written. Numbers and paths go to the client; pictures
go to it, and to whoever runs its LLM, only with --show. By HTTP only this machine is answered."""

    _: KW_ONLY
    data: Annotated[tuple[Path, ...], Help("folder whose files may be read; may be repeated; default: this one")] = ()
    out: Annotated[Path, Help("folder of the results, default: medsam3_out")] = Path("medsam3_out")
    show: Annotated[bool, Help("let pictures with masks go to the client")] = False
    transport: Annotated[Literal["stdio", "http"], Help("stdio (default), or http on this machine")] = "stdio"
    port: Annotated[int, Help("port for http, default: 8090")] = 8090
    model: Annotated[ModelChoice, FLAT] = field(default_factory=ModelChoice)

    def run(self) -> int:
        """Serve until the client goes."""
        require("mcp", extra="mcp")
        from medsam3.server.mcp import Places, mcp_server  # noqa: PLC0415

        roots = self.data or (Path.cwd(),)
        for root in roots:
            if not root.is_dir():
                raise InputError(f"--data {root} is no folder: give one that is there")
        self.model.sam3.check()
        server = mcp_server(self.model.load, Places(roots, self.out), shows=self.show)
        if self.transport == "stdio":
            server.run("stdio")
        else:
            tell(f"medsam3 answers MCP at http://127.0.0.1:{self.port}/mcp (Ctrl+C ends it)")
            server.run("streamable-http", host="127.0.0.1", port=self.port)
        return 0
