"""What a model with a guide of attention (HPGR's PGSA) looks at in one user's history, as a figure with titles."""

from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from tfrec.candidates import CandidateBatches
from tfrec.charts import mask_chart
from tfrec.page import Page
from tfrec.runs import Run
from tfrec.transforms import FIRST_VALUE

_EVENTS = 32
_CANDIDATES = 10

Array = NDArray[Any]


def write(page: Page, run: Run | str) -> None:
    """Writes the section where the model's scorer offers `attention_mask(batch) -> (B, C, L)`, and it gives one."""
    if isinstance(run, str):
        return
    mask_of = getattr(getattr(run.model, "scorer", None), "attention_mask", None)
    if mask_of is None:
        return
    row = _a_row(run)
    if row is None or (found := mask_of(row)) is None:
        return
    count = int((row["item"][0] != 0).sum())
    shown = slice(max(count - _EVENTS, 0), count)
    candidates = row["candidate"][0]
    candidates = candidates[candidates != 0][:_CANDIDATES]
    mask: Array = ops.convert_to_numpy(found)[0, : len(candidates), shown]
    rows = [_name(run, item) for item in candidates]
    columns = [f"{place}  {_name(run, item)}" for place, item in enumerate(row["item"][0, shown], shown.start + 1)]
    user = run.dataset.histories().user_ids[int(row["user"][0])]
    page.section("Preferences")
    page.figure(
        mask_chart(mask, rows, columns),
        f"How much of the last {len(columns)} of {count} events each candidate of user {user} may attend to: 0 is "
        f"nothing, 1 is all, the mean is {mask.mean():.3f}.",
        [
            (candidate, event, float(value))
            for candidate, values in zip(rows, mask, strict=True)
            for event, value in zip(columns, values, strict=True)
        ],
        ("candidate", "event", "share"),
    )


def _a_row(run: Run) -> dict[str, Array] | None:
    """The row of the test impressions with the most candidates, of those with the most events that are shown."""
    batches = CandidateBatches(
        run.schema,
        run.dataset.histories(),
        "test",
        history_length=run.model.history_length,
        batch_size=run.config.evaluation.batch_size,
    )
    best: tuple[tuple[int, int], dict[str, Array]] | None = None
    for batch in batches:
        events = np.minimum((batch["item"] != 0).sum(axis=1), _EVENTS)
        candidates = np.minimum((batch["candidate"] != 0).sum(axis=1), _CANDIDATES)
        place = int(np.lexsort((candidates, events))[-1])
        worth = (int(events[place]), int(candidates[place]))
        if best is None or worth > best[0]:
            best = (worth, {name: values[place : place + 1] for name, values in batch.items()})
        if worth == (_EVENTS, _CANDIDATES):
            break
    return best[1] if best is not None and best[0][0] > 0 else None


def _name(run: Run, item: int) -> str:
    if item < FIRST_VALUE:
        return "(unknown item)"
    catalogue, title = run.dataset.catalogue(), run.schema.title
    return (catalogue.display[title][item] if title else "")[:40] or catalogue.item_ids[item]


__all__ = ["write"]
