"""Tables as they are in life: each works, with the right numbers, or says in one line why not."""

import gzip
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import CorruptDataError, FedSieveError, MissingDataError, ParameterError
from fedsieve.data.dataset import Dataset
from fedsieve.data.table import CSV
from fedsieve.data.table_file import read_table
from fedsieve.data.table_rows import Written

N = 60
DOSES = [1.5 + k / 4 for k in range(N)]
CITIES = [("Köln", "Genève, CH", "Łódź")[k % 3] for k in range(N)]
WESTERN = [("Köln", "Genève, CH", "Århus")[k % 3] for k in range(N)]
LABELS = [("no", "yes")[k % 2] for k in range(N)]
SITES = [("A", "B")[k % 4 // 2] for k in range(N)]


def text(separator: str = ",", comma: bool = False, cities: list[str] = CITIES, end: str = "\n") -> str:
    rows = [["dose", "city", "site", "y"]]
    for dose, city, site, label in zip(DOSES, cities, SITES, LABELS, strict=True):
        number = str(dose).replace(".", ",") if comma else str(dose)
        quoted = f'"{city}"' if separator in city else city
        rows.append([f'"{number}"' if separator in number else number, quoted, site, label])
    return "".join(separator.join(row) + end for row in rows)


def write(folder: Path, content: str | bytes, name: str = "t.csv") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load(seed: int = 0, **parameters: Any) -> Dataset:
    return CSV(**{"label": "y", **parameters}).load(Path(), torch.Generator().manual_seed(seed))


def cells(file: str, **layout: str) -> Mapping[str, list[str]]:
    return read_table(Path(file), True, Written(**layout)).columns


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (text().encode(), "t.csv", ""),
        (text().encode("utf-8-sig"), "t.csv", ""),
        (text(";").encode(), "t.csv", "separated by ;"),
        (text("\t").encode(), "t.csv", "separated by tabs"),
        (text("|").encode(), "t.txt", "separated by |"),
        (text("\t").encode(), "t.tsv", ""),
        (text(";", comma=True).encode(), "t.csv", "separated by ;, decimal commas in 1 columns"),
        (text("\t", comma=True).encode("utf-16"), "t.csv", "read as UTF-16, separated by tabs, decimal commas in 1 co"),
        (text().encode("utf-16-be"), "t.csv", ""),
        (text(cities=WESTERN).encode("cp1252"), "t.csv", "read as Windows-1252"),
        (text(cities=WESTERN).encode("latin-1"), "t.csv", "read as Windows-1252"),
        (text(end="\r\n").encode(), "t.csv", ""),
        (text(end="\r").encode(), "t.csv", ""),
        (text(end="\n\n").encode(), "t.csv", ""),
        (gzip.compress(text(";").encode()), "t.csv.gz", "separated by ;"),
        (f"sep=;\n{text(';')}".encode(), "t.csv", "separated by ;"),
        (f'"sep=;"\r\n{text(";")}'.encode("utf-8-sig"), "t.csv", "separated by ;"),
        ((text() + ",,,\n,,,\n").encode(), "t.csv", "2 lines without any value left out"),
        (text().replace(",", ", ").encode(), "t.csv", ""),
    ],
    ids=[
        *("plain", "bom", "semicolons", "tabs", "bars", "tsv", "decimal commas", "utf-16 of Excel", "utf-16-be"),
        *(
            "windows-1252",
            "latin-1",
            "crlf",
            "cr",
            "empty lines",
            "gzip",
            "sep",
            "sep in quotes",
            "rows of commas",
            "spaces",
        ),
    ],
)
def test_texts(tmp_path: Path, content: bytes, name: str, said: str) -> None:
    more = {"encoding": "utf-16-be"} if content[:1] == b"\0" else {}
    data = load(file=write(tmp_path, content, name), client="site", **more)
    cities = WESTERN if "Windows" in said else CITIES
    found = cells(write(tmp_path, content, name), **more)
    assert list(map(float, found["dose"])) == DOSES
    assert (found["y"], found["site"]) == (LABELS, SITES)
    assert [city.replace(" ", "") for city in found["city"]] == [city.replace(" ", "") for city in cities]
    assert data.class_names == ("no", "yes")
    assert data.owner_names == ("A", "B")
    assert data.test_owners is not None
    assert data.test_owners.bincount().tolist() == [6, 6]
    x = torch.cat([data.x_train, data.x_test])
    assert x.shape == (N, 4)
    assert x[:, 1:].sum(0).tolist() == [20, 20, 20]
    mean, deviation = data.x_train[:, 0].mean(), data.x_train[:, 0].std(unbiased=False)
    torch.testing.assert_close(torch.stack([mean, deviation]), torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)
    assert said in data.reading
    assert ("read as" in data.reading) == ("read as" in said or bool(more))


