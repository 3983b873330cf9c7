"""The command `tfrec recommend`: one answer on the terminal, or answers for every user as Parquet."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfrec.errors import UsageError

if TYPE_CHECKING:
    from tfrec.answers import PublishedModel

_LATEST_SECONDS = 4_102_444_799  # the last of 2099; what is later was given in another unit


def recommend(
    model: Annotated[
        Path, typer.Argument(metavar="MODELS/NAME", help="A published model; its newest version answers.")
    ],
    history: Annotated[str | None, typer.Option(help="Item ids, oldest first: a,b,c.")] = None,
    times: Annotated[str | None, typer.Option(help="Unix seconds of the history's events: 1700000000,...")] = None,
    event_types: Annotated[str | None, typer.Option(help="Event types of the history: view,view,cart.")] = None,
    similar: Annotated[
        str | None, typer.Option(metavar="ITEM", help="Items like this one, instead of a history.")
    ] = None,
    rank_with: Annotated[
        Path | None, typer.Option(metavar="MODELS/RANKER", help="Ranks all that the model retrieves by another one.")
    ] = None,
    all_users: Annotated[
        Path | None, typer.Option(metavar="DATASET", help="Answer for every user of a dataset, into --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the answers for all users go.")] = None,
    request_time: Annotated[int | None, typer.Option(max=_LATEST_SECONDS, help="Unix seconds of the question.")] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Items: by default 10, for all users all.")] = None,
    allow: Annotated[str | None, typer.Option(help="These items alone: a,b,c; with --all-users a file of ids.")] = None,
    deny: Annotated[str | None, typer.Option(help="These items not: a,b,c; with --all-users a file of ids.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="FEATURE=VALUES", help="Items with one of the values: category=shoes,boots. Repeatable."),
    ] = None,
) -> None:
    """One answer on the terminal, with titles; or answers for every user, as Parquet.

    For all users the answers lie in files, which an interrupted command goes on with; the account of users is printed.
    The same on many machines: python -m beam_jobs.recommend.

    Example: tfrec recommend models/shop --history item_12,item_7 --k 5

    Example: tfrec recommend models/shop --all-users datasets/shop --out recommendations/shop
    """
    questions = (history, similar, all_users)
    if sum(question is not None for question in questions) != 1:
        raise UsageError("recommend: give either --history a,b,c, or --similar ITEM, or --all-users DATASET.")
    if (all_users is None) != (out is None):
        raise UsageError("recommend: --all-users DATASET and --out DIR belong together.")
    if similar is not None and (allow or deny or where):
        raise UsageError("recommend: --similar takes no filters.")
    if rank_with is not None and history is None:
        raise UsageError("recommend: --rank-with needs a --history to rank by.")
    if all_users is not None and out is not None:
        if times or event_types or where:
            raise UsageError("recommend: --times, --event-types and --where do not go with --all-users.")
        _recommend_all(model, all_users, out, k, request_time, allow, deny)
        return
    from tfrec.answers import PublishedModel

    published = PublishedModel.newest(model)
    title = f"{model}, version {published.version}"
    asked: dict[str, Any] = {"times": _seconds(times), "event_types": _items(event_types), "request_time": request_time}
    if unknown := published.unknown(_items(history)):
        print(f"tfrec: {title} has no item {', '.join(unknown)}; each counts as an unknown one.", file=sys.stderr)
    conditions = dict(_condition(text) for text in where or [])
    filters: dict[str, Any] = {"allow": _items(allow), "deny": _items(deny), "where": conditions}
    if similar is not None:
        answer, title = published.similar_items(similar, k or 10), f"Items like {similar}"
    elif rank_with is None:
        answer = published.recommend(_items(history), k=k or 10, **asked, **filters)
    else:
        ranker = PublishedModel.newest(rank_with)
        retrieved = [item for item, _ in published.recommend(_items(history), k=None, **asked, **filters)]
        answer = ranker.rank(_items(history), retrieved, **asked)[: k or 10]
        title += f", ranked by {rank_with}, version {ranker.version}"
    _show(published, answer, title)


def _show(published: "PublishedModel", answer: Sequence[tuple[str, float]], title: str) -> None:
    from tfrec.tables import rows_table, show

    if not answer:
        print("tfrec: no item passes; unknown ids and values of a filter match nothing.", file=sys.stderr)
    rows = [(item, *published.display(item), f"{score:.4f}") for item, score in answer]
    show(rows_table(rows, ("item", *published.fields, "score"), title=title, numbered=True))


def _recommend_all(
    model: Path, dataset: Path, out: Path, k: int | None, request_time: int | None, allow: str | None, deny: str | None
) -> None:
    from tfrec.batch import newest_job, recommend_all
    from tfrec.tables import document_table, show

    lists = {"allow": Path(allow) if allow else None, "deny": Path(deny) if deny else None}
    job = newest_job(model, dataset, out, k=k, request_time=request_time, **lists)
    show(document_table(recommend_all(job), title=str(out)))


def _items(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def _seconds(text: str | None) -> list[int]:
    try:
        seconds = [int(part) for part in _items(text)]
    except ValueError:
        seconds = [_LATEST_SECONDS + 1]
    if max(seconds, default=0) > _LATEST_SECONDS:
        raise UsageError(f"--times {text}: must be whole Unix seconds before 2100, one for each item: 1700000000,...")
    return seconds


def _condition(text: str) -> tuple[str, list[str]]:
    name, _, values = text.partition("=")
    if not name or not _items(values):
        raise UsageError(f"--where {text}: must look like feature=value,value.")
    return name, _items(values)
