"""Where texts stand among sorted ones."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.staging import positions

texts = st.text(max_size=4)


@settings(deadline=None)
@given(st.lists(st.none() | texts, max_size=20), st.sets(texts, max_size=20))
def test_positions_are_those_of_a_list(asked, known):
    ordered = pl.Series(sorted(known, key=str.encode), dtype=pl.String)
    place = {text: number for number, text in enumerate(ordered)}
    found = positions(pl.Series("asked", asked, dtype=pl.String), ordered)
    assert found.to_list() == [None if text is None else place.get(text) for text in asked]
    assert (found.name, found.dtype) == ("asked", pl.UInt32)
