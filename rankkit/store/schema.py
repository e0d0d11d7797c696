"""What a rankkit HDF5 file holds: every group, variable, axis, flag and attribute, said once.

    /                             attributes ROOT_ATTRIBUTES and HOST_ATTRIBUTES; strings ROOT_STRINGS
    /gpt, /unilm, ...             one group per arm: attributes GROUP_ATTRIBUTES, TOKEN_ATTRIBUTES and, where it applies,
                                  OPTIONAL_GROUP_ATTRIBUTES; variables GROUP_VARIABLES, one per measure, and where
                                  asked for
        <measure>_lower, _upper   the bracket of an estimate; the measure itself is nan there
        <measure>_error           how far the exact value may be off
        layer_output_...          the same kind of numbers for a layer's output
        queries, keys, attention  KEPT_VARIABLES: what the spectra came from, with LOGIT_SCALE beside queries and keys
    /baselines/<name>/<arm>       the same, for what an arm is held against; names BASELINES
    /comparison                   COMPARISON_VARIABLES: the difference of two arms, at the last step
    /comparison/by_step           COMPARISON_BY_STEP_VARIABLES: the same at every step, where there are several
    /functional/<arm>             FUNCTIONAL_VARIABLES: what cutting the rank costs the model

The writer, the reader and the verification all read these tables; none of them knows a name of its own. What a measure
brings is made in rankkit.store.variables and listed by rankkit.store.contents; what it may be stands in
rankkit.store.ranges.

A change here is a change of the schema: raise SCHEMA_VERSION (the minor number where arms stay where older readers look
for them, and nothing that they know changes its meaning) and say so in the CHANGELOG. 1.1 added regions, brackets,
errors, layer outputs, the optional variables of comparisons, comparisons by step, and the functional rank; 1.2 queries,
keys and attention, the type float32, and sequences that are numbered from elsewhere than 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from rankkit.axes import LAYER_AXES, SPECTRUM_AXES
from rankkit.store.variables import LAYER_OUTPUT, Variable

__all__ = [
    "APPLIED_MASKS",
    "ATTRIBUTES_SUM",
    "AXIS_VARIABLES",
    "BASELINES",
    "BASELINE_GROUP",
    "BOUNDS",
    "COMPARISON",
    "COMPARISON_AXES",
    "COMPARISON_BY_STEP",
    "COMPARISON_BY_STEP_VARIABLES",
    "COMPARISON_VARIABLES",
    "CONVENTIONS",
    "CUTS",
    "DOCUMENT",
    "FUNCTIONAL",
    "FUNCTIONAL_ATTRIBUTES",
    "FUNCTIONAL_VARIABLES",
    "GROUP_ATTRIBUTES",
    "GROUP_VARIABLES",
    "HOST_ATTRIBUTES",
    "KEPT_AXES",
    "KEPT_VARIABLES",
    "LAYER_VARIABLES",
    "LOGIT_SCALE",
    "MEASURE_ORDER",
    "METHODS",
    "METHODS_OF_ESTIMATES",
    "METHOD_RULE",
    "OPTIONAL_GROUP_ATTRIBUTES",
    "ROOT_ATTRIBUTES",
    "ROOT_STRINGS",
    "ROWS_SUM_TO_ONE",
    "SCHEMA_VERSION",
    "SHAPE_DEPENDENT",
    "SIGNED_BASELINES",
    "STATUSES",
    "TOKEN_ATTRIBUTES",
    "TRAINED_ENOUGH",
    "UNAVAILABLE",
]

SCHEMA_VERSION: Final = "1.2"
"""Major version: readers of another major refuse the file. Minor: older readers still find the arms they know."""

CONVENTIONS: Final = "CF-1.11"

COMPARISON: Final = "comparison"
"""Name of the group that holds the differences between two arms."""

COMPARISON_BY_STEP: Final = "comparison/by_step"
"""Name of the group that holds them for every step; inside the other, where readers of schema 1.0 do not take it for an
arm."""

BASELINE_GROUP: Final = "baselines"
"""Name of the group that holds the baselines."""

BASELINES: Final = ("uniform", "init", "shuffled", "gaussian", "logits")
"""What an arm may be held against.

