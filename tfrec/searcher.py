"""A catalogue's vectors as a searchable directory for batch jobs: exact or ScaNN, filtered, and changed in place.

    searcher = Searcher.build("index/shop", item_ids, chunks, kind="scann", queries=queries)
    positions, scores = searcher.search(users, k=100, deny=sold_out)
    searcher.item_ids[positions[0, 0]]

DIRECTORY/
    vectors.npy                         (V, D) float16, memory-mapped: the catalogue may be larger than memory
    item_ids.npy item_ids.offsets.npy   raw ids, in the order of the vectors
    scann/ scann_positions.npy          what ScaNN keeps, in memory when opened: its quantised vectors and float32 ones
    manifest.json                       the parameters, the recall that was measured, every file with its hash
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from tfrec.columns import write_texts
from tfrec.errors import UserError, writing
from tfrec.exact import Positions, Scores, exact_search, merge_answers
from tfrec.manifest import published, read_manifest, verify, write_manifest
from tfrec.tuning import Matrix, ScannParameters, check_recall, choose, configure, first_parameters, recall

_VECTORS, _ITEM_IDS, _SCANN, _SCANN_POSITIONS = "vectors.npy", "item_ids", "scann", "scann_positions.npy"
_OVER_FETCH = 4  # a filter that leaves a smaller part of the catalogue is answered by exact search
_CHUNK = 1 << 16


class ItemIds(Sequence[str]):
    """Raw ids by position, decoded when they are asked for.

    Args:
        directory: of the index.
        added: ids behind those of the directory.
    """

    def __init__(self, directory: Path, added: list[str]) -> None:
        self._text = np.load(directory / f"{_ITEM_IDS}.npy", mmap_mode="r")
        self._ends = np.load(directory / f"{_ITEM_IDS}.offsets.npy")
        self._added = added

    def __len__(self) -> int:
        return len(self._ends) - 1 + len(self._added)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        if isinstance(position, slice):
            return [self[place] for place in range(*position.indices(len(self)))]
        if position >= len(self._ends) - 1:
            return self._added[position - len(self._ends) + 1]
        return self._text[self._ends[position] : self._ends[position + 1]].tobytes().decode()


class Searcher:
    """Top-k of dot products over a directory of vectors; `Searcher.build` makes one, `Searcher.open` opens it.

    Positions are places in the order of the vectors. New and changed items get positions behind them; `save` writes
    everything anew, without the items that are gone, and positions start again.

    Args:
        directory: of the index.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index: dict[str, Any] = read_manifest(directory)["index"]
        self.vectors: NDArray[np.float16] = np.load(directory / _VECTORS, mmap_mode="r")
        self._added = np.zeros((0, self.vectors.shape[1]), np.float16)
        self._added_ids: list[str] = []
        self._live = np.ones(len(self.vectors), bool)
        self.item_ids = ItemIds(directory, self._added_ids)
        self._scann: _Scann | None = _Scann.open(directory, self.index) if self.index["kind"] == "scann" else None

    @classmethod
    def build(
        cls,
        directory: str | Path,
        item_ids: Sequence[str],
        vectors: Iterable[NDArray[Any]],
        *,
        kind: Literal["exact", "scann"] = "exact",
        queries: Matrix | None = None,
        k: int = 100,
        target_recall: float = 0.95,
        min_recall: float = 0.9,
    ) -> "Searcher":
        """Writes an index and opens it.

        Args:
            directory: where; one that is there is replaced.
            item_ids: raw ids in the order of the vectors, each once.
            vectors: chunks `(n, D)` of them, written to disk one after another as float16.
            kind: `scann` has its parameters chosen and its recall measured; it holds the vectors in memory.
            queries: `(Q, D)`, a sample of what will be asked (scann): every second one is chosen on, and the recall is
                measured on the others.
            k: items of an answer that parameters are chosen for.
            target_recall: recall@k that they are chosen for.
            min_recall: recall@k below which nothing is written.

        Raises:
            UserError: vectors and ids do not fit, or too little is found.
        """
        directory = Path(directory)
        if kind == "scann" and (queries is None or len(queries) < 2):
            raise ValueError(
                f"`queries` must hold two rows or more where `kind` is scann. Received: queries={queries!r}."
            )
        if len(set(item_ids)) < len(item_ids):
            raise UserError(f"{directory}: an item id stands twice; give each item once.")
        with writing(directory), published(directory) as target:
            stored = write_vectors(target / _VECTORS, vectors, len(item_ids))
            write_texts(target, _ITEM_IDS, item_ids)
            index: dict[str, Any] = {"kind": kind, "items": len(stored), "dim": stored.shape[1]}
            if kind == "scann":
                assert queries is not None, "It was checked above."
                queries, k = np.ascontiguousarray(queries, np.float32), min(k, len(stored))
                scann = _Scann.build(stored, first_parameters(len(stored), stored.shape[1], k))
                truth, _ = exact_search(stored, queries, k)
                reached = _choose(scann, truth, queries, k, target_recall, len(stored))
                check_recall(reached, min_recall, "min_recall", "target_recall")
                index |= {**asdict(scann.parameters), "k": k, "recall": reached}
                scann.write(target, np.arange(len(stored)))
            write_manifest(target, {"kind": "index", "index": index})
        return cls.open(directory)

    @classmethod
    def open(cls, directory: str | Path) -> "Searcher":
        """Opens what `build` or `save` wrote, after comparing it with its manifest."""
        verify(Path(directory))
        return cls(Path(directory))

    def __len__(self) -> int:
        """Items that can be answered."""
        return int(self._live.sum())

    def search(
        self,
        queries: Matrix,
        k: int,
        *,
        seen: Sequence[Collection[str]] | None = None,
        allow: Collection[str] | None = None,
        deny: Collection[str] = (),
    ) -> tuple[Positions, Scores]:
        """Positions and scores `(Q, k)` of the greatest dot products, best first.

        Where fewer than k items remain, the rest is position -1 and score -inf; as long as there are k, k come back,
        whatever the filters: the answer is exact where ScaNN finds too few, or where a fourth of the items is left.

        Args:
            queries: `(Q, D)`.
            k: items of an answer.
            seen: for each query the ids of items that it is not answered.
            allow: ids of the only items that may be answered; None = all. Those that are not there are passed over.
            deny: ids of items that may not.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        excluded = None if seen is None else self._excluded(seen)
        places = self._places(allow, deny)
        left = len(self) if places is None else len(places)
        if self._scann is None or left * _OVER_FETCH <= len(self):
            return self._exactly(queries, k, places, excluded)
        filtered = allow is not None or bool(deny)
        over = _OVER_FETCH if filtered else 1
        most_seen = 0 if excluded is None else excluded.shape[1]
        positions, scores = self._scann.search(queries, min(over * (k + most_seen), len(self)), over)
        scores = np.where(self._passes(positions, places if filtered else None, excluded), scores, -np.inf)
        answer = merge_answers([(np.where(np.isneginf(scores), -1, positions), scores)], k)
        return self._completed(answer, queries, k, places, excluded)

    def upsert(self, item_ids: Sequence[str], vectors: NDArray[Any]) -> None:
        """Adds items, or gives those that are there new vectors; counts from the next search on.

        ScaNN puts a vector into the leaf nearest to it. Leaves and codes stay those of the first build, so build anew
        when much has changed (`recall` measures what is left of it).

        Args:
            item_ids: each once.
            vectors: `(n, D)`.
        """
        added = _halves(vectors, self.vectors.shape[1])
        if len(added) != len(item_ids) or len(set(item_ids)) < len(item_ids):
            raise ValueError(
                "`item_ids` must name each of `vectors`, each once. "
                f"Received: {len(item_ids)} ids, {len(set(item_ids))} different ones, {len(added)} vectors."
            )
        self.remove([item_id for item_id in item_ids if item_id in self._positions])
        first = len(self._live)
        positions = np.arange(first, first + len(added))
        self._positions.update(zip(item_ids, positions.tolist(), strict=True))
        self._added = np.concatenate([self._added, added])
        self._added_ids.extend(item_ids)
        self._live = np.append(self._live, np.ones(len(added), bool))
        if self._scann is not None:
            self._scann.upsert(positions, added.astype(np.float32))

    def remove(self, item_ids: Collection[str]) -> None:
        """Takes items away; ids that are not there are passed over."""
        known = [self._positions.pop(item_id) for item_id in item_ids if item_id in self._positions]
        self._live[known] = False
        if self._scann is not None:
            self._scann.remove(known)

    def recall(self, queries: Matrix, k: int) -> float:
        """The share of the exact top k that a search finds now."""
        queries = np.ascontiguousarray(queries, np.float32)
        k = min(k, len(self))
        truth, _ = self._exactly(queries, k, self._places(None, ()), None)
        return recall(truth, self.search(queries, k)[0])

    def tune(self, queries: Matrix, k: int, target_recall: float) -> float:
        """Chooses ScaNN's parameters anew for what the index holds now, and returns the recall that is reached.

        Args:
            queries: `(Q, D)`; every second one is chosen on, and the recall is measured on the others.
            k: items of an answer.
            target_recall: recall@k that is chosen for.
        """
        if self._scann is None:
            return 1.0
        queries = np.ascontiguousarray(queries, np.float32)
        k = min(k, len(self))
        truth, _ = self._exactly(queries, k, self._places(None, ()), None)
        reached = _choose(self._scann, truth, queries, k, target_recall, len(self))
        self.index |= {**asdict(self._scann.parameters), "k": k, "recall": reached}
        return reached

    def save(self, directory: str | Path) -> "Searcher":
        """Writes the index as it is now, without what was removed, and opens it."""
        directory = Path(directory)
        kept = np.flatnonzero(self._live)
        with writing(directory), published(directory) as target:
            write_vectors(target / _VECTORS, self._chunks(kept), len(kept))
            write_texts(target, _ITEM_IDS, [self.item_ids[position] for position in kept.tolist()])
            if self._scann is not None:
                self._scann.write(target, np.cumsum(self._live) - 1)
            write_manifest(target, {"kind": "index", "index": self.index | {"items": len(kept)}})
        return Searcher.open(directory)

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Position by id of the items that are there; made when an id is first asked for."""
        return {self.item_ids[position]: position for position in np.flatnonzero(self._live).tolist()}

    def _places(self, allow: Collection[str] | None, deny: Collection[str]) -> Positions | None:
        """The positions that may be answered, rising; None = all that there are, none of them removed."""
        if allow is None and not deny and self._live.all():
            return None
        kept = self._live.copy()
        if allow is not None:
            wanted = [self._positions[item_id] for item_id in allow if item_id in self._positions]
            kept[:] = False
            kept[wanted] = True
        kept[[self._positions[item_id] for item_id in deny if item_id in self._positions]] = False
        return np.flatnonzero(kept)

    def _excluded(self, seen: Sequence[Collection[str]]) -> Positions:
        rows = [[self._positions[item_id] for item_id in ids if item_id in self._positions] for ids in seen]
        excluded = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int64)
        for row, positions in zip(excluded, rows, strict=True):
            row[: len(positions)] = positions
        return excluded

    def _passes(self, positions: Positions, places: Positions | None, excluded: Positions | None) -> NDArray[np.bool_]:
        passes = positions >= 0
        if places is not None:
            passes &= np.isin(positions, places)
        if excluded is not None:
            passes &= ~(positions[:, :, None] == excluded[:, None, :]).any(axis=2)
        return passes

    def _exactly(
        self, queries: Matrix, k: int, places: Positions | None, excluded: Positions | None
    ) -> tuple[Positions, Scores]:
        first = len(self.vectors)
        if places is None and not len(self._added):
            return exact_search(self.vectors, queries, k, excluded=excluded)
        everything = np.arange(len(self._live)) if places is None else places
        old, new = everything[everything < first], everything[everything >= first] - first
        behind = None if excluded is None else np.where(excluded >= first, excluded - first, -1)
        added, scores = exact_search(self._added, queries, k, places=new, excluded=behind)
        answers = [exact_search(self.vectors, queries, k, places=old, excluded=excluded)]
        return merge_answers([*answers, (np.where(added < 0, -1, added + first), scores)], k)

    def _completed(
        self,
        answer: tuple[Positions, Scores],
        queries: Matrix,
        k: int,
        places: Positions | None,
        excluded: Positions | None,
    ) -> tuple[Positions, Scores]:
        """The answer, exact for the queries of which too little was found."""
        positions, scores = answer
        short = np.flatnonzero((positions < 0).any(axis=1) if positions.shape[1] == k else np.ones(len(queries), bool))
        if not len(short):
            return answer
        missing = ((0, 0), (0, k - positions.shape[1]))
        positions = np.pad(positions, missing, constant_values=-1)
        scores = np.pad(scores, missing, constant_values=-np.inf)
        some = None if excluded is None else excluded[short]
        positions[short], scores[short] = self._exactly(queries[short], k, places, some)
        return positions, scores

    def _chunks(self, kept: Positions) -> Iterator[NDArray[np.float16]]:
        old, new = kept[kept < len(self.vectors)], kept[kept >= len(self.vectors)]
        for start in range(0, len(old), _CHUNK):
            yield self.vectors[old[start : start + _CHUNK]]
        yield self._added[new - len(self.vectors)]


