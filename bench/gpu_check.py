"""What can be checked on a machine with a GPU, from a plain checkout: `make gpu-check`.

The CUDA kernels of the op table do not exist yet; what does is the placing of tensors and the loading of plugins' CUDA
sources, so that is what runs here.
"""

from __future__ import annotations

import subprocess
import sys

import graftwork as gw


def main() -> int:
    if not gw.cuda.is_available():
        print(f"no GPU to check: {gw.cuda.why_not()}")
        return 1
    return subprocess.call([sys.executable, "-m", "pytest", "-m", "gpu", "tests"])


if __name__ == "__main__":
    sys.exit(main())
