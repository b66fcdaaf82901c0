"""Fonts to render characters from: all from packages of Debian's main archive, whose licences are free by its guidelines."""

from __future__ import annotations

import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ["fonts-adf-gillius", "fonts-adf-universalis", "fonts-adf-verana", "fonts-averia-sans-gwf", "fonts-averia-serif-gwf", "fonts-beteckna", "fonts-breip", "fonts-cabin", "fonts-cantarell", "fonts-comic-neue", "fonts-courier-prime", "fonts-crosextra-caladea", "fonts-crosextra-carlito", "fonts-dkg-handwriting", "fonts-dustin", "fonts-ecolier-court", "fonts-essays1743", "fonts-femkeklaver", "fonts-freefont-ttf", "fonts-georgewilliams", "fonts-gfs-neohellenic", "fonts-goudybookletter", "fonts-hack", "fonts-humor-sans", "fonts-inconsolata", "fonts-isabella", "fonts-johnsmith-induni", "fonts-junction", "fonts-jura", "fonts-karla", "fonts-klaudia-berenika", "fonts-kristi", "fonts-lato", "fonts-league-spartan", "fonts-liberation", "fonts-linuxlibertine", "fonts-lobster", "fonts-lobstertwo", "fonts-monofur", "fonts-mononoki", "fonts-nanum", "fonts-oldstandard", "fonts-open-sans", "fonts-opendyslexic", "fonts-play", "fonts-prociono", "fonts-quattrocento", "fonts-radisnoir", "fonts-roboto-unhinted", "fonts-rufscript", "fonts-sil-andika", "fonts-sil-gentium", "fonts-tlwg-purisa-ttf", "fonts-vollkorn", "fonts-yanone-kaffeesatz"]
MOST_A_PACKAGE = 8  # so that no large family outweighs the others


@dataclass(frozen=True)
class Font:
    """One font file and where it comes from."""

    path: Path
    package: str
    licence: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def licence_of(package: str) -> str:
    """The licences that a package's copyright file names, in short."""
    path = Path("/usr/share/doc") / package / "copyright"
    text = path.read_text(errors="replace") if path.exists() else ""
    names = {n.strip() for n in re.findall(r"^License:\s*(\S[^\n]*)", text, re.MULTILINE)}
    if not names and "OFL" in text.upper():
        names = {"OFL"}
    return ", ".join(sorted(names)) or "see the package's copyright file"


def find_fonts() -> tuple[list[Font], list[str]]:
    """Installed font files of the packages above in a fixed order, and the packages that are missing."""
    found, missing = [], []
    for package in sorted(PACKAGES):
        listing = subprocess.run(["dpkg-query", "-L", package], capture_output=True, text=True, check=False)
        files = sorted(p for p in listing.stdout.split("\n") if p.lower().endswith((".ttf", ".otf")))
        if not files:
            missing.append(package)
        step = max(len(files) // MOST_A_PACKAGE, 1)
        licence = licence_of(package)
        found += [Font(Path(p), package, licence) for p in files[::step][:MOST_A_PACKAGE]]
    return found, missing