The same mask with equal logits; the model at its initialisation; each row's probabilities permuted among its visible
keys; random Q and K of the same logit spread; and the logits themselves, which are signed.
"""

SIGNED_BASELINES: Final = ("logits",)
"""Baselines whose matrices are not attention."""

FUNCTIONAL: Final = "functional"
"""Name of the group that holds what cutting the rank costs."""

CUTS: Final = ("remasked", "plain")
"""What happens to a matrix cut to its leading triplets: hidden entries set to 0 again, or nothing."""

METHODS: Final = ("gram", "svd", "krylov", "quadrature")
"""How a spectrum was made; the stored code is the index."""

METHODS_OF_ESTIMATES: Final = ("krylov", "quadrature")
"""Methods that find a part of the spectrum, or functions of it within brackets."""

STATUSES: Final = ("ok", "estimated", "degenerate", "failed")
"""What a spectrum is worth; the stored code is the index.

`ok` exact; `estimated` a part or a bracket: the leading singular values, `floor_arithmetic` the largest of their
certified residuals; `degenerate` exact, of a matrix without structure (zero, or one key); `failed` no singular values.
"""

APPLIED_MASKS: Final = ("own", "swapped")
"""The mask put on the logits: the arm's own, or the other arm's (the mask-swap control)."""

BOUNDS: Final = ("mean", "lower", "upper")
"""A value and its 95% confidence interval."""

COMPARISON_AXES: Final = ("measure", "region", "layer", "bound")

ATTRIBUTES_SUM: Final = "attributes_sha256"
"""Root attribute: SHA-256 of all text attributes in the file, for they have no checksum in HDF5."""

ROOT_ATTRIBUTES: Final = (
    "Conventions",
    "rankkit_schema",
    "title",
    "rankkit_version",
    "created",
    ATTRIBUTES_SUM,
    "complete",
)
"""Root attributes that the writer sets; `complete` is 1 in every finished file."""

HOST_ATTRIBUTES: Final = ("torch_version", "cpu", "threads", "device", "kernel")
"""Root attributes that the caller must give: results differ in their last bits between these."""

GROUP_ATTRIBUTES: Final = ("mask", "objective", "kind")
"""Attributes of every arm's group: the mask's name, what the loss covers, and self, cross, ..."""

TOKEN_ATTRIBUTES: Final = ("bos", "packing", "truncation")
"""Attributes of every arm's group that state the token policy: sinks, and so every rank, depend on it."""

METHOD_RULE: Final = "method_rule"
"""Group attribute: how the method was chosen for each matrix."""

UNAVAILABLE: Final = "unavailable"
"""Group attribute: JSON object, from a measure or theorem that was switched off to the reason."""

ROWS_SUM_TO_ONE: Final = "rows_sum_to_one"
"""Group attribute: 1 where matrices are attention (rows >= 0 that sum to 1, or less beside a sink logit), else 0.

A group without it holds attention.
"""

TRAINED_ENOUGH: Final = "trained_enough"
"""Group attribute: 1 where the arm's final loss lies below that of the model that counts, else 0; of runs alone."""

LOGIT_SCALE: Final = "logit_scale"
"""Group attribute: what the products of queries and keys are multiplied by to give logits; there where they are kept."""

OPTIONAL_GROUP_ATTRIBUTES: Final = (METHOD_RULE, UNAVAILABLE, ROWS_SUM_TO_ONE, LOGIT_SCALE)
"""Attributes of an arm's group that it may lack."""

FUNCTIONAL_ATTRIBUTES: Final = ("mask", "objective", "step")
"""Attributes of every group of functional ranks: the arm's mask, what its loss covers, and the checkpoint's step."""

MEASURE_ORDER: Final = ("stable_rank", "participation_ratio", "effective_rank_energy", "effective_rank")
"""Measures in ascending order for every spectrum (Renyi order).

The last is at most the number of positive singular values; it may exceed `numerical_rank`, whose tolerance leaves out
small values that still carry mass.
"""

SHAPE_DEPENDENT: Final = ("numerical_rank",)
"""Measures of a spectrum that also need rows and columns: not computed again for layers' outputs, whose are not stored."""

_PER_MATRIX = SPECTRUM_AXES
_PER_COMPONENT = (*SPECTRUM_AXES, "component")

ROOT_STRINGS: Final = (
    Variable("configuration", (), "string", "resolved configuration of the run", None),
    Variable("certificate", (), "string", "proof that the arms match", None),
    Variable("command", (), "string", "command line that made this file, the first one, without --resume", None),
)

