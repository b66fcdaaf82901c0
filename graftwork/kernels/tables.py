"""Files of measured choices: for a key that names machine and shapes, the name of what was fastest there. JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

FORMAT = 1


def read(path: Path) -> dict[str, str]:
    """A table file; {} where there is none, or (with a warning) where it is of no use."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        return {str(k): str(v) for k, v in content["choices"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"the tuned table {path} cannot be used ({error}); run `graftwork tune` again, or delete it"
        warnings.warn(problem, stacklevel=4)
        return {}


def keep(choices: Mapping[str, str | None], path: Path) -> Path:
    """Add choices to a table file; None takes one out. Written whole or not at all."""
    merged = {**read(path), **choices}
    content = {"format": FORMAT, "choices": {k: merged[k] for k in sorted(merged) if merged[k] is not None}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{id(content)}.partial")
    try:
        temporary.write_text(json.dumps(content, indent=0) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
