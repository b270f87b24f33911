"""vLLM's benchmark client, and what is sent with it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configs import geometry_named, shape_named
from ..errors import ModelError, ServingError
from ..geometry import Geometry
from ..loading import looks_local
from ..reference import NAMES
from ..serving.launch import VLLM
from ..serving.shipped import servable
from .dummy_checkpoint import write_dummy_checkpoint
from .subjects import cut_name
from .vllm_server import PATIENCE_S, Server, tail

#: Side of an image in pixels, where none is given: for most models, and for the shipped ones.
SIDE, SIDE_OF_SHIPPED = 336, 96


@dataclass(frozen=True)
class Traffic:
    """What is sent: ``rounds`` times, to each server, ``requests`` prompts at each concurrency.

    Attributes:
        text: random tokens of a prompt, before its image.
        answer: tokens of each answer, always generated in full.
        side: of the square image, in pixels; None for the model's own.

    Raises:
        ServingError: more requests at a time than there are.
    """

    concurrency: tuple[int, ...] = (1, 4, 16)
    requests: int = 32
    rounds: int = 3
    text: int = 66
    answer: int = 16
    side: int | None = None

    def __post_init__(self) -> None:
        if max(self.concurrency) > self.requests:
            raise ServingError(
                f"--concurrency {max(self.concurrency)} is more than there are requests, {self.requests}: send more."
            )


@dataclass(frozen=True)
class Served:
    """A model to serve.

    Attributes:
        name: for reports.
        path: for vLLM.
        side: of a square image that suits it, in pixels.
        options: of vLLM that it needs.
    """

    name: str
    path: str
    geometry: Geometry
    side: int
    options: tuple[str, ...] = ()


def served_geometry(name: str, folder: Path, *, layers: int | None, visual: int) -> Served:
    """A dummy model with real layer shapes; vLLM draws its weights.

    Raises:
        GeometryError, ModelError: no such geometry or number of layers, or no square image has this number of tokens.
    """
    shape = shape_named(name)
    side = write_dummy_checkpoint(shape.cut(layers), folder, whole=shape.geometry.layers, visual=visual)
    return Served(cut_name(name, layers), str(folder), geometry_named(str(folder)), side, ("--load-format", "dummy"))


def served_model(name: str, folder: Path) -> Served:
    """A model of the hub or of a folder, as it is; a shipped one as a copy in ``folder``.

    Raises:
        ModelError, GeometryError: it is not there, or its configuration cannot be read.
    """
    if name not in NAMES and looks_local(name) and not (Path(name) / "config.json").is_file():
        raise ModelError(f"{name} is not a model's folder: it has no config.json.")
    path = servable(name, folder)
    return Served(name, path, geometry_named(path), SIDE_OF_SHIPPED if name in NAMES else SIDE)


class Client:
    """vLLM's benchmark client."""

    def __init__(self, served: Served, traffic: Traffic, folder: Path) -> None:
        self.served, self.traffic, self.folder = served, traffic, folder

    def run(self, server: Server, *, concurrency: int, requests: int, seed: int) -> dict[str, Any]:
        """The results that it saved.

        Raises:
            ServingError: it failed, or one of its requests did.
        """
        saved, log = self.folder / "client.json", self.folder / "client.log"
        saved.unlink(missing_ok=True)
        words = self._words(server, concurrency, requests, seed, saved)
        with log.open("wb") as file:
            done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, timeout=PATIENCE_S, check=False)
        server.check()
        if done.returncode or not saved.exists():
            raise ServingError(f"vLLM's client failed with code {done.returncode}; {tail(log)}")
        result: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
        if result["completed"] != requests:
            raise ServingError(
                f"of {requests} requests the {server.name} server answered {result['completed']}; {tail(log)}"
            )
        return result

    def _words(self, server: Server, concurrency: int, requests: int, seed: int, saved: Path) -> list[str]:
        side = self.traffic.side or self.served.side
        options = {
            "backend": "openai-chat",
            "base-url": server.address,
            "endpoint": "/v1/chat/completions",
            "model": self.served.path,
            "dataset-name": "random-mm",
            "num-prompts": requests,
            "max-concurrency": concurrency,
            "seed": seed,
            "random-input-len": self.traffic.text,
            "random-output-len": self.traffic.answer,
            "random-mm-bucket-config": f"{{({side}, {side}, 1): 1.0}}",
            "random-mm-limit-mm-per-prompt": '{"image": 1}',
            "temperature": 0,
            "percentile-metrics": "ttft,tpot",
            "metric-percentiles": 95,
            "result-dir": saved.parent,
            "result-filename": saved.name,
        }
        named = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return [*VLLM, "bench", "serve", *named, "--save-result", "--disable-tqdm"]
