"""What each quantiser keeps of a catalogue's texts: distortion, collisions, use of the codes.

    python benchmarks/quantizers.py ${TFREC_DATA}/amazon-beauty/items.csv:text FILE.csv:COLUMN...

Every text of a column becomes a vector of 64 numbers by TF-IDF + SVD, fitted on the same texts, as the job does it;
then each quantiser is fitted on the vectors and codes them. Texts without a known word have no vector and are left out.
Collisions are items that share all their codes with another; equal vectors collide whatever the quantiser, so their
number stands beside it. Distortion is the share of the variance that the codes lose. The last line of stdout is one
JSON document.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from beam_jobs.encoders import fit_tfidf_svd
from beam_jobs.quantizers import fit_quantizer, quality
from tfrec.config import FeatureConfig
from tfrec.transforms import FIRST_VALUE, TfidfSvd, write_arrays, write_values

DIM = 64
SETTINGS: tuple[dict[str, object], ...] = (
    {"quantizer": "quantile", "groups": 8, "dims_per_group": 2, "quantiles": 8},
    {"quantizer": "product", "groups": 8, "dims_per_group": 2, "codes": 64},
    {"quantizer": "product", "groups": 8, "dims_per_group": 8, "codes": 64},
    {"quantizer": "product", "groups": 8, "dims_per_group": 8, "codes": 256},
    {"quantizer": "residual", "levels": 3, "codes": 256},
    {"quantizer": "residual", "levels": 8, "codes": 64},
)


def vectors_of(texts: list[str | None], folder: Path) -> np.ndarray:
    """The vectors `(N, DIM)` of the texts that have one."""
    words, arrays = fit_tfidf_svd(texts, DIM)
    encoder = TfidfSvd(vocabulary="words.txt", file="words.npz", dim=DIM)
    write_values(folder / encoder.vocabulary, words)
    write_arrays(folder / encoder.file, arrays)
    vectors = encoder.encode(texts, folder)
    return vectors[np.isfinite(vectors).all(axis=1)]


def measure(vectors: np.ndarray, settings: dict[str, object], folder: Path) -> dict[str, object]:
    """The quality of one quantiser, and the bits that an item's codes have room for."""
    transform, fitted = fit_quantizer(vectors, FeatureConfig(name="text", kind="text", dim=DIM, **settings))
    write_arrays(folder / transform.file, fitted)
    report = quality(transform.encode(vectors, folder), vectors, transform, fitted)
    sizes = [size - FIRST_VALUE for size in transform.table_sizes]
    dead = sum(report["dead_codes"]) / sum(sizes)
    return {**settings, **report, "bits": float(np.log2(sizes).sum()), "share_of_dead_codes": dead}


def row(found: dict[str, object]) -> str:
    """A line of the table."""
    options = ", ".join(f"{name} {value}" for name, value in found.items() if name in SETTING_NAMES)
    perplexity = np.mean(found["perplexity"])
    collisions, coded = found["collisions"], found["coded"]
    return (
        f"| {found['quantizer']}: {options} | {found['bits']:.0f} | {found['distortion']:.3f} | {collisions:,} "
        f"({collisions / coded:.1%}) | {perplexity:.1f} | {found['share_of_dead_codes']:.1%} |"
    )


SETTING_NAMES = {name for settings in SETTINGS for name in settings} - {"quantizer"}


def main() -> None:
    """Prints a table a file and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", metavar="FILE.csv:COLUMN")
    document = {}
    for text in parser.parse_args().texts:
        path, _, column = text.rpartition(":")
        texts = pl.read_csv(path, infer_schema=False)[column].to_list()
        with tempfile.TemporaryDirectory() as folder:
            vectors = vectors_of(texts, Path(folder))
            found = [measure(vectors, settings, Path(folder)) for settings in SETTINGS]
        _, sharing = np.unique(vectors, axis=0, return_counts=True)
        equal = int(sharing[sharing > 1].sum())
        name = "/".join(Path(path).parts[-2:])
        print(f"\n{name}: {len(vectors):,} vectors of {len(texts):,} texts, {equal:,} equal to another\n")
        print("| quantiser | bits an item | distortion | collisions | mean perplexity | dead codes |")
        print("|---|---|---|---|---|---|")
        print("\n".join(map(row, found)))
        document[name] = {"texts": len(texts), "vectors": len(vectors), "equal_vectors": equal, "quantizers": found}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
