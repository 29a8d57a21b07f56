"""The index of a store of embeddings against a dictionary."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_jax.data.embeddings import _Index

# Few different halves, so that keys share one of them or are equal.
HALVES = st.sampled_from([b"\0" * 8, b"\0" * 7 + b"\1", b"\x80" + b"\0" * 7, b"\xff" * 8, b"abcdefgh"])
KEYS = st.builds(bytes.__add__, HALVES, HALVES)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(KEYS, max_size=6), min_size=1, max_size=4).filter(any), KEYS)
def test_every_key_is_found_where_it_is_and_no_other(shards, other):
    index = _Index.of([np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16) for keys in shards])
    places = {}
    for number, keys in enumerate(shards):
        for row, key in enumerate(keys):
            places.setdefault(key, (number, row))
    assert len(index) == len(places)
    assert {key: index.find(key) for key in (*places, other)} == {key: places.get(key) for key in (*places, other)}