class TestBinary:
    def sheet(self, folder: Path, rows: list[list[Any]], name: str = "t.xlsx", more: str = "") -> str:
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        if more:
            book.create_sheet(more).append(["nothing"])
        book.save(folder / name)
        return str(folder / name)

    def test_a_sheet(self, tmp_path: Path) -> None:
        when = [datetime(2024, 1 + k % 12, 1) for k in range(N)]
        rows = [list(row) for row in zip(DOSES, CITIES, range(N), when, [k % 2 == 0 for k in range(N)], strict=True)]
        rows[3][0] = None
        file = self.sheet(tmp_path, [["dose", "city", "n", "when", "y"], *rows[:10], [], *rows[10:]], more="Notes")
        data = load(file=file, fill="indicator")
        assert data.class_names == ("False", "True")
        assert data.input_shape == (1 + 1 + 3 + 1,)
        said = "left out as dates: when, missing numbers filled with the mean and marked: 1 of dose, sheet Sheet of 2"
        assert said in data.reading
        marks = torch.cat([data.x_train, data.x_test])[:, 1]
        assert marks.sort().values.tolist() == [0.0] * (N - 1) + [1.0]
        assert cells(file)["when"][:2] == ["2024-01-01", "2024-02-01"]
        with pytest.raises(CorruptDataError, match=r"t\.xlsx, row 5: column 'dose' is empty: a number is missing"):
            load(file=file, fill="error")
        with pytest.raises(ParameterError, match=r"^csv: sheet 'Data' is not in .*t\.xlsx; there are Sheet, Notes$"):
            load(file=file, sheet="Data")
        with pytest.raises(ParameterError, match=r"^csv: separator has no effect on .*t\.xlsx, which is no text$"):
            load(file=file, separator=";")

    def test_a_parquet_file(self, tmp_path: Path) -> None:
        frame = pd.DataFrame(
            {
                "dose": [None, *DOSES[1:]],
                "n": pd.array([None, *range(1, N)], "Int64"),
                "city": pd.Categorical(CITIES),
                "when": pd.date_range("2024-01-01", periods=N, tz="UTC"),
                "y": [k % 2 for k in range(N)],
            },
            index=[f"p{k}" for k in range(N)],
        )
        frame.to_parquet(tmp_path / "t.parquet")
        data = load(file=str(tmp_path / "t.parquet"))
        assert data.class_names == ("0", "1")
        assert data.input_shape == (5,)
        assert (
            "2 numeric + 1 one-hot columns (city with 3 values), first column without a name left out" in data.reading
        )
        assert "missing numbers filled with the mean: 1 of dose, 1 of n" in data.reading
        found = cells(str(tmp_path / "t.parquet"))
        assert found["n"][:3] == ["", "1", "2"]
        assert found["when"][1].startswith("2024-01-02")
        for setting in ({"header": False}, {"sheet": "a"}, {"encoding": "utf-8"}):
            with pytest.raises(ParameterError, match=f"^csv: {next(iter(setting))} has no effect on "):
                load(file=str(tmp_path / "t.parquet"), **setting)

    def test_labels_of_every_type(self, tmp_path: Path) -> None:
        kinds: dict[str, list[Any]] = {
            "bool": [True, False],
            "int": [10, 9],
            "float": [1.0, 0.0],
            "string": ["b", "a"],
            "date": [date(2024, 1, 2), date(2024, 1, 1)],
        }
        names = {"bool": ("False", "True"), "int": ("9", "10"), "float": ("0", "1"), "string": ("a", "b")}
        for kind, values in kinds.items():
            labels = [values[k % 2] for k in range(N)]
            pyarrow.parquet.write_table(pyarrow.table({"dose": DOSES, "y": labels}), tmp_path / "t.parquet")
            data = load(file=str(tmp_path / "t.parquet"))
            assert data.class_names == names.get(kind, ("2024-01-01", "2024-01-02"))
            assert torch.cat([data.y_train, data.y_test]).bincount().tolist() == [N // 2] * 2

    def test_columns_of_other_types(self, tmp_path: Path) -> None:
        of = pyarrow.array
        odd = {
            "day": of([date(2024, 1, 1 + k % 9) for k in range(N)]),
            "wait": of([timedelta(hours=k % 9) for k in range(N)]),
            "cost": of([Decimal(k % 9) / 4 for k in range(N)]),
            "blood": of([b"A+" if k % 2 else b"0-" for k in range(N)]),
            "list": of([[k % 2, 1] for k in range(N)]),
            "none": pyarrow.nulls(N),
            "y": of([k % 2 == 0 for k in range(N)]),
        }
        pyarrow.parquet.write_table(pyarrow.table(odd), tmp_path / "t.parquet")
        data = load(file=str(tmp_path / "t.parquet"))
        said = "1 numeric + 3 one-hot columns (wait with 9 values, blood with 2 values, list with 2 values), "
        assert data.reading.endswith(f"{said}left out as empty: none, left out as dates: day")

    @pytest.mark.parametrize("name", ["t.xlsx", "t.parquet"])
    def test_damaged(self, tmp_path: Path, name: str) -> None:
        if name == "t.xlsx":
            whole = Path(self.sheet(tmp_path, [["dose", "y"], [1, 0], [2, 1]])).read_bytes()
        else:
            pyarrow.parquet.write_table(pyarrow.table({"dose": DOSES, "y": LABELS}), tmp_path / name)
            whole = (tmp_path / name).read_bytes()
        for content in (b"", b"dose,y\n1,0\n", whole[:-40], whole[: len(whole) // 2]):
            with pytest.raises(CorruptDataError, match=rf"{name} is not a whole \{name[1:]} file: .") as error:
                load(file=write(tmp_path, content, name))
            assert "\n" not in str(error.value)
        with pytest.raises(MissingDataError, match="cannot be read: No such file or directory"):
            load(file=str(tmp_path / "no" / name))

    def test_a_package_that_is_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        file = self.sheet(tmp_path, [["dose", "y"], [1, 0], [2, 1]])
        monkeypatch.setitem(sys.modules, "openpyxl", None)
        with pytest.raises(
            MissingDataError, match=r"t\.xlsx takes the package openpyxl to read; pip install 'fedsieve"
        ):
            load(file=file)

    @pytest.mark.parametrize("name", ["t.xls", "t.ods", "t.dta", "t.zip"])
    def test_other_programs(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ParameterError, match=r"is not read; save it as \.csv, \.xlsx or \.parquet$"):
            load(file=write(tmp_path, b"anything", name))

    def test_bombs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """100 million equal values in a few kilobytes, and as many spaces in a sheet."""
        monkeypatch.setenv("FEDSIEVE_MAX_GIB", "0.01")
        schema = pyarrow.schema([("dose", pyarrow.int64())])
        with pyarrow.parquet.ParquetWriter(tmp_path / "t.parquet", schema) as writer:
            writer.write_table(pyarrow.table({"dose": np.ones(1_000_000, np.int64)}))
        file = self.sheet(tmp_path, [["dose", "y"], [" " * 20_000, "a" * 20_000], *([["x" * 30_000] * 20] * 20)])
        for path in (str(tmp_path / "t.parquet"), file):
            with pytest.raises(CorruptDataError, match=r"in memory, more than the limit of 0\.01"):
                load(file=path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, encoding: str) -> None:
    content = ("\N{ZERO WIDTH NO-BREAK SPACE}" + text()).encode(encoding)
    assert next(iter(cells(write(tmp_path, content), encoding=encoding))) == "dose"


class TestOneLine:
    """What can't be read says where, and what to do."""

    @pytest.mark.parametrize(
        ("content", "parameters", "message"),
        [
            ("a,y\n1,0\n2,1\n3\n4,0\n", {}, "line 4: 1 columns, but the first row has 2"),
            ("a,y\n1,0\n2,1,\n4,0\n", {}, "line 3: 3 columns, but the first row has 2"),
            ('a,y\n"x\ny",0\n2,1,1\n', {}, "line 4: 3 columns, but the first row has 2"),
            ("Report of May\na;y\n1;0\n2;1\n", {}, "2 columns, but the first row has 1|columns are Report of May"),
            ("a,y\n1,0\n2,1\nTotal: 2\n", {}, "line 4: 1 columns, but the first row has 2"),
            ("a,a,y\n1,1,0\n2,2,1\n", {}, "has two columns named 'a'"),
            ("5.1,0\n4.9,1\n4.7,0\n", {}, "if the first row holds no names, set dataset.header=false"),
            ("a;y\n1,5;0\n1.5;1\n2,5;1\n", {}, "line 2: column 'a' is '1,5', not a finite number"),
            ("a,y\n1,0\n2,\n", {}, "line 3: column 'y' is empty; correct it or remove the row"),
            ("y\n0\n1\n", {}, "has no column to learn from besides 'y'"),
            ("a,y\n1,0\n", {}, "has 1 rows, at least 2 are needed"),
        ],
        ids=range(11),
    )
    def test_texts(self, tmp_path: Path, content: str, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(FedSieveError, match=message) as error:
            load(file=write(tmp_path, content), **parameters)
        assert "\n" not in str(error.value)

    def test_no_header(self, tmp_path: Path) -> None:
        rows = "".join(f"{dose};{label}\n" for dose, label in zip(DOSES, LABELS, strict=True))
        data = load(file=write(tmp_path, rows), header=False, label="1")
        assert (len(data.y_train), len(data.y_test), data.input_shape) == (48, 12, (1,))

    @pytest.mark.parametrize("kind", ["floats", "decimal commas", "integers", "names"])
    def test_what_is_no_class(self, tmp_path: Path, kind: str) -> None:
        number = {
            "floats": lambda k: f"{k / 7:.3f}",
            "decimal commas": lambda k: f"{k / 7:.3f}".replace(".", ","),
            "integers": lambda k: str(k * k),
            "names": lambda k: f"patient {k}",
        }[kind]
        rows = "".join(f"{k % 9};{number(k)}\n" for k in range(1, 2000 if kind == "floats" else 500))
        what = {"names": "different values: names, not classes", "integers": "different numbers: a quantity"}
        message = (
            rf"^csv: label 'y' has \d+ {what.get(kind, 'different numbers, with fractions such as .* a quantity')}"
        )
        with pytest.raises(ParameterError, match=message):
            load(file=write(tmp_path, "a;y\n" + rows))


class TestLeftOut:
    head = "patient_id,when,nurse,n,y\n"
    rows = "".join(f"{1000 + 7 * k},{k % 28 + 1}.{k % 12 + 1}.2024,name {k},{k % 9},{k % 2}\n" for k in range(N))

    def test_dates_and_identifiers(self, tmp_path: Path) -> None:
        file = write(tmp_path, self.head + self.rows)
        data = load(file=file)
        assert data.input_shape == (1,)
        assert data.reading.endswith(
            "1 numeric + 0 one-hot columns, left out as dates: when, left out as identifiers: patient_id, nurse"
        )

    def test_kept_and_dropped(self, tmp_path: Path) -> None:
        file = write(tmp_path, self.head + self.rows)
        assert load(file=file, keep=("patient_id",)).input_shape == (2,)
        assert load(file=file, keep=("nurse",)).input_shape == (1 + N,)
        data = load(file=file, keep=("patient_id",), drop=("n", "when"))
        assert data.input_shape == (1,)
        assert data.reading.endswith("left out as identifiers: nurse, dropped: n, when")
        with pytest.raises(
            ParameterError, match=r"^csv: drop column 'zip' is not in .*; the columns are patient_id, when"
        ):
            load(file=file, drop=("zip",))
        with pytest.raises(
            CorruptDataError, match=r"line 2: column 'when' is '1\.1\.2024', not a date that is read: wr"
        ):
            load(file=file, keep=("when",))

    def test_a_kept_date_is_a_number_of_days(self, tmp_path: Path) -> None:
        days = pd.date_range("2024-02-20", periods=N).strftime("%Y-%m-%d")
        file = write(tmp_path, "when,y\n" + "".join(f"{day},{k % 2}\n" for k, day in enumerate(days)))
        data = load(file=file, keep=("when",))
        plain = load(file=write(tmp_path, "n,y\n" + "".join(f"{k},{k % 2}\n" for k in range(N)), "n.csv"))
        torch.testing.assert_close(data.x_train, plain.x_train)

    def test_few_or_repeated_values_are_no_identifiers(self, tmp_path: Path) -> None:
        rows = "".join(f"{k % 20},{k},w{k % 20},{k % 2}\n" for k in range(N))
        data = load(file=write(tmp_path, "plan_id,fluid,ward,y\n" + rows))
        assert data.input_shape == (1 + 1 + 20,)

    def test_a_first_column_without_a_name_may_be_kept(self, tmp_path: Path) -> None:
        file = write(tmp_path, ",a,y\n" + "".join(f"{k},{k % 7},{k % 2}\n" for k in range(N)))
        assert load(file=file).input_shape == (1,)
        assert load(file=file, keep=("Unnamed: 0",)).input_shape == (2,)


class TestManyWords:
    def test_the_rarest_in_the_training_rows_are_one_feature(self, tmp_path: Path) -> None:
        # 99 codes three times, 30 codes once: the 30 are one feature
        codes = [f"c{k % 99:02}" for k in range(297)] + [f"rare{k:02}" for k in range(30)]
        file = write(tmp_path, "code,y\n" + "".join(f"{code},{k % 2}\n" for k, code in enumerate(codes)))
        data = load(file=file, test=0.01)
        x = torch.cat([data.x_train, data.x_test])
        assert x.shape == (327, 100)
        assert x.sum(1).eq(1).all()
        assert x[:, 99].sum() == 30
        assert "(code with 129 values, 30 rare ones as one)" in data.reading

    def test_features_that_would_fill_the_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        head = ",".join(f"c{k}" for k in range(20))
        rows = "".join(",".join([f"v{k % 99}"] * 20) + f",{k % 2}\n" for k in range(300))
        monkeypatch.setenv("FEDSIEVE_MAX_GIB", "0.008")
        with pytest.raises(CorruptDataError, match=r"unpacks to at least 0\.0111 GiB in memory"):
            load(file=write(tmp_path, f"{head},y\n{rows}"))

    def test_statistics_are_those_of_the_training_rows(self, tmp_path: Path) -> None:
        """An odd test row moves nothing."""
        values = np.arange(100.0)
        plain = load(file=write(tmp_path, "a,y\n" + "".join(f"{v},{k % 2}\n" for k, v in enumerate(values))))
        order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
        values[order[:20]] = 1e6
        moved = load(file=write(tmp_path, "a,y\n" + "".join(f"{v},{k % 2}\n" for k, v in enumerate(values))))
        assert moved.x_train.equal(plain.x_train)
        assert moved.x_test.min() > 1000


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((f"a.{end}", "csv") for end in ("csv", "TSV", "txt", "csv.gz", "xlsx", "parquet", "tab")),
        *(("a.npz", "npz"), ("scans/", "images")),
    ],
)
def test_a_path_says_by_what_it_is_read(path: str, name: str) -> None:
    e = Experiment.of({"dataset": path, "partition": "iid", "clients": 3})
    assert (e.dataset.name, e.dataset.parameters["file"]) == (name, path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.binary(max_size=200),
    st.sampled_from(["t.csv", "t.xlsx", "t.parquet", "t.txt"]),
    st.sampled_from([b"", b"\xff\xfe", b"PK\x03\x04", b"PAR1", b"a;y\n1,5;0\n", b"sep=;\n"]),
)
def test_any_bytes_are_a_table_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, start: bytes
) -> None:
    file = write(tmp_path_factory.getbasetemp(), start + content, name)
    try:
        data = load(file=file)
    except FedSieveError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert torch.isfinite(data.x_train).all()
