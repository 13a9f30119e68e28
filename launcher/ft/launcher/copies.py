"""The copy of a run by its URI: `s3://BUCKET/PREFIX/RUN` (`gs://`, `az://`, `r2://`), or `file:///FOLDER/RUN`.

The second is a folder of a file system that laptop and nodes mount under one path. It has a scheme, as a folder
without one is a store of backend local (decision 64).
"""

from __future__ import annotations

from ft.launcher.bucket import RETRY_S, Bucket
from ft.launcher.medium import FOLDER_SCHEME, SharedMedium
from ft.launcher.shared_folder import SharedFolder


def open_copy(uri: str, *, retry_s: float = RETRY_S) -> SharedMedium:
    """`retry_s`: how long a bucket is asked again; of a mounted folder the kernel takes care.

    Raises: ValueError if `uri` is neither, DependencyError without the library for buckets. Nothing is asked yet.
    """
    if uri.startswith(FOLDER_SCHEME):
        return SharedFolder(uri)
    return Bucket(uri, retry_s=retry_s)
