"""Run -> MODELS/NAME/<version>/: a SavedModel that any TensorFlow Serving loads, checked before it gets its name."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrec import parity, publishing
from tfrec.errors import UserError, writing
from tfrec.index import build_search
from tfrec.manifest import published_together, sha256_of, verify, write_manifest
from tfrec.models.shells import RankingModel, RetrievalModel
from tfrec.ranking_export import RankingVersion
from tfrec.ranks import encode_catalogue
from tfrec.runs import RUN, Run, read_record
from tfrec.schema import SCHEMA
from tfrec.signatures import RetrievalSignatures
from tfrec.stock_loader import LoaderError, Outputs, Request, ask, scann_library
from tfrec.transforms import FIRST_VALUE
from tfrec.tuning import check_recall
from tfrec.two_stage_export import TwoStageVersion

_FORMAT_VERSION = 1

IndexKind = Literal["exact", "scann"]


def export(
    run: Run,
    to: Path,
    *,
    index: IndexKind = "exact",
    not_worse_than: Path | None = None,
    rank_with: Run | None = None,
) -> list[Path]:
    """Publishes the next version of a model and returns its directories, one a kind of index.

    Everything is written under temporary names, checked there (the lists of the run, of the SavedModel and of
    TensorFlow's C++ loader must be the same; see `tfrec.parity`), flushed, and then renamed, the exact version first.
    That the built-in server gives the same lists is not asked here: its share of the gate is
    tests/tfrec/test_exported_models.py.

    Whatever fails before the renames leaves no version behind. Being killed between the two renames leaves the exact
    version without its ScaNN sibling; what has a name is whole, and the next export gives both a new number.

    Args:
        run: a trained retrieval or ranking model.
        to: MODELS/NAME; versions are the numbers below it.
        index: of a retrieval model; `scann` also writes MODELS/NAME_scann, with the same number and weights.
        not_worse_than: MODELS/NAME of a model whose latest version this one may not be worse than.
        rank_with: a trained ranking model of the same dataset, which ranks what `run` retrieves in the same request.

    Raises:
        UserError: the run cannot be exported, is worse, or fails the gate.
    """
    to = Path(to)
    _check_exportable(run, index)
    if rank_with is not None:
        _check_stages(run, rank_with, index)
    if not_worse_than is not None:
        publishing.refuse_worse(run, Path(not_worse_than))
    version = publishing.next_version(to)
    models = publishing.siblings(to, index)
    paths = [model / str(version) for model in models.values()]
    with writing(to), _full_precision(), published_together(paths, check=_check_files, replace=False) as directories:
        if rank_with is not None or isinstance(run.model, RankingModel):
            made = RankingVersion.of(run) if rank_with is None else TwoStageVersion.of(run, rank_with)
            _write_checked(made, directories[0], to.name)
            return paths
        vectors = encode_catalogue(run.model, run.schema.num_items)
        for (kind, model), directory in zip(models.items(), directories, strict=True):
            _Version(run, vectors, directory, kind).write(model.name)
    return paths


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32, which a GPU otherwise rounds to 10 bits: servers have no such GPU."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def _check_exportable(run: Run, index: IndexKind) -> None:
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"export needs Keras on TensorFlow, here it is on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow "
            "(a run trained on another backend loads as it is)."
        )
    if not isinstance(run.model, RetrievalModel | RankingModel):
        raise UserError(
            f"{run.directory}: a {type(run.model).__name__}; only retrieval and ranking models can be exported."
        )
    if isinstance(run.model, RankingModel) and index != "exact":
        raise UserError(f"{run.directory}: a ranking model has no index; export it with `--index exact`.")
    if not len(run.dataset.catalogue().candidates):
        raise UserError(f"{run.dataset.directory}: has an empty catalogue, so there is nothing to recommend.")


def _check_stages(run: Run, ranking: Run, index: IndexKind) -> None:
    if not isinstance(run.model, RetrievalModel):
        raise UserError(
            f"{run.directory}: a {type(run.model).__name__}; `--rank-with` needs a retrieval run to rank what it finds."
        )
    if not isinstance(ranking.model, RankingModel):
        raise UserError(f"{ranking.directory}: a {type(ranking.model).__name__}; `--rank-with` needs a ranking run.")
    if index != "exact":
        raise UserError(f"{run.directory}: two stages are exported with `--index exact`.")


def _check_files(directory: Path) -> None:
    verify(directory, whole=True)


class _Version:
    """One version directory in the making.

    Args:
        run: what is published.
        vectors: `(V - 2, D)` of every item, item 2 first; those of retired items are left out.
        directory: where it is written.
        kind: of index.
    """

    def __init__(self, run: Run, vectors: NDArray[np.float32], directory: Path, kind: str) -> None:
        self.run, self.directory, self.kind = run, directory, kind
        self.catalogue = run.dataset.catalogue()
        self.items = self.catalogue.candidates
        self.vectors = vectors[self.items - FIRST_VALUE]
        self.item_ids = [self.catalogue.item_ids[item] for item in self.items]
        self.k = min(run.config.export.k, len(self.items))
        self.samples = parity.samples(run)

    def write(self, name: str) -> None:
        """Writes and checks everything; `name` is the model's."""
        run = self.run
        index = self._save()
        some = self.samples[0].request
        warmup = list(publishing.warmup_requests(run.schema, self.catalogue, run.dataset.directory, some))
        facts = _write_beside(run, self.directory, name, warmup)
        figures = self._check(warmup)
        index |= {"recall": figures.pop("recall")}
        check_recall(index["recall"], run.config.export.min_recall, "export.min_recall", "index.target_recall")
        facts |= {"k": self.k, "filter_seen": run.config.evaluation.filter_seen, "index": index, "parity": figures}
        write_manifest(self.directory, facts)

    def _save(self) -> dict[str, Any]:
        """Writes the SavedModel; returns what describes its index."""
        run, catalogue = self.run, self.catalogue
        queries = np.concatenate([np.asarray(run.model.encode_users(each.batch)) for each in self.samples])
        search, index = build_search(
            self.vectors,
            queries.astype(np.float32),
            self.kind,
            k=self.k,
            target_recall=run.config.index.target_recall,
        )
        module = RetrievalSignatures(
            run.schema,
            run.dataset.directory,
            run.model,
            items=self.items,
            codes=catalogue.codes[self.items],
            item_ids=self.item_ids,
            train_count=catalogue.train_count[self.items],
            search=search,
            k=self.k,
            filter_seen=run.config.evaluation.filter_seen,
        )
        options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"] if self.kind == "scann" else None)
        tf.saved_model.save(module, str(self.directory), signatures=module.trace(run.model), options=options)
        return index

    def _check(self, warmup: Sequence[Request]) -> dict[str, Any]:
        """Loads the SavedModel twice and compares its answers; returns the figures for the manifest."""
        libraries = [scann_library()] if self.kind == "scann" else []
        requests = [Request("recommend", each.request) for each in self.samples]
        by_loader = _ask_loader(self.directory, [*requests, *warmup], libraries)
        recommend = tf.saved_model.load(str(self.directory)).signatures["recommend"]
        by_python = [_ask_python(recommend, request) for request in requests]
        differences: dict[str, list[parity.Difference]] = {"saved_model": [], "cpp_loader": []}
        recalls = []
        for each, *answers in zip(self.samples, by_python, by_loader, strict=False):
            scores = parity.run_scores(self.run, each.batch, self.vectors)
            for name, answer in zip(differences, answers, strict=True):
                if self.kind == "exact":
                    differences[name].append(parity.compare(scores, answer, self.item_ids, name))
            recalls.append(parity.recalls(scores, answers[1], self.item_ids))
            parity.check_same(answers[0], answers[1])
        return {
            "queries": sum(len(each.batch["user"]) for each in self.samples),
            "tolerance": parity.TOLERANCE,
            "recall": float(np.concatenate(recalls).mean()),
            **{name: parity.summary(found) for name, found in differences.items() if found},
        }


def _write_checked(version: RankingVersion | TwoStageVersion, directory: Path, name: str) -> None:
    """Writes and checks a version; `name` is the model's."""
    told = version.save(directory)
    warmup, requests = version.warmup(), version.requests()
    facts = _write_beside(version.run, directory, name, warmup)
    if isinstance(version, TwoStageVersion):
        facts["ranker"] = _identity(version.ranker.run)
    by_loader = _ask_loader(directory, [*requests, *warmup])
    signatures = tf.saved_model.load(str(directory)).signatures
    by_python = [_ask_python(signatures[request.signature], request) for request in requests]
    write_manifest(directory, {**facts, **told, "parity": version.compare(by_python, by_loader)})


def _write_beside(run: Run, directory: Path, name: str, warmup: Sequence[Request]) -> dict[str, Any]:
    """Writes what lies beside a SavedModel; returns what every manifest says."""
    publishing.write_display(directory, run.dataset.catalogue())
    shutil.copyfile(run.directory / SCHEMA, directory / publishing.EXTRA / SCHEMA)
    publishing.write_warmup(directory, name, warmup)
    return {
        "format_version": _FORMAT_VERSION,
        **_identity(run),
        "dataset": run.dataset.fingerprint,
        "evaluation": publishing.copy_evaluation(run, directory),
    }


def _identity(run: Run) -> dict[str, Any]:
    weights = read_record(run.directory)["weights"]
    return {
        "model": dict(run.config.model),
        "run": {"fingerprint": sha256_of(run.directory / RUN), "weights": weights},
    }


def _ask_loader(directory: Path, requests: Sequence[Request], libraries: Sequence[Path] = ()) -> list[Outputs]:
    try:
        return ask(directory, requests, libraries)
    except LoaderError as error:
        raise UserError(f"parity: the C++ loader refuses the export: {error}; nothing was published.") from None


def _ask_python(recommend: Any, request: Request) -> Outputs:
    inputs = {name: tf.constant(values.tolist(), values.dtype.type) for name, values in request.inputs.items()}
    return {name: value.numpy() for name, value in recommend(**inputs).items()}