def write_vectors(path: Path, chunks: Iterable[NDArray[Any]], count: int) -> NDArray[np.float16]:
    """Writes chunks `(n, D)` one after another as one float16 array on disk, and returns it memory-mapped.

    Raises:
        UserError: there are not `count` of them, or one is not finite in float16.
    """
    chunks = (chunk for chunk in chunks if len(chunk))
    first = next(chunks, None)
    if first is None:
        raise UserError(f"{path}: there are no vectors to write.")
    written, stored = 0, np.lib.format.open_memmap(path, "w+", np.float16, (count, first.shape[1]))
    for chunk in itertools.chain([first], chunks):
        halves = _halves(chunk, first.shape[1])
        if written + len(halves) > count:
            raise UserError(f"{path}: more vectors than the {count} item ids; give one for each.")
        stored[written : written + len(halves)] = halves
        written += len(halves)
    if written != count:
        raise UserError(f"{path}: {written} vectors for {count} item ids; give one for each.")
    stored.flush()
    return stored


def _halves(vectors: NDArray[Any], dim: int) -> NDArray[np.float16]:
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise UserError(f"vectors: must be (n, {dim}). Received: {vectors.shape}.")
    with np.errstate(over="ignore"):
        halves = vectors.astype(np.float16)
    if not np.isfinite(halves).all():
        raise UserError("vectors: some are not finite as float16; scale them down, or look for NaN.")
    return halves


