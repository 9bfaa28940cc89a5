"""What an installation needs, checked before it begins: one line for each thing that is missing.

Runs on any Python 3, so that an old one gets the line too.
"""

import os
import shutil
import sys

NEEDED_GIB = 9  # torch with its GPU libraries unpacked, and room for pip to unpack it


def problems():
    """What makes an installation impossible, and the fix."""
    if sys.version_info < (3, 11):  # noqa: UP036
        yield "Python {}.{} is too old; install Python 3.11 or newer and run: make PYTHON=python3.11 ...".format(
            *sys.version_info
        )
        return
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        yield "this Python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)."
    free = shutil.disk_usage(".").free / 2**30
    if free < NEEDED_GIB and not os.path.exists(".venv/installed-run"):
        yield f"only {free:.1f} GiB of disk are free here; the installation needs {NEEDED_GIB} GiB."


def main():
    found = list(problems())
    for problem in found:
        print("preflight: " + problem, file=sys.stderr)
    if not shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")):
        print("preflight: no C++ compiler (g++): training will run eagerly, without torch.compile.", file=sys.stderr)
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())
