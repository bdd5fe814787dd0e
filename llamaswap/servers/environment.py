"""Which of the proxy's environment variables a model's server gets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256

# What a server needs to run at all, to find its libraries, devices, caches and models, and to reach the network.
CLEAN_NAMES = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "DOCKER_HOST", "GPU_DEVICE_ORDINAL"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR"),
    )
)
CLEAN_PREFIXES = (
    *("LC_", "XDG_", "CUDA_", "NVIDIA_", "NCCL_", "ROCR_", "ROCM_", "HIP_", "HSA_", "GGML_", "LLAMA_", "VLLM_"),
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_", "PYTORCH_", "OMP_", "MKL_", "VK_", "ONEAPI_", "ZE_", "SYCL_"),
)


def for_servers(environ: Mapping[str, str], policy: str, secrets: Collection[str]) -> dict[str, str]:
    """The variables of `environ` that a server gets under `policy` (`inherit` or `clean`).

    A variable whose value is one of `secrets`, the keys of clients and peers, is left out under both policies: a server
    has no use for it, and others may read the server's environment. Of some keys the digest is known, as `sha256:HEX`.
    """
    digests = {secret.lower() for secret in secrets if secret.startswith("sha256:")}
    return {
        name: value
        for name, value in environ.items()
        if value not in secrets
        and not (digests and f"sha256:{sha256(value.encode('utf-8', 'surrogateescape')).hexdigest()}" in digests)
        and (policy != "clean" or name in CLEAN_NAMES or name.startswith(CLEAN_PREFIXES))
    }


def server_environment(
    environ: Mapping[str, str], policy: str, secrets: Collection[str], env: Iterable[str]
) -> dict[str, str]:
    """The environment of a server: what it gets of `environ`, and over that its own `env` (K=V, later ones win)."""
    return for_servers(environ, policy, secrets) | dict(entry.split("=", 1) for entry in env if "=" in entry)
