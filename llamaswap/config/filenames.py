"""File names made from the ids of models, which may contain slashes."""

from urllib.parse import quote


def filename_for(name: str, safe: str = "") -> str:
    """A file name for a model's id, different for each id: ``a/b`` is not ``a_b``."""
    return quote(name, safe=safe).replace("..", "%2E%2E")
