"""An archive is the folder in it, or an error: it is never trusted."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dnt.data.text import prepare_text
from tests.dnt.corpora import DOCUMENTS, parquet, same

pytestmark = pytest.mark.usefixtures("cache")


def archive(name: str, members: dict[str, bytes]) -> str:
    """Members by name; content that begins with -> is a symbolic link."""
    if name.endswith(".zip"):
        with zipfile.ZipFile(name, "w") as file:
            for member, content in members.items():
                info = zipfile.ZipInfo(member)
                info.external_attr = (stat.S_IFLNK if content.startswith(b"->") else stat.S_IFREG) << 16
                file.writestr(info, content.removeprefix(b"->"))
        return name
    with tarfile.open(name, f"w:{name.rpartition('.')[2]}" if not name.endswith(".tar") else "w") as file:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            if content.startswith(b"->"):
                info.type, info.linkname = tarfile.SYMTYPE, content[2:].decode()
            else:
                info.size = len(content)
            file.addfile(info, io.BytesIO(content) if info.size else None)
    return name


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.zip"])
def test_an_archive_is_the_folder_in_it(name):
    parquet("data/train.parquet", DOCUMENTS[:200])
    parquet("data/validation.parquet", DOCUMENTS[200:])
    members = {f"books/{path.name}": path.read_bytes() for path in Path("data").iterdir()}
    assert same(prepare_text(archive(name, members)), prepare_text("data"))
    assert prepare_text(name).sha256 == prepare_text("data").sha256


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.zip"])
@pytest.mark.parametrize("harm", ["flipped", "cut"])
def test_an_archive_with_broken_content_is_an_error_not_data(name, harm, cache):
    """Also where only the checksum at its very end tells: incompressible content is stored, not coded."""
    archive(name, {"words.txt": np.random.default_rng(0).integers(97, 123, 300_000, np.uint8).tobytes()})
    data = bytearray(Path(name).read_bytes())
    data[len(data) // 2] ^= 1
    Path(name).write_bytes(data if harm == "flipped" else data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"{name} cannot be unpacked"):
        prepare_text(name)
    assert not list(cache.glob("*/meta.json"))


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
@pytest.mark.parametrize(
    "members",
    [
        {"../outside.txt": b"text " * 99},
        {"a/../../outside.txt": b"text " * 99},
        {"link": b"->/etc", "fine.txt": b"text " * 99},
        {"link": b"->../..", "link/outside.txt": b"text " * 99},
        {"{there}/outside.txt": b"text " * 99},
    ],
)
def test_an_archive_that_reaches_outside_is_refused_or_harmless(name, members, tmp_path, cache):
    archive(name, {member.format(there=tmp_path): content for member, content in members.items()})
    try:
        prepare_text(name)
    except ValueError as error:
        assert "refused" in str(error) and "\n" not in str(error)
    assert not [path for path in tmp_path.rglob("outside.txt") if "archives" not in path.parts]
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
