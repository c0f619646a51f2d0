"""Images of the user's in folders: one for each class, or for each site and in it one for each class."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32

from fedsieve.core.bounded import Meter, open_regular
from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.core.traits import Traits
from fedsieve.data.columns import listed
from fedsieve.data.dataset import Dataset, RemoteFile
from fedsieve.data.user_files import DEFAULTS, check_number_of_classes, check_share, numbered, parted, resolved, split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
MAX_PIXELS = 50_000_000  # of one image, which is in memory at once
_EXPECTED = "images are expected in site/class/ or class/"


@dataclass(frozen=True)
class Images:
    """Image files in ``folder/site/class/`` or ``folder/class/``, as numbers from 0 to 1, channels first.

    Classes and sites are the names of the folders, sorted. Images have one channel if all are grey, else three; depth
    of more than 8 bits is kept, transparency is not. They have one size, or are scaled to one. Hidden files and folders
    are left out, and so are files of other names, which are counted.

    With sites, an experiment has by default the partition ``natural`` and a client for each site.

    Attributes:
        file: Path of the folder, relative to the current directory.
        test: Share of the images in the test set, which is drawn with the experiment's seed; every site keeps an image
            to train on and has its share of the test set.
        size: Height and width that all images are scaled to, bilinearly; 0 leaves them, and they must be alike.
    """

    file: str = ""
    test: float = 0.2
    size: int = 0
    traits: ClassVar[Traits] = Traits(summary="Your own images: a folder for each site, in it one for each class")
    defaults: ClassVar[Mapping[str, Any]] = DEFAULTS

    def __post_init__(self) -> None:
        check_share("images", self.test)
        if not 0 <= self.size <= 4096:
            raise ParameterError(f"images: size must be 0 to 4096, got {self.size}")

    def files(self) -> tuple[RemoteFile, ...]:
        """None: the folder is the user's."""
        return ()

    def verify(self, folder: Path) -> None:
        """Read the images; raises ParameterError, MissingDataError or CorruptDataError. ``folder`` is not used."""
        self.load(folder, torch.Generator().manual_seed(0))

    def fetch(self, folder: Path) -> None:
        """As :meth:`verify`: nothing can be fetched."""
        self.verify(folder)

    def implied_defaults(self) -> Mapping[str, Any]:
        """See :class:`fedsieve.data.dataset.Loader`: with folders of sites, one client for each."""
        if not self.file:
            return {}
        sites = {site for site, _, _ in image_files(resolved(self.file))[0]} - {""}
        return {"partition": "natural", "clients": len(sites)} if sites else {}

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the images; ``generator`` draws the test set, ``folder`` is not used."""
        if not self.file:
            raise ParameterError("images: file is not set; name a folder, e.g. --set dataset.file=scans")
        path = resolved(self.file)
        found, others = image_files(path)
        y, class_names = numbered([label for _, label, _ in found])
        check_number_of_classes("images", f"{path}", len(class_names))
        owners, owner_names = numbered([site for site, _, _ in found]) if found[0][0] else (None, ())
        x = torch.from_numpy(_read(path, [file for _, _, file in found], self.size))
        return parted(
            x,
            y,
            split("images", len(y), self.test, generator, owners, y),
            class_names,
            owners,
            owned_by="" if owners is None else "site",
            details=(f"{len(others)} other files left out: {listed(others)}",) if others else (),
            owner_names=owner_names,
        )


def image_files(path: Path) -> tuple[list[tuple[str, str, Path]], list[str]]:
    """Site ("" without), class and file of each image, sorted; and the names of other files.

    Raises:
        MissingDataError: If a folder can't be read.
        CorruptDataError: If there are too few images, or some are in folders of classes and some in those of sites.
    """
    found: list[tuple[str, str, Path]] = []
    others: list[str] = []
    for site in _inside(path):
        if not site.is_dir():
            others.append(site.name)
            continue
        for label in _inside(site):
            inside = label.is_dir()
            for file in _inside(label) if inside else [label]:
                if file.is_dir():
                    raise CorruptDataError(f"{path}: {file.relative_to(path)} is a folder too many; {_EXPECTED}")
                if file.suffix.lower() in SUFFIXES:
                    found.append((site.name, label.name, file) if inside else ("", site.name, file))
                else:
                    others.append(file.name)
    if len(found) < 2:
        raise CorruptDataError(f"{path} has {len(found)} images, at least 2 are needed; {_EXPECTED}")
    flat, deep = (next((file for site, _, file in found if bool(site) == nested), None) for nested in (False, True))
    if flat and deep:
        raise CorruptDataError(
            f"{path}: {flat.relative_to(path)} is in a class, {deep.relative_to(path)} in one of a site; {_EXPECTED}"
        )
    return found, others


def _inside(path: Path) -> list[Path]:
    """What is in a folder, sorted by name, without what is hidden and what file managers leave there."""
    try:
        found = sorted(path.iterdir())
    except (OSError, ValueError) as error:
        raise MissingDataError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from None
    return [file for file in found if not file.name.startswith((".", "__MACOSX")) and file.name != "Thumbs.db"]


def _read(path: Path, files: list[Path], size: int) -> Float32[np.ndarray, "N channels height width"]:
    """All images of one size, from 0 to 1."""
    meter, images = Meter(path), list[np.ndarray]()
    for file in files:
        image = _pixels(file, size, meter)
        if images and image.shape[:2] != images[0].shape[:2]:
            raise CorruptDataError(
                f"{file} is {_size(image)}, but {files[0].name} {_size(images[0])}; "
                f"dataset.size={min(*image.shape[:2], *images[0].shape[:2])} scales all to one size"
            )
        images.append(image)
    channels = max(image.shape[2] for image in images)
    x = np.empty((len(images), channels, *images[0].shape[:2]), np.float32)
    for k, image in enumerate(images):  # a grey image among coloured ones has three equal channels
        x[k] = image.transpose(2, 0, 1)
    return x


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]} x {image.shape[1]} (height x width)"


def _pixels(file: Path, size: int, meter: Meter) -> Float32[np.ndarray, "height width channels"]:
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        raise MissingDataError("images take the package pillow to read; pip install 'fedsieve[images]'") from None
    with open_regular(file) as raw:
        try:
            with Image.open(raw) as opened:
                meter.add(16 * (size * size or opened.width * opened.height))
                if opened.width * opened.height > MAX_PIXELS:
                    raise CorruptDataError(f"{file} has {opened.width} x {opened.height} pixels, too many to be read")
                image: Image.Image = ImageOps.exif_transpose(opened)
                if image.mode.startswith("I"):  # 16 bits, which conversion to 8 would cut off
                    image = Image.fromarray(np.asarray(image, np.float32) / 65535)
                elif image.mode in ("1", "L", "LA", "La"):
                    image = image.convert("L")
                elif image.mode != "F":
                    image = image.convert("RGB")
                if size:
                    image = image.resize((size, size), Image.Resampling.BILINEAR)
                pixels = np.asarray(image, np.float32) / (1 if image.mode == "F" else 255)
        except (CorruptDataError, MissingDataError):
            raise
        except Exception as error:  # Pillow documents only some of the errors of a damaged file
            raise CorruptDataError(f"{file} is not a whole image: {' '.join(str(error).split())[:200]}") from None
    if not np.isfinite(pixels).all():
        raise CorruptDataError(f"{file} has pixels that are not finite")
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
