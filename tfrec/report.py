"""`tfrec report`: what a run is and what it learnt, as one HTML page that opens anywhere, without a network.

The page says what is there: a run that is not finished, not evaluated or without its dataset has fewer figures, and
the page says why.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tfrec import charts, geometry, preferences
from tfrec.comparison import Measured, differences, measure, obstacles, verdict
from tfrec.config import CONFIG, Config, load
from tfrec.errors import UserError
from tfrec.evaluation import deciding_metric, read_evaluation
from tfrec.manifest import read_manifest
from tfrec.page import Page
from tfrec.publishing import latest
from tfrec.runs import Run, load_run, read_record
from tfrec.tables import by_number, change, figure, flattened
from tfrec.training import LOGS, METRICS

_SPLITS = ("test", "validation")
_MOST_CURVES = 6
_BESIDE = ("epoch", "step", "loss", "validation", "warnings")


@dataclass(frozen=True)
class Subject:
    """A run directory, as far as it is there."""

    name: str
    directory: Path
    data: Path | None = None

    @cached_property
    def record(self) -> dict[str, Any]:
        """`run.json`."""
        return read_record(self.directory)

    @cached_property
    def config(self) -> Config:
        """The run's configuration."""
        return load(self.directory / CONFIG)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """What was measured in training, one entry an epoch."""
        path = self.directory / LOGS / METRICS
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []

    @cached_property
    def measured(self) -> dict[str, Measured]:
        """What `tfrec evaluate` found, by split."""
        found = {}
        for split in _SPLITS:
            try:
                found[split] = measure(self.directory, split)
            except UserError:
                continue
        return found

    @cached_property
    def loaded(self) -> Run | str:
        """The run with its model and dataset, or why it cannot be loaded."""
        try:
            return load_run(self.directory, data=self.data)
        except UserError as error:
            return str(error)


def write_report(
    run: Path, out: Path, *, others: Sequence[Path] = (), published: Path | None = None, data: Path | None = None
) -> None:
    """Writes the page of a run; equal runs give equal bytes.

    Args:
        run: the run directory; its training need not be finished.
        out: the HTML file.
        others: runs to show beside it.
        published: MODELS/NAME, whose newest version was made of the run.
        data: the dataset, where it has moved.

    Raises:
        UserError: no run there, or a published model of another run.
    """
    name, *names = _names([run, *others])
    subject, beside = Subject(name, run, data), list(map(Subject, names, others))
    page = Page(subject.name)
    _summary(page, subject)
    _metrics(page, subject, beside)
    _curves(page, [subject, *beside])
    _slices(page, subject)
    _calibration(page, subject)
    geometry.write(page, subject.name, subject.loaded, {one.name: one.loaded for one in beside})
    preferences.write(page, subject.loaded)
    if published is not None:
        _published(page, subject, published)
    _protocol(page, subject)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page.render(), encoding="utf-8")


