"""Online Retail by the UCI repository (Chen, 2015), and Online Retail II: invoice lines of a British gift wholesaler.

The lines stay dirty as they are (no customer, cancellations, zero prices): the configuration rejects and filters them.
Events keep the published columns; customers' numbers lose the `.0` that spreadsheets give them, and times become ISO.
Items are stock codes with their most frequent description and median price; users are customers with their country.
"""

from pathlib import Path

import polars as pl

from beam_jobs.recipes.published import check_columns, damaged, existing_path, read_as_published
from tfrec.config import Section
from tfrec.errors import UserError

PUBLISHER = "the UCI Machine Learning Repository (archive.ics.uci.edu, data set 352 or 502)"
SOURCES = {
    "events": {
        "columns": {"user_id": "CustomerID", "item_id": "StockCode", "time": "InvoiceDate", "session": "InvoiceNo"},
        "time_unit": "iso",
    },
    "items": {"columns": {"item_id": "StockCode"}},
    "users": {"columns": {"user_id": "CustomerID"}},
}

_COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
_SECOND = {"Invoice": "InvoiceNo", "Price": "UnitPrice", "Customer ID": "CustomerID"}  # Online Retail II's names
_TIMES = ("%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M")


class Options(Section):
    """Online Retail has no options."""


def find_inputs(path: str | None, options: Options, needed: frozenset[str]) -> list[Path]:
    """The one published file, or every .csv, .xlsx or .parquet file of the folder."""
    found = existing_path(path, "online_retail", PUBLISHER)
    files = (
        [found] if found.is_file() else sorted(p for p in found.iterdir() if p.suffix in (".csv", ".xlsx", ".parquet"))
    )
    if not files:
        raise UserError(f"data.recipe.path: {found}: holds no .csv, .xlsx or .parquet; {PUBLISHER} gives the data out.")
    return files


def write(directory: Path, inputs: list[Path], options: Options, needed: frozenset[str]) -> None:
    """Writes `events`, `items` and `users`."""
    lines = pl.concat([read_as_published(_read, path) for path in inputs])
    tables = {"events": lines, "items": _items(lines), "users": _users(lines)}
    for section, table in tables.items():
        if section in needed:
            table.write_parquet(directory / f"{section}.parquet")


def _read(path: Path) -> pl.DataFrame:
    if path.suffix == ".xlsx":
        frame = _read_sheets(path)
    elif path.suffix == ".parquet":
        frame = pl.read_parquet(path, glob=False)
    else:
        frame = pl.read_csv(path.read_bytes().decode("latin-1").encode(), infer_schema=False)
    frame = frame.rename({old: new for old, new in _SECOND.items() if old in frame.columns})
    check_columns(frame, _COLUMNS, path)
    return frame.select(
        pl.col("InvoiceNo").cast(pl.String),
        pl.col("StockCode").cast(pl.String),
        pl.col("Description").cast(pl.String).str.strip_chars(),
        pl.col("Quantity").cast(pl.Float64, strict=False),
        _iso(frame["InvoiceDate"]),
        pl.col("UnitPrice").cast(pl.Float64, strict=False),
        pl.col("CustomerID").cast(pl.String).str.replace(r"\.0$", ""),
        pl.col("Country").cast(pl.String),
    )


def _read_sheets(path: Path) -> pl.DataFrame:
    try:
        sheets = pl.read_excel(path, sheet_id=0, engine="calamine", infer_schema_length=0)
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: spreadsheets need the package `fastexcel`; `pip install fastexcel` adds it."
        ) from None
    except Exception as error:  # of fastexcel, which need not be installed to be named here
        raise damaged(path, error) from None
    return pl.concat([sheet.cast(pl.String) for sheet in sheets.values()])


def _iso(times: pl.Series) -> pl.Series:
    """Times as ISO text; what fits none of the published forms stays as it is, to be rejected by its row."""
    text = times.dt.strftime("%Y-%m-%d %H:%M:%S") if times.dtype == pl.Datetime else times.cast(pl.String)
    parsed = pl.Series(times.name, [None] * len(text), pl.Datetime)
    for form in _TIMES:
        read = text.str.to_datetime(form, strict=False)
        if read.null_count() < parsed.null_count():
            parsed = read
    return parsed.dt.strftime("%Y-%m-%d %H:%M:%S").zip_with(parsed.is_not_null(), text)


def _items(lines: pl.DataFrame) -> pl.DataFrame:
    """Descriptions and prices of sold lines: those of corrections ("damaged?") say nothing of the item."""
    sold = lines.filter(pl.col("Quantity") > 0, pl.col("UnitPrice") > 0, pl.col("StockCode").is_not_null())
    described = sold.filter(pl.col("Description").is_not_null()).group_by("StockCode", "Description").len()
    descriptions = described.sort("len", "Description", descending=[True, False]).unique(
        "StockCode", keep="first", maintain_order=True
    )
    prices = sold.group_by("StockCode").agg(price=pl.col("UnitPrice").median())
    items = prices.join(descriptions.select("StockCode", title="Description"), on="StockCode", how="left")
    return items.select("StockCode", "title", "price").sort("StockCode")


def _users(lines: pl.DataFrame) -> pl.DataFrame:
    """Each customer's first country."""
    known = lines.filter(pl.col("CustomerID").is_not_null())
    first = known.unique("CustomerID", keep="first", maintain_order=True)
    return first.select("CustomerID", country="Country").sort("CustomerID")
