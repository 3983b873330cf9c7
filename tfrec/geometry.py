"""What a model knows of items, as figures of a page: norms, singular values and a map of their vectors, by state.

The states are those of the HPGR paper's figure 5: before any training, after pre-training, after training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from tfrec import charts
from tfrec.errors import UserError
from tfrec.metrics import effective_rank
from tfrec.page import Page
from tfrec.ranks import encode_catalogue
from tfrec.runs import Run, build_model, load_run
from tfrec.schema import ITEM_ID, Schema
from tfrec.transforms import FIRST_VALUE, Vocabulary

_TABLE = f"/{ITEM_ID}_table/embeddings"
_MAPPED = 3000
_BINS = 40
_GROUPS = 7

Array = NDArray[Any]


def write(page: Page, name: str, run: Run | str, others: Mapping[str, Run | str]) -> None:
    """Writes the section.

    Args:
        page: what is written to.
        name: of the run.
        run: the run, or why there is none.
        others: runs beside it by name; those of other datasets are left out.
    """
    page.section("Items")
    if isinstance(run, str):
        page.text(f"The model cannot be loaded: {run}", "note")
        return
    states, notes = _states(name, run, others)
    for note in notes:
        page.text(note, "note")
    if min(vectors.shape[1] for vectors in states.values()) < 2:
        page.text("The model has no item vectors.", "note")
        return
    page.text(f"{_source(run.model)} of {len(next(iter(states.values()))):,} items.")
    _numbers(page, states)
    _norms(page, states)
    _singular(page, states)
    _map(page, run, states)


def item_vectors(model: keras.Model) -> NDArray[np.float32]:
    """The vectors `(V - 2, D)` of all real items: the embeddings of their ids, or what the model makes of items."""
    table = _table(model)
    if table is not None:
        return ops.convert_to_numpy(table)[FIRST_VALUE:].astype(np.float32)
    return encode_catalogue(model, int(model.item_table.codes.shape[0]))


def _table(model: keras.Model) -> Any:
    return next((variable for variable in model.variables if f"/{variable.path}".endswith(_TABLE)), None)


def _source(model: keras.Model) -> str:
    return "The embeddings of the ids" if _table(model) is not None else "The vectors"


def _states(name: str, run: Run, others: Mapping[str, Run | str]) -> tuple[dict[str, Array], list[str]]:
    """The vectors of the items that can be recommended, by state, and what is missing."""
    rows = run.dataset.catalogue().candidates - FIRST_VALUE
    keras.utils.set_random_seed(run.config.training.seed)
    states = {"before training": item_vectors(build_model(run.config, run.dataset))}
    notes = []
    sources = dict(others)
    if (start := run.config.training.initialize_from) is not None:
        beside = [name for name, other in others.items() if isinstance(other, Run) and _is_same(other.directory, start)]
        found = sources.pop(beside[0]) if beside else _loaded(Path(start))
        sources = {f"{Path(start).name} (start)": found, **sources}
    for other, found in sources.items():
        if isinstance(found, str):
            notes.append(f"{other} is not shown: {found}")
        elif found.dataset.fingerprint != run.dataset.fingerprint:
            notes.append(f"{other} is not shown: it is of another dataset.")
        else:
            states[other] = item_vectors(found.model)
    states[name] = item_vectors(run.model)
    return {name: vectors[rows] for name, vectors in states.items()}, notes


def _is_same(directory: Path, other: str) -> bool:
    return directory.resolve() == Path(other).resolve()


def _loaded(directory: Path) -> Run | str:
    try:
        return load_run(directory)
    except UserError as error:
        return str(error)


def _numbers(page: Page, states: Mapping[str, Array]) -> None:
    rows = []
    for name, vectors in states.items():
        norms = np.linalg.norm(vectors, axis=1)
        _, share = _principal(vectors)
        rows.append((name, *np.quantile(norms, [0, 0.5, 0.99, 1]).tolist(), effective_rank(_gram_root(vectors)), share))
    page.table(
        rows,
        ("state", "smallest norm", "median", "99 %", "largest", "effective rank", "variance on two axes"),
    )


def _norms(page: Page, states: Mapping[str, Array]) -> None:
    norms = {name: np.linalg.norm(vectors, axis=1) for name, vectors in states.items()}
    largest = max(float(found.max()) for found in norms.values()) or 1.0
    edges = np.linspace(0, largest, _BINS + 1)
    middle = ((edges[1:] + edges[:-1]) / 2).tolist()
    lines = {name: (middle, (np.histogram(found, edges)[0] / len(found)).tolist()) for name, found in norms.items()}
    page.figure(
        charts.line_charts({"share of items": lines}, x="norm"),
        "How long the items' vectors are.",
        _rows(lines),
        ("state", "norm", "share of items"),
    )


def _singular(page: Page, states: Mapping[str, Array]) -> None:
    lines = {}
    for name, vectors in states.items():
        values = np.linalg.svd(_gram_root(vectors), compute_uv=False)
        lines[name] = (list(range(1, len(values) + 1)), (values / (values[0] or 1.0)).tolist())
    page.figure(
        charts.line_charts({"singular value, the first = 1": lines}, x="number"),
        "How many directions the vectors use: a flat line is all alike, a steep one few.",
        _rows(lines),
        ("state", "number", "singular value"),
    )


def _rows(lines: charts.Series) -> list[tuple[str, float, float]]:
    found = ((name, zip(places, values, strict=True)) for name, (places, values) in lines.items())
    return [(name, place, value) for name, points in found for place, value in points]


def _gram_root(vectors: Array) -> NDArray[np.float64]:
    """A matrix `(D, D)` with the singular values of `(V, D)`, however many rows that has."""
    return np.asarray(np.linalg.qr(vectors.astype(np.float64), mode="r"))


def _principal(vectors: Array) -> tuple[NDArray[np.float64], float]:
    """The two axes `(D, 2)` of the largest variance, the largest part of each positive, and their share of it."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    _, singular, axes = np.linalg.svd(_gram_root(centred), full_matrices=False)
    axes = axes[:2].T
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return axes, float((singular[:2] ** 2).sum() / max((singular**2).sum(), 1e-300))


