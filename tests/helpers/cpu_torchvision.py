"""Lets torchvision be imported beside a CPU build of torch: run once in a virtual environment that has both.

Wheels of torchvision are often built for CUDA. Beside a CPU torch such a one fails when it is imported, as it describes
operators of a library that cannot be loaded. Its transforms, all that processors need, are plain Python: they work once
those operators are declared.
"""

from __future__ import annotations

import sysconfig
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


if __name__ == "__main__":
    main()
