"""Fits the text encoder that needs no download: TF-IDF over words, then a truncated SVD."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.transforms import FIRST_VALUE, tfidf_rows, words


def fit_tfidf_svd(
    texts: Sequence[str | None], dim: int, min_count: int = 2, max_words: int = 50_000
) -> tuple[list[str], dict[str, NDArray[np.float32]]]:
    """The words, and the arrays `idf (V,)` and `components (V, dim)`, of a `TfidfSvd` encoder.

    idf = log((1 + N) / (1 + texts with the word)) + 1. The components are the right singular vectors of the matrix
    of unit TF-IDF rows, the strongest first, each with its largest entry positive; where the texts have a lower rank
    than `dim`, the rest are zero. Equal texts in equal order give equal bytes.

    Args:
        texts: what it is fitted on; None counts as empty.
        dim: width of the vectors.
        min_count: words of fewer texts are left out.
        max_words: words kept at most, those of the most texts (ties by the word).
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(words(text)))
    ranked = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    kept = ranked[:max_words]
    frequency = np.array([counts[word] for word in kept], np.float64)
    idf = (np.log((1 + len(texts)) / (1 + frequency)) + 1).astype(np.float32)
    codes = {word: code for code, word in enumerate(kept, start=FIRST_VALUE)}
    return kept, {"idf": idf, "components": _components(tfidf_rows(texts, codes, idf), dim)}


def _components(matrix: Any, dim: int) -> NDArray[np.float32]:
    from scipy.sparse.linalg import svds  # slow to import, and most jobs need none

    components = np.zeros((matrix.shape[1], dim), np.float64)
    exact = min(matrix.shape)
    if exact <= max(dim, 256):
        _, strengths, directions = np.linalg.svd(matrix.toarray().astype(np.float64), full_matrices=False)
    else:
        start = np.random.default_rng(0).normal(size=exact)
        _, strengths, directions = svds(matrix.astype(np.float64), k=dim, v0=start, solver="arpack")
    order = np.argsort(-strengths, kind="stable")[:dim]
    order = order[strengths[order] > 1e-6 * strengths.max(initial=0)]
    found = directions[order].T
    if found.size:
        largest = found[np.abs(found).argmax(axis=0), np.arange(found.shape[1])]
        components[:, : found.shape[1]] = found * np.where(largest < 0, -1.0, 1.0)
    return components.astype(np.float32)
