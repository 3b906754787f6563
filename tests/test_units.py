from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.units import (
    DURATION_PATTERN,
    SHARE_PATTERN,
    SIZE_PATTERN,
    format_count,
    format_duration,
    format_share,
    format_size,
    parse_duration,
    parse_share,
    parse_size,
)

GIB = 1 << 30
SECOND_NS = 10**9


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("512GiB", 512 * GIB),
        ("512Gi", 512 * GIB),
        ("512 GiB", 512 * GIB),
        ("512GB", 512 * 10**9),
        ("1.5KiB", 1536),
        ("16kB", 16_000),
        ("16KB", 16_000),
        ("4096", 4096),
        ("4096B", 4096),
        ("0", 0),
        (4096, 4096),
        ("8191PiB", 8191 << 50),
        ("0.0009765625KiB", 1),
    ],
)
def test_sizes_are_read_exactly(text: str | int, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16G", "'16G' is ambiguous; write 16GiB (binary) or 16GB (decimal)"),
        ("16k", "'16k' is ambiguous; write 16KiB (binary) or 16KB (decimal)"),
        ("16Gb", "'16Gb' is not a size; write 512GiB"),
        ("2^30", "'2^30' is not a size; write 512GiB"),
        ("512 Gigs", "'512 Gigs' is not a size; write 512GiB"),
        ("1e9", "'1e9' is not a size"),
        ("-1GiB", "'-1GiB' is not a size"),
        ("0.5B", "'0.5B' is not a whole number of bytes"),
        ("1.00000000000000000000000000000000000001KiB", "is not a whole number of bytes"),
        ("8192PiB", "'8192PiB' is too large; sizes stay below 8192PiB"),
        ("1  GiB", "is not a size"),
        (" 1GiB", "is not a size"),
        ("１GiB", "is not a size"),
        ("", "'' is not a size"),
        ("9" * 65 + "B", "is not a size"),
        (-5, "-5 is not a size; sizes are not negative"),
        (True, "True is not a size"),
        (2**63, "9223372036854775808 is too large"),
        (None, "'None' is not a size"),
        (1.5, "1.5 is not a size"),
    ],
)
def test_wrong_sizes_say_what_to_write(text: str | int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "n_ns"),
    [
        ("20ms", 20_000_000),
        ("90s", 90 * SECOND_NS),
        ("15min", 900 * SECOND_NS),
        ("6h", 21_600 * SECOND_NS),
        ("3d", 259_200 * SECOND_NS),
        ("1h30min", 5_400 * SECOND_NS),
        ("1h 30 min", 5_400 * SECOND_NS),
        ("0.5s", 500_000_000),
        ("1.5us", 1_500),
        ("7ns", 7),
        ("0s", 0),
    ],
)
def test_durations_are_read_exactly(text: str, n_ns: int) -> None:
    assert parse_duration(text) == n_ns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("20", "'20' has no unit; write 20ms, 90s, 15min, 6h or 3d"),
        (20, "20 has no unit"),
        (2.5, "2.5 has no unit"),
        ("5m", "'5m': 'm' may be minutes or months; write 5min"),
        ("half an hour", "'half an hour' is not a duration"),
        ("1 2s", "'1 2s' is not a duration"),
        ("1.5 0s", "'1.5 0s' is not a duration"),
        ("1s ", "'1s ' is not a duration"),
        (" 1s", "' 1s' is not a duration"),
        ("-1s", "'-1s' is not a duration"),
        ("1h1h", "units go from large to small, as in 1h30min"),
        ("30min1h", "units go from large to small"),
        ("1h30", "'1h30' is not a duration"),
        ("0.5ns", "'0.5ns' is not a whole number of nanoseconds"),
        ("200000d", "is too long; durations stay below 292 years"),
        ("", "'' is not a duration"),
        (True, "True is not a duration"),
        (None, "'None' is not a duration"),
        ("1s" * 40, "is not a duration"),
    ],
)
def test_wrong_durations_say_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "fraction"), [("12%", 0.12), ("0%", 0.0), ("12.5 %", 0.125), ("250%", 2.5)]
)
def test_shares_are_read(text: str, fraction: float) -> None:
    assert parse_share(text) == fraction


@pytest.mark.parametrize("text", ["lots", "0.12", "12", "-1%", "%", "12%%", 12, None, "9" * 70])
def test_wrong_shares_say_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="is not a share; write 12%"):
        parse_share(text)


@given(st.text(alphabet="0123456789. kKMGTPiBnsumhd%^e-", max_size=12))
def test_the_schema_patterns_accept_all_that_the_parsers_accept(text: str) -> None:
    for parse, pattern in (
        (parse_size, SIZE_PATTERN),
        (parse_duration, DURATION_PATTERN),
        (parse_share, SHARE_PATTERN),
    ):
        try:
            parse(text)
        except ValueError:
            continue
        assert re.search(pattern, text), text


@given(st.integers(0, 2**63 - 1))
def test_integers_read_back_as_themselves(n: int) -> None:
    assert parse_size(str(n)) == parse_size(n) == parse_size(f"{n}B") == n
    assert parse_duration(f"{n}ns") == n


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.00 KiB"),
        (1536 << 20, "1.50 GiB"),
        (10 * GIB - 1, "10.0 GiB"),
        (512 * GIB, "512 GiB"),
        (20_000 * GIB, "19.5 TiB"),
    ],
)
def test_sizes_are_shown_with_three_figures(n_bytes: int, text: str) -> None:
    assert format_size(n_bytes) == text


@pytest.mark.parametrize(
    ("n_ns", "text"),
    [
        (0, "0 s"),
        (24_000_000, "24.0 ms"),
        (1_500_000_000, "1.50 s"),
        (90 * SECOND_NS, "90.0 s"),
        (600 * SECOND_NS, "10.0 min"),
        (5_400 * SECOND_NS, "90.0 min"),
        (9_000 * SECOND_NS, "2h30min"),
        (3 * 86_400 * SECOND_NS, "3d00h"),
    ],
)
def test_durations_are_shown_in_the_unit_a_person_would_choose(n_ns: int, text: str) -> None:
    assert format_duration(n_ns) == text


def test_shares_and_counts_are_shown_with_unit_and_groups() -> None:
    assert format_share(0.125) == "12.5 %"
    assert format_share(0.09999) == "10.0 %"
    assert format_count(1_234_567).split() == ["1", "234", "567"]
