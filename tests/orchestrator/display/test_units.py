"""Numbers formatted for people."""

import pytest

from orchestrator.display.units import age, count, duration, percent, size


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (count(999), "999"),
        (count(999.6), "1.00k"),
        (count(12345), "12.3k"),
        (count(1.5e9), "1.50G"),
        (size(1234567), "1.23 MB"),
        (size(12), "12 B"),
        (duration(0.0042), "4.2 ms"),
        (duration(4.2), "4.2 s"),
        (duration(59.96), "1 min 00 s"),
        (duration(7500), "2 h 05 min"),
        (percent(0.1234), "12.3 %"),
        (age(59.9), "59 s"),
        (age(60), "1 min"),
        (age(7199), "1 h"),
        (age(400 * 86400), "400 d"),
    ],
)
def test_numbers_are_formatted_for_people(found: str, expected: str) -> None:
    assert found == expected
