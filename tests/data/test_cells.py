"""What a cell of a table is."""

import pytest

from fedsieve.data.cells import kind_of, text_of


@pytest.mark.parametrize("cell", ["0", "-1", "+1.5", "1.", ".5", "1e3", "-1.5E-3", "007", "1e400", "9" * 5000, "-0"])
def test_numbers(cell: str) -> None:
    assert kind_of(cell) == "number"


@pytest.mark.parametrize(
    "cell",
    [
        *("5,400", "5,4", "1.234,5", "1,234.5", "1,00,000", "12 000", "12\N{NO-BREAK SPACE}000", "1'000", "1\u2019000"),
        *("1_000", "0x1F", "inf", "-Infinity", "12 %", "$5", "5 \N{EURO SIGN}", "(1,234)", "1d3", "\N{MINUS SIGN}5"),
        *("\u0661\u0662", "\uff15", "\u0661\u066b\u0662"),  # digits of other scripts
    ],
)
def test_nearly_numbers(cell: str) -> None:
    assert kind_of(cell) == "nearly"


@pytest.mark.parametrize(
    "cell",
    [
        *(
            "",
            "?",
            ".",
            "-",
            "--",
            "\N{EM DASH}",
            "NA",
            "na",
            "N/A",
            "#N/A",
            "<NA>",
            "NaN",
            "-nan",
            "NULL",
            "None",
            "NaT",
        ),
        *("unknown", "UNKNOWN", "-999"),  # said to mean missing
    ],
)
def test_missing(cell: str) -> None:
    assert kind_of(cell, frozenset({"unknown", "-999"})) == "missing"


@pytest.mark.parametrize(
    "cell",
    ["unknown", "A1", "7 km", "2024-01-05", "31.12.2023", "12:30", "1/2", "1.2.3", "TRUE", "5" * 101 + ",5", "+"],
)
def test_words(cell: str) -> None:
    assert kind_of(cell) == "word"


def test_in_a_message() -> None:
    assert text_of("a\x1b\n") == r"'a\x1b\n'"
    assert text_of("x" * 1000) == f"'{'x' * 40}'..."
