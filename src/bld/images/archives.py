"""Images in .zip and .tar archives, read in place: nothing is unpacked to disk."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bld.errors import DataError
from bld.images.decoding import check_file_size, decode
from bld.images.members import TEXT_LIMIT_BYTES, is_image_path, member_path, text_path, without_wrapper
from bld.images.source import ImageSource, fingerprint_of

UNPACKED_LIMIT_BYTES = 1 << 30  # encoded images of a compressed tar, which are held in memory


class ZipSource(ImageSource):
    """A .zip archive; the fingerprint covers the name, size and CRC of each image."""

    def __init__(self, location: str, path: Path) -> None:
        self._path = path.absolute()
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        try:
            infos = self._archive().infolist()
        except Exception as error:  # a damaged directory can raise anything
            raise _broken(location, "zip", error) from error
        members = {}
        for info in infos:
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            if not info.is_dir() and not is_link and (name := _image_name(info.filename, location)):
                members[name] = info
        names = sorted(members)
        self._describe(location, names, without_wrapper(names))
        self._members = [members[name].filename for name in names]
        self.fingerprint = fingerprint_of((name, members[name].file_size, members[name].CRC) for name in names)

    def _archive(self) -> zipfile.ZipFile:
        """This process's handle. Threads share it, as ZipFile locks every read; forked processes must not,
        as their file positions are one and the same."""
        handle = self._handle
        if handle is None or handle[0] != os.getpid():
            handle = self._handle = (os.getpid(), zipfile.ZipFile(self._path))
        return handle[1]

    def texts_beside(self) -> list[str] | None:
        """Of `a/1.jpg` what `a/1.txt` says."""
        archive = self._archive()
        members = {member_path(info.filename, self.location): info for info in archive.infolist() if _is_text(info)}
        infos = [members.get(text_path(name)) for name in self.names]
        return None if not any(infos) else ["" if info is None else _decoded(archive.read(info)) for info in infos]

    def _read(self, index: int) -> Image.Image:
        archive = self._archive()
        check_file_size(archive.getinfo(self._members[index]).file_size)
        return decode(archive.read(self._members[index]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


class TarSource(ImageSource):
    """An uncompressed .tar archive, read at the offsets its headers gave.

    Links and sparse files are ignored; of members with one name the last counts, as in tar itself. The
    fingerprint covers the name, size and modification time of each image and the size of the archive.
    """

    def __init__(self, location: str, path: Path) -> None:
        self._path = path.absolute()
        try:
            infos = list(plain_members(self._path))
        except Exception as error:  # a damaged header can raise anything
            raise _broken(location, "tar", error) from error
        members = {}
        for info in infos:
            if name := _image_name(info.name, location):
                members[name] = info
        names = sorted(members)
        self._describe(location, names, without_wrapper(names))
        self._spans = [(members[name].offset_data, members[name].size) for name in names]
        self.fingerprint = _tar_fingerprint(self._path, members)

    def texts_beside(self) -> list[str] | None:
        """Of `a/1.jpg` what `a/1.txt` says."""
        texts = {}
        with self._path.open("rb") as file:
            for info in plain_members(self._path):
                if info.name.endswith(".txt") and info.size <= TEXT_LIMIT_BYTES:
                    file.seek(info.offset_data)
                    texts[member_path(info.name, self.location)] = _decoded(file.read(info.size))
        return _in_order(texts, self.names)

    def _read(self, index: int) -> Image.Image:
        offset, size = self._spans[index]
        check_file_size(size)
        # Opened anew each time: cheap beside decoding, and there is no handle to share between threads.
        with self._path.open("rb") as file:
            file.seek(offset)
            return decode(file.read(size))


class CompressedTarSource(ImageSource):
    """A .tar.gz or .tgz archive, whose image files are held in memory as they are, still encoded.

    Gzip cannot be entered in the middle. Above UNPACKED_LIMIT_BYTES the archive is refused with a DataError.
    """

    def __init__(self, location: str, path: Path) -> None:
        members: dict[str, tarfile.TarInfo] = {}
        files: dict[str, bytes] = {}
        self._texts: dict[str, str] = {}
        total_bytes = 0
        try:
            for info, tar in _compressed_members(path):
                if info.name.endswith(".txt") and info.size <= TEXT_LIMIT_BYTES:
                    self._texts[member_path(info.name, location)] = _decoded(_contents(tar, info))
                if not (name := _image_name(info.name, location)):
                    continue
                total_bytes += info.size
                if total_bytes > UNPACKED_LIMIT_BYTES:
                    raise DataError(
                        f"The images in {location} take more than {UNPACKED_LIMIT_BYTES} bytes, too much "
                        f"to hold in memory; gunzip it once and give the .tar, which is read in place."
                    )
                members[name], files[name] = info, _contents(tar, info)
        except DataError:
            raise
        except Exception as error:  # damaged gzip or tar data can raise anything
            raise _broken(location, "tar", error) from error
        names = sorted(members)
        self._describe(location, names, without_wrapper(names))
        self._files = [files[name] for name in names]
        self.fingerprint = _tar_fingerprint(path, members)

    def texts_beside(self) -> list[str] | None:
        """Of `a/1.jpg` what `a/1.txt` says."""
        return _in_order(self._texts, self.names)

    def _read(self, index: int) -> Image.Image:
        return decode(self._files[index])


def open_tar(location: str, path: Path) -> ImageSource:
    """A tar archive, whichever way its first bytes (not its name) say it is packed."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return CompressedTarSource(location, path) if is_gzip else TarSource(location, path)


def _image_name(raw: str, location: str) -> str | None:
    """The name of an image member, None for any other; DataError when it points outside the archive."""
    path = member_path(raw, location)
    return path if is_image_path(path) else None


def _is_text(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith(".txt") and info.file_size <= TEXT_LIMIT_BYTES


def _decoded(data: bytes) -> str:
    return data.decode("utf-8-sig", errors="replace")


def _in_order(texts: dict[str, str], names: Sequence[str]) -> list[str] | None:
    """The text beside each of the images, "" where there is none; None if there are none."""
    found = [texts.get(text_path(name), "") for name in names]
    return found if any(found) else None


def plain_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Regular members of an uncompressed tar; raises on damage anywhere among the headers."""
    with tarfile.open(path, "r:") as tar:
        yield from (info for info in tar if info.isreg() and not info.issparse())
        end = tar.offset
    with path.open("rb") as file:
        file.seek(end)
        # tarfile takes a damaged header, or the end of a truncated file, for the end of the archive.
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"neither a header nor the end at byte {end}")


def _compressed_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Regular members of a gzipped tar in a single pass; raises on damage, to the checksum at the end."""
    with gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            yield from ((info, tar) for info in tar if info.isreg() and not info.issparse())
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


def _broken(location: str, kind: str, error: Exception) -> DataError:
    return DataError(f"{location} is broken or no {kind} archive ({error}); download or pack it again.")
