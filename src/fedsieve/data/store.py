"""The data folder: checking and downloading files. A file is put there only if it is complete and correct.

What downloads (pooch, requests) is imported when it is needed: most runs find their data, and it takes a quarter of a
second.
"""

import hashlib
import os
import time
import uuid
import zipfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fedsieve.core.bounded import read_member
from fedsieve.core.errors import CorruptDataError, MissingDataError
from fedsieve.data.dataset import RemoteFile

ATTEMPTS = 3  # times that all addresses are tried
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
LARGEST = 1 << 31  # bytes; what is larger is none of the published files
TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two parts of a response


def data_folder() -> Path:
    """``$FEDSIEVE_DATA``, or a folder in the user's cache."""
    folder = os.environ.get("FEDSIEVE_DATA")
    if not folder:
        import pooch

        folder = pooch.os_cache("fedsieve")
    return Path(folder).expanduser().absolute()


def verify(file: RemoteFile, folder: Path, *, dataset: str = "DATASET") -> None:
    """Check that ``file`` exists below ``folder`` and is as published.

    Args:
        file: The published file.
        folder: The data folder.
        dataset: Name of the dataset, for the error message.

    Raises:
        MissingDataError: If it does not exist or cannot be read.
        CorruptDataError: If its checksum is wrong.
    """
    if file.members is not None:
        read_members(file, folder, dataset=dataset)
        return
    path = _present(file, folder, dataset)
    try:
        _check_file(file, path, str(path))
    except OSError as error:
        raise MissingDataError(f"{path} cannot be read: {error.strerror}") from None


def read_members(file: RemoteFile, folder: Path, *, dataset: str = "DATASET") -> dict[str, bytes]:
    """Content of the zip file's members that have a checksum, by name, checked. Arguments as in :func:`verify`.

    Raises:
        MissingDataError: If the file does not exist or cannot be read.
        CorruptDataError: If it is not a zip file, or a member is missing or has a wrong checksum.
    """
    path = _present(file, folder, dataset)
    return _checked_members(file, path, str(path))


def check_md5(content: bytes, expected: str, what: str) -> None:
    """Raise :class:`CorruptDataError`, which names ``what``, unless ``content`` has the MD5 ``expected``."""
    _compare(hashlib.md5(content, usedforsecurity=False).hexdigest(), expected, what)


def fetch(file: RemoteFile, folder: Path, *, dataset: str = "DATASET", progress: bool = True) -> Path:
    """The path of ``file`` below ``folder``, after downloading it if it is missing or corrupt.

    The address in ``$FEDSIEVE_MIRROR`` is tried before the published ones.

    Args:
        file: The published file.
        folder: The data folder.
        dataset: Name of the dataset, for the error message.
        progress: Whether to show a progress bar, if standard error is a terminal.

    Raises:
        MissingDataError: If it does not exist and cannot be downloaded.
        CorruptDataError: If it is corrupt and cannot be replaced; it is left unchanged.
    """
    path = (folder / file.path).absolute()
    retry = f"`fedsieve data fetch {dataset}` tries again"
    try:
        verify(file, folder, dataset=dataset)
    except CorruptDataError as corrupt:
        if failure := _download(file, path, progress):
            raise CorruptDataError(f"{corrupt}; not used, and not replaced ({failure}); {retry}") from None
    except MissingDataError:
        if failure := _download(file, path, progress):
            raise MissingDataError(
                f"{path} is missing and could not be downloaded ({failure}); {retry}, "
                f"or set FEDSIEVE_DATA to a folder that has {file.path}"
            ) from None
    return path


def _present(file: RemoteFile, folder: Path, dataset: str) -> Path:
    path = (folder / file.path).absolute()
    if not path.is_file():
        raise MissingDataError(
            f"{path} is missing; `fedsieve data fetch {dataset}` downloads it, "
            f"or set FEDSIEVE_DATA to a folder that has {file.path}"
        )
    return path


def _check_file(file: RemoteFile, path: Path, what: str) -> None:
    if file.members is not None:
        _checked_members(file, path, what)
    elif file.md5:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
        _compare(digest.hexdigest(), file.md5, what)


def _checked_members(file: RemoteFile, path: Path, what: str) -> dict[str, bytes]:
    contents = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, md5 in (file.members or {}).items():
                contents[name] = read_member(archive, name, file.largest, f"{name} in {what}")
                check_md5(contents[name], md5, f"{name} in {what}")
    except CorruptDataError:
        raise
    except PermissionError as error:
        raise MissingDataError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # zipfile documents only some of the errors that a damaged file can cause
        raise CorruptDataError(f"{what} is corrupt: {error or type(error).__name__}".replace("\n", " ")) from None
    return contents


def _compare(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise CorruptDataError(f"{what} is corrupt: its MD5 is {found}, expected {expected}")


def _download(file: RemoteFile, path: Path, progress: bool) -> str:
    """Download ``file`` to ``path`` and return "", or leave ``path`` unchanged and return the reason."""
    import requests

    mirror = os.environ.get("FEDSIEVE_MIRROR")
    urls = [f"{mirror.rstrip('/')}/{quote(file.path)}"] if mirror else []
    urls += file.urls
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"cannot create {path.parent}: {error.strerror}"
    failures: dict[str, str] = {}  # the last failure of each address
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        for url in urls:
            # a unique name, so that two processes never write to one file; in the same folder, so that renaming it
            # is atomic
            part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
            try:
                _get(url, part, path.name, progress)
                _check_file(file, part, "what it sent")
                part.replace(path)
                return ""
            except (requests.RequestException, CorruptDataError) as error:
                failures[url] = f"{urlsplit(url).netloc.rpartition('@')[2]}: {_in_short(error)}"
            except OSError as error:  # a full disk or a read-only folder: no other address would help
                return f"cannot write below {path.parent}: {error.strerror}"
            finally:
                with suppress(OSError):
                    part.unlink()
    return "; ".join(failures.values()) or "no address is known"


def _get(url: str, target: Path, name: str, progress: bool) -> None:
    """Download ``url`` to ``target``, with ``name`` beside the progress bar; raises requests' errors."""
    import pooch
    import requests

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, disable=not (progress and console.is_terminal)) as bars:
        download = pooch.HTTPDownloader(
            progressbar=_Bar(bars, name),
            chunk_size=1 << 16,
            timeout=TIMEOUT,
            headers={"Accept-Encoding": "identity"},  # otherwise requests would unpack a .gz sent as encoded
        )
        try:
            download(url, str(target), None)
        except requests.RequestException as error:
            if error.response is not None:
                error.response.close()
            raise


class _Bar:
    """The progress bar interface of pooch, on a bar of rich."""

    def __init__(self, bars: Progress, name: str) -> None:
        self.bars, self.task, self.received = bars, bars.add_task(name, total=None), 0

    @property
    def total(self) -> float | None:
        return self.bars.tasks[0].total

    @total.setter
    def total(self, size: int) -> None:
        self.bars.update(self.task, total=size or None)

    def update(self, size: int) -> None:
        self.bars.advance(self.task, size)
        self.received += size
        if self.received > LARGEST:
            raise CorruptDataError(f"what it sends has more than {LARGEST} bytes")

    def reset(self) -> None:
        self.bars.update(self.task, completed=0)
        self.received = 0

    def close(self) -> None:
        """Nothing to do: the ``with`` around the bars closes them."""


def _in_short(error: Exception) -> str:
    """Why a download failed, in a few words."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "timed out"
    if isinstance(error, requests.exceptions.SSLError):
        return "no secure connection"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error)
