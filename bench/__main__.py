"""All measurements that need no data of their own: `python -m bench`."""

import importlib.util
import json
import sys

from . import overhead
from .common import write

if importlib.util.find_spec("torch") is None:
    sys.exit("the peers are missing: pip install torch (a CPU build is enough), then run this again")
found = overhead.measure()
print(json.dumps(found, indent=2))
print("wrote", write("overhead", found))
