"""Decoded images in one array file, made once: a .npy of uint8 (N, C, H, W), mapped when read.

The file's name is a digest of the list of images, their sizes and times and of how they are
decoded, so a changed folder gets a new file. It is written under another name and renamed when
complete and on the disk; a writer that is killed leaves a part that the next one overwrites.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import current_process, get_context
from pathlib import Path

import numpy as np

from advtrain.data import decode
from advtrain.data.errors import DataError
from advtrain.files import sync_names
from advtrain.lock import locked

log = logging.getLogger(__name__)

CHUNK = 256
"""Images to a task: long enough to forget what a task costs, short enough to stop soon."""


def folder(root: Path, chosen: str | None) -> Path:
    """Where caches go: as chosen, else beside the data, else (read-only data) the user's cache."""
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    if os.access(root, os.W_OK):
        return root / ".advtrain-cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advtrain"


def decoded(
    paths: Sequence[Path], recipe: decode.Recipe, *, root: Path, where: Path, workers: int
) -> np.ndarray:
    """The images at `paths` as a memory map, uint8 (N, C, H, W); decodes what is not there yet.

    DataError: an image is broken, or the cache cannot be written.
    """
    shape = (len(paths), len(recipe.mode), *recipe.size)
    target = where / f"{_digest(paths, recipe, root)}.npy"
    found = _opened(target, shape)
    if found is not None:
        return found
    try:
        with locked(target.with_suffix(".lock")):
            found = _opened(target, shape)  # another process may have made it meanwhile
            if found is None:
                _write(target, shape, [str(path) for path in paths], recipe, workers)
                found = _opened(target, shape)
    except OSError as error:
        if error.filename in set(map(str, paths)):  # the images' disk, not that of the cache
            raise
        raise DataError(
            f"decoded images cannot be kept in {where} ({error}). Set dataset.cache to a folder "
            "that can be written."
        ) from error
    assert found is not None
    return found


def _digest(paths: Sequence[Path], recipe: decode.Recipe, root: Path) -> str:
    files = [
        (path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)
        for path in paths
        for stat in [path.stat()]
    ]
    text = json.dumps([decode.VERSION, recipe, files])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _opened(target: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The file as a private map (what is written to it stays in memory), if it is whole."""
    if not target.is_file():  # a pipe would be waited for
        return None
    try:
        found = np.lib.format.open_memmap(target, mode="c")
    except Exception:  # it is damaged, or another file, in any way: it is made anew
        return None
    return found if found.shape == shape and found.dtype == np.uint8 else None


def _write(
    target: Path, shape: tuple[int, ...], paths: list[str], recipe: decode.Recipe, workers: int
) -> None:
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    free, needed = shutil.disk_usage(target.parent).free, int(np.prod(shape))
    if needed > free:  # a mapped file that outgrows the disk would kill the process
        raise DataError(
            f"decoded images need {needed / 1e9:.1f} GB in {target.parent}, where {free / 1e9:.1f} "
            "GB are free. Set dataset.cache to a larger disk, or lower dataset.resize."
        )
    log.info("decoding %d images into %s, once", len(paths), target)
    try:
        rows = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        rows.flush()
        del rows
        with part.open("r+b") as stream:
            _take_room(stream.fileno(), part.stat().st_size)
            _fill(str(part), paths, recipe, workers)
            os.fsync(stream.fileno())
        os.replace(part, target)
        sync_names(target.parent)
    finally:
        part.unlink(missing_ok=True)


def _take_room(handle: int, size: int) -> None:
    """OSError: the disk, or a quota, has no room for `size` bytes.

    A mapped page without room ends the process by SIGBUS, without a word.
    """
    if hasattr(os, "posix_fallocate"):  # macOS has none
        os.posix_fallocate(handle, 0, size)


def _fill(part: str, paths: list[str], recipe: decode.Recipe, workers: int) -> None:
    tasks = [(part, i, paths[i : i + CHUNK], recipe) for i in range(0, len(paths), CHUNK)]
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    # starting processes costs more than a few hundred images do, and a daemon may start none
    if workers == 1 or current_process().daemon:
        for task in tasks:
            _complain(decode.fill(*task))
        return
    # spawned, not forked: this process may hold threads and a CUDA context
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=decode.start_worker)
    try:
        for done in as_completed([pool.submit(decode.fill, *task) for task in tasks]):
            _complain(done.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _complain(message: str | None) -> None:
    if message is not None:
        raise DataError(message)
