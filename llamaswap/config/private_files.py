"""Files that only this program's user may change: folders and files are checked before use, links are not followed.

Another user who owns a folder, or may write to it, could choose which file is read or written. Every check is made on
the open descriptor, so that the file cannot be replaced between the check and its use.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from attrs import field, frozen

FOLDER_MODE = 0o700
PARENT_MODE = 0o755  # of the folders above it that are missing
FILE_MODE = 0o600
MAX_BYTES = 16 * 1024 * 1024  # of a file that is read; the program's files have a few kilobytes
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: a FIFO must not stop us
_WRITE_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class UnsafePath(PermissionError):
    """A folder or file is not used because another user controls it."""

    def __init__(self, path: str, reason: str, remedy: str) -> None:
        super().__init__(errno.EPERM, f"{path} {reason} and is not used; {remedy}")


def _check(found: os.stat_result, path: str, uid: int) -> None:
    """Raise UnsafePath unless `uid` owns the file and only its owner may write to it."""
    if found.st_uid != uid:
        remedy = f"delete it, or give it to the user that runs llamaswap (chown {uid})"
        raise UnsafePath(path, f"belongs to user {found.st_uid}, not to user {uid}", remedy)
    if found.st_mode & _OTHERS_WRITE:
        raise UnsafePath(path, "can be written by other users", "remove their right with chmod go-w, or delete it")


@frozen
class PrivateFolder:
    """An open folder of this user. `descriptor` is its directory descriptor; names never contain a slash."""

    path: Path
    descriptor: int
    uid: int = field(factory=os.geteuid)

    def names(self) -> list[str]:
        """The names of its entries."""
        return os.listdir(self.descriptor)

    def size(self, name: str) -> int:
        """A file's size in bytes."""
        return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_size

    def read(self, name: str) -> bytes:
        """A file's content. Raises UnsafePath if another user may have written it, OSError for a link."""
        with os.fdopen(os.open(name, _READ_FLAGS, dir_fd=self.descriptor), "rb") as file:
            found = os.fstat(file.fileno())
            where = str(self.path / name)
            if not stat.S_ISREG(found.st_mode):
                raise UnsafePath(where, "is not a regular file", "delete it")
            _check(found, where, self.uid)
            if found.st_size > MAX_BYTES:
                raise OSError(errno.EFBIG, f"{where} is larger than {MAX_BYTES} bytes")
            return file.read(MAX_BYTES)

    def write(self, name: str, content: bytes, like: os.stat_result | None = None, *, sync: bool = False) -> None:
        """Replace a file in one step: readers see the old content or the new one, never a part.

        With `like` the new file gets that file's mode and group, else only our user may read it. `sync` waits for the
        disk.
        """
        fresh = f"{name}.{os.getpid()}.new"
        try:
            create(fresh, content, like, sync=sync, folder=self.descriptor)
            os.replace(fresh, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except OSError:
            self.remove(fresh)
            raise

    def open(self, name: str) -> FileIO:
        """Open a file of this folder to overwrite it in place."""
        return FileIO(os.open(name, _WRITE_FLAGS, dir_fd=self.descriptor), "wb")

    def remove(self, name: str) -> None:
        """Delete a file if it exists."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)


@contextmanager
def private_folder(
    path: Path, *, make: bool = False, links: bool = False, uid: int | None = None
) -> Iterator[PrivateFolder]:
    """Open a folder that only `uid` (our user by default) may write to; with `make`, create it if it is missing.

    Raises UnsafePath if another user owns it or may write to it. With `links` the path itself may be a link of our user
    or root: systemd makes one for the state of a service with DynamicUser.
    """
    uid = os.geteuid() if uid is None else uid
    if make:
        for folder in (*reversed(path.parents), path):
            if not folder.exists():  # not `parents=True`: with a umask of 0 it makes folders that all users may change
                folder.mkdir(mode=FOLDER_MODE if folder == path else PARENT_MODE, exist_ok=True)
    found = os.lstat(path)
    linked = stat.S_ISLNK(found.st_mode)
    if linked and not (links and found.st_uid in (0, uid)):
        raise UnsafePath(str(path), f"is a link that user {found.st_uid} made", "delete it")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if linked else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        _check(os.fstat(descriptor), str(path), uid)
        yield PrivateFolder(path, descriptor, uid)
    finally:
        os.close(descriptor)


def create(
    name: str | Path,
    content: bytes,
    like: os.stat_result | None = None,
    *,
    sync: bool = False,
    folder: int | None = None,
) -> None:
    """Write a new file with this name. An existing file or link is removed, never followed.

    At no time may more users read it than may read `like`; without `like` only our user. If the file cannot get the
    group of `like`, its group has no permission.
    """
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, FILE_MODE, dir_fd=folder), "wb") as file:
        if like is not None:
            _take_rights(file.fileno(), like)
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def _take_rights(descriptor: int, like: os.stat_result) -> None:
    mode = stat.S_IMODE(like.st_mode) & 0o777
    if os.fstat(descriptor).st_gid != like.st_gid:
        try:
            os.fchown(descriptor, -1, like.st_gid)
        except OSError:
            mode &= ~stat.S_IRWXG
    os.fchmod(descriptor, mode)
