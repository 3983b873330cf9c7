import math
from collections import Counter

import numpy as np

from beam_jobs.encoders import fit_tfidf_svd
from tfrec.transforms import TfidfSvd, write_arrays, write_values

TEXTS = [
    "Red summer dress",
    "blue summer dress, blue!",
    "red wool coat",
    "blue wool coat",
    None,
    "Summer hat red",
    "hat hat HAT wool",
]


def make_encoder(texts, tmp_path, dim=3, **options):
    kept, arrays = fit_tfidf_svd(texts, dim, **options)
    write_values(tmp_path / "words.txt", kept)
    write_arrays(tmp_path / "words.npz", arrays)
    return kept, arrays, TfidfSvd(vocabulary="words.txt", file="words.npz", dim=dim)


def dense_tfidf(texts, kept):
    """The weights by plain loops."""
    documents = [Counter((text or "").lower().replace(",", " ").replace("!", " ").split()) for text in texts]
    idf = [math.log((1 + len(texts)) / (1 + sum(word in document for document in documents))) + 1 for word in kept]
    rows = np.zeros((len(texts), len(kept)))
    for row, document in enumerate(documents):
        for column, word in enumerate(kept):
            if document[word]:
                rows[row, column] = (1 + math.log(document[word])) * idf[column]
        length = math.sqrt((rows[row] ** 2).sum())
        rows[row] /= length or 1
    return rows


def test_words_are_by_falling_number_of_texts_then_by_the_word(tmp_path):
    kept, _, _ = make_encoder(TEXTS, tmp_path)
    assert kept == ["red", "summer", "wool", "blue", "coat", "dress", "hat"]


def test_min_count_and_max_words_limit_the_words():
    assert fit_tfidf_svd(TEXTS, 2, min_count=3)[0] == ["red", "summer", "wool"]
    assert fit_tfidf_svd(TEXTS, 2, max_words=2)[0] == ["red", "summer"]


def test_vectors_equal_a_dense_svd_of_looped_weights(tmp_path):
    kept, _, encoder = make_encoder(TEXTS, tmp_path)
    rows = dense_tfidf(TEXTS, kept)
    _, _, directions = np.linalg.svd(rows)
    expected = rows @ directions[:3].T
    lengths = np.linalg.norm(expected, axis=1)
    vectors = encoder.encode(TEXTS, tmp_path)
    full = lengths > 0
    # Signs of singular vectors are a convention: similarities do not depend on them.
    expected = expected[full] / lengths[full, None]
    np.testing.assert_allclose(vectors[full] @ vectors[full].T, expected @ expected.T, atol=1e-5)
    assert np.isnan(vectors[~full]).all()
    assert (~full).tolist() == [text is None for text in TEXTS]


def make_many_texts(count):
    random = np.random.default_rng(3)
    names = [f"word{chr(97 + i % 26)}{i}" for i in range(400)]
    chances = 1 / np.arange(1, 401)
    return [" ".join(random.choice(names, size=8, p=chances / chances.sum())) for _ in range(count)]


def test_sparse_svd_finds_the_space_of_the_dense_one():
    texts = make_many_texts(600)
    kept, arrays = fit_tfidf_svd(texts, 8)
    _, _, directions = np.linalg.svd(dense_tfidf(texts, kept))
    overlap = np.abs(np.sum(arrays["components"] * directions[:8].T, axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-4)
    largest = arrays["components"][np.abs(arrays["components"]).argmax(0), range(8)]
    assert (largest > 0).all()


def test_equal_texts_give_equal_bytes():
    texts = make_many_texts(400)
    first, second = fit_tfidf_svd(texts, 8), fit_tfidf_svd(texts, 8)
    assert first[0] == second[0]
    for name in ("idf", "components"):
        assert first[1][name].tobytes() == second[1][name].tobytes()


def test_a_text_has_the_same_vector_alone_and_in_a_batch(tmp_path):
    texts = make_many_texts(300)
    _, _, encoder = make_encoder(texts, tmp_path, dim=16)
    together = encoder.encode(texts, tmp_path)
    alone = np.concatenate([encoder.encode([text], tmp_path) for text in texts])
    assert together.tobytes() == alone.tobytes()


def test_a_rank_below_dim_leaves_zeros_behind():
    _, arrays = fit_tfidf_svd(["red dress", "red dress", "blue coat", "blue coat"], 5)
    assert arrays["components"].shape == (4, 5)
    assert (arrays["components"][:, 2:] == 0).all()
    assert (np.abs(arrays["components"][:, :2]).sum(axis=0) > 0).all()


def test_no_known_word_gives_no_vectors(tmp_path):
    kept, _, encoder = make_encoder(["a b", None, "only once"], tmp_path)
    assert kept == []
    assert np.isnan(encoder.encode(["only", ""], tmp_path)).all()