class _Scann:
    """ScaNN's own searcher, whose documents are named by our positions.

    Args:
        searcher: of the scann package.
        documents: our position of each of its datapoints.
        parameters: of the search.
    """

    def __init__(self, searcher: Any, documents: list[int], parameters: ScannParameters) -> None:
        from scann.scann_ops.py.scann_ops_pybind import ScannSearcher

        self._searcher = ScannSearcher(searcher, documents)
        self.parameters = parameters
        self._documents = np.array(documents, np.int64)

    @classmethod
    def build(cls, vectors: NDArray[np.float16], parameters: ScannParameters) -> "_Scann":
        """Of vectors that are read from disk into memory, as ScaNN needs them."""
        from scann.scann_ops.py import scann_ops_pybind

        whole = np.empty(vectors.shape, np.float32)
        for start in range(0, len(vectors), _CHUNK):
            whole[start : start + _CHUNK] = vectors[start : start + _CHUNK]
        builder = scann_ops_pybind.builder(whole, min(10, len(whole)), "dot_product")
        searcher = configure(builder, parameters, len(whole)).build().searcher
        return cls(searcher, list(range(len(whole))), parameters)

    @classmethod
    def open(cls, directory: Path, index: dict[str, Any]) -> "_Scann":
        from scann.scann_ops.py import scann_ops_pybind

        parameters = ScannParameters(index["leaves"], index["leaves_to_search"], index["reorder"])
        documents = np.load(directory / _SCANN_POSITIONS).tolist()
        loaded = scann_ops_pybind.load_searcher(str(directory / _SCANN))
        return cls(loaded.searcher, documents, parameters)

    def write(self, directory: Path, position_of: Positions) -> None:
        """Writes it; `position_of` gives each position the one that it has in the directory."""
        (directory / _SCANN).mkdir()
        self._searcher.searcher.serialize(str(directory / _SCANN), True)
        np.save(directory / _SCANN_POSITIONS, position_of[self._documents])

    def search(self, queries: Matrix, wanted: int, over: int = 1) -> tuple[Positions, Scores]:
        """Positions and scores `(Q, wanted)`; -1 and -inf where it finds fewer."""
        reorder = leaves = -1
        if self.parameters.leaves:
            reorder = min(max(wanted, over * self.parameters.reorder), len(self._documents))
            leaves = min(over * self.parameters.leaves_to_search, self.parameters.leaves)
        found, scores = self._searcher.searcher.search_batched(queries, wanted, reorder, leaves, True, 64)
        missing = np.isnan(scores)
        positions = self._documents[np.where(missing, 0, found)]
        return np.where(missing, -1, positions), np.where(missing, -np.inf, scores).astype(np.float32)

    def upsert(self, positions: Positions, vectors: Matrix) -> None:
        self._searcher.upsert(positions.tolist(), vectors, batch_size=256)
        self._documents = np.array(self._searcher.docids, np.int64)

    def remove(self, positions: list[int]) -> None:
        if positions:
            self._searcher.delete(positions)
            self._documents = np.array(self._searcher.docids, np.int64)


def _choose(scann: _Scann, truth: Positions, queries: Matrix, k: int, target_recall: float, count: int) -> float:
    """Gives ScaNN the cheapest parameters that reach the target on every second query; its recall on the others."""

    def measure(parameters: ScannParameters, part: slice = slice(0, None, 2)) -> float:
        scann.parameters = parameters
        return recall(truth[part], scann.search(queries[part], k)[0])

    return measure(choose(scann.parameters, count, k, target_recall, measure), slice(1, None, 2))
