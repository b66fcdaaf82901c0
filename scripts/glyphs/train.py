"""Train GlyphNet on rendered characters and write the weights that ship with the package.

    python scripts/glyphs/train.py --output graftwork/zoo/glyphnet.h5

The same seed and fonts give the same weights on one machine. `--install-hint` prints the packages that hold the fonts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import fonts as font_files
import render

import graftwork as gw
from graftwork import nn, zoo
from graftwork.nn import functional as F

VALIDATION_EVERY = 8  # every eighth font is kept aside


def load_glyphs(fonts: list[font_files.Font]) -> tuple[np.ndarray, list[font_files.Font]]:
    """(fonts, 3, characters, 48, 48), and the fonts that had every character."""
    rendered = [(f, render.render_font(f.path)) for f in fonts]
    complete = [(f, render.thicknesses(g)) for f, g in rendered if g is not None]
    return np.stack([g for _, g in complete]), [f for f, _ in complete]


def train(glyphs: np.ndarray, seed: int, epochs: int, epoch_size: int, batch_size: int, lr: float):
    """The trained network and its history."""
    gw.manual_seed(seed)
    held_out = np.arange(len(glyphs)) % VALIDATION_EVERY == VALIDATION_EVERY - 1
    loader = nn.DataLoader(render.GlyphDataset(glyphs[~held_out], epoch_size), batch_size, workers=1, seed=seed)
    clean = nn.DataLoader(render.GlyphDataset(glyphs[held_out], 0, distort=False), 256)
    model = zoo.create("glyphnet")
    optimizer = nn.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = nn.schedule.OneCycleLR(optimizer, total_steps=len(loader) * epochs)
    trainer = nn.Trainer(model, optimizer, lambda y, t: F.cross_entropy(y, t, 0.1), schedule, progress=False)
    for epoch in range(1, epochs + 1):
        record = trainer.fit(loader, epoch, validation=clean)[-1]
        print(json.dumps({k: round(v, 5) for k, v in record.items()}), flush=True)
    return model, trainer.history


def write_provenance(path: Path, fonts, arguments, history, seconds: float) -> None:
    """Beside the weights: how they came about, from which fonts, under which licences."""
    last = history[-1]
    rows = "\n".join(f"| {f.path.name} | {f.package} | {f.licence} | {f.sha256[:16]} |" for f in fonts)
    path.write_text(
        f"""# GlyphNet's embedded weights

Trained by Graftwork itself with `python scripts/glyphs/train.py --seed {arguments.seed} --epochs {arguments.epochs}` in
{seconds / 60:.1f} minutes on two CPU cores, on {arguments.epochs * arguments.epoch_size:,} images rendered from the {len(fonts)} fonts below
(one in {VALIDATION_EVERY} kept aside). {len(render.CLASS_NAMES)} classes: {" ".join(render.CLASS_NAMES)}.
Accuracy on the {len(fonts) // VALIDATION_EVERY} fonts kept aside, undistorted: {last["validation_accuracy"]:.4f}.
Training accuracy on distorted images in the last epoch: {last["accuracy"]:.4f}.

The fonts come from Debian's main archive. The weights hold no font's outlines; they are under the project's licence.

| font | package | licence | sha256 (start) |
|---|---|---|---|
{rows}
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("graftwork/zoo/glyphnet.h5"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--epoch-size", type=int, default=25600)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--install-hint", action="store_true", help="print the packages that hold the fonts, and stop")
    arguments = parser.parse_args()
    fonts, missing = font_files.find_fonts()
    if arguments.install_hint or not fonts:
        print("apt-get install " + " ".join(missing or font_files.PACKAGES))
        return
    if missing:
        print(f"without {len(missing)} packages that are not installed: {' '.join(missing)}")
    start = time.perf_counter()
    glyphs, used = load_glyphs(fonts)
    print(f"{len(used)} of {len(fonts)} fonts have every character ({time.perf_counter() - start:.0f} s)", flush=True)
    options = arguments.seed, arguments.epochs, arguments.epoch_size, arguments.batch_size, arguments.lr
    model, history = train(glyphs, *options)
    zoo.save_weights(model, arguments.output)
    write_provenance(arguments.output.with_suffix(".md"), used, arguments, history, time.perf_counter() - start)
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
