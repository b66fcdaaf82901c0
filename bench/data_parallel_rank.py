"""One rank of `bench.data_parallel`; `graftwork launch` starts it as a script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.data_parallel import arguments, ours

ours(arguments())
