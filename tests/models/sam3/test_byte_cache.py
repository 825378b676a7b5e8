"""The cache: bounded in bytes, least used goes first."""

from __future__ import annotations

from medsam3.models.sam3.byte_cache import ByteCache


def cache(limit: int) -> ByteCache[str, str]:
    return ByteCache(limit, len)


def test_what_was_used_longest_ago_goes_first() -> None:
    kept = cache(10)
    for key in "abc":
        kept.put(key, key * 3)  # 9 bytes
    assert kept.get("a") == "aaa"
    kept.put("d", "dd")  # 11 bytes: b goes, a was used since
    assert [kept.get(key) for key in "abcd"] == ["aaa", None, "ccc", "dd"]
    assert kept.used_bytes == 8


def test_a_value_above_the_limit_is_not_kept_and_drops_nothing() -> None:
    kept = cache(4)
    kept.put("a", "aaa")
    kept.put("b", "bbbbb")
    assert (kept.get("a"), kept.get("b"), len(kept)) == ("aaa", None, 1)
    nothing = cache(0)
    assert nothing.get_or_make("a", lambda: "x") == "x"
    assert len(nothing) == 0


def test_a_value_is_made_once() -> None:
    made = []
    kept = cache(10)
    for _ in range(3):
        assert kept.get_or_make("a", lambda: made.append(1) or "aaa") == "aaa"  # type: ignore[func-returns-value]
    assert made == [1]
    kept.clear()
    assert (len(kept), kept.used_bytes) == (0, 0)