DOCUMENT: Final = Variable(
    "document",
    ("sequence",),
    "int32",
    "number of the document in which the sequence starts",
    optional=True,
    since="1.1",
)

GROUP_VARIABLES: Final = (
    Variable("tokens", ("sequence", "key"), "int32", "token ids"),
    Variable("prefix_length", ("sequence",), "int32", "keys that every query sees"),
    Variable("valid_row", ("sequence", "query"), "int8", "whether the row counts", "1", ("padding", "valid")),
    Variable("rows", ("region", "sequence"), "int32", "rows of the matrix measured"),
    Variable("columns", ("region", "sequence"), "int32", "columns of the matrix measured"),
    Variable(
        "untrained",
        ("region", "layer"),
        "int8",
        "whether hardly any loss reaches this block",
        "1",
        ("trained", "untrained"),
    ),
    Variable("checkpoint_sha256", ("seed", "step"), "string", "SHA-256 of the checkpoint measured", None),
    DOCUMENT,
    Variable(
        "singular_values",
        _PER_COMPONENT,
        "float64",
        "singular values, descending; nan past min(rows, columns), and past the leading ones where status is estimated",
    ),
    Variable("floor_arithmetic", _PER_MATRIX, "float64", "noise floor of the method, in units of the singular values"),
    Variable("floor_model", _PER_MATRIX, "float64", "noise floor of the model's own arithmetic"),
    Variable("resolved", _PER_MATRIX, "int32", "number of singular values above floor_arithmetic"),
    Variable("resolved_model", _PER_MATRIX, "int32", "number of singular values above floor_model"),
    Variable("method", _PER_MATRIX, "int8", "how the singular values were made", "1", METHODS),
    Variable("status", _PER_MATRIX, "int8", "what the singular values are worth", "1", STATUSES),
)

LAYER_VARIABLES: Final = (
    Variable(
        f"{LAYER_OUTPUT}singular_values",
        (*LAYER_AXES, "output_component"),
        "float64",
        "singular values of the layer's output, descending; all nan where they could not be computed",
        definition="sum_h A_h X W_V^h W_O^h, positions by d_model",
        since="1.1",
    ),
    Variable(
        f"{LAYER_OUTPUT}floor_arithmetic",
        LAYER_AXES,
        "float64",
        "noise floor of the layer output's singular values, in their units",
        since="1.1",
    ),
)
"""What every group has that measures layers' outputs, measures aside."""

KEPT_AXES: Final = ("seed", "step", "sequence", "layer", "head")
"""The axes of one kept matrix, whatever is measured of it."""

_KEPT_NAMES = (
    ("queries", ("query", "feature"), "queries as the attention kernel got them, position encoding applied"),
    ("keys", ("key", "feature"), "keys as the attention kernel got them, position encoding applied"),
    ("attention", ("query", "key"), "attention matrix under the own mask"),
)
KEPT_VARIABLES: Final = tuple(
    Variable(name, (*KEPT_AXES, *axes), "float32", long_name, optional=True, since="1.2")
    for name, axes, long_name in _KEPT_NAMES
)
"""What a group has where it was asked to keep what the spectra came from; queries and keys come together.

They have no definition: that is what marks a measure.
"""

_OF_TWO = "y(arm, mask) the measure's mean over heads and sequences, c the first arm and p the second"
_SHAPLEY = "Shapley value of a game of two players"
_EFFECTS = tuple(
    Variable(name, COMPARISON_AXES, "float64", long_name, definition=f"{formula}; {_OF_TWO}", source=source)
    for name, long_name, formula, source in (
        ("gap", "first arm minus second arm, each under its own mask", "y(c, own) - y(p, own)", None),
        (
            "mask_effect",
            "part of the gap that the mask alone makes",
            "[y(c, own) - y(c, swapped) + y(p, swapped) - y(p, own)] / 2",
            _SHAPLEY,
        ),
        (
            "learned_effect",
            "part of the gap that lies in the learned logits",
            "[y(c, own) - y(p, swapped) + y(c, swapped) - y(p, own)] / 2",
            _SHAPLEY,
        ),
        (
            "interaction",
            "how far the split depends on the order of the two factors",
            "[y(p, own) - y(p, swapped)] - [y(c, swapped) - y(c, own)]",
            None,
        ),
    )
)
_SAME_MASK = Variable(
    "same_mask",
    ("measure", "region", "layer"),
    "float64",
    "root mean square difference between two seeds of one arm",
    definition=f"sqrt(mean over both arms and all pairs of their seeds of (y - y')^2), own masks; {_OF_TWO}",
    optional=True,
    since="1.1",
)