def _names(directories: Sequence[Path]) -> list[str]:
    """As many last parts of each path as tell the directories apart."""
    parts = [directory.resolve().parts for directory in directories]
    depth = 1
    while len({path[-depth:] for path in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(path[-depth:]) for path in parts]


def _summary(page: Page, subject: Subject) -> None:
    record, config = subject.record, subject.config
    finished = "weights" in record
    rows: list[tuple[str, Any]] = [
        ("model", config.model.get("name")),
        ("dataset", Path(config.data.out).name),
        ("training", "finished" if finished else f"not finished, {len(subject.history)} epochs so far"),
    ]
    if finished:
        names = ("epochs", "best_epoch", "steps", "parameters", "backend")
        rows += [(name.replace("_", " "), record[name]) for name in names if record.get(name) is not None]
    page.table(rows, ("", ""))
    for warning in subject.history[-1].get("warnings", []) if subject.history else []:
        page.text(f"Warning of the last epoch: {warning}", "warning")


def _metrics(page: Page, subject: Subject, beside: Sequence[Subject]) -> None:
    page.section("Metrics")
    if not subject.measured:
        page.text(f"Not evaluated; `tfrec evaluate {subject.name}` measures it.", "note")
    for split, own in subject.measured.items():
        page.heading(f"On the {split} queries")
        others = {one.name: one.measured[split] for one in beside if split in one.measured}
        runs = {subject.name: own, **others}
        metrics = sorted(dict.fromkeys(metric for one in runs.values() for metric in one.metrics), key=by_number)
        rows = [(metric, *(_figure(one, metric) for one in runs.values())) for metric in metrics]
        page.table(rows, ("metric", *runs))
        named = [_renamed(one, name) for name, one in runs.items()]
        page.figure(charts.interval_chart(named), "Each metric with its 95 % interval, bootstrapped over users.")
        for name, other in others.items():
            _difference(page, own, subject.name, other, name)
        for one in beside:
            if split not in one.measured:
                page.text(f"{one.name} is not evaluated on these queries.", "note")


def _renamed(one: Measured, name: str) -> Measured:
    return Measured(name, one.protocol, one.queries, one.metrics, one.resampled, one.seeds)


def _figure(one: Measured, metric: str) -> str:
    return figure(one.metrics[metric], one.intervals[metric]) if metric in one.metrics else "-"


def _difference(page: Page, own: Measured, own_name: str, other: Measured, name: str) -> None:
    page.heading(f"{own_name} minus {name}")
    if reasons := obstacles(own, other):
        page.text(f"Not comparable: {'; '.join(reasons)}.", "warning")
        return
    rows = [(metric, change(found), verdict(metric, found)) for metric, found in differences(own, other).items()]
    page.table(rows, ("metric", "difference [95 % interval] p-value, paired by user", ""))


def _curves(page: Page, subjects: Sequence[Subject]) -> None:
    page.section("Training")
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for subject in subjects:
        for entry in subject.history:
            for name, value in _curve_values(entry).items():
                places, values = panels.setdefault(name, {}).setdefault(subject.name, ([], []))
                places.append(entry["epoch"])
                values.append(value)
    panels = {name: lines for name, lines in panels.items() if any(len(places) > 1 for places, _ in lines.values())}
    if not panels:
        page.text("There are no curves: fewer than two epochs were measured.", "note")
        return
    marked = {one.name: one.record["best_epoch"] for one in subjects if one.record.get("best_epoch")}
    order = sorted(panels, key=lambda name: (name != "loss", not name.startswith("validation"), by_number(name)))
    for start in range(0, len(order), _MOST_CURVES):
        some = {name: panels[name] for name in order[start : start + _MOST_CURVES]}
        rows = [
            (name, run, int(epoch), value)
            for name, lines in some.items()
            for run, (places, values) in lines.items()
            for epoch, value in zip(places, values, strict=True)
        ]
        caption = "Each epoch of the training; dotted: the epoch whose weights were kept."
        page.figure(charts.line_charts(some, x="epoch", marked=marked), caption, rows, ("curve", "run", "epoch", ""))


def _curve_values(entry: Mapping[str, Any]) -> dict[str, float]:
    """What an epoch measured, by name of the curve."""
    own = {name: value for name, value in entry.items() if name not in _BESIDE and isinstance(value, int | float)}
    loss = {"loss": entry["loss"]} if "loss" in entry else {}
    return {**loss, **{f"validation {name}": value for name, value in entry.get("validation", {}).items()}, **own}


def _evaluation(subject: Subject) -> dict[str, Any]:
    """The evaluation document on the test queries, else on the validation queries, else nothing."""
    for split in _SPLITS:
        if split in subject.measured:
            return read_evaluation(subject.directory, split)
    return {}


def _slices(page: Page, subject: Subject) -> None:
    document = _evaluation(subject)
    slices: dict[str, dict[str, dict[str, Any]]] = document.get("slices") or {}
    if not slices:
        return
    page.section("Slices")
    metric = _headline(subject, document["metrics"])
    slices = {
        group.replace("_", " "): dict(sorted(found.items(), key=_by_first_number)) for group, found in slices.items()
    }
    shown = {
        group: {name: values[metric] for name, values in found.items() if metric in values}
        for group, found in slices.items()
    }
    shown = {group: values for group, values in shown.items() if values}
    rows = [
        (group, name, values.get("queries", "-"), values.get(metric, "-"))
        for group, found in slices.items()
        for name, values in found.items()
    ]
    caption = f"{metric} of the {document['protocol']['split']} queries in each slice that has any."
    if shown:
        page.figure(charts.slice_chart(shown, metric), caption)
    page.table(rows, ("group", "slice", "queries", metric))


def _by_first_number(part: tuple[str, Any]) -> tuple[int, str]:
    """Sorts slices by the first number of their names: 2-4 before 10+; those without one come first."""
    found = re.search(r"\d+", part[0])
    return (int(found[0]) if found else -1, part[0])


def _headline(subject: Subject, metrics: Mapping[str, float]) -> str:
    """The metric that decided in training, or the first that was measured."""
    name = deciding_metric(subject.config)
    return name if name in metrics else next(iter(metrics))


def _calibration(page: Page, subject: Subject) -> None:
    calibration: dict[str, dict[str, Any]] = _evaluation(subject).get("calibration") or {}
    curves = {label: found["curve"] for label, found in calibration.items() if found["curve"]}
    if not curves:
        return
    page.section("Calibration")
    for label, found in calibration.items():
        if found["ratio"] is not None:
            page.text(f"{label}: predicted over observed {figure(found['ratio'], found['confidence_interval'])}.")
    points = {label: [(one["predicted"], one["observed"]) for one in curve] for label, curve in curves.items()}
    rows = [
        (label, one["count"], one["predicted"], one["observed"]) for label, curve in curves.items() for one in curve
    ]
    caption = "Mean predicted against observed probability in each tenth of the predictions; dotted: both are equal."
    page.figure(charts.calibration_chart(points), caption, rows, ("label", "candidates", "predicted", "observed"))


def _published(page: Page, subject: Subject, model: Path) -> None:
    version = latest(model)
    manifest = read_manifest(version)
    if manifest.get("run", {}).get("weights") != subject.record.get("weights"):
        raise UserError(f"{version}: was not made of {subject.directory}; name the model that it was exported to.")
    page.section("Published")
    page.text(f"{model.name}, version {version.name}: what was checked before it got its name.")
    kept: dict[str, Any] = {
        name: manifest[name] for name in ("index", "parity", "k", "filter_seen") if name in manifest
    }
    page.table(flattened(kept), ("", ""))


def _protocol(page: Page, subject: Subject) -> None:
    page.section("Protocol and configuration")
    if document := _evaluation(subject):
        page.table(flattened(document["protocol"]), ("protocol", ""))
    else:
        page.text("Without an evaluation there is no protocol.", "note")
    said = subject.config.model_dump(mode="json", exclude_defaults=True)
    page.code(yaml.safe_dump(said, sort_keys=False, allow_unicode=True), title="configuration, without defaults")
    page.code((subject.directory / CONFIG).read_text("utf-8"), title="configuration, every default spelt out")


__all__ = ["Subject", "write_report"]