def _map(page: Page, run: Run, states: Mapping[str, Array]) -> None:
    rows = run.dataset.catalogue().candidates
    chosen = np.arange(len(rows))
    if len(rows) > _MAPPED:
        chosen = np.sort(np.random.default_rng(0).choice(len(rows), _MAPPED, replace=False))
    maps = {}
    for name, vectors in states.items():
        centred = vectors.astype(np.float64) - vectors.mean(axis=0)
        maps[name] = (centred @ _principal(vectors)[0])[chosen]
    what, groups, group = _grouped(run, rows[chosen])
    page.figure(
        charts.map_chart(maps, groups, group),
        f"{len(chosen):,} items on the two axes of the largest variance of each state, coloured by {what}.",
    )


def _grouped(run: Run, items: Array) -> tuple[str, list[str], Array]:
    """The most frequent values of the first categorical feature, or popularity: what, names, group of each item."""
    catalogue, schema = run.dataset.catalogue(), run.schema
    feature = next((one for one in _categorical(schema) if one.name in schema.item_columns()), None)
    if feature is None:
        order = np.argsort(np.argsort(-catalogue.train_count[items], kind="stable"))
        return "popularity", ["the most popular tenth", "the others"], (order >= len(items) / 10).astype(int)
    values = feature.transform.read(run.dataset.directory)
    codes = catalogue.codes[items, schema.item_columns()[feature.name].start]
    counts = np.bincount(codes, minlength=len(values) + FIRST_VALUE)[FIRST_VALUE:]
    largest = np.argsort(-counts, kind="stable")[: min(_GROUPS, int((counts > 0).sum()))]
    group = np.full(len(items), len(largest))
    for place, value in enumerate(largest):
        group[codes == value + FIRST_VALUE] = place
    return feature.name, [*(values[value] for value in largest), "others"], group


def _categorical(schema: Schema) -> list[Any]:
    return [one for one in schema.side("item") if one.name != ITEM_ID and isinstance(one.transform, Vocabulary)]


__all__ = ["item_vectors", "write"]