def _over_layers(variable: Variable) -> Variable:
    """The same for the mean over trained layers, whose paired interval cannot be had from those of the layers."""
    return replace(
        variable,
        name=f"mean_{variable.name}",
        dimensions=tuple(axis for axis in variable.dimensions if axis != "layer"),
        long_name=f"{variable.long_name}, of the mean over trained layers",
        optional=True,
        since="1.1",
    )


COMPARISON_VARIABLES: Final = (*_EFFECTS, _SAME_MASK, *(_over_layers(v) for v in (*_EFFECTS, _SAME_MASK)))
"""Differences between two arms; those with a `bound` are a value and its interval."""

COMPARISON_BY_STEP_VARIABLES: Final = tuple(
    replace(variable, dimensions=("step", *variable.dimensions), since="1.1") for variable in COMPARISON_VARIABLES
)
"""The same at every step."""

_CUT_AXES = ("kept_rank", "cut")
_EXTRA_LOSSES = tuple(
    Variable(
        f"extra_loss_{scope}",
        (*axes, *_CUT_AXES),
        "float64",
        f"extra loss per target when {words} cut",
        "nat",
        definition="loss with the matrices cut to their kept_rank leading singular triplets, minus loss without the cut",
        optional=True,
        since="1.1",
    )
    for scope, axes, words in (
        ("all", ("seed", "sequence"), "all heads are"),
        ("layer", ("seed", "layer"), "the heads of one layer are"),
        ("head", ("seed", "layer", "head"), "one head is"),
    )
)

FUNCTIONAL_VARIABLES: Final = (
    Variable("loss_uncut", ("seed", "sequence"), "float64", "loss of the uncut model per target", "nat", since="1.1"),
    DOCUMENT,
    *_EXTRA_LOSSES,
    Variable(
        "removed_share",
        ("seed", "layer", "head", "kept_rank"),
        "float64",
        "share of a cut matrix that masking it again removes",
        definition="sum over hidden entries of (A_k)_ij^2 / ||A_k||_F^2, A_k the cut matrix of the uncut model",
        optional=True,
        since="1.1",
    ),
    Variable(
        "cut_error",
        ("seed", "layer", "head", *_CUT_AXES),
        "float64",
        "relative distance of the cut matrix from the uncut one",
        definition="||A - cut A||_F / ||A||_F, A the matrix of the uncut model",
        optional=True,
        since="1.1",
    ),
)
"""What cutting the rank of one arm's attention costs; means over an axis that is not there, nan where not computed."""

AXIS_VARIABLES: Final[Mapping[str, Variable]] = {
    variable.name: variable
    for variable in (
        Variable("seed", ("seed",), "int64", "training seed"),
        Variable("step", ("step",), "int64", "training step of the checkpoint"),
        Variable("region", ("region",), "string", "part of the attention matrix", None),
        Variable("applied_mask", ("applied_mask",), "string", "mask put on the logits", None),
        Variable("sequence", ("sequence",), "int64", "number of the token sequence"),
        Variable("layer", ("layer",), "int64", "number of the layer, from 0"),
        Variable("head", ("head",), "int64", "number of the head, from 0"),
        Variable("component", ("component",), "int64", "number of the singular value, from 0, the largest first"),
        Variable(
            "output_component",
            ("output_component",),
            "int64",
            "number of the layer output's singular value, from 0, the largest first",
            since="1.1",
        ),
        Variable("kept_rank", ("kept_rank",), "int64", "number of leading singular triplets kept", since="1.1"),
        Variable("cut", ("cut",), "string", "whether a cut matrix is masked again", None, since="1.1"),
        Variable("query", ("query",), "int64", "query position, from 0"),
        Variable("key", ("key",), "int64", "key position, from 0"),
        Variable("feature", ("feature",), "int64", "number of the feature, from 0", since="1.2"),
        Variable("measure", ("measure",), "string", "name of the measure", None),
        Variable("bound", ("bound",), "string", "mean, or lower or upper end of its 95% interval", None),
    )
}
"""The coordinate variable of every axis; a dimension scale in each group that uses the axis."""
