"""Structured pruning: whole channels go, and with them the arithmetic (Li et al. 2017, "Pruning Filters for Efficient
ConvNets"; by batch norm's scale: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming").

    small, report = prune_channels(model, example, target_macs=0.5)

What is coupled is pruned together, as in Fang et al. 2023, "DepGraph".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ...errors import ConfigError, GraftworkError, ModelError
from ...nn import no_grad
from ...nn.modules.module import Module
from ...nn.modules.resize import resize
from ...nn.tensor import Tensor
from .dependencies import Dependencies, Product, analyse
from .magnitude import SCOPES
from .reconstruct import reconstruct as fit_layers

IMPORTANCES = ("l1", "l2", "batch_norm")
STEPS = 24  # of the bisection for a number of multiplications


@dataclass(frozen=True)
class ChannelReport:
    """What pruning did. macs: multiplications of one example in convolutions and dense layers, before and after; parameters
    likewise. layers: for each of them its weight's name and its output channels before and after. kept: why layers could not
    be pruned (in part), by weight."""

    macs: tuple[int, int]
    parameters: tuple[int, int]
    layers: tuple[tuple[str, int, int], ...]
    kept: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [f"  {name}: {before} -> {after} channels" for name, before, after in self.layers if before != after]
        rows += [f"  {name}: kept, {reason}" for name, reason in self.kept.items()]
        return "\n".join([
            f"multiplications {self.macs[0]:,} -> {self.macs[1]:,} ({self.macs[1] / self.macs[0]:.3f})",
            f"parameters {self.parameters[0]:,} -> {self.parameters[1]:,} ({self.parameters[1] / self.parameters[0]:.3f})",
            *rows,
        ])  # fmt: skip


class Pruned(NamedTuple):
    """A smaller network of the same classes, and what was done."""

    model: Module
    report: ChannelReport


class Group(NamedTuple):
    """Layers whose channels are joined: the channels that may go, each layer's channels, and every channel's importance."""

    free: np.ndarray
    layers: list[np.ndarray]
    scores: np.ndarray


def prune_channels(model: Module, example: Tensor, amount: float | None = None, target_macs: float | None = None,
                   importance: str = "l1", scope: str = "layer", multiple: int = 1, most: float = 0.9,
                   skip: Sequence[str] = (), reconstruct: bool = False) -> Pruned:  # fmt: skip
    """A copy of `model` with the least important channels gone. `model` stays as it is; train the copy on to win back accuracy.

    example: inputs, of which the shape counts. amount: the share of channels to prune, of each group of joined layers
    (scope="layer") or of all by importance over their group's mean (scope="global"). target_macs: instead, the share of
    multiplications to keep; the least `amount` that reaches it is searched. importance: "l1" or "l2" norm of the weights that
    make a channel, or "batch_norm" for the size of its scale. multiple: each layer keeps a multiple of so many channels if it
    had one. most: the share that no group loses more of. skip: modules (paths) whose output channels all stay. reconstruct: fit
    layers that lost inputs so that their outputs for `example` (a few hundred real inputs) stay; see reconstruct.py.

    Joined are layers whose outputs are added or multiplied; depthwise convolutions and batch norms follow. Inputs, outputs
    and what meets ops that need all channels (a zero-padded shortcut, layer norm, softmax) keep theirs; the report says so.
    Raises ConfigError for other options and targets out of reach, ModelError for a model whose code insists on its sizes.
    """
    _check(amount, target_macs, importance, scope, multiple, most)
    training = model.training
    small = copy.deepcopy(model).eval()
    found = analyse(small, Tensor(example.data[:1]))
    _skip(found, small, skip)
    groups = _groups(found, importance)
    if not groups:
        raise ConfigError(f"prune: no channel of {type(model).__name__} can be pruned: {_reasons(found) or 'it makes none'}")
    choose = _Chooser(found, groups, scope, multiple, most)
    share = amount if amount is not None else choose.share_for(target_macs or 0.0)
    kept = choose.kept(share)
    before, parameters = _macs(found), model.count_parameters()
    sizes = [(found.names[p.weight], len(p.made), int(kept[p.made].sum())) for p in found.products]
    resize(small, _sliced(found, kept))
    try:
        with no_grad():
            small(Tensor(example.data[:1]))
        again = analyse(small, Tensor(example.data[:1]))
    except GraftworkError as error:
        raise ModelError(
            f"prune: {type(model).__name__} does not run with fewer channels: {error}; name the layers that its code insists "
            "on in skip=(...)"
        ) from error
    if reconstruct:
        model.eval()
        fit_layers(small, model, found, kept, example)
        model.train(training)
    report = ChannelReport(
        (before, _macs(again)), (parameters, small.count_parameters()), tuple(dict.fromkeys(sizes)), _kept_reasons(found)
    )
    return Pruned(small.train(training), report)


def _check(amount: Any, target: Any, importance: str, scope: str, multiple: int, most: float) -> None:
    if (amount is None) == (target is None):
        raise ConfigError(f"prune: amount={amount}, target_macs={target}; give one of them")
    if amount is not None and not 0 <= amount < 1:
        raise ConfigError(f"prune: amount={amount}; expected a share of at least 0 and below 1")
    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"prune: target_macs={target}; expected the share to keep, above 0 and at most 1")
    if importance not in IMPORTANCES:
        raise ConfigError(f"prune: importance={importance!r}; expected one of {', '.join(map(repr, IMPORTANCES))}")
    if scope not in SCOPES:
        raise ConfigError(f"prune: scope={scope!r}; expected 'global' or 'layer'")
    if multiple < 1 or not 0 < most <= 1:
        raise ConfigError(f"prune: multiple={multiple}, most={most}; expected at least 1, and a share above 0 and at most 1")


def _skip(found: Dependencies, model: Module, skip: Sequence[str]) -> None:
    """Lock what the modules named make."""
    paths = [skip] if isinstance(skip, str) else list(skip)
    known = [path for path, _ in model.named_modules()]
    for path in paths:
        if path not in known:
            raise ConfigError(
                f"prune: skip={path!r} is no module of {type(model).__name__}; `model.named_modules()` lists them"
            )
        for product in found.products:
            if found.names[product.weight].startswith(f"{path}."):
                for number in product.made.tolist():
                    found.locked.setdefault(number, "it is named in skip")


def _macs(found: Dependencies) -> int:
    return sum(p.macs(np.ones(len(found.root), bool)) for p in found.products)


# -- groups and importance -------------------------------------------------------------------------------------------


def _groups(found: Dependencies, importance: str) -> list[Group]:
    """Joined layers, with those of their channels that may go."""
    scores = _scores(found, importance)
    makers = {p.weight: p for p in found.products if not p.depthwise}.values()
    first: dict[int, int] = {}  # channel -> a number of its group
    members: dict[int, list[Product]] = {}
    for i, maker in enumerate(makers):
        joined = {first[c] for c in maker.made.tolist() if c in first}
        members[i] = [maker, *(p for j in joined for p in members.pop(j))]
        for product in members[i]:
            first.update(dict.fromkeys(product.made.tolist(), i))
    groups = []
    for products in members.values():
        layers = [np.unique(p.made) for p in products]
        everything = np.unique(np.concatenate(layers))
        free = np.array([c for c in everything.tolist() if c not in found.locked and np.isfinite(scores[c])], np.int64)
        if len(free):
            mean = float(scores[free].mean())
            groups.append(Group(free, layers, scores[free] / (mean if mean > 0 else 1.0)))
    return groups


def _scores(found: Dependencies, importance: str) -> np.ndarray:
    """The importance of each number, infinite where nothing says it (no batch norm)."""
    total = np.zeros(len(found.root))
    said = np.zeros(len(found.root), bool)
    if importance == "batch_norm":
        sources = [(numbers, np.abs(found.tensors[i].numpy())) for i, numbers in found.norms.items()]
    else:
        power = 1 if importance == "l1" else 2
        makers = {p.weight: p.made for p in found.products if not p.depthwise}
        sizes = {i: np.abs(found.tensors[i].numpy().astype(np.float64)) for i in makers}
        sources = [(made, (sizes[i] ** power).reshape(-1, len(made)).sum(axis=0)) for i, made in makers.items()]
    for numbers, values in sources:
        if not np.isfinite(values).all():
            raise ConfigError("prune: a weight holds NaN or infinity, which have no magnitude to compare")
        np.add.at(total, numbers, values)
        said[numbers] = True
    return np.where(said, np.sqrt(total) if importance == "l2" else total, np.inf)


class _Chooser:
    """Which channels stay for a share to prune."""

    def __init__(self, found: Dependencies, groups: Sequence[Group], scope: str, multiple: int, most: float):
        self.found, self.groups, self.scope, self.multiple, self.most = found, groups, scope, multiple, most

    def kept(self, share: float) -> np.ndarray:
        """(numbers,) True for what stays."""
        kept = np.ones(len(self.found.root), bool)
        for group, wanted in zip(self.groups, self._wanted(share), strict=True):
            self._drop(kept, group, min(wanted, int(self.most * len(group.free))))
        return kept

    def _wanted(self, share: float) -> list[int]:
        """How many channels each group should lose; ties go by place, so that the count is exact."""
        if self.scope == "layer":
            return [round(share * len(g.free)) for g in self.groups]
        owner = np.repeat(np.arange(len(self.groups)), [len(g.free) for g in self.groups])
        order = np.argsort(np.concatenate([g.scores for g in self.groups]), kind="stable")
        return np.bincount(owner[order[: round(share * len(owner))]], minlength=len(self.groups)).tolist()

    def _drop(self, kept: np.ndarray, group: Group, count: int) -> None:
        """Drop a group's `count` least channels; fewer where a layer would be left without any, or with an odd number."""
        order = group.free[np.argsort(group.scores, kind="stable")]
        for n in range(count, 0, -1):
            kept[order[:n]] = False
            left = [int(kept[layer].sum()) for layer in group.layers]
            whole = all(
                rest > 0 and (rest % self.multiple == 0 or len(layer) % self.multiple != 0)
                for rest, layer in zip(left, group.layers, strict=True)
            )
            if whole:
                return
            kept[order[:n]] = True

    def share_for(self, target: float) -> float:
        """The least share to prune after which at most `target` of the multiplications are left."""
        before = _macs(self.found)
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._left(middle) <= target * before else (middle, high)
        left = self._left(high)
        if left > target * before:
            raise ConfigError(
                f"prune: target_macs={target} is out of reach: {left / before:.3f} of the multiplications are left when all is "
                f"pruned that may be; {_reasons(self.found) or f'most={self.most}'}"
            )
        return high

    def _left(self, share: float) -> int:
        kept = self.kept(share)
        return sum(p.macs(kept) for p in self.found.products)


# -- the smaller network ---------------------------------------------------------------------------------------------


def _sliced(found: Dependencies, kept: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors that lose channels, by name."""
    arrays = {}
    for i, axes in found.axes.items():
        array = old = found.tensors[i].numpy()
        for axis, numbers in axes.items():
            array = np.compress(kept[numbers], array, axis=axis)
        if array.shape != old.shape:
            arrays[found.names[i]] = array
    return arrays


def _kept_reasons(found: Dependencies) -> dict[str, str]:
    """Why layers keep channels, by the weight's name."""
    reasons = {}
    for product in found.products:
        locked = next((found.locked[c] for c in product.made.tolist() if c in found.locked), None)
        if locked is not None:
            reasons[found.names[product.weight]] = locked
    return reasons


def _reasons(found: Dependencies) -> str:
    return "; ".join(f"{name} stays, for {reason}" for name, reason in list(_kept_reasons(found).items())[:4])
