"""`medsam3 mcp`: tools for LLM clients, by the Model Context Protocol."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from medsam3.cli.job import FLAT, Help, ModelChoice
from medsam3.cli.terminal import tell
from medsam3.errors import InputError, require


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
