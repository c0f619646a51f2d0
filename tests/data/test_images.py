"""Folders of images: sites, classes, modes and sizes of images, mistakes."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.data.dataset import Dataset, Loader
from fedsieve.data.digest import digest_of
from fedsieve.data.images import Images
from fedsieve.report.text import as_command


def save(path: Path, pixels: Any = 128, mode: str = "L", size: tuple[int, int] = (6, 4)) -> Path:
    """An image of one colour, or of an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else Image.new(mode, size, pixels)
    image.save(path)
    return path


def folder(path: Path, sites: tuple[str, ...] = ("Aachen", "Bonn"), n: int = 10) -> Path:
    """Images of class ``ill`` are lighter; every site has ``n`` of each class."""
    for s, site in enumerate(sites):
        for c, label in enumerate(("healthy", "ill")):
            for k in range(n):
                save(path / site / label / f"{k}.png", 10 * k + 100 * c + s)
    return path


def load(path: Path, seed: int = 0, **parameters: Any) -> Dataset:
    return Images(file=str(path), **parameters).load(Path(), torch.Generator().manual_seed(seed))


def test_is_a_loader(tmp_path: Path) -> None:
    loader = Images()
    assert isinstance(loader, Loader)
    assert (loader.files(), loader.implied_defaults()) == ((), {})
    for action in (loader.verify, loader.fetch, lambda folder: loader.load(folder, torch.Generator())):
        with pytest.raises(
            ParameterError, match=r"^images: file is not set; name a folder, e\.g\. --set dataset\.file="
        ):
            action(Path())
    Images(file=str(folder(tmp_path))).verify(Path())


def test_sites_and_classes(tmp_path: Path) -> None:
    data = load(folder(tmp_path))
    assert data.owner_names == ("Aachen", "Bonn")
    assert data.class_names == ("healthy", "ill")
    assert data.owners is not None
    assert data.test_owners is not None
    assert data.test_owners.bincount().tolist() == [4, 4]
    assert data.x_train.shape == (32, 1, 4, 6)
    owners, y = torch.cat([data.owners, data.test_owners]), torch.cat([data.y_train, data.y_test])
    x = torch.cat([data.x_train, data.x_test])
    values = (255 * x[:, 0, 0, 0]).round().long()
    assert (x == x[:, :, :1, :1]).all()
    assert (values // 100).equal(y)
    assert (values % 10).equal(owners)
    assert values.sort().values.tolist() == sorted(
        10 * k + 100 * c + s for k in range(10) for c in (0, 1) for s in (0, 1)
    )
    assert data.reading == "40 images of 1 x 4 x 6 (channels, height, width), 2 classes (20/20)"


def test_sites_imply_the_natural_partition(tmp_path: Path) -> None:
    folder(tmp_path / "scans", ("a", "b", "c"))
    e = Experiment.of({"dataset": f"{tmp_path}/scans"})
    assert (e.dataset.name, e.partition.name, e.clients) == ("images", "natural", 3)
    assert Experiment.of({"dataset": f"{tmp_path}/scans", "partition": "iid"}).clients == 30
    # without sites, a folder holds classes
    e = Experiment.of({"dataset": {"name": "images", "file": f"{tmp_path}/scans/a"}})
    assert (e.partition.name, e.clients) == ("iid", 30)
    data = load(tmp_path / "scans/a")
    assert (data.owners, data.owner_names, data.class_names) == (None, (), ("healthy", "ill"))


class TestPixels:
    def of(self, path: Path, **parameters: Any) -> torch.Tensor:
        """The images of a folder by the number in their name; the others are of class 1."""
        names = sorted(file.stem for file in path.glob("0/*"))
        data = load(path, **parameters)
        x = torch.cat([data.x_train, data.x_test])[torch.cat([data.y_train, data.y_test]) == 0]
        assert len(x) == len(names)
        return x

    def test_modes(self, tmp_path: Path) -> None:
        for k in range(3):
            save(tmp_path / "1" / f"{k}.png", 255)
        deep = np.full((4, 6), 13107, np.uint16)
        for name, pixels, mode, expected in (
            ("bits.png", 1, "1", [1.0]),
            ("grey.png", 51, "L", [0.2]),
            ("transparent.png", (51, 0), "LA", [0.2]),
            ("grey.jpg", 51, "L", [0.2]),
            ("deep.png", deep, "", [0.2]),
            ("deep.tif", deep, "", [0.2]),
            ("red.png", (255, 51, 0), "RGB", [1.0, 0.2, 0.0]),
            ("red.gif", (255, 51, 0), "RGB", [1.0, 0.2, 0.0]),
            ("clear.png", (255, 51, 0, 9), "RGBA", [1.0, 0.2, 0.0]),
            ("palette.png", 0, "P", [0.0, 0.0, 0.0]),
        ):
            file = save(tmp_path / "0" / name, pixels, mode)
            x = self.of(tmp_path)
            torch.testing.assert_close(x[0], torch.tensor(expected)[:, None, None].expand(-1, 4, 6), atol=2e-3, rtol=0)
            file.unlink()

    def test_grey_among_coloured_ones_has_three_equal_channels(self, tmp_path: Path) -> None:
        save(tmp_path / "0/a.png", 51)
        save(tmp_path / "1/a.png", (255, 0, 51), "RGB")
        assert self.of(tmp_path).allclose(torch.tensor(0.2))
        assert self.of(tmp_path).shape == (1, 3, 4, 6)

    def test_turned_as_the_camera_says(self, tmp_path: Path) -> None:
        (tmp_path / "0").mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("L", (4, 6), 51).save(tmp_path / "0/a.jpg", exif=exif)
        save(tmp_path / "1/a.png")
        assert self.of(tmp_path).shape == (1, 1, 4, 6)

    def test_sizes(self, tmp_path: Path) -> None:
        save(tmp_path / "0/a.png", 51)
        save(tmp_path / "1/b.png", 51, size=(5, 4))
        with pytest.raises(CorruptDataError) as error:
            load(tmp_path)
        assert str(error.value) == (
            f"{tmp_path}/1/b.png is 4 x 5 (height x width), but a.png 4 x 6 (height x width); "
            "dataset.size=4 scales all to one size"
        )
        x = self.of(tmp_path, size=8)
        assert x.shape == (1, 1, 8, 8)
        assert x.allclose(torch.tensor(0.2))


class TestMistakes:
    @pytest.mark.parametrize("content", [b"", b"GIF89a", b"no image"])
    def test_damaged(self, tmp_path: Path, content: bytes) -> None:
        (folder(tmp_path) / "Bonn/ill/3.png").write_bytes(content)
        with pytest.raises(CorruptDataError, match=r"Bonn/ill/3\.png is not a whole image: .") as error:
            load(tmp_path)
        assert "\n" not in str(error.value)

    def test_cut(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
        file = save(tmp_path / "a/0.png", noise)
        file.write_bytes(file.read_bytes()[:1000])
        save(tmp_path / "b/0.png")
        with pytest.raises(CorruptDataError, match=r"a/0\.png is not a whole image: "):
            load(tmp_path)

    def test_what_is_no_image(self, tmp_path: Path) -> None:
        path = folder(tmp_path)
        for name in (".DS_Store", "Aachen/Thumbs.db", "Aachen/ill/.hidden.png", "Bonn/notes.txt", "list.csv"):
            (path / name).write_text("x")
        assert load(path).reading.endswith("2 classes (20/20), 2 other files left out: notes.txt, list.csv")

    def test_places(self, tmp_path: Path) -> None:
        path = folder(tmp_path / "x")
        save(path / "Bonn/0.png")
        with pytest.raises(
            CorruptDataError, match=r"Bonn/0\.png is in a class, Aachen/healthy/0\.png in one of a site; i"
        ):
            load(path)
        save(tmp_path / "y/a/b/c/0.png")
        with pytest.raises(
            CorruptDataError, match=r"a/b/c is a folder too many; images are expected in site/class/ or"
        ):
            load(tmp_path / "y")
        (tmp_path / "z").mkdir()
        with pytest.raises(
            CorruptDataError, match=r"z has 0 images, at least 2 are needed; images are expected in site"
        ):
            load(tmp_path / "z")
        for name in ("no", "y/a/b/c/0.png"):
            with pytest.raises(MissingDataError, match=r"cannot be read: (No such file|Not a)"):
                load(tmp_path / name)
        with pytest.raises(MissingDataError, match="cannot be read: No such file"):
            Experiment.of({"dataset": f"{tmp_path}/no/"})

    def test_one_class(self, tmp_path: Path) -> None:
        for k in range(3):
            save(tmp_path / f"site/ill/{k}.png")
        with pytest.raises(ParameterError, match=r"^images: .* has 1 distinct values; classes must be 2 to 1000$"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"test": 1.5}, r"test must be above 0 and below 1, got 1\.5"),
            ({"size": -1}, "size must be 0 to 4096, got -1"),
        ],
    )
    def test_parameters(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError, match=f"^images: {message}$"):
            Images(**parameters)

    def test_a_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder(tmp_path)
        monkeypatch.setenv("FEDSIEVE_MAX_GIB", "0.000001")
        with pytest.raises(CorruptDataError, match="in memory, more than the limit"):
            load(tmp_path)
        monkeypatch.delenv("FEDSIEVE_MAX_GIB")
        monkeypatch.setattr("fedsieve.data.images.MAX_PIXELS", 23)
        with pytest.raises(CorruptDataError, match=r"0\.png has 6 x 4 pixels, too many to be read$"):
            load(tmp_path)


