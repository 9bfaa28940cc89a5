"""Archives, unpacked once into the cache. Nothing in one is trusted: no path or link may leave its folder. No torch."""

import hashlib
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path

from dnt.files import UNFINISHED, exclusive

CHUNK = 1 << 20  # bytes
# What the libraries raise for broken content; zipfile says RuntimeError of an encrypted or unknown compression
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


def unpacked(archive: Path, cache: Path) -> Path:
    """The folder with an archive's content; ValueError for one that is damaged or reaches outside of its folder."""
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:24]
    folder = cache / "archives" / key
    if not folder.exists():
        with exclusive(folder.with_name(f"{key}.lock")):
            if not folder.exists():
                unfinished = folder.with_name(key + UNFINISHED)
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
                unpack(archive, unfinished)
                unfinished.rename(folder)
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def unpack(archive: Path, folder: Path) -> None:
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                for member in file.infolist():
                    check_member(archive, member, folder)
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
                while file.fileobj and file.fileobj.read(CHUNK):  # to its end, where gzip, bzip2 and xz have a checksum
                    pass
    except tarfile.FilterError as error:
        raise ValueError(
            f"{archive} is refused: {error}. An archive of data holds plain files and folders only."
        ) from None
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of a decompressor
            raise
        said = " ".join(str(error).split())
        raise ValueError(f"{archive} cannot be unpacked ({said}); it is truncated, encrypted or no archive.") from None


def check_member(archive: Path, member: zipfile.ZipInfo, folder: Path) -> None:
    """The rules of tarfile's data filter; zipfile itself would quietly write another path."""
    name = member.filename.replace("\\", "/")
    inside = (folder / name).resolve().is_relative_to(folder.resolve())
    kind = stat.S_IFMT(member.external_attr >> 16)
    if name.startswith("/") or not inside or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(
            f"{archive} is refused: {member.filename!r} would be written outside of its folder or is a link. "
            "An archive of data holds plain files and folders only."
        )
