"""Images in .zip and .tar archives, read in place: nothing is unpacked to disk."""

from __future__ import annotations

import copy
import gzip
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from bld.data.decoding import FILE_LIMIT_BYTES, check_file_size, decode
from bld.data.sources.base import ImageSource, fingerprint_of, links_note, opens
from bld.data.sources.members import (
    SHEET_NAMES,
    TARS,
    is_image_path,
    is_sheet,
    member_path,
    without_wrapper,
)
from bld.errors import DataError

UNPACKED_LIMIT_BYTES = 1 << 30  # of a compressed tar: encoded images and files beside them, held in memory
KEPT_BESIDE_BYTES = 1 << 26  # of one other file in it, such as a table


class _Archive(ImageSource):
    """What all archives do with the members they have found."""

    def _settle(self, location: str, members: Iterable[str], repeated: int, others: Iterable[str]) -> list[str]:
        """The names in order, now those of the source, which notes what is not used."""
        names = sorted(members)
        self._describe(location, names, without_wrapper(names))
        if repeated:
            self.notes.append(
                f"{repeated:,} members of {self.location} have the name of a later one, which counts alone."
            )
        self._pass_over(others)
        return names


class ZipSource(_Archive):
    """A .zip archive; the fingerprint covers the name, size and CRC of each image."""

    def __init__(self, location: str, path: Path) -> None:
        self._path = path.absolute()
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        try:
            infos = self._archive().infolist()
        except Exception as error:  # a damaged directory can raise anything
            raise _broken(location, "zip", error) from error
        members: dict[str, zipfile.ZipInfo] = {}
        self._others: dict[str, str] = {}  # path → member, of what is no image
        repeated, links = 0, []
        for info in infos:
            if info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                links.append(info.filename)
                continue
            name = member_path(info.filename, location)
            if not is_image_path(name) or _is_sheet(name, info.file_size, partial(self._content, info, location)):
                self._others[name] = info.filename
                continue
            repeated += name in members
            members[name] = info
        names = self._settle(location, members, repeated, self._others)
        self.notes += links_note(location, links)
        self._members = [members[name].filename for name in names]
        self.fingerprint = fingerprint_of((name, members[name].file_size, members[name].CRC) for name in names)

    def _archive(self) -> zipfile.ZipFile:
        """This process's handle. Threads share it, as ZipFile locks every read; forked processes must not,
        as their file positions are one and the same."""
        handle = self._handle
        if handle is None or handle[0] != os.getpid():
            handle = self._handle = (os.getpid(), _opened(self._path))
        return handle[1]

    def side_file(self, path: str, most: int = FILE_LIMIT_BYTES) -> bytes | None:
        """The content of a member that is no image."""
        if (member := self._others.get(path)) is None:
            return None
        info = self._archive().getinfo(member)
        return self._content(info, self.location) if info.file_size <= most else None

    def _content(self, info: zipfile.ZipInfo, location: str) -> bytes:
        """The content of a member that is no image; `DataError` where it is damaged, or packed as cannot be read."""
        try:
            return self._archive().read(info)
        except Exception as error:  # of damage, a password, a compression that Python does not know
            reason = "it has a password" if info.flag_bits & 1 else error
            raise _broken(location, "zip", f"{info.filename} cannot be read: {reason}") from error

    def _read(self, index: int) -> Image.Image:
        archive = self._archive()
        check_file_size(archive.getinfo(self._members[index]).file_size)
        return decode(archive.read(self._members[index]), self.max_pixels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


class TarSource(_Archive):
    """An uncompressed .tar archive, read at the offsets its headers gave.

    Links are noted, sparse files ignored; of members with one name the last counts, as in tar itself. The
    fingerprint covers the name, size and modification time of each image and the size of the archive.
    """

    def __init__(self, location: str, path: Path) -> None:
        self._path = path.absolute()
        links: list[str] = []
        try:
            infos = list(plain_members(self._path, links))
        except Exception as error:  # a damaged header can raise anything
            raise _broken(location, "tar", error) from error
        members: dict[str, tarfile.TarInfo] = {}
        self._others: dict[str, tuple[int, int]] = {}  # path → (offset, bytes), of what is no image
        repeated = 0
        for info in infos:
            name = member_path(info.name, location)
            span = info.offset_data, info.size
            if not is_image_path(name) or _is_sheet(name, info.size, partial(self._bytes, *span)):
                self._others[name] = span
                continue
            repeated += name in members
            members[name] = info
        names = self._settle(location, members, repeated, self._others)
        self.notes += links_note(location, links)
        self._spans = [(members[name].offset_data, members[name].size) for name in names]
        self.fingerprint = _tar_fingerprint(self._path, members)

    def side_file(self, path: str, most: int = FILE_LIMIT_BYTES) -> bytes | None:
        """The content of a member that is no image."""
        span = self._others.get(path)
        return None if span is None or span[1] > most else self._bytes(*span)

    def _read(self, index: int) -> Image.Image:
        offset, size = self._spans[index]
        check_file_size(size)
        return decode(self._bytes(offset, size), self.max_pixels)

    def _bytes(self, offset: int, size: int) -> bytes:
        # Opened anew each time: cheap beside decoding, and there is no handle to share between threads.
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


class CompressedTarSource(_Archive):
    """A .tar.gz or .tgz archive, whose image files are held in memory as they are, still encoded.

    Gzip cannot be read from the middle.

    Raises:
        DataError: if these, with the smaller files beside them, take more than UNPACKED_LIMIT_BYTES, or the archive is
            broken.
    """

    def __init__(self, location: str, path: Path) -> None:
        members: dict[str, tarfile.TarInfo] = {}
        files: dict[str, bytes] = {}
        self._others: dict[str, bytes | None] = {}  # what is no image; None for what is too large to be kept
        links: list[str] = []
        total_bytes = repeated = 0
        try:
            for info, tar in _compressed_members(path, links):
                name = member_path(info.name, location)
                is_image = is_image_path(name)
                total_bytes += info.size if is_image or info.size <= KEPT_BESIDE_BYTES else 0
                if not is_image:
                    self._others[name] = _contents(tar, info) if info.size <= KEPT_BESIDE_BYTES else None
                    continue
                repeated += name in members
                if total_bytes > UNPACKED_LIMIT_BYTES:
                    raise DataError(
                        f"The images in {location} take more than {UNPACKED_LIMIT_BYTES} bytes, too much "
                        f"to hold in memory; gunzip it once and give the .tar, which is read in place."
                    )
                members[name], files[name] = info, _contents(tar, info)
                if _is_sheet(name, info.size, partial(files.__getitem__, name)):
                    del members[name]
        except DataError:
            raise
        except Exception as error:  # damaged gzip or tar data can raise anything
            raise _broken(location, "tar", error) from error
        names = self._settle(location, members, repeated, self._others)
        self.notes += links_note(location, links)
        self._files = [files[name] for name in names]
        self.fingerprint = _tar_fingerprint(path, members)

    def side_file(self, path: str, most: int = FILE_LIMIT_BYTES) -> bytes | None:
        """The content of a member that is no image; it is in memory already, so that `most` does not matter."""
        return self._others.get(path)

    def _read(self, index: int) -> Image.Image:
        return decode(self._files[index], self.max_pixels)


def open_tar(location: str, path: Path) -> ImageSource:
    """A tar archive, whichever way its first bytes (not its name) say it is packed."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return CompressedTarSource(location, path) if is_gzip else TarSource(location, path)


def _is_sheet(path: str, size: int, read: Callable[[], bytes]) -> bool:
    return path.rpartition("/")[2] in SHEET_NAMES and size <= FILE_LIMIT_BYTES and is_sheet(path, read())


def _opened(path: Path) -> zipfile.ZipFile:
    """A .zip whose names are read as UTF-8 where they are that, though many programs do not say so."""
    try:
        return zipfile.ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(path)


def plain_members(path: Path, links: list[str] | None = None) -> Iterator[tarfile.TarInfo]:
    """Regular members of an uncompressed tar, hard links to them too; raises on damage anywhere among the headers.

    The names of other links are added to `links`.
    """
    regular: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            if info.islnk() and (target := regular.get(info.linkname)) is not None:
                linked = copy.copy(target)  # the second name of a file, whose content lies by its first
                linked.name = info.name
                yield linked
            elif info.isreg() and not info.issparse():
                regular[info.name] = info
                yield info
            elif links is not None and (info.issym() or info.islnk()):
                links.append(info.name)
        end = tar.offset
    with path.open("rb") as file:
        file.seek(end)
        # tarfile takes a damaged header, or the end of a truncated file, for the end of the archive.
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"neither a header nor the end at byte {end}")


def _compressed_members(path: Path, links: list[str]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Regular members of a gzipped tar in a single pass; raises on damage, to the checksum at the end.

    The names of links are added to `links`.
    """
    with gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for info in tar:
                if info.isreg() and not info.issparse():
                    yield info, tar
                elif info.issym() or info.islnk():
                    links.append(info.name)
        while stream.read(1 << 20):
            pass


def _contents(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """The bytes of a regular member."""
    file = tar.extractfile(info)
    assert file is not None, "regular members have contents"
    return file.read()


def _tar_fingerprint(path: Path, members: dict[str, tarfile.TarInfo]) -> str:
    records = [(name, members[name].size, members[name].mtime) for name in sorted(members)]
    return fingerprint_of([*records, (path.stat().st_size,)])


def _broken(location: str, kind: str, error: Exception | str) -> DataError:
    return DataError(f"{location} is broken or no {kind} archive ({error}); download or pack it again.")


@opens(4)
def _archive(text: str, path: Path, index_to: Path | None) -> ImageSource | None:
    name = path.name.lower()
    if name.endswith(".zip") and path.exists():
        return ZipSource(text, path)
    return open_tar(text, path) if name.endswith(TARS) and path.exists() else None