class TestDigest:
    def test_of_a_folder(self, tmp_path: Path) -> None:
        path = folder(tmp_path / "x")
        whole = digest_of(str(path))
        assert whole == digest_of(f"{path}/")
        assert whole == digest_of(str(folder(tmp_path / "y")))
        (path / "Bonn/ill/3.png").rename(path / "Bonn/healthy/13.png")
        moved = digest_of(str(path))
        save(path / "Bonn/healthy/13.png", 7)
        assert len({whole, moved, digest_of(str(path))}) == 3

    def test_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("a,y\n")
        (tmp_path / "link.csv").symlink_to(tmp_path / "t.csv")
        expected = hashlib.sha256(b"a,y\n").hexdigest()
        assert digest_of(str(tmp_path / "t.csv")) == expected
        assert digest_of(str(tmp_path / "link.csv")) == expected
        assert (digest_of(str(tmp_path / "no.csv")), digest_of("a\0b")) == (None, None)


@pytest.mark.parametrize(
    ("given", "dataset", "setting"),
    [
        ("scans/", "--dataset scans/ ", ""),
        ({"name": "images", "file": "scans"}, "--dataset images ", "--set dataset.file=scans "),
        ({"name": "csv", "file": "t.dat", "label": "y"}, "--dataset csv ", "--set dataset.file=t.dat "),
        ({"name": "csv", "file": "t.csv", "label": "y"}, "--dataset t.csv ", ""),
    ],
)
def test_the_command_that_repeats_a_run(given: Any, dataset: str, setting: str) -> None:
    """A path that does not say by what it is read is a setting of the dataset."""
    command = as_command(Experiment.of({"dataset": given, "partition": "iid", "clients": 2}))
    assert command.startswith(f"fedsieve run {dataset}")
    assert command.count("dataset.file") == bool(setting)
    assert setting in command
