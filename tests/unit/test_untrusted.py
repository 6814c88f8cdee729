"""Foreign text: parsed in one pass, and quoted without secrets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.untrusted import parse_json, without_secrets


class Counted(str):
    """A key that counts how often any is compared, for time is no measure here."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


def test_a_doubled_key_among_many_is_found_in_one_pass() -> None:
    from builder.untrusted import _distinct

    Counted.comparisons = 0
    pairs = [(Counted(f"key{number}"), 0) for number in range(20_000)]
    with pytest.raises(ValueError, match="key 'key19999' stands there twice"):
        _distinct([*pairs, (Counted("key19999"), 1)])
    assert Counted.comparisons < 1000  # those of equal hashes alone; it was 200,000,000


def test_a_doubled_key_in_a_large_file_ends() -> None:
    names = [f'"key{number:06}":{number}' for number in range(200_000)]
    with pytest.raises(ValueError, match="key 'key199999' stands there twice"):
        parse_json("{" + ",".join([*names, '"key199999":0']) + "}")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(_JSON)
def test_json_of_one_meaning_is_read_as_it_is(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@given(st.lists(st.text(max_size=2), max_size=8))
def test_a_key_that_stands_twice_is_always_found(names: list[str]) -> None:
    text = "{" + ",".join(f"{json.dumps(name)}:0" for name in names) + "}"
    if len(set(names)) < len(names):
        with pytest.raises(ValueError, match="stands there twice"):
            parse_json(text)
    else:
        assert list(parse_json(text)) == names


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("S3://KEY:SECRET@bucket/x", "S3://bucket/x"),
        ("s3://KEY/SEC/RET@bucket/x", "s3://bucket/x"),
        ("s3://KEY SECRET@bucket/x", "s3://bucket/x"),
        ("s3 ://KEY:SECRET@bucket/x", "s3 ://bucket/x"),
        ("s3:/KEY:SECRET@bucket/x", "s3:/bucket/x"),
        ("https://me:SECRET@hub.example:8080/api", "https://hub.example:8080/api"),
        ("https://hub.example/x?token=SECRET#SECRET", "https://hub.example/x"),
        (
            'GET "https://a:SECRET@b.example/x?sig=SECRET" of me@c.example: 403',
            'GET "https://b.example/x" of me@c.example: 403',
        ),
        ("hf://datasets/me/set@main/x", "hf://datasets/me/set@main/x"),
        ("at hf://datasets/me/set@main: no", "at hf://datasets/me/set@main: no"),
        ("of s3://K:SECRET@b/a@2x.png: no", "of s3://b/a@2x.png: no"),
        ("sets/me@home", "sets/me@home"),
        ("/data/a b/@eaDir", "/data/a b/@eaDir"),
    ],
)
def test_secrets_are_dropped_and_places_kept(text: str, wanted: str) -> None:
    assert without_secrets(text) == wanted
    assert "SECRET" not in without_secrets(text)
