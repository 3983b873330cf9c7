"""A made-up shop: its catalogue, its users, and the logs of what they saw, viewed, carted and bought.

What there is to learn, none of it by one kind of model alone:

- content: titles and image vectors show an item's style, brands have a style and a price level, users a taste;
- order: after a view comes something similar, after a cart something that goes with it (a table of complements);
- sessions: each has a mission that the next one may follow up, and tastes drift from one session to the next;
- popularity is skewed, and a third of the catalogue arrives while the shop is open (cold items).

Users see lists and click (by utility, and by position on the list); the clicks are the events.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from beam_jobs.recipes.shop_behaviour import (
    CART,
    Lists,
    Sessions,
    Users,
    browse,
    events_of,
    make_sessions,
    make_users,
)
from beam_jobs.recipes.shop_catalogue import IMAGE_DIM, Catalogue, Ints, Random, make_catalogue
from beam_jobs.recipes.shop_words import AGE_BANDS, REGIONS, categories
from tfrec.config import Section
from tfrec.errors import UsageError

START = 1_704_067_200
"""2024-01-01 UTC, when the shop opens."""
SOURCES: dict[str, dict[str, str]] = {}
EVENT_TYPES = ("view", "cart", "purchase")

_DAY = 86_400
_USERS_A_CHUNK = 20_000  # simulated together; part of what a seed means


class Options(Section):
    """Sizes of the made-up shop."""

    users: int = Field(20_000, ge=1)
    """Users; each has some 5 events a session."""
    items: int = Field(5_000, ge=100)
    """Items of the catalogue, a third of them launched while the shop is open."""
    days: int = Field(120, ge=7)
    """Days that the logs cover."""
    sessions: float = Field(8.0, ge=1)
    """Mean number of sessions a user."""
    seed: int = Field(0, ge=0)
    """Equal options and seed give equal files."""
    impressions: float = Field(0.1, ge=0, le=1)
    """Share of the lists shown that is logged; 0 writes no impressions."""
    dirty: float = Field(0.0, ge=0, lt=1)
    """Share of broken rows among the events: ids missing, times in another unit."""


def find_inputs(path: str | None, options: Options, needed: frozenset[str]) -> list[Path]:
    """None: the shop is made up."""
    if path is not None:
        raise UsageError("data.recipe.path: must be left out for `shop`, which is made up from its options.")
    return []


def write(directory: Path, inputs: list[Path], options: Options, needed: frozenset[str]) -> None:
    """Writes the needed ones of `events`, `items`, `users` and, unless its option is 0, `impressions`.

    20,000 users at a time, each group sorted by time.
    """
    catalogue = make_catalogue(options.items, options.days * _DAY, np.random.default_rng([options.seed, 0]))
    if "items" in needed:
        pq.write_table(_items_table(catalogue, options), directory / "items.parquet")
    writers: dict[str, pq.ParquetWriter] = {}
    try:
        for tables in _chunks(catalogue, options):
            for name in sorted(needed.intersection(tables)):
                table = tables[name]
                if name not in writers:
                    writers[name] = pq.ParquetWriter(directory / f"{name}.parquet", table.schema)
                writers[name].write_table(table)
    finally:
        for writer in writers.values():
            writer.close()


def _chunks(catalogue: Catalogue, options: Options) -> Iterator[dict[str, pa.Table]]:
    seconds = options.days * _DAY
    for number, first in enumerate(range(0, options.users, _USERS_A_CHUNK)):
        random = np.random.default_rng([options.seed, 1 + number])
        count = min(_USERS_A_CHUNK, options.users - first)
        users = make_users(catalogue, count, options.sessions, seconds, random)
        sessions = make_sessions(catalogue, users, seconds, random)
        lists = browse(catalogue, users, sessions, random)
        user_ids = _ids("u", np.arange(first, first + count), options.users)
        item_ids = _item_ids(options)
        tables = {
            "events": _events_table(sessions, lists, user_ids, item_ids, options.dirty, random),
            "users": _users_table(users, user_ids),
        }
        if options.impressions > 0:
            prefix = f"r{number}-"
            tables["impressions"] = _impressions_table(
                sessions, lists, user_ids, item_ids, prefix, options.impressions, random
            )
        yield tables


def _ids(prefix: str, numbers: Ints, count: int) -> pa.Array:
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), len(str(count)), "0")
    return pc.binary_join_element_wise(prefix, digits, "")


def _item_ids(options: Options) -> pa.Array:
    """Ids in an order that says nothing of category or appeal."""
    shuffled = np.random.default_rng([options.seed, 0, 1]).permutation(options.items)
    return _ids("sku", shuffled, options.items)


def _items_table(catalogue: Catalogue, options: Options) -> pa.Table:
    """One row an item, in the order of the ids."""
    known = categories()
    ids = _item_ids(options)
    table = pa.table(
        {
            "item_id": ids,
            "title": pa.array(catalogue.titles),
            "brand": pa.array(catalogue.brand_names).take(pa.array(catalogue.brand)),
            "category": pa.array([[department, name] for department, name, *_ in known]).take(
                pa.array(catalogue.category)
            ),
            "price": pa.array(np.round(np.exp(catalogue.log_price.astype(np.float64)), 2)),
            "image": _vectors(catalogue.image),
        }
    )
    return table.take(pc.sort_indices(ids))


def _vectors(image: NDArray[np.float32]) -> pa.Array:
    offsets = pa.array(np.arange(len(image) + 1, dtype=np.int32) * IMAGE_DIM)
    return pa.ListArray.from_arrays(offsets, pa.array(image.ravel()))


def _users_table(users: Users, user_ids: pa.Array) -> pa.Table:
    return pa.table(
        {
            "user_id": user_ids,
            "age_band": pa.array(AGE_BANDS).take(pa.array(users.age)),
            "region": pa.array(REGIONS).take(pa.array(users.region)),
        }
    )


def _events_table(
    sessions: Sessions, lists: Lists, user_ids: pa.Array, item_ids: pa.Array, dirty: float, random: Random
) -> pa.Table:
    session, item, time, kind = events_of(lists)
    order = np.lexsort((kind, session, time))
    time = START + time[order]
    broken = random.random(len(order)) < dirty
    how = random.integers(0, 3, len(order))
    time = np.where(broken & (how == 2), time * 1000, time)
    return pa.table(
        {
            "user_id": _holes(user_ids.take(pa.array(sessions.user[session[order]])), broken & (how == 0)),
            "item_id": _holes(item_ids.take(pa.array(item[order])), broken & (how == 1)),
            "time": pa.array(time),
            "event_type": pa.array(EVENT_TYPES).take(pa.array(kind[order])),
        }
    )


def _holes(ids: pa.Array, where: NDArray[np.bool_]) -> pa.Array:
    return pc.if_else(pa.array(where), pa.scalar(None, pa.string()), ids)


def _impressions_table(
    sessions: Sessions,
    lists: Lists,
    user_ids: pa.Array,
    item_ids: pa.Array,
    prefix: str,
    share: float,
    random: Random,
) -> pa.Table:
    """One row an item shown: request, position from 1, whether it was clicked, and whether carted or bought."""
    logged = np.flatnonzero(random.random(len(lists.session)) < share)
    logged = logged[np.lexsort((lists.session[logged], lists.time[logged]))]
    row, place = np.nonzero(lists.shown[logged] >= 0)
    line = logged[row]
    item = lists.shown[line, place]
    click = item == lists.clicked[line]
    requests = _ids(prefix, np.arange(len(logged)), len(logged))
    return pa.table(
        {
            "user_id": user_ids.take(pa.array(sessions.user[lists.session[line]])),
            "item_id": item_ids.take(pa.array(item)),
            "time": pa.array(START + lists.time[line]),
            "request": requests.take(pa.array(row)),
            "position": pa.array(place + 1),
            "click": pa.array(click.astype(np.int64)),
            "cart": pa.array((click & (lists.outcome[line] >= CART)).astype(np.int64)),
        }
    )
