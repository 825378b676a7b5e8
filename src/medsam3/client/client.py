"""`Client`: images opened, segmented, corrected and asked the agent about on a server, with this machine's types."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack
from urllib.parse import urlencode

from medsam3.client.connection import Connection, ServerError
from medsam3.client.session import RemoteSession
from medsam3.client.wire import (
    AgentStepTold,
    JobTold,
    ModelTold,
    PhraseTold,
    PoliciesTold,
    SessionTold,
    check_same,
    files_of,
    options_body,
    placed,
    prompt_body,
)
from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.io.packed_masks import LOSSLESS, loaded
from medsam3.prompts import Prompt, check_phrase
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import Given, Report, as_prompts
from medsam3.store import JsonObject, scratch_folder

if TYPE_CHECKING:
    from medsam3.agent.loop import AgentResult

PATIENCE_S = 600.0
_LOOK_S = (0.05, 1.0)


@dataclass
class RemoteImage:
    """An image on a server; the server forgets it with `close`, at the end of a `with`, or an hour after its last use.

    Attributes:
        id: Its name there.
        image: The same on this machine.
    """

    id: str
    image: Image
    _connection: Connection = field(repr=False)

    def close(self) -> None:
        """Remove it from the server, with all that came of it."""
        self._connection.remove(f"/v1/images/{self.id}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RemoteJob:
    """Long work on a server."""

    def __init__(self, connection: Connection, image: Image, about: JobTold) -> None:
        self._connection, self._image, self.about = connection, image, about

    @property
    def id(self) -> str:
        """Its name on the server."""
        return self.about["id"]

    @property
    def state(self) -> str:
        """`waiting`, `running`, `done`, `failed` or `cancelled`, as it was when it was last looked at."""
        return self.about["state"]

    def look(self) -> str:
        """Ask how far it is, and give its state."""
        self.about = self._connection.json("GET", f"/v1/jobs/{self.id}")
        return self.state

    def cancel(self) -> str:
        """Stop it, and give the state that it ended in."""
        self.about = self._connection.json("DELETE", f"/v1/jobs/{self.id}")
        return self.state

    def wait(self, progress: Report | None = None, on_look: Callable[[], None] = lambda: None) -> Self:
        """Wait until it has ended well; a broken wait stops it.

        Raises:
            ServerError: It failed or was stopped.
        """
        pause, longest = _LOOK_S
        told = None
        try:
            while self.state in ("waiting", "running"):
                time.sleep(pause)
                pause = min(pause * 1.3, longest)
                self.look()
                on_look()
                now = self.about["done"], self.about["count"]
                if progress is not None and now != told and now[1]:
                    progress(*now)
                told = now
        except BaseException as error:
            if not isinstance(error, ServerError):
                self.cancel()
            raise
        if self.state != "done":
            raise ServerError(self.about["error"] or "the job was stopped on the server")
        return self

    def masks(self, progress: Report | None = None) -> list[Masks]:
        """Wait for the masks, one `Masks` for each concept; errors as `wait`."""
        self.wait(progress)
        content = self._connection.content(f"/v1/results/{self.about['result']}?format={LOSSLESS}")
        return placed(loaded(content), self._image)

    def save(self, format: str, folder: str | Path) -> Path:
        """Wait, and save the masks in a format of the command line, as the server writes it."""
        self.wait()
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        return self._connection.save(f"/v1/results/{self.about['result']}?format={format}", target)


class Client:
    """A server of `medsam3 serve`; its answers are those of the library, voxel by voxel."""

    def __init__(self, url: str, token: str | None = None, *, patience_s: float = PATIENCE_S) -> None:
        """Speak to a server.

        Args:
            url: Its address, such as http://127.0.0.1:8080.
            token: One of those in its token file; None if it needs none.
            patience_s: How long a busy server is asked again, after the time that it names.

        Raises:
            InputError: A bad address, or the extra `client` is not installed.
        """
        self._connection = Connection(url, token, patience_s)

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def model(self) -> ModelTold:
        """Tell the model that answers: `name`, `concepts`, `weights_sha256`, `version`; waits until it is loaded."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._connection.json("GET", "/v1/models")
            if not (
                isinstance(answer, list) and len(answer) == 1 and {"name", "is_ready", "concepts"} <= set(answer[0])
            ):
                raise ServerError(f"{self._connection.url} answers, but not as medsam3 serve does: correct the address")
            about: ModelTold = answer[0]
            if about["is_ready"] or time.monotonic() > deadline:
                return about
            time.sleep(_LOOK_S[1])

    def read_phrase(self, phrase: str) -> list[PhraseTold]:
        """Tell how a phrase is read: `phrase`, `read_as`, `is_taught`, for each concept that it joins."""
        query = urlencode({"q": check_phrase(phrase)})
        found: list[PhraseTold] = self._connection.json("GET", f"/v1/phrases?{query}")
        return found

    def open(self, image: Any, *, frame: int | None = None, series: str | int | None = None) -> RemoteImage:
        """Send an image, to ask about it several times.

        The files under a path are sent as they are; what is in memory is sent with all that is known of it but names.

        Args:
            image: What `medsam3.segment` takes.
            frame: Of a path, as in `medsam3.read`.
            series: Likewise.

        Raises:
            InputError: It cannot be read, is larger than the server takes, or is read there as something else.
        """
        if isinstance(image, RemoteImage):
            return image
        if isinstance(image, (str, Path)):
            from medsam3.io import read  # noqa: PLC0415  readers are heavy

            here = read(image, frame=frame, series=series)
            chosen = {"frame": frame, "series": None if Path(image).is_dir() else series}
            query = urlencode({name: value for name, value in chosen.items() if value is not None})
            about = self._connection.upload(f"/v1/images?{query}".rstrip("?"), files_of(Path(image), here))
        else:
            from medsam3.io.handed import write_handed  # noqa: PLC0415
            from medsam3.io.in_memory import as_image  # noqa: PLC0415

            here = as_image(image)
            with scratch_folder() as folder:
                files = [(path.name, path) for path in write_handed(here, folder)]
                about = self._connection.upload("/v1/images", files)
        opened = RemoteImage(about["id"], here, self._connection)
        try:
            check_same(here, about)
        except InputError:
            opened.close()
            raise
        return opened

    def segment(
        self,
        image: Any,
        prompts: str | Prompt | Sequence[str | Prompt],
        options: Options | None = None,
        *,
        progress: Report | None = None,
        **given: Unpack[Given],
    ) -> list[Masks]:
        """Find the objects of each prompt on the server; arguments and answer are those of `medsam3.segment`.

        Args:
            image: What `medsam3.segment` takes, or what `open` gave.
            prompts: As there.
            options: As there.
            progress: As there.
            **given: As there.
        """
        with self._opened(image, given) as remote:
            return self.start(remote, prompts, options, **given).masks(progress)

    def start(
        self,
        image: RemoteImage,
        prompts: str | Prompt | Sequence[str | Prompt],
        options: Options | None = None,
        **given: Unpack[Given],
    ) -> RemoteJob:
        """Begin what `segment` does, and go on at once."""
        body = options_body(options)
        if given.get("threshold") is not None:
            body["threshold"] = given["threshold"]
        frames = given.get("frames")
        if frames is not None:
            body["frames"] = [int(n) for n in frames]
        asked = [prompt_body(one) for one in as_prompts(prompts)]
        about = self._connection.json("POST", "/v1/jobs", body | {"image": image.id, "prompts": asked})
        return RemoteJob(self._connection, image.image, about)

    def session(self, image: Any, *, frame: int | None = None, options: Options | None = None) -> RemoteSession:
        """Begin a session as `medsam3.Session` does; the image stays on the server until the session is closed."""
        is_own = not isinstance(image, RemoteImage)
        remote = self.open(image)
        body = options_body(options) | {"frame": frame}
        about = self._connection.json("POST", f"/v1/images/{remote.id}/sessions", body)
        return RemoteSession(self._connection, remote.image, remote.id, about, self._followed, is_own=is_own)

    def policies(self) -> PoliciesTold:
        """Tell who may decide for the agent: `llm`, where that is (`sent_to`), and `may_send_images`."""
        found: PoliciesTold = self._connection.json("GET", "/v1/agent")
        return found

    def preview(self, image: RemoteImage, instruction: str, *, send_images: bool = False, rounds: int = 3) -> Any:
        """Tell what the server's LLM would be sent where, before anything is sent: `sent_to`, `text`, `pictures`."""
        return self._connection.json("POST", "/v1/agent/preview", _agent_body(image, instruction, send_images, rounds))

    def agent(
        self,
        image: Any,
        instruction: str,
        *,
        llm: str | None = None,
        send_images: bool = False,
        rounds: int = 3,
        transcript: str | Path | None = None,
        on_step: Callable[[AgentStepTold], None] = lambda step: None,
    ) -> AgentResult:
        """Follow an instruction as `medsam3.agent.run` does; the numbers of its marks stay on the server.

        Args:
            image: What `segment` takes.
            instruction: In words.
            llm: The provider that may be asked and sent to, as `preview` names it; None asks the rules alone.
            send_images: Pictures may go to it.
            rounds: Rounds of segmenting.
            transcript: Folder in which the transcript's page is saved; None saves none.
            on_step: Told each step: `number`, `call`, `arguments`, `text`.

        Raises:
            InputError: The server's LLM is another one than was named, or none.
        """
        from medsam3.agent.chat import Usage  # noqa: PLC0415  pydantic, which nothing else here needs
        from medsam3.agent.loop import AgentResult  # noqa: PLC0415
        from medsam3.agent.values import Verdict  # noqa: PLC0415

        with self._opened(image, {}) as remote:
            body = _agent_body(remote, instruction, send_images, rounds)
            if llm is None:
                body |= {"policy": "offline", "send_images": False}
            else:
                said = self._connection.json("POST", "/v1/agent/preview", body)
                if said["sent_to"] != llm:
                    raise InputError(f"the server would ask {said['sent_to']}, allowed was {llm}: name that one")
                body |= {"consent": said["consent"]}
            job = RemoteJob(self._connection, remote.image, self._connection.json("POST", "/v1/jobs", body))
            steps = _Steps(self._connection, job.id, on_step)
            (masks,) = job.wait(on_look=steps.look).masks()
            steps.look()
            told = job.about["agent"]
            assert told is not None, "the job has ended well"
            return AgentResult(
                masks,
                Verdict(told["outcome"], (), told["reason"]),
                Usage(**told["usage"]),
                told["rounds"],
                told["turns"],
                told["seconds"],
                self._saved(job, transcript),
            )

    def _saved(self, job: RemoteJob, folder: str | Path | None) -> Path | None:
        if folder is None:
            return None
        Path(folder).mkdir(parents=True, exist_ok=True)
        return self._connection.save(f"/v1/jobs/{job.id}/transcript", Path(folder))

    def _followed(self, image: Image, about: JobTold, progress: Report | None) -> SessionTold:
        """Wait for a job of a session, and give the session as it then stands."""
        session = RemoteJob(self._connection, image, about).wait(progress).about["session"]
        assert session is not None, "the job was a step of one"
        return session

    @contextmanager
    def _opened(self, image: Any, given: Given) -> Iterator[RemoteImage]:
        """Open an image for one question, unless it is open already."""
        if isinstance(image, RemoteImage):
            yield image
            return
        spacing_mm, affine = given.get("spacing_mm"), given.get("affine")
        if spacing_mm is not None or affine is not None:
            from medsam3.io.in_memory import as_image  # noqa: PLC0415

            image = as_image(image, spacing_mm=spacing_mm, affine=affine)
        with self.open(image) as remote:
            yield remote


@dataclass
class _Steps:
    """Steps of an agent's run that were told so far."""

    connection: Connection
    job: str
    tell: Callable[[AgentStepTold], None]
    count: int = 0

    def look(self) -> None:
        for step in self.connection.json("GET", f"/v1/jobs/{self.job}/steps?after={self.count}"):
            self.tell(step)
            self.count = step["number"]


def _agent_body(image: RemoteImage, instruction: str, send_images: bool, rounds: int) -> JsonObject:
    asked = {"kind": "agent", "image": image.id, "instruction": check_phrase(instruction), "policy": "llm"}
    return asked | {"send_images": send_images, "rounds": rounds}
