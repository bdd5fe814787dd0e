"""Folders with the files that programs leave there."""

import json


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def ollama_store(root, place="registry.ollama.ai/library/llama3.2/1b", layers=None):
    """A store of Ollama's with one model."""
    manifest = root / "manifests" / place
    manifest.parent.mkdir(parents=True)
    kinds = {"model": "aa", "projector": "bb", "params": "cc", "template": "dd", "system": "ee"}
    rows = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"}
        for kind, digest in kinds.items()
    ]
    manifest.write_text(json.dumps({"layers": rows if layers is None else layers}))
    touch(root, *(f"blobs/sha256-{digest}" for digest in kinds.values()))
    parameters = {"num_ctx": 8192, "stop": ["x"], "temperature": 0.6, "tfs_z": 1, "seed": 1234567}
    (root / "blobs/sha256-cc").write_text(json.dumps(parameters))
    (root / "blobs/sha256-ee").write_text('Be\n"kind".\n')
    return root
