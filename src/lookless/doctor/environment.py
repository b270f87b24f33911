"""The machine and what is installed on it."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from ..version import __version__
from .sections import Section

#: Packages that a plan may meet.
OTHERS = ("accelerate", "peft", "torchao", "bitsandbytes", "torchvision", "pyarrow", "lmms-eval", "vllm")


def environment() -> Section:
    """Versions, processor and threads."""
    facts = {
        "lookless": __version__,
        "Python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "transformers": importlib.metadata.version("transformers"),
        "others": ", ".join(f"{name} {version}" for name in OTHERS if (version := _version(name))) or "none",
        "CPU": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "GPU": ", ".join(map(_gpu, range(torch.cuda.device_count()))) if torch.cuda.is_available() else "none",
    }
    return Section("Environment", facts)


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
