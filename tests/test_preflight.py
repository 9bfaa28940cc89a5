"""What `make quickstart` says before it installs anything."""

import builtins
import importlib.util
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "tools" / "preflight.py"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def preflight():
    spec = importlib.util.spec_from_file_location("preflight", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def said(preflight, capsys) -> tuple[int, list[str]]:
    status = preflight.main()
    return status, capsys.readouterr().err.splitlines()


def test_a_machine_that_has_everything_hears_nothing(preflight, capsys, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(0, 0, 2**40))
    monkeypatch.setattr(preflight.shutil, "which", lambda _: "/usr/bin/g++")
    assert said(preflight, capsys) == (0, [])


def test_too_little_disk_is_one_line(preflight, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(0, 0, 3 * 2**30))
    status, [line] = said(preflight, capsys)
    assert status == 2 and "only 3.0 GiB of disk are free" in line


def test_a_missing_venv_module_is_one_line_with_the_fix(preflight, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "ensurepip":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    status, [line] = said(preflight, capsys)
    assert status == 2 and "no venv module" in line and "apt-get install python3-venv" in line


def test_an_old_python_is_one_line(preflight, capsys, monkeypatch):
    monkeypatch.setattr(preflight.sys, "version_info", (3, 9, 0))
    status, [line] = said(preflight, capsys)
    assert status == 2 and "Python 3.9 is too old" in line


def test_a_missing_compiler_is_a_warning(preflight, capsys, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "which", lambda _: None)
    status, [line] = said(preflight, capsys)
    assert status == 0 and "no C++ compiler" in line and "eagerly" in line


def test_make_stops_at_the_preflight_before_it_creates_anything(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "Makefile").write_text((PATH.parent.parent / "Makefile").read_text())
    (tmp_path / "tools/preflight.py").write_text("import sys; print('preflight: no', file=sys.stderr); sys.exit(2)")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", f"PYTHON={sys.executable}", "quickstart"]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert child.returncode == 2 and child.stderr.startswith("preflight: no") and not (tmp_path / ".venv").exists()
