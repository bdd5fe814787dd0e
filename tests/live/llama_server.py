"""llama.cpp's own HTTP server from the package `xllamacpp`, under llama-server's flag names.

It is the same C++ server as the llama-server program; only this command line is ours, and only the flags below
exist. With `--make 'KIND ...'` a model file that is missing is first written by tiny_gguf.py.
"""

import argparse
import os
import shlex
import signal
import time


def make_model(path: str, arguments: str) -> None:
    """Write the model beside its place and move it there, so that two servers never read a half-written one."""
    import tiny_gguf

    kind, *rest = shlex.split(arguments)
    scratch = f"{path}.{os.getpid()}"
    tiny_gguf.make([kind, scratch, *rest])
    os.replace(scratch, path)


def own_folder(path: str) -> None:
    """Make the folder of a model file, or exit where another user made it and could exchange the file."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, 0o700, exist_ok=True)
    if os.lstat(folder).st_uid != os.geteuid():
        raise SystemExit(f"{folder} belongs to another user and is not used; delete it, or set TMPDIR")


def main() -> None:
    """Parse the flags, load, serve until SIGTERM or SIGINT."""
    p = argparse.ArgumentParser(allow_abbrev=False)
    p.add_argument("-m", "--model", required=True)
    p.add_argument("--mmproj")
    p.add_argument("-a", "--alias")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8080)
    p.add_argument("-c", "--ctx-size", type=int, default=4096)
    p.add_argument("-t", "--threads", type=int, default=1)
    p.add_argument("-np", "--parallel", type=int, default=1)
    p.add_argument("--threads-http", type=int, default=-1, help="-1: as many as llama.cpp thinks fit")
    p.add_argument("--no-mmap", action="store_true")
    p.add_argument("--embedding", "--embeddings", action="store_true")
    p.add_argument("--rerank", "--reranking", action="store_true")
    p.add_argument("--metrics", action="store_true")
    p.add_argument("--slot-save-path")
    p.add_argument("--api-key", action="append", default=[])
    p.add_argument("--start-delay", type=float, default=0, help="seconds before loading starts")
    p.add_argument("--make", help="arguments of tiny_gguf.py to write a missing model with: kind and options")
    a = p.parse_args()

    stop = [signal.SIGTERM, signal.SIGINT]
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # before threads start, so that they inherit it
    time.sleep(a.start_delay)

    if a.make:
        own_folder(a.model)
        if not os.path.exists(a.model):
            make_model(a.model, a.make)

    import xllamacpp as x

    q = x.CommonParams()
    q.model.path = a.model
    q.hostnames = [a.host]
    q.port = a.port
    q.n_ctx = a.ctx_size
    q.n_parallel = a.parallel
    q.cpuparams.n_threads = q.cpuparams_batch.n_threads = a.threads
    q.n_threads_http = a.threads_http
    if a.no_mmap:
        q.load_mode = x.llama_load_mode.LLAMA_LOAD_MODE_NONE
    q.endpoint_slots = True
    q.endpoint_metrics = a.metrics
    q.ui = False
    if a.alias:
        q.model_alias = {a.alias}
    if a.mmproj:
        q.mmproj.path = a.mmproj
    if a.slot_save_path:
        q.slot_save_path = os.path.join(a.slot_save_path, "")
    if a.api_key:
        q.api_keys = a.api_key
    if a.embedding or a.rerank:
        q.embedding = True
        if a.rerank:
            q.pooling_type = x.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    server = x.Server(q)  # loads the model; its HTTP threads answer 503 until then
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait(stop)
    os._exit(0)


if __name__ == "__main__":
    main()
