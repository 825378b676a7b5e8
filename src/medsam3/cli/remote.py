"""Who answers the command line: a model on this machine, or a server of `medsam3 serve`, with the same masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from medsam3.cli.job import Help, ModelChoice
from medsam3.errors import InputError

if TYPE_CHECKING:
    from medsam3.cli.archive import ArchiveInput
    from medsam3.cli.inputs import Input
    from medsam3.client.client import Client
    from medsam3.client.wire import ModelTold
    from medsam3.image import Image, Masks
    from medsam3.models.segmenter import Segmenter
    from medsam3.prompts import Prompt
    from medsam3.segmentation.options import Options
    from medsam3.segmentation.run import Report

TOKEN = "MEDSAM3_TOKEN"


class HowRead(Protocol):
    """How a phrase was read."""

    @property
    def told(self) -> str | None:
        """What it was taken for, if for something else."""
        ...

    @property
    def is_taught(self) -> bool | None:
        """Whether that was taught."""
        ...


class Answering(Protocol):
    """Finds masks and reads phrases."""

    def segment(
        self, opened: OpenedImage, prompts: Sequence[Prompt], options: Options, progress: Report
    ) -> list[Masks]:
        """Find the objects of each prompt, as `medsam3.segment`."""
        ...

    def reading(self, image: Image, phrase: str) -> HowRead:
        """Tell how a phrase is read."""
        ...


@dataclass(frozen=True)
class OpenedImage:
    """An input that was read here; `frame` where one frame of a file that is no one stack was chosen."""

    item: Input | ArchiveInput
    image: Image
    frame: int | None


@dataclass(frozen=True)
class AnsweringHere:
    """A model on this machine."""

    model: Segmenter

    def segment(
        self, opened: OpenedImage, prompts: Sequence[Prompt], options: Options, progress: Report
    ) -> list[Masks]:
        """As `medsam3.segment`."""
        from medsam3.segmentation.run import segment  # noqa: PLC0415

        return segment(opened.image, prompts, self.model, options, progress=progress)

    def reading(self, image: Image, phrase: str) -> HowRead:
        """As `composing.readings_of`."""
        from medsam3.segmentation.composing import readings_of  # noqa: PLC0415

        return readings_of(image, phrase, self.model)[0]


@dataclass(frozen=True)
class _Reading:
    told: str | None
    is_taught: bool | None


@dataclass(frozen=True)
class AnsweringThere:
    """A server; it tells no progress of single slices to be taken up again, so no journal is kept."""

    client: Client

    def segment(
        self, opened: OpenedImage, prompts: Sequence[Prompt], options: Options, progress: Report
    ) -> list[Masks]:
        """As `medsam3.segment`, of the input's files."""
        with self.client.open(opened.item.path, frame=opened.frame, series=opened.item.series) as remote:
            return self.client.segment(remote, prompts, replace(options, journal=None), progress=progress)

    def reading(self, image: Image, phrase: str) -> HowRead:
        """As the server reads it."""
        first = self.client.read_phrase(phrase)[0]
        return _Reading(first["read_as"], first["is_taught"])


@dataclass(frozen=True)
class ServerChoice:
    """A server that answers in place of a model here."""

    server: Annotated[
        str | None, Help("address of a medsam3 serve that answers, such as http://127.0.0.1:8080; same masks")
    ] = None
    token_file: Annotated[
        Path | None, Help(f"file with the token for the server; else the variable {TOKEN} holds it, if it needs one")
    ] = None

    def client(self) -> Client | None:
        """Make the client; None if no server was named.

        Raises:
            InputError: A bad address or token file, or a token without a server.
        """
        if self.server is None:
            if self.token_file is not None:
                raise InputError("--token-file holds a token for a server: name that with --server, or leave it out")
            return None
        from medsam3.client.client import Client  # noqa: PLC0415
        from medsam3.server.settings import read_tokens  # noqa: PLC0415

        token = os.environ.get(TOKEN) or None if self.token_file is None else read_tokens(self.token_file)[0]
        return Client(self.server, token)


class ServedModel:
    """The model of a server, as a job sees it; what `ModelChoice` is for one here."""

    def __init__(self, client: Client) -> None:
        self.client = client

    @cached_property
    def _about(self) -> ModelTold:
        return self.client.model()

    @property
    def model(self) -> str:
        """Its name."""
        name: str = self._about["name"]
        return name

    @property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of the files of its weights, by name, as the server tells them."""
        hashes: dict[str, str] = self._about.get("weights_sha256", {})
        return hashes

    @property
    def taught(self) -> tuple[str, ...]:
        """Names of the concepts that it was taught."""
        return tuple(self._about["concepts"])

    def key(self) -> tuple[Any, ...]:
        """What of it changes results, as `ModelChoice.key` of the same weights here."""
        return ModelChoice().settings_key(self.model, self.sha256)

    def answering(self) -> Answering:
        """Give who answers."""
        return AnsweringThere(self.client)


def chosen_model(model: ModelChoice, server: ServerChoice) -> ModelChoice | ServedModel:
    """Choose who answers.

    Raises:
        InputError: As `ServerChoice.client`, or a model was named beside a server.
    """
    client = server.client()
    if client is None:
        return model
    if model != ModelChoice():
        raise InputError("the server answers with its own model: leave --model and all that belongs to it out")
    served = ServedModel(client)
    _ = served.model  # a server that is not there ends the run at once
    return served
