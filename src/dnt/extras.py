"""Packages that only some tasks need, loaded where they are used."""

from importlib import import_module
from typing import Any


def extra(package: str, of: str = "text") -> Any:
    """A package (or a module in it) of the optional dependencies `of`; ValueError that says how to install it."""
    try:
        return import_module(package)
    except ImportError as error:
        missing = error.name or package
        raise ValueError(
            f"this needs the package {missing}, which is not there: pip install 'dnt-torch[{of}]'"
        ) from None
