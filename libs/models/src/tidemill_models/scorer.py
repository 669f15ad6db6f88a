"""From an opened bundle to probabilities, as serving computes them: no training library is loaded."""

from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tidemill_models.bundle import Bundle
from tidemill_models.encoding import Encoding, Matrix
from tidemill_models.errors import BundleRefusedError
from tidemill_models.linear import parse_linear

ONNX = "onnx"
LINEAR = "linear"
INPUT = "x"
_PROBABILITIES = "probabilities"


class Scorer(Protocol):
    """float32[n, width] → float64[n], the probability of the label; the same row answers alike in any batch."""

    def predict_proba(self, x: Matrix) -> NDArray[np.float64]: ...


class OnnxScorer:
    """A model in ONNX Runtime with one thread; calls from several threads are safe."""

    def __init__(self, raw: bytes, width: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False
        try:
            self._session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises its own types, which share no base
            raise BundleRefusedError(f"ONNX Runtime does not accept the model: {error}") from error
        found = {tensor.name: tensor.shape for tensor in self._session.get_inputs()}
        outputs = [tensor.name for tensor in self._session.get_outputs()]
        if list(found) != [INPUT] or found[INPUT][1] != width or _PROBABILITIES not in outputs:
            raise BundleRefusedError(f"the ONNX model takes {found} and gives {outputs}; expected x[n, {width}]")

    def predict_proba(self, x: Matrix) -> NDArray[np.float64]:
        """Return the probability of the label for each row."""
        if not len(x):
            return np.empty(0, dtype=np.float64)
        (answer,) = self._session.run([_PROBABILITIES], {INPUT: x})
        probabilities: NDArray[np.float64] = answer[:, 1].astype(np.float64)
        return probabilities


def load_scorer(bundle: Bundle) -> Scorer:
    """Return the scorer of a verified bundle. Raises `BundleRefusedError` where its model cannot be used."""
    return make_scorer(bundle.manifest.scorer, bundle.model, bundle.encoding)


def make_scorer(kind: str, model: bytes, encoding: Encoding) -> Scorer:
    """Return the scorer of one served form. Raises `BundleRefusedError` for a kind that this release does not know."""
    if kind == ONNX:
        return OnnxScorer(model, encoding.width)
    if kind == LINEAR:
        return parse_linear(model, encoding)
    raise BundleRefusedError(f"scorer {kind!r} is not known here; this release knows {ONNX} and {LINEAR}")
