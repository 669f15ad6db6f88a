"""What a learner can do here, in scikit-learn's words, and how it is found by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from tidemill_models.encoding import Encoding, Matrix
from tidemill_models.errors import ModelError, NotExportableError
from tidemill_models.manifest import Constructor

Floats = NDArray[np.float64]

# The largest difference between the native and the served probability of a row that is let through.
PARITY_LIMIT = 1e-5

_MODULES = {
    "xgboost": "tidemill_models.learners.boosted",
    "river": "tidemill_models.learners.online",
}
LIBRARIES = frozenset(_MODULES)


@dataclass(frozen=True)
class Export:
    """A fitted model as a bundle carries it: the form that serving reads, and the native one."""

    scorer: str
    model_file: str
    files: Mapping[str, bytes]
    # Largest difference between native and served probabilities on the rows given to `export`.
    parity: float


class Learner(Protocol):
    """Fits a probability of a binary label to an encoded matrix."""

    def fit(self, x: Matrix, y: Floats) -> Self:
        """Fit on x: float32[n, width] and y: float64[n] of 0 and 1, rows in time order."""
        ...

    def predict_proba(self, x: Matrix) -> Floats:
        """Return float64[n] by the native library."""
        ...

    def export(self, x: Matrix) -> Export:
        """Return the served form, proven on x. Raises `NotExportableError` where it answers differently."""
        ...


def build(constructor: Constructor, encoding: Encoding, seed: int) -> Learner:
    """Return an unfitted learner. Raises `ModelError` for an unknown library, class or parameter."""
    make = cast(Callable[[Constructor, Encoding, int], Learner], load_library(constructor.library).build)
    return make(constructor, encoding, seed)


def load_library(library: str) -> ModuleType:
    """Import what a library's learners need, which takes a second or two. Raises `ModelError` for an unknown one."""
    module = _MODULES.get(library)
    if module is None:
        raise ModelError(f"no learner library {library!r}: known are {', '.join(_MODULES)}")
    return import_module(module)


def checked_parameters(given: Mapping[str, Any], known: Mapping[str, type]) -> dict[str, Any]:
    """Return the parameters as the types that the learner takes (JSON has no integers of its own).

    Raises `ModelError` for an unknown name or a wrong type.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ModelError(f"unknown parameter {unknown[0]!r}: known are {', '.join(sorted(known))}")
    return {name: _typed(name, value, known[name]) for name, value in given.items()}


def _typed(name: str, value: Any, wanted: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ModelError(f"parameter {name!r} is {value!r}; a finite number is needed")
    if wanted is int and value != int(value):
        raise ModelError(f"parameter {name!r} is {value!r}; a whole number is needed")
    return wanted(value)


def checked_parity(native: Floats, served: Floats) -> float:
    """Return the largest difference. Raises `NotExportableError` beyond the limit or where either is not finite."""
    parity = float(np.max(np.abs(native - served), initial=0.0))
    if not parity <= PARITY_LIMIT:
        raise NotExportableError(
            f"the served form differs from the native model by up to {parity:.3g} in probability "
            f"(limit {PARITY_LIMIT:g}); this version is not shipped"
        )
    return parity
