"""Tables of the user's: features, text, mistakes; and real tweets."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
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
        train, test = split("csv", 5, 0.4, torch.Generator().manual_seed(0))
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
        y = torch.tensor([1, 2, 1, 2, 0])  # maybe, no, yes
        assert data.y_train.equal(y[train])
        assert data.y_test.equal(y[test])
        assert (data.n_classes, data.input_shape) == (3, (5,))
        names = [["ann", "bob", "ann", "cy", "bob"][k] for k in train.tolist()]
        assert data.owners is not None
        assert data.owners.tolist() == [sorted(set(names)).index(name) for name in names]
        assert (data.encode, data.vocabulary) == (None, ())

    def test_numbers_as_classes_sort_by_size(self, tmp_path: Path) -> None:
        file = write(tmp_path, "1\t10\n2\t9\n3\t-1\n4\t9.0\n", "t.tsv")
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
            (b"a,y\n\xff,0\n1,1\n", {}, r"is not a whole table in UTF-8: "),
            ('a,y\n"1,0\n1,1\n', {}, r"is not a whole table in UTF-8: unexpected end of data"),
            ("a,y,c\n1,0,x\n1,1,\n", {"client": "c"}, r"line 3: column 'c' is empty"),
        ],
    )
    def test_corrupt(self, tmp_path: Path, content: str | bytes, parameters: dict[str, str], message: str) -> None:
        with pytest.raises(CorruptDataError, match=message) as error:
            load(file=write(tmp_path, content), label="y", **parameters)
        assert "\n" not in str(error.value)

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

    def test_too_many_values(self, tmp_path: Path) -> None:
        rows = "".join(f"{k},{k % 2}\n" for k in range(150))
        with pytest.raises(
            ParameterError, match=r"^csv: column 'n' is not numeric \('7 km' on line 152\) and has 151 d"
        ):
            load(file=write(tmp_path, f"n,y\n{rows}7 km,0\n"), label="y")
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
