"""Finding and reading the files of public data sets."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import polars as pl

from tfrec.errors import UsageError, UserError


def existing_path(path: str | None, recipe: str, publisher: str) -> Path:
    """The path of `data.recipe`, which must be given and exist; `publisher` says where the data set is given out."""
    if path is None:
        raise UsageError(f"data.recipe.path: must name the data of recipe `{recipe}`, as given out by {publisher}.")
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"data.recipe.path: {path}: no such file or folder; {publisher} gives the data out.")
    return found


def existing_file(directory: Path, names: tuple[str, ...], publisher: str) -> Path:
    """The first of these files that the directory holds."""
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise UserError(f"data.recipe.path: {directory}: holds no {' or '.join(names)}; {publisher} gives the data out.")


def read_as_published(read: Callable[[Path], pl.DataFrame], path: Path) -> pl.DataFrame:
    """What `read` makes of a file; one that is damaged, or that is none of its format, is a `UserError`."""
    try:
        return read(path)
    except (pl.exceptions.PolarsError, UnicodeError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> UserError:
    """What a library says of a file that it cannot read, as one line."""
    reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return UserError(f"{path}: not in the form in which it is given out: {reason:.300}.")


def read_text_columns(path: Path, columns: tuple[str, ...], separator: str, encoding: str = "latin-1") -> pl.DataFrame:
    """Reads a file without header or quotes, every column as text; the separator may be several characters.

    A line with fewer columns than `columns` names is an error; further ones are called column_<n>.
    """
    text = path.read_bytes().decode(encoding)
    if len(separator) > 1:
        text = text.replace("\t", " ").replace(separator, "\t")
        separator = "\t"
    frame = pl.read_csv(
        text.encode(),
        separator=separator,
        has_header=False,
        infer_schema=False,
        quote_char=None,
        raise_if_empty=False,
    )
    if frame.width < len(columns):
        raise UserError(f"{path}: has {frame.width} columns, the published file has {len(columns)}; get it again.")
    return frame.rename(dict(zip(frame.columns, columns, strict=False)))


def read_csv_columns(path: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    """Reads columns of a file with a header as texts, published name -> name; a missing one is a `UserError`."""
    frame = pl.read_csv(path, infer_schema=False, glob=False)
    check_columns(frame, columns, path)
    return frame.select(pl.col(published).alias(name) for published, name in columns.items())


def check_columns(frame: pl.DataFrame, columns: Iterable[str], path: Path) -> None:
    """Raises a `UserError` that names the first column which is missing, and those that there are."""
    for name in columns:
        if name not in frame.columns:
            raise UserError(f"{path}: has no column `{name}`; it has {', '.join(frame.columns)}.")


def cast_column(frame: pl.DataFrame, column: str, dtype: type[pl.DataType], path: Path) -> pl.DataFrame:
    """Casts a text column; the first value that does not fit is a `UserError` with its row, from 1."""
    values = frame[column].cast(dtype, strict=False)
    bad = (values.is_null() & frame[column].is_not_null()).arg_true()
    if len(bad):
        received = frame[column][bad[0]]
        raise UserError(f"{path}: row {bad[0] + 1}: `{column}` must be a number. Received: {received!r}; get it again.")
    return frame.with_columns(values)
