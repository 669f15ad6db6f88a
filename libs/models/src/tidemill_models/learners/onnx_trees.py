"""XGBoost's trees as one node of ONNX, from the document that XGBoost writes of a model, whole columns at a time.

The operator: https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleClassifier.html; the document:
https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

Ints = NDArray[np.int64]

# What ONNX Runtime of a year ago reads, too.
_IR_VERSION = 8
_OPSETS = (helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1))


def to_onnx(document: bytes, width: int, names: tuple[str, str]) -> ModelProto:
    """Return the model of a binary logistic booster over `width` columns, `names` being its input and its answer.

    `document`: the booster in JSON. Raises `KeyError` or `ValueError` where it is of another kind.
    """
    learner = json.loads(document)["learner"]
    if learner["objective"]["name"] != "binary:logistic" or learner["gradient_booster"]["name"] != "gbtree":
        raise ValueError("only trees for a binary label are converted")
    given, answer = names
    label = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
    probabilities = helper.make_tensor_value_info(answer, TensorProto.FLOAT, [None, 2])
    node = NodeProto(op_type="TreeEnsembleClassifier", domain="ai.onnx.ml", input=[given], output=["label", answer])
    node.attribute.extend(_attributes(learner))
    graph = helper.make_graph(
        [node],
        "model",
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, [None, width])],
        [label, probabilities],
    )
    return helper.make_model(graph, producer_name="tidemill", opset_imports=_OPSETS, ir_version=_IR_VERSION)


def _attributes(learner: dict[str, Any]) -> list[AttributeProto]:
    trees = learner["gradient_booster"]["model"]["trees"]
    sizes = [len(tree["left_children"]) for tree in trees]
    tree_of = np.repeat(np.arange(len(trees)), sizes)
    node_of = np.concatenate([np.arange(size) for size in sizes])
    left, right = _column(trees, "left_children"), _column(trees, "right_children")
    # A leaf's weight stands where an inner node has its threshold.
    values = np.array([value for tree in trees for value in tree["split_conditions"]], dtype=np.float32)
    leaf = left < 0
    (base,) = json.loads(learner["learner_model_param"]["base_score"])
    return [
        _ints("nodes_treeids", tree_of),
        _ints("nodes_nodeids", node_of),
        _ints("nodes_featureids", np.where(leaf, 0, _column(trees, "split_indices"))),
        _ints("nodes_truenodeids", np.where(leaf, 0, left)),
        _ints("nodes_falsenodeids", np.where(leaf, 0, right)),
        _ints("nodes_missing_value_tracks_true", np.where(leaf, 0, _column(trees, "default_left"))),
        _floats("nodes_values", np.where(leaf, np.float32(0), values).tolist()),
        AttributeProto(
            name="nodes_modes",
            type=AttributeProto.STRINGS,
            strings=[b"LEAF" if one else b"BRANCH_LT" for one in leaf.tolist()],
        ),
        _ints("class_treeids", tree_of[leaf]),
        _ints("class_nodeids", node_of[leaf]),
        _ints("class_ids", np.zeros(np.count_nonzero(leaf), dtype=np.int64)),
        _floats("class_weights", values[leaf].tolist()),
        _ints("classlabels_int64s", np.arange(2)),
        _floats("base_values", [math.log(base / (1.0 - base))]),
        AttributeProto(name="post_transform", type=AttributeProto.STRING, s=b"LOGISTIC"),
    ]


def _column(trees: Sequence[dict[str, Any]], name: str) -> Ints:
    return np.array([value for tree in trees for value in tree[name]], dtype=np.int64)


def _ints(name: str, values: Ints) -> AttributeProto:
    return AttributeProto(name=name, type=AttributeProto.INTS, ints=values.tolist())


def _floats(name: str, values: list[float]) -> AttributeProto:
    return AttributeProto(name=name, type=AttributeProto.FLOATS, floats=values)
