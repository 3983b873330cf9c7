"""A training that starts from the weights of another run: of the same dataset, or of one that it grew from.

Ids never move when a dataset grows, so every row of an embedding table that was trained means what it meant. New rows
start where they say the least: a new value at the mean of the old values' rows; a new item at the mean of the rows of
the old items whose content is most like its own, weighted by how like they are.

A ranking model can also start from a run of another model: it takes over the item embeddings and, where it has one, the
session enhancement, found by the names of these layers wherever they are nested.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from tfrec.columns import Catalogue
from tfrec.config import CONFIG, Config, load
from tfrec.data import Dataset
from tfrec.errors import UsageError, UserError
from tfrec.models import build
from tfrec.models.shells import RankingModel
from tfrec.runs import WEIGHTS, check_weights, load_weights, read_record
from tfrec.schema import ITEM_ID, Schema
from tfrec.transforms import FIRST_VALUE, Quantizer, Vocabulary

_LINEAGE = "lineage"
_SESSIONS = "session_enhancement"
_FROZEN = "frozen_embedder"
_INHERITED = {"embedder": "embedder", _FROZEN: "embedder", _SESSIONS: _SESSIONS}  # layer -> what it starts as
_NEIGHBOURS = 10
_ROWS_AT_ONCE = 256

Rows = NDArray[np.float32]


def initialize(model: keras.Model, config: Config, dataset: Dataset, source: Path) -> list[keras.Variable]:
    """Assigns the weights of a finished run to a model with fresh weights.

    Weights of features that were fitted anew since stay fresh, since their codes mean something else; so do the rows
    of items that were forgotten.

    Returns:
        The weights that a ranking model took over from another model; none where the whole model goes on.

    Raises:
        UserError: no finished run, one of another model or of a dataset that this one did not grow from, or weights
            of other shapes.
    """
    record = read_record(source)
    check_weights(source, record)
    there = load(source / CONFIG)
    name, other = config.model.get("name"), there.model.get("name")
    if other != name and not isinstance(model, RankingModel):
        raise UserError(f"`training.initialize_from`: {source} is a run of {other}, this is one of {name}.")
    refitted = _refitted(dataset, record["dataset"], source)
    schema = Schema.read(source)
    old_model = build(
        schema,
        there.model,
        there.objective,
        request_time=there.features.request_time,
        labels=there.ranking.labels,
    )
    load_weights(old_model, source / WEIGHTS)
    old, new = _variables(old_model), _variables(model)
    fresh = {key for key in new if _table_of(key) in refitted}
    growing = _growing_tables(schema, dataset.schema)
    if other == name:
        _compare(old, new, growing, fresh, source)
        pairs = {key: key for key in new.keys() - fresh}
    else:
        pairs = _shared(old, new, growing, fresh, f"{source}, a run of {other},")
    for key, given in pairs.items():
        trained = ops.convert_to_numpy(old[given])
        table = _table_of(key)
        if table in growing:
            trained = _grown(trained, ops.convert_to_numpy(new[key]), table, dataset)
        new[key].assign(trained)
    return [] if other == name else [new[key] for key in pairs if new[key].trainable]


def check_fresh(model: keras.Model) -> None:
    """Refuses to train a model that compares by item embeddings which it inherits, without a run to inherit from.

    Raises:
        UsageError: the model has frozen item embeddings.
    """
    if any(_FROZEN in key.split("/") for key in _variables(model)):
        raise UsageError(
            "`training.initialize_from`: must name a run of `hpgr_pretrain`, whose item embeddings PGSA compares by; "
            "without one set `model.preference_embeddings: live`."
        )


def _shared(
    old: Mapping[str, Any], new: Mapping[str, Any], growing: set[str], fresh: set[str], source: str
) -> dict[str, str]:
    """Of each weight of a ranking model that another model has too, by the names of their layers, the other's key."""
    given = {part: key for key in old if (part := _inherited_part(key)) is not None}
    wanted = {key: part for key in sorted(new) if (part := _inherited_part(key)) is not None}
    if not any(_table_of(key) == ITEM_ID for key in wanted):
        raise UserError("`training.initialize_from`: this model has no layer `embedder` of item embeddings to start.")
    pairs = {}
    for key, part in wanted.items():
        needed = _table_of(key) == ITEM_ID or part.startswith(_SESSIONS)
        if key in fresh or (part not in given and not needed):
            continue
        if part not in given:
            raise UserError(f"`training.initialize_from`: {source} has nothing for `{part}`, which this model has.")
        there, here = tuple(old[given[part]].shape), tuple(new[key].shape)
        if there != here and not (_table_of(key) in growing and there[1:] == here[1:] and there <= here):
            raise UserError(
                f"`training.initialize_from`: {source} has {there} for `{part}`, this model {here}; give both the same "
                "sizes under `model:`."
            )
        pairs[key] = given[part]
    return pairs


def _inherited_part(key: str) -> str | None:
    """A weight's path from the layer on that a ranking model takes over; None for other weights."""
    layers = key.split("/")
    for name, known_as in _INHERITED.items():
        if name in layers:
            return "/".join([known_as, *layers[layers.index(name) + 1 :]])
    return None


