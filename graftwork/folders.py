"""Where Graftwork keeps what can be made again: one folder, by each platform's convention."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder below the user's cache folder (GRAFTWORK_CACHE overrides it). It need not exist yet."""
    if named := os.environ.get("GRAFTWORK_CACHE"):
        return Path(named, *parts)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base.joinpath("graftwork", *parts)
