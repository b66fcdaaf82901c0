"""What scikit-learn asks of an estimator, for classes that must load where scikit-learn is not installed."""

from __future__ import annotations

from inspect import signature
from typing import Any

from ...errors import ConfigError


class Parameters:
    """`get_params`, `set_params` and cloning from the constructor's arguments. A clone shares the network, never a fit.

    A subclass keeps each argument under its name and checks them in `_check`; `_compiled` has the network's graphs, which
    clones share as well, so that a search over models on top compiles it once.
    """

    _compiled: dict[tuple, Any]

    def _check(self) -> None:
        """Raise for arguments that cannot be used."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor by name; with `deep` also those of an estimator among them ("estimator__C")."""
        own = {name: getattr(self, name) for name in signature(type(self)).parameters}
        inner = own.get("estimator")
        if deep and inner is not None:
            own |= {f"estimator__{name}": value for name, value in inner.get_params().items()}
        return own

    def set_params(self, **options: Any):
        """Change arguments of the constructor. Raises ConfigError for a name it does not have."""
        known = self.get_params()
        unknown = set(options) - set(known)
        if unknown:
            raise ConfigError(f"{', '.join(sorted(unknown))}: not an option; there are {', '.join(known)}")
        for name, value in options.items():
            if not name.startswith("estimator__"):
                setattr(self, name, value)
        inner = {n.removeprefix("estimator__"): v for n, v in options.items() if n.startswith("estimator__")}
        if inner:
            known["estimator"].set_params(**inner)
        self._check()
        return self

    def __sklearn_clone__(self):
        from sklearn.base import clone

        own = self.get_params(deep=False)
        if own.get("estimator") is not None:
            own["estimator"] = clone(own["estimator"])
        twin = type(self)(**own)
        twin._compiled = self._compiled
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}
