"""The built-in demo: tiny model servers that need nothing but Python, and the configuration that swaps them."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent


def real_inference_present() -> bool:
    """Whether the packages of the extra `llamaswap[llamacpp]` are installed."""
    return all(find_spec(name) is not None for name in ("xllamacpp", "gguf", "numpy"))


def begun_by_demo(text: bytes) -> bool:
    """Whether a configuration file begins as the demo's, which may have been changed since."""
    return text.startswith((HERE / "demo.yaml").read_bytes().partition(b"\n")[0])


def demo_config(python: str = sys.executable, *, real: bool | None = None, models: str | None = None) -> str:
    """The demo's configuration text.

    Its servers run on the interpreter `python` (a path). `real` adds two llama.cpp models (None: if their packages are
    installed), generated on first use in the folder `models` (None: one of this user in the temporary folder).
    """
    text = (HERE / "demo.yaml").read_text(encoding="utf-8")
    if real if real is not None else real_inference_present():
        text += (HERE / "llamacpp.yaml").read_text(encoding="utf-8")
    folder = models if models is not None else str(Path(tempfile.gettempdir()) / f"llamaswap-demo-{os.geteuid()}")
    return text.replace("PYTHON", python).replace("FOLDER", str(HERE)).replace("MODELS", folder)
