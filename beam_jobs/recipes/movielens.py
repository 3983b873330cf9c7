"""MovieLens by GroupLens, from the folder of a set: 100K (`u.data`), 1M and 10M (`.dat`), 20M and later (`.csv`).

Events are ratings: `user_id`, `item_id`, `time` (Unix seconds), `rating`. Items have `title` (with the year taken
off), `year` and `genres`; users of 100K and 1M `gender`, `age` and `occupation`.
"""

from pathlib import Path

import polars as pl

from beam_jobs.recipes.published import (
    cast_column,
    existing_file,
    existing_path,
    read_as_published,
    read_csv_columns,
    read_text_columns,
)
from tfrec.config import Section

PUBLISHER = "GroupLens (grouplens.org/datasets/movielens)"
SOURCES: dict[str, dict[str, str]] = {}

# fmt: off
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
_FILES = {
    "events": ("ratings.dat", "u.data", "ratings.csv"),
    "items": ("movies.dat", "u.item", "movies.csv"),
    "users": ("users.dat", "u.user"),
}


class Options(Section):
    """MovieLens has no options."""


def find_inputs(path: str | None, options: Options, needed: frozenset[str]) -> list[Path]:
    """The files of the folder that the needed sections are made of; later sets have no users."""
    folder = existing_path(path, "movielens", PUBLISHER)
    sections = [section for section in ("events", "items") if section in needed]
    inputs = [existing_file(folder, _FILES[section], PUBLISHER) for section in sections]
    if "users" in needed:
        inputs += [folder / name for name in _FILES["users"] if (folder / name).is_file()][:1]
    return inputs


def write(directory: Path, inputs: list[Path], options: Options, needed: frozenset[str]) -> None:
    """Writes a Parquet file for each file given."""
    readers = {"events": _read_ratings, "items": _read_movies, "users": _read_users}
    for path in inputs:
        section = next(section for section, names in _FILES.items() if path.name in names)
        read_as_published(readers[section], path).write_parquet(directory / f"{section}.parquet")


def _read_ratings(path: Path) -> pl.DataFrame:
    columns = ("user_id", "item_id", "rating", "time")
    if path.suffix == ".csv":
        frame = read_csv_columns(
            path, {"userId": "user_id", "movieId": "item_id", "rating": "rating", "timestamp": "time"}
        )
    else:
        frame = read_text_columns(path, columns, "::" if path.suffix == ".dat" else "\t")
    frame = cast_column(frame, "rating", pl.Float64, path)
    return cast_column(frame, "time", pl.Int64, path).select(columns)


def _read_movies(path: Path) -> pl.DataFrame:
    if path.name == "u.item":
        names = ("item_id", "title", "released", "video", "url", *_GENRES_100K)
        frame = read_text_columns(path, names, "|")
        flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES_100K]
        frame = frame.with_columns(genres=pl.concat_list(flags).list.drop_nulls())
    else:
        if path.suffix == ".csv":
            frame = read_csv_columns(path, {"movieId": "item_id", "title": "title", "genres": "genres"})
        else:
            frame = read_text_columns(path, ("item_id", "title", "genres"), "::")
        genres = pl.when(pl.col("genres") != "(no genres listed)").then(pl.col("genres").str.split("|"))
        frame = frame.with_columns(genres=genres.fill_null([]))
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64)
    title = pl.col("title").str.replace(r"\s*\(\d{4}\)\s*$", "")
    return frame.with_columns(year=year, title=title).select("item_id", "title", "year", "genres")


def _read_users(path: Path) -> pl.DataFrame:
    if path.name == "u.user":
        frame = read_text_columns(path, ("user_id", "age", "gender", "occupation", "zip"), "|")
    else:
        frame = read_text_columns(path, ("user_id", "gender", "age", "occupation", "zip"), "::")
    return cast_column(frame, "age", pl.Int64, path).select("user_id", "gender", "age", "occupation")
