"""Tables of the user's: features, text, mistakes; and real tweets."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import CorruptDataError, FedSieveError, MissingDataError, ParameterError
from fedsieve.data import store
from fedsieve.data.dataset import Dataset, Loader
from fedsieve.data.table import CSV
from fedsieve.data.user_files import split

TABLE = """age,city,flag,who,class
20,Rome,1,ann,no
30,Oslo,1,bob,yes
40,Rome,1,ann,no
50,"Paris, TX",1,cy,yes
60,Oslo,1,bob,maybe
"""


def write(folder: Path, content: str | bytes, name: str = "t.csv") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load(seed: int = 0, **parameters: Any) -> Dataset:
    return CSV(**parameters).load(Path(), torch.Generator().manual_seed(seed))


def test_is_a_loader() -> None:
    loader = CSV()
    assert isinstance(loader, Loader)
    assert loader.files() == ()
    for action in (loader.verify, loader.fetch, lambda folder: loader.load(folder, torch.Generator())):
        with pytest.raises(ParameterError, match=r"^csv: file is not set; name one, e\.g\. --set dataset\.file="):
            action(Path())


class TestFeatures:
    def test_standardised_and_one_hot(self, tmp_path: Path) -> None:
        file = write(tmp_path, TABLE)
        CSV(file=file, label="class").verify(Path())
        CSV(file=file, label="class").fetch(Path())
        data = load(file=file, label="class", client="who", test=0.4)
        who, y = torch.tensor([0, 1, 0, 2, 1]), torch.tensor([1, 2, 1, 2, 0])  # maybe, no, yes
        train, test = split("csv", 5, 0.4, torch.Generator().manual_seed(0), who, y)
        ages = np.array([20, 30, 40, 50, 60])
        known = ages[train.numpy()]
        expected = (ages - known.mean()) / known.std()
        cities = {"Oslo": [1, 0, 0], "Paris, TX": [0, 1, 0], "Rome": [0, 0, 1]}
        rows = [
            [age, *cities[city], 0]
            for age, city in zip(expected, ["Rome", "Oslo", "Rome", "Paris, TX", "Oslo"], strict=True)
        ]
        x = torch.tensor(np.array(rows), dtype=torch.float32)
        torch.testing.assert_close(data.x_train, x[train])
        torch.testing.assert_close(data.x_test, x[test])
        assert data.y_train.equal(y[train])
        assert data.y_test.equal(y[test])
        assert (data.n_classes, data.input_shape) == (3, (5,))
        assert data.owner_names == ("ann", "bob", "cy")
        assert data.owners is not None
        assert data.test_owners is not None
        assert data.owners.equal(who[train])
        assert data.test_owners.equal(who[test])
        assert (data.encode, data.vocabulary) == (None, ())

    def test_numbers_as_classes_sort_by_size(self, tmp_path: Path) -> None:
        file = write(tmp_path, "1\t10\n2\t9\n3\t-1\n4\t9\n", "t.tsv")
        data = load(file=file, label="1", header=False, test=0.25)
        train, test = split("csv", 4, 0.25, torch.Generator().manual_seed(0))
        y = torch.tensor([2, 1, 0, 1])
        assert data.n_classes == 3
        assert data.y_train.equal(y[train])
        assert data.y_test.equal(y[test])
        assert data.owners is None

    def test_constant_in_training_rows_is_zero(self, tmp_path: Path) -> None:
        train, test = split("csv", 10, 0.2, torch.Generator().manual_seed(0))
        values = ["0.1"] * 10
        values[int(test[0])] = "5"
        file = write(tmp_path, "v,y\n" + "".join(f"{v},{k % 2}\n" for k, v in enumerate(values)))
        data = load(file=file, label="y")
        assert data.x_train.eq(0).all()
        assert data.x_test.eq(0).all()
        assert len(train) == len(data.y_train)

    @pytest.mark.parametrize("name", ["t.csv.gz", "T.CSV.GZ", "t.tsv.gz", "t.tsv", "t.tab", "t.txt"])
    def test_formats(self, tmp_path: Path, name: str) -> None:
        text = "\N{ZERO WIDTH NO-BREAK SPACE}x,y\r\n1.5,a\r\n\r\n2.5,b\r\n"
        text = text.replace(",", "\t") if ".t" in name and "txt" not in name else text
        content = gzip.compress(text.encode()) if name.lower().endswith(".gz") else text.encode()
        data = load(file=write(tmp_path, content, name), label="y")
        assert torch.cat([data.y_train, data.y_test]).sort().values.tolist() == [0, 1]

    def test_quotes_are_text_between_tabs(self, tmp_path: Path) -> None:
        file = write(tmp_path, '0\t"never closed\n1\tplain, with a comma\n', "t.tsv")
        data = load(file=file, label="0", text="1", header=False, length=3)
        assert data.x_train.shape == (1, 3)

    def test_relative_to_the_current_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path, TABLE)
        monkeypatch.chdir(tmp_path)
        assert len(load(file="t.csv", label="class").y_test) == 1

    def test_generator_decides(self, tmp_path: Path) -> None:
        file = write(tmp_path, "v,y\n" + "".join(f"{k},{k % 2}\n" for k in range(50)))
        one, again, other = (load(seed, file=file, label="y") for seed in (0, 0, 1))
        assert one.x_test.equal(again.x_test)
        assert not one.y_test.equal(other.y_test) or not one.x_test.equal(other.x_test)


def numbers(odd: str, n: int = 400, at: int = 17) -> str:
    """A table of one column of numbers, with one other cell, on line ``at + 2``."""
    return "a,y\n" + "".join(f"{odd if k == at else k / 8},{k % 2}\n" for k in range(n))


class TestWhatAColumnIs:
    @pytest.mark.parametrize("odd", ["unknown", "7 km", "2024-01-01", "x" * 30])
    def test_one_word_in_numbers(self, tmp_path: Path, odd: str) -> None:
        file = write(tmp_path, numbers(odd))
        with pytest.raises(CorruptDataError) as error:
            load(file=file, label="y")
        assert str(error.value) == (
            f"{file}, line 19: column 'a' is {odd!r}, not a finite number as 399 of 400 cells are; correct it, "
            f"or list {odd!r} in dataset.missing if it means a missing number, "
            "or list 'a' in dataset.categorical if the column holds categories"
        )

    @pytest.mark.parametrize("odd", ["5,400", "5,4", "1_000", "\u0661\u0662", "0x1F", "inf", "12 %", "$5"])
    def test_one_number_in_another_form(self, tmp_path: Path, odd: str) -> None:
        with pytest.raises(CorruptDataError) as error:
            load(file=write(tmp_path, numbers(f'"{odd}"')), label="y")
        assert f", line 19: column 'a' is {odd!r}, not a finite number as 399 of 400 cells are; write" in str(
            error.value
        )

    def test_numbers_out_of_range(self, tmp_path: Path) -> None:
        with pytest.raises(
            CorruptDataError, match=r", line 19: column 'a' is '1e400', not a finite number; correct it,"
        ):
            load(file=write(tmp_path, numbers("1e400")), label="y")

    @pytest.mark.parametrize("form", ['"{k},{r}"', "{k}_000", "{k} %", "$ {k}", '"{k},000"'])
    def test_a_column_of_such_numbers_is_no_column_of_words(self, tmp_path: Path, form: str) -> None:
        rows = "".join(f"{form.format(k=k % 50 + 1, r=k % 9)},{k % 2}\n" for k in range(90))
        with pytest.raises(
            CorruptDataError, match=r", line 2: column 'a' is .*, not a finite number; write numbers as"
        ):
            load(file=write(tmp_path, "a,y\n" + rows), label="y")

    @pytest.mark.parametrize("odd", ["", "NA", "<NA>", "#N/A", "-", "--", "NaN", "nan", "NULL", "none", "?", " n/a "])
    def test_a_missing_number(self, tmp_path: Path, odd: str) -> None:
        file = write(tmp_path, numbers(odd))
        with pytest.raises(CorruptDataError) as error:
            load(file=file, label="y", fill="error")
        said = (
            f"is {odd.strip()!r}, not a finite number: a value is missing" if odd else "is empty: a number is missing"
        )
        assert str(error.value) == (
            f"{file}, line 19: column 'a' {said}; correct it, remove the row, or put the column's mean there with "
            "dataset.fill=mean"
        )

    @pytest.mark.parametrize("odd", ["NA", "UNKNOWN", "-999"])
    def test_filled_with_the_mean_of_the_training_rows(self, tmp_path: Path, odd: str) -> None:
        data = load(file=write(tmp_path, numbers(odd)), label="y", missing=("unknown", "-999"))
        train, test = split("csv", 400, 0.2, torch.Generator().manual_seed(0))
        values = np.arange(400) / 8
        there = np.array([k for k in train.tolist() if k != 17])
        values[17] = values[there].mean()
        known = values[train.numpy()]
        expected = torch.tensor((values - known.mean()) / known.std(), dtype=torch.float32)[:, None]
        torch.testing.assert_close(data.x_train, expected[train])
        torch.testing.assert_close(data.x_test, expected[test])
        assert data.reading.endswith("1 numeric + 0 one-hot columns, missing numbers filled with the mean: 1 of a")

    def test_words_may_have_numbers_among_them(self, tmp_path: Path) -> None:
        rows = "".join(f"{['A1', '7', 'B2', 'NA'][k % 4]},{k},{k % 2}\n" for k in range(40))
        data = load(file=write(tmp_path, "code,n,y\n" + rows), label="y")
        assert data.input_shape == (4 + 1,)  # 7, A1, B2, NA; n
        assert data.reading.endswith(
            "1 numeric + 1 one-hot columns (code with 4 values), missing words as a value: 10 of code"
        )

    def test_one_word_beside_many_numbers_is_likely_to_mean_missing(self, tmp_path: Path) -> None:
        rows = "".join(f"{'unknown' if k % 3 else k},{k % 2}\n" for k in range(60))
        file = write(tmp_path, "a,y\n" + rows)
        with pytest.raises(CorruptDataError, match=r"line 3: column 'a' is 'unknown' in 40 rows and one of 20 numbers"):
            load(file=file, label="y")
        assert load(file=file, label="y", missing=("unknown",)).input_shape == (1,)
        assert load(file=file, label="y", categorical=("a",)).input_shape == (21,)

    def test_numbers_as_categories(self, tmp_path: Path) -> None:
        rows = "".join(f"{['02139', '2139', '10001'][k % 3]},{k % 2}\n" for k in range(30))
        file = write(tmp_path, "zip,y\n" + rows)
        assert load(file=file, label="y").input_shape == (1,)
        data = load(file=file, label="y", categorical=("zip",))
        assert data.input_shape == (3,)
        assert torch.cat([data.x_train, data.x_test]).sum(0).tolist() == [10, 10, 10]

    def test_useless_and_unknown_categories(self, tmp_path: Path) -> None:
        file = write(tmp_path, TABLE)
        with pytest.raises(
            ParameterError, match=r"^csv: categorical column 'zip' is not in .*; the columns are age, city"
        ):
            load(file=file, label="class", categorical=("zip",))
        with pytest.raises(ParameterError, match=r"^csv: categorical has no effect on column 'class'"):
            load(file=file, label="class", categorical=("class",))
        for useless in ({"fill": "error"}, {"drop": ("age",)}, {"keep": ("age",)}, {"categorical": ("age",)}):
            with pytest.raises(ParameterError, match=rf"^csv: {next(iter(useless))} has no effect with text=city"):
                load(file=file, label="class", text="city", **useless)
        with pytest.raises(ParameterError, match=r"^csv: keep has no effect on column 'age', which is not a feature"):
            load(file=file, label="class", drop=("age",), keep=("age",))
        with pytest.raises(ParameterError, match=r"^csv: drop has no effect on column 'class', which is not a feature"):
            load(file=file, label="class", drop=("class",))
        with pytest.raises(ParameterError, match=r"^csv: vocabulary and length have no effect without text"):
            load(file=file, label="class", length=8)

    def test_empty_and_constant_columns(self, tmp_path: Path) -> None:
        rows = "".join(f"{k},{k % 2},,NA,1,\n" for k in range(20))
        data = load(file=write(tmp_path, "a,y,b,c,d,\n" + rows), label="y")
        assert data.input_shape == (2,)
        said = "2 numeric + 0 one-hot columns, left out as empty: b, c, Unnamed: 5, constant: d"
        assert data.reading == f"20 rows, 2 classes (10/10), {said}"

    def test_the_cells_decide_not_python(self, tmp_path: Path) -> None:
        rows = "".join(f"{['True', 'FALSE', 'True'][k % 3]},{k % 2}\n" for k in range(30))
        data = load(file=write(tmp_path, "a,y\n" + rows), label="y")
        assert data.input_shape == (2,)
        assert data.reading.endswith("0 numeric + 1 one-hot columns (a with 2 values)")


class TestIndex:
    rows = "".join(f"{k},{k % 7},s{k % 3},{k % 2}\n" for k in range(60))

    @pytest.mark.parametrize("name", ["", "Unnamed: 0"])
    def test_is_left_out_with_and_without_clients(self, tmp_path: Path, name: str) -> None:
        file = write(tmp_path, f"{name},a,site,y\n{self.rows}")
        alone, by_site = load(file=file, label="y"), load(file=file, label="y", client="site")
        assert alone.input_shape == (1 + 3,)
        assert by_site.input_shape == (1,)
        assert (by_site.owner_names, alone.owner_names) == (("s0", "s1", "s2"), ())
        assert alone.reading == (
            "60 rows, 2 classes (30/30), 1 numeric + 1 one-hot columns (site with 3 values), "
            "first column without a name left out"
        )
        assert by_site.reading.endswith("1 numeric + 0 one-hot columns, first column without a name left out")

    def test_two_of_them(self, tmp_path: Path) -> None:
        file = write(tmp_path, ",Unnamed: 0,a,y\n" + "".join(f"{k},{k},{k % 7},{k % 2}\n" for k in range(60)))
        data = load(file=file, label="y")
        assert data.input_shape == (1,)
        assert data.reading.endswith("first columns without a name left out")

    def test_may_be_the_label(self, tmp_path: Path) -> None:
        file = write(tmp_path, ",a\n" + "".join(f"{k % 2},{k}\n" for k in range(20)))
        data = load(file=file, label="Unnamed: 0")
        assert (data.n_classes, data.input_shape) == (2, (1,))
        assert "left out" not in data.reading

    def test_other_columns_without_a_name(self, tmp_path: Path) -> None:
        with pytest.raises(CorruptDataError, match="column 2 of 3 has values but no name; name it"):
            load(file=write(tmp_path, "a,,y\n1,2,0\n2,3,1\n"), label="y")


class TestLabels:
    def of(self, folder: Path, *labels: str) -> Dataset:
        rows = "".join(f"{k},{labels[k % len(labels)]}\n" for k in range(12 * len(labels)))
        return load(file=write(folder, "a,y\n" + rows), label="y")

    @pytest.mark.parametrize("odd", ["NA", "nan", "?", "-", "NULL", "None", "<NA>"])
    def test_missing(self, tmp_path: Path, odd: str) -> None:
        with pytest.raises(CorruptDataError) as error:
            self.of(tmp_path, "1", "0", odd)
        assert str(error.value) == (
            f"{tmp_path}/t.csv, line 4: column 'y' is {odd!r}, which stands for a missing value; "
            f"correct it or remove the row, or write another name if {odd!r} is one"
        )

    def test_said_to_be_missing(self, tmp_path: Path) -> None:
        rows = "".join(f"{k},{['0', '1', '-1'][k % 3]}\n" for k in range(30))
        with pytest.raises(CorruptDataError, match="line 4: column 'y' is '-1', which stands for a missing value"):
            load(file=write(tmp_path, "a,y\n" + rows), label="y", missing=("-1",))

    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            (("1_1", "11"), ("11", "1_1")),  # Python's int takes both
            (("9007199254740993", "9007199254740992", "9007199254740994"), None),  # one number as floats
            (("10", "9", "-1"), ("-1", "9", "10")),
            (("10.5", "9.5"), ("9.5", "10.5")),
            (("b", "10", "9"), ("10", "9", "b")),  # with a word all are text
            (("a", "A"), ("A", "a")),
            (("01", "1x", "1"), ("01", "1", "1x")),
            (("9" * 5000, "8" * 5000), ("8" * 5000, "9" * 5000)),
            (("yes", "no"), ("no", "yes")),
            (("1e5", "2"), ("2", "1e5")),
        ],
    )
    def test_classes(self, tmp_path: Path, labels: tuple[str, ...], expected: tuple[str, ...] | None) -> None:
        data = self.of(tmp_path, *labels)
        assert data.class_names == (expected or tuple(sorted(labels)))
        found = torch.cat([data.y_train, data.y_test]).bincount().tolist()
        assert found == [12] * len(labels)
        train, _ = split("csv", 12 * len(labels), 0.2, torch.Generator().manual_seed(0))
        assert [data.class_names[k] for k in data.y_train.tolist()] == [labels[k % len(labels)] for k in train.tolist()]

    @pytest.mark.parametrize(
        ("labels", "said"),
        [(("1", "0", "1.0"), ("1.0", "1")), (("1", "2", "01"), ("01", "1")), (("0", "1", "-0"), ("-0", "0"))],
    )
    def test_two_spellings(self, tmp_path: Path, labels: tuple[str, ...], said: tuple[str, str]) -> None:
        with pytest.raises(CorruptDataError) as error:
            self.of(tmp_path, *labels)
        assert str(error.value) == (
            f"{tmp_path}/t.csv, line 4: column 'y' is {said[0]!r}, but {said[1]!r} on line 2: "
            "is it one class? write it in one way"
        )

    def test_a_quantity(self, tmp_path: Path) -> None:
        with pytest.raises(
            ParameterError, match=r"^csv: label 'y' has 21 different numbers, with fractions such as '0.5'"
        ):
            self.of(tmp_path, *(str(k / 2) for k in range(21)))
        assert self.of(tmp_path, *(str(k / 2) for k in range(20))).n_classes == 20
        with pytest.raises(CorruptDataError, match=r"is '1e9{30}', too large a number for a class"):
            self.of(tmp_path, "1", "1e" + "9" * 30)

    def test_names_in_messages(self, tmp_path: Path) -> None:
        data = self.of(tmp_path, "yes", "no")
        assert data.class_name(1) == "class 1 ('yes')"
        assert self.of(tmp_path, "1", "0").class_name(1) == "class 1"
        assert self.of(tmp_path, "1", "2").class_name(1) == "class 1 ('2')"


class TestClients:
    def table(self, *clients: str) -> str:
        return "a,site,y\n" + "".join(f"{k},{client},{k % 2}\n" for k, client in enumerate(clients))

    def test_are_compared_as_text(self, tmp_path: Path) -> None:
        names = ["01", "1", "1.0", "1 "] * 20
        data = load(file=write(tmp_path, self.table(*names)), label="y", client="site")
        assert data.owners is not None
        owners = torch.tensor([0, 1, 2, 1] * 20)
        train, _ = split("csv", 80, 0.2, torch.Generator().manual_seed(0), owners, torch.arange(80) % 2)
        assert data.owners.equal(owners[train])
        assert data.owner_names == ("01", "1", "1.0")

    @pytest.mark.parametrize("odd", ["", "NA", "nan", "-"])
    def test_missing(self, tmp_path: Path, odd: str) -> None:
        with pytest.raises(CorruptDataError, match=r"line 6: column 'site' is (empty|.*, which stands for a missing)"):
            load(file=write(tmp_path, self.table(*["a", "b"] * 2, odd, "a")), label="y", client="site")

    def test_each_keeps_a_row_to_train_on(self, tmp_path: Path) -> None:
        names = [f"c{k}" for k in range(60)] + ["big"] * 60
        for seed in range(5):
            file = write(tmp_path, self.table(*names))
            data = load(seed, file=file, label="y", client="site")
            assert data.owners is not None
            assert len(data.owners.unique()) == 61
            assert (len(data.y_train), len(data.y_test)) == (96, 24)

    def test_all_rows_are_of_different_clients(self, tmp_path: Path) -> None:
        file = write(tmp_path, self.table(*map(str, range(40))))
        with pytest.raises(ParameterError, match=r"^csv: each of the 40 rows has another client, so none can be"):
            load(file=file, label="y", client="site")

    def test_imply_the_natural_partition(self, tmp_path: Path) -> None:
        file = write(tmp_path, self.table(*["a", "b", "c"] * 20))
        given = {"name": file, "label": "y", "client": "site"}

        def settings(**more: Any) -> tuple[str, int, int]:
            e = Experiment.of({"dataset": given, **more})
            return e.partition.name, e.clients, e.malicious

        assert settings() == ("natural", 3, 0)
        assert settings(clients=2) == ("natural", 2, 0)
        assert settings(partition="natural") == ("natural", 3, 0)
        assert settings(partition="iid") == ("iid", 30, 6)
        assert settings(partition={"name": "groups", "q": 0.3}, clients=10) == ("groups", 10, 2)
        del given["client"]
        assert settings() == ("iid", 30, 6)
        given["client"] = "site"
        write(tmp_path, self.table(*["a", "b", "c", "d"] * 20))  # the file has changed
        assert settings() == ("natural", 4, 0)

    def test_a_wrong_file_is_one_error(self, tmp_path: Path) -> None:
        given = {"name": str(tmp_path / "no.csv"), "label": "y", "client": "site"}
        with pytest.raises(MissingDataError, match=r"no\.csv cannot be read: No such file or directory$"):
            Experiment.of({"dataset": given})
        file = write(tmp_path, self.table("a", "NA", "b"))
        with pytest.raises(CorruptDataError, match="line 3: column 'site' is 'NA'"):
            Experiment.of({"dataset": {**given, "name": file}})
        with pytest.raises(ParameterError, match="client column 'who' is not in"):
            Experiment.of({"dataset": {**given, "name": file, "client": "who"}})
        # with both settings the file is not opened before it is loaded
        assert Experiment.of({"dataset": given, "partition": "natural", "clients": 5}).clients == 5


def test_names_in_capitals(tmp_path: Path) -> None:
    file = write(tmp_path, TABLE, "T.CSV")
    e = Experiment.of({"dataset": {"name": file, "label": "class"}})
    assert (e.dataset.name, e.dataset.parameters["file"]) == ("csv", file)
    assert Experiment.of({"dataset": "A.NpZ", "partition": "iid", "clients": 3}).dataset.name == "npz"


class TestText:
    def test_words_of_one_column(self, tmp_path: Path) -> None:
        rows = "".join(f"u{k % 3},good day number{k},{k % 2}\n" for k in range(20))
        file = write(tmp_path, "who,what,y\n" + rows)
        data = load(file=file, label="y", text="what", client="who", length=4)
        assert data.x_train.dtype == torch.int64
        assert data.x_train.shape == (16, 4)
        assert data.x_train[:, :2].tolist() == [[2 + sorted(["day", "good"]).index(w) for w in ("good", "day")]] * 16
        assert data.x_test[:, 2].tolist() == [1] * 4  # numbers that only test rows have are unknown
        assert len(data.vocabulary) == 2 + 2 + 16
        assert data.encode is not None
        assert data.encode(["good day", ""]).tolist() == [[3, 2, 0, 0], [1, 0, 0, 0]]
        assert data.owners is not None
        assert sorted(data.owners.unique().tolist()) == [0, 1, 2]


class TestErrors:
    @pytest.mark.parametrize(
        ("content", "parameters", "message"),
        [
            ("a,y\n1,0\n,1\n", {}, r"line 3: column 'a' is empty"),
            ("a,y\n1,0\n 2 ,1\nNA,1\n", {}, r"line 4: column 'a' is 'NA', not a finite number"),
            ("a,y\n1,0\ninf,1\n", {}, r"line 3: column 'a' is 'inf', not a finite number"),
            ("a,y\n\n1,0\nnan,1\n", {}, r"line 4: column 'a' is 'nan', not a finite number"),
            ("a,y\n1,0\n1,\n", {}, r"line 3: column 'y' is empty"),
            ("a,y\n1,0\n1,2,3\n", {}, r"line 3: 3 columns, but the first row has 2"),
            ("a,y,a\n1,0,1\n1,2,3\n", {}, r"two columns named 'a'"),
            ("a,y\n1,0\n", {}, r"has 1 rows, at least 2 are needed"),
            ("", {}, r"has 0 rows, at least 2 are needed"),
            ("a,y\n1e308,0\n-1e308,1\n1e308,1\n1e308,1\n", {}, r"column 'a' has numbers too large to be standardised"),
            (b"a,y\n\xff,0\n1,1\n", {"encoding": "utf-8"}, r"is not a whole table in utf-8: "),
            ("a,y\n1,0\n2,1\n".encode("utf-16")[:-1], {}, r"is not a whole table in UTF-16: "),
            ("a,y\n1,0\n2,1\n".encode("utf-16-le"), {}, r"line 1: a NUL character; save the table as text in UTF-8"),
            ("a,y\n1,0\n2\0,1\n", {}, r"line 3: a NUL character"),
            (f"a,y\n1,0\n{'x' * 200_000},1\n", {}, r"field larger than field limit \(131072\), near line 3"),
            ('a,y\n"1\n2",0\n3,1\n4,0\n', {}, r"line 3: column 'a' is '1\\n2', not a finite number as 2 of 3 cells"),
            ('a,y\n"1,0\n1,1\n', {}, r"is not a whole table in UTF-8: unexpected end of data"),
            ("a,y,c\n1,0,x\n1,1,\n", {"client": "c"}, r"line 3: column 'c' is empty"),
        ],
    )
    def test_corrupt(self, tmp_path: Path, content: str | bytes, parameters: dict[str, str], message: str) -> None:
        with pytest.raises(CorruptDataError, match=message) as error:
            load(file=write(tmp_path, content), label="y", fill="error", **parameters)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("header", ["{0},{0},y", "{0},b", "{0},y"], ids=["twice", "no label", "odd cell"])
    def test_endless_names_are_cut(self, tmp_path: Path, header: str) -> None:
        name = "x" * 100_000
        rows = "".join(f"{'odd' if k == 5 else k}{f',{k % 2}' * header.count(',')}\n" for k in range(12))
        with pytest.raises(FedSieveError) as error:
            load(file=write(tmp_path, f"{header.format(name)}\n{rows}"), label="y")
        assert "xxxxx" in str(error.value)
        assert "x" * 61 not in str(error.value)

    def test_corrupt_gzip(self, tmp_path: Path) -> None:
        whole = gzip.compress(TABLE.encode() * 100)
        for content in (b"none", whole[:-20], whole[:50]):
            with pytest.raises(CorruptDataError, match="is not a whole table"):
                load(file=write(tmp_path, content, "t.csv.gz"), label="class")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError, match=r"no\.csv cannot be read: No such file or directory"):
            load(file=str(tmp_path / "no.csv"), label="y")
        with pytest.raises(MissingDataError, match="Is a directory"):
            load(file=str(tmp_path), label="y")

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({}, "label is not set; the columns are age, city, flag, who, class"),
            ({"label": "klass"}, "label column 'klass' is not in .*; the columns are age, city, flag, who, class"),
            ({"label": "class", "text": "body"}, "text column 'body' is not in"),
            ({"label": "class", "client": "user"}, "client column 'user' is not in"),
            ({"label": "class", "client": "class"}, "label, text and client must be different columns"),
            ({"label": "flag"}, "label 'flag' has 1 distinct values; classes must be 2 to 1000"),
            ({"label": "5", "header": False}, "label column '5' is not in .*; the columns are 0, 1, 2, 3, 4"),
        ],
    )
    def test_columns(self, tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError, match=f"^csv: {message}"):
            load(file=write(tmp_path, TABLE), **parameters)

    def test_another_separator_than_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(
            ParameterError, match=r"the columns are a;y; dataset.separator names what separates columns"
        ):
            load(file=write(tmp_path, "a;y\n1;0\n2;1\n"), label="y", separator=",")
        with pytest.raises(ParameterError, match=r"^csv: separator must be one of , ; \| tab, got ':'$"):
            CSV(separator=":")
        with pytest.raises(ParameterError, match=r"^csv: encoding 'utf-9': unknown encoding: utf-9$"):
            CSV(encoding="utf-9")

    def test_nothing_to_learn_from(self, tmp_path: Path) -> None:
        rows = "".join(f"{k} km,{k % 2}\n" for k in range(150))
        with pytest.raises(
            ParameterError, match=r"^csv: .* has no column to learn from besides 'y' \(left out as identi"
        ):
            load(file=write(tmp_path, "n,y\n" + rows), label="y")
        with pytest.raises(ParameterError, match=r"^csv: .* has no column to learn from besides 'y'"):
            load(file=write(tmp_path, "y\n1\n0\n"), label="y")

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"test": 0.0}, r"test must be above 0 and below 1, got 0\.0"),
            ({"test": 1.0}, r"test must be above 0 and below 1, got 1\.0"),
            ({"vocabulary": 2}, r"vocabulary must be at least 3 and length at least 1, got 2 and 32"),
            ({"length": 0}, r"vocabulary must be at least 3 and length at least 1, got 5000 and 0"),
        ],
    )
    def test_parameters(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError, match=f"^csv: {message}$"):
            CSV(**parameters)


def test_sizes_of_the_split() -> None:
    sizes = [tuple(map(len, split("csv", n, 0.2, torch.Generator()))) for n in (2, 5, 8, 100)]
    assert sizes == [(1, 1), (4, 1), (6, 2), (80, 20)]
    with pytest.raises(ParameterError, match=r"^csv: 1 rows can't be split"):
        split("csv", 1, 0.2, torch.Generator())


class TestSplit:
    def parts(self, owners: Any, y: Any = None, share: float = 0.2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        generator, owners = torch.Generator().manual_seed(seed), torch.as_tensor(owners)
        train, test = split("csv", len(owners), share, generator, owners, y)
        assert torch.cat([train, test]).sort().values.equal(torch.arange(len(owners)))
        return train, test

    @pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
    def test_every_owner_and_class_has_its_share(self, share: float) -> None:
        """Sites of 100 to 1,000 rows, of which a tenth are of class 1."""
        sizes = torch.tensor([100, 300, 600, 1000])
        owners = torch.arange(4).repeat_interleave(sizes)
        y = (torch.arange(2000) % 10 == 0).long()
        for seed in range(5):
            _, test = self.parts(owners, y, share, seed)
            assert len(test) == round(share * 2000)
            for owner, size in enumerate(sizes.tolist()):
                for k, part in ((0, 0.9), (1, 0.1)):
                    found = int(((owners[test] == owner) & (y[test] == k)).sum())
                    assert abs(found - share * part * size) <= 2.5

    def test_a_small_owner_has_one_test_row_and_one_training_row(self) -> None:
        owners = [0, 0, 1, 1, 1, 2, *[3] * 50]
        for seed in range(20):
            train, test = self.parts(owners, seed=seed)
            tested, trained = (torch.tensor(owners)[rows].bincount(minlength=4) for rows in (test, train))
            assert tested[[0, 1]].min() >= 1
            assert tested[2] == 0
            assert trained.min() >= 1
            assert len(test) == 11

    def test_more_owners_than_test_rows(self) -> None:
        train, test = self.parts(torch.arange(300) // 3)
        assert (len(train), len(test)) == (240, 60)
        assert len((train // 3).unique()) == 100

    def test_other_seeds_draw_other_rows(self) -> None:
        owners = torch.arange(100) % 4
        one, again, other = (self.parts(owners, seed=seed)[1] for seed in (1, 1, 2))
        assert one.equal(again)
        assert set(one.tolist()) != set(other.tolist())

    def test_without_owners_the_rows_are_drawn_alike(self) -> None:
        order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
        train, test = split("csv", 100, 0.2, torch.Generator().manual_seed(1))
        assert test.equal(order[:20])
        assert train.equal(order[20:])


@pytest.mark.real_data
def test_real_tweets() -> None:
    file = str(store.data_folder() / "tweets/sentiment140-sample.tsv.gz")
    data = load(file=file, header=False, label="0", text="1")
    assert data.x_train.shape == (80_000, 32)
    assert data.x_test.shape == (20_000, 32)
    assert (torch.cat([data.y_train, data.y_test]).bincount()).tolist() == [50_000, 50_000]
    assert len(data.vocabulary) == 5000
    assert {"i", "the", "<user>", "<url>", "n't", "love", "sad", "!"} <= set(data.vocabulary)
    assert 5 < (data.x_train != 0).sum(1).float().mean() < 25
    assert (data.x_train == 1).sum() < 0.1 * (data.x_train != 0).sum()  # few unknown words


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.lists(
            st.sampled_from(["1", "2.5", "NA", "", "x", "5,4", '"', "\r", "\n", "\0", "\ud800", "1e999", " "]),
            max_size=4,
        ),
        max_size=12,
    ),
    st.sampled_from([",", ",\n", "\t"]),
    st.sampled_from(["t.csv", "t.tsv", "t.csv.gz"]),
)
def test_any_file_is_a_table_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], separator: str, name: str
) -> None:
    content = "\n".join(["a,b,y", *(separator.join(row) for row in rows)]).encode(errors="surrogatepass")
    file = write(tmp_path_factory.getbasetemp(), gzip.compress(content) if name.endswith("gz") else content, name)
    try:
        data = load(file=file, label="y", client="a")
    except FedSieveError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert torch.isfinite(data.x_train).all()
        assert "\n" not in data.reading