def _refitted(dataset: Dataset, trained_on: str, source: Path) -> set[str]:
    """The tables of features that were fitted anew since a run was trained."""
    if dataset.fingerprint == trained_on:
        return set()
    lineage = dataset.manifest.get(_LINEAGE, [])
    ancestors = [entry["dataset"] for entry in lineage]
    if trained_on not in ancestors:
        raise UserError(
            f"`training.initialize_from`: {dataset.directory} did not grow from the dataset that {source} was trained "
            "on, so its ids mean other items; make it with `tfrec preprocess --from` that dataset."
        )
    names = {name for entry in lineage[ancestors.index(trained_on) :] for name in entry["refitted"]}
    return {_table(dataset.schema, name) for name in names}


def _table(schema: Schema, name: str) -> str:
    side = schema.feature(name).side
    return name if side == "item" else f"{side}_{name}"


def _growing_tables(old: Schema, new: Schema) -> set[str]:
    """The tables whose values have been appended to."""
    names = {feature.name for feature in old.features if isinstance(feature.transform, Vocabulary)}
    return {_table(new, name) for name in names} | {"event_type"}


def _variables(model: keras.Model) -> dict[str, Any]:
    """The weights by their place in the model, those of the item table left out: the dataset holds them."""
    beside = {id(variable) for variable in model.item_table.weights}
    own = model.objective.name if model.objective is not None else None
    variables = {}
    for variable in model.weights:
        if id(variable) not in beside:
            first, slash, rest = variable.path.partition("/")
            variables[f"{'objective' if first == own else first}{slash}{rest}"] = variable
    return variables


def _table_of(key: str) -> str | None:
    """The name of the embedding table that a weight is, by the name of its layer."""
    *_, layer, weight = ["", *key.split("/")]
    return layer.removesuffix("_table") if weight == "embeddings" and layer.endswith("_table") else None


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], growing: set[str], fresh: set[str], source: Path) -> None:
    for key in sorted((old.keys() | new.keys()) - fresh):
        given, wanted = (tuple(each[key].shape) if key in each else None for each in (old, new))
        grows = _table_of(key) in growing and given and wanted and given[1:] == wanted[1:] and given <= wanted
        if given != wanted and not grows:
            raise UserError(
                f"`training.initialize_from`: {source} has {given or 'nothing'} for `{key}`, this model "
                f"{wanted or 'nothing'}; give both the same `model:` and `objective:` options."
            )


def _grown(trained: Rows, fresh: Rows, table: str | None, dataset: Dataset) -> Rows:
    """The rows of a table that grew: the trained ones, then those of new values."""
    known = len(trained)
    rows = fresh.copy()
    rows[:known] = trained
    if known > FIRST_VALUE:
        rows[known:] = trained[FIRST_VALUE:].mean(axis=0)
    if table == ITEM_ID:
        catalogue = dataset.catalogue()
        rows[known:] = _rows_of_new_items(trained, rows[known:], catalogue, dataset.schema)
        forgotten = np.array([not item_id for item_id in catalogue.item_ids])
        forgotten[:FIRST_VALUE] = False
        rows[forgotten] = fresh[forgotten]
    return rows


def _rows_of_new_items(trained: Rows, without: Rows, catalogue: Catalogue, schema: Schema) -> Rows:
    """The mean of the rows of each new item's neighbours; `without` where it is like none."""
    from scipy.sparse import csr_array  # where nothing grew, not needed

    known = len(trained)
    content = code_sets(catalogue, schema)
    old = np.flatnonzero(catalogue.train_count[:known] > 0)
    rows = without.copy()
    if not len(old) or not content.shape[1]:
        return rows
    old_content = csr_array(content[old].T)
    for start in range(known, len(catalogue.train_count), _ROWS_AT_ONCE):
        alike = (content[start : start + _ROWS_AT_ONCE] @ old_content).toarray()  # (N, old) cosines
        nearest = np.argsort(-alike, axis=1, kind="stable")[:, :_NEIGHBOURS]
        weights = np.take_along_axis(alike, nearest, axis=1)
        total = weights.sum(axis=1, keepdims=True)
        mean = np.einsum("ik,ikd->id", weights, trained[old[nearest]]) / np.where(total > 0, total, 1)
        part = slice(start - known, start - known + len(alike))
        rows[part] = np.where(total > 0, mean, rows[part])
    return rows


def code_sets(catalogue: Catalogue, schema: Schema) -> Any:
    """The content of every item as a unit vector `(V, values)`, sparse: one entry a code, log(items / items with it).

    A code of unknown says nothing; codes of a multi-valued feature are one set, those of a quantised vector one each.
    """
    from scipy.sparse import csr_array

    size = len(catalogue.train_count)
    rows, columns, width = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for name, part in schema.item_columns().items():
        if name == ITEM_ID:
            continue
        transform = schema.feature(name).transform
        for place, codes in enumerate(catalogue.codes[:, part].T):
            present = np.flatnonzero(codes >= FIRST_VALUE)
            rows.append(present)
            columns.append(width + codes[present].astype(np.int64))
            if isinstance(transform, Quantizer):
                width += transform.table_sizes[place]
        width += 0 if isinstance(transform, Quantizer) else transform.table_sizes[0]
    row, column = np.concatenate(rows), np.concatenate(columns)
    row, column = np.divmod(np.unique(row * max(width, 1) + column), max(width, 1))
    holders = np.bincount(column, minlength=width)
    weights = np.log(size / np.maximum(holders, 1))[column]
    lengths = np.sqrt(np.bincount(row, weights**2, minlength=size))
    weights = weights / np.where(lengths > 0, lengths, 1)[row]
    return csr_array((weights.astype(np.float32), (row, column)), shape=(size, width))
