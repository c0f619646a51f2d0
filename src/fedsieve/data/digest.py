"""A fingerprint of data in files of the user's, by which a resumed run notices that they have changed."""

import hashlib
from functools import partial

from fedsieve.core.bounded import CHUNK, open_regular
from fedsieve.data.images import image_files
from fedsieve.data.user_files import resolved


def digest_of(file: str) -> str | None:
    """SHA-256 of a file, or of the images in a folder with their places in it; None where there is neither.

    Raises:
        FedSieveError: If it can't be read.
    """
    path = resolved(file)
    try:
        folder = path.is_dir()
        if not (folder or path.is_file()):
            return None
    except (OSError, ValueError):  # a name that no file can have
        return None
    digest = hashlib.sha256()
    for one in [image for _, _, image in image_files(path)[0]] if folder else [path]:
        with open_regular(one) as stream:
            if folder:
                digest.update(repr((one.relative_to(path).parts, one.stat().st_size)).encode(errors="surrogateescape"))
            for block in iter(partial(stream.read, CHUNK), b""):
                digest.update(block)
    return digest.hexdigest()
