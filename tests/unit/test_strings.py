"""Columns of strings come back as they went in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtools.artifact import kinds
from kvtools.artifact.strings import pack, unpack


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_any_strings_come_back_and_pass_the_check_of_their_kind(strings):
    tensors = pack("keys", strings)
    assert unpack("keys", tensors) == strings
    kinds._check_columns(tensors)


def test_a_column_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="^there is no column of strings named titles$"):
        unpack("titles", pack("keys", ["a"]))
