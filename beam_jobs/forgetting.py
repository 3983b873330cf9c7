"""Users and items that are to be forgotten: their rows are counted and leave no other trace."""

from dataclasses import dataclass

import polars as pl

from tfrec.config import Forget
from tfrec.errors import UserError

REASON = "data.forget"
HIDDEN = "(hidden by `data.forget`)"


@dataclass(frozen=True)
class ForgetLists:
    """Raw ids, as they stand in the logs."""

    users: tuple[str, ...] = ()
    items: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is to be forgotten."""
        return bool(self.users or self.items)


def read_forget_lists(forget: Forget) -> ForgetLists:
    """Reads the lists that `data.forget` names."""
    return ForgetLists(*(_read_list(key, path) for key, path in (("users", forget.users), ("items", forget.items))))


def _read_list(key: str, path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        with open(path, encoding="utf-8-sig") as file:
            ids = {line.rstrip("\r\n") for line in file}
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; `data.forget.{key}` names a text file with one id a line.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; `data.forget.{key}` names a text file with one id a line.") from None
    return tuple(sorted(ids - {""}))


def forgotten_rows(checked: pl.DataFrame, lists: ForgetLists) -> pl.Series:
    """Which rows are of a user or an item that is to be forgotten."""
    gone = pl.repeat(False, len(checked), dtype=pl.Boolean, eager=True)
    for column, ids in (("user_id", lists.users), ("item_id", lists.items)):
        if ids and column in checked.columns:
            found = checked[column].cast(pl.String).is_in(pl.Series(ids, dtype=pl.String).implode())
            gone = gone | found.fill_null(False)
    return gone


def hide_values(rejects: pl.DataFrame, lists: ForgetLists) -> pl.DataFrame:
    """Rejects whose value holds an id of the lists anywhere keep file, row and rule, and lose the value.

    For lines that could not be taken apart into columns: nobody knows whose they are.
    """
    held = pl.col("value").str.contains_any([*lists.users, *lists.items])
    return rejects.with_columns(pl.when(held).then(pl.lit(HIDDEN)).otherwise("value").alias("value"))
