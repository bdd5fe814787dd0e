"""File names made from the ids of models, which may contain slashes."""

from urllib.parse import quote


def filename_for(name: str, safe: str = "") -> str:
    """A name that any folder takes, another for each: a model's id may have slashes, and ``a/b`` is not ``a_b``."""
    return quote(name, safe=safe).replace("..", "%2E%2E")
