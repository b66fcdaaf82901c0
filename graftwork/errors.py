"""Every error Graftwork raises on purpose.

One base class, so that an application can catch them all, and under it classes that also inherit the built-in exception
a caller would expect. A message says what was given, what was expected, and what to do.
"""

from __future__ import annotations


class GraftworkError(Exception):
    """Base of all errors raised by Graftwork."""


class ShapeError(GraftworkError, ValueError):
    """Shapes, axes or sizes that do not fit an operation."""


class RangeError(ShapeError, IndexError):
    """Labels or positions outside of what they point into."""


class DTypeError(GraftworkError, TypeError):
    """Element types that an operation does not take, or operands whose types differ."""


class DeviceError(GraftworkError, RuntimeError):
    """A device that is unknown or not usable here, or operands on different devices."""


class KernelUnavailable(GraftworkError, NotImplementedError):
    """No kernel is registered for this op, device and dtype."""


class GradientError(GraftworkError, RuntimeError):
    """A gradient that cannot be computed: nothing recorded, a freed tape, a value overwritten in place."""


class CaptureError(GraftworkError, RuntimeError):
    """A call that cannot become a static graph."""


class WeightsError(GraftworkError, ValueError):
    """A weights file that is damaged, hostile, or of another network."""


class FetchError(WeightsError, OSError):
    """A weights file that could not be fetched: no network, no room, or not the file that was published."""


class ModelError(GraftworkError, ValueError):
    """A model that cannot be built from the options or the configuration given."""


class ModelNotFound(GraftworkError, LookupError):
    """A model name that no registry knows."""


class CheckpointError(GraftworkError, ValueError):
    """A checkpoint that is damaged or belongs to another training run."""


class DataError(GraftworkError, ValueError):
    """Training or inference data that cannot be used: empty folders, corrupt images, labels out of range."""


class ConfigError(GraftworkError, ValueError):
    """An option with a value outside what it allows."""


class MissingDependency(GraftworkError, ImportError):
    """A package that only an extra brings, asked for where that extra is not installed."""


class RankError(GraftworkError, RuntimeError):
    """A process of a parallel run that died, hangs, diverged or does something else than the others."""


class PluginError(GraftworkError, RuntimeError):
    """A plugin that cannot be loaded, or two that claim the same name."""


class GraphError(GraftworkError, RuntimeError):
    """A graph that contradicts itself: a pass made a mistake, or a graph file is damaged."""


class KernelError(GraftworkError, RuntimeError):
    """A kernel that does not compile, or that cannot be launched as asked."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A device without room for an array: the message says what was asked for, held and free."""
