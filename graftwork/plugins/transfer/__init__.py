"""Transfer learning: deep features, a simple model on top, similar images, clusters, fine-tuning.

The first plugin; it comes in through the same hooks as anyone's and is a reference for how to write one.
"""

from __future__ import annotations

from importlib.util import find_spec

from ...errors import MissingDependency
from ..hookspecs import hookimpl

__all__ = [
    "Augmentation", "Clusters", "Evaluation", "FeatureExtractor", "FineTuned", "Folder", "ImageClassifier", "Recipe",
    "SimilarityIndex", "TagHead", "Tagger", "cluster", "find_rates", "fine_tune", "load_folder",
    "register_commands", "similar",
]  # fmt: skip

_HOME = {
    "FeatureExtractor": "features", "ImageClassifier": "classifier", "Tagger": "tagger", "TagHead": "taghead",
    "SimilarityIndex": "index", "Clusters": "clusters", "Folder": "folders", "load_folder": "folders", "similar": "neighbours",
    "cluster": "neighbours", "fine_tune": "finetune", "FineTuned": "finetune", "Recipe": "finetune", "Augmentation": "augment",
    "find_rates": "rate_finder", "Evaluation": "evaluation",
}  # fmt: skip
_NEED_SCIKIT_LEARN = {"TagHead", "SimilarityIndex", "Clusters"}  # they inherit from it; the others load without


def __getattr__(name: str):
    """The plugin's parts load when first used: registering its commands costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _NEED_SCIKIT_LEARN:
        require_scikit_learn()
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def require_scikit_learn() -> None:
    """MissingDependency, in a sentence, where scikit-learn is not installed. Ask before long work, not after it."""
    if find_spec("sklearn") is None:
        raise MissingDependency("this needs scikit-learn, which is not installed: pip install 'graftwork[transfer]'")


@hookimpl
def register_commands(cli) -> None:
    """Add the group `graftwork transfer`."""
    from .commands import transfer

    cli.add_command(transfer)
