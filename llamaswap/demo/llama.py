"""llama.cpp's HTTP server, from the package `xllamacpp`, with a model that is generated on first use.

The model gives one reply to every prompt. Each token of the reply has one axis of the embedding, and the
output row of the token that follows points along this axis. Channel 0 is the same in all rows, so it makes the first
token of the reply the successor of every other token. The one layer contributes nothing.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
from itertools import pairwise

WIDTH, HEADS, CONTEXT = 128, 4, 4096
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level BPE vocabulary."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def write_model(path: str, reply: str) -> None:
    """Write a GGUF file. The words of `reply` have to differ from each other."""
    import gguf
    import numpy as np

    alphabet = byte_characters()
    words = ["".join(alphabet[byte] for byte in word.encode()) for word in re.findall(r"\s*\S+", reply)]
    tokens = [*alphabet, "er", END, START, STOP, *words]
    follows = {tokens.index(word): tokens.index(after) for word, after in pairwise([*words, STOP])}

    gain = 1 / math.sqrt(WIDTH / 2)  # undoes the RMS norm of a row with two ones
    embedding, output = np.zeros((2, len(tokens), WIDTH))
    embedding[:, 0] = 1
    output[tokens.index(words[0]), 0] = 40 * gain
    for axis, (token, successor) in enumerate(follows.items(), 1):
        embedding[token, axis] = 1
        output[successor, axis] = 80 * gain

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in (END, START, STOP) else 1 for token in tokens])  # control, normal
    writer.add_token_merges(["e r"])
    writer.add_bos_token_id(tokens.index(END))
    writer.add_eos_token_id(tokens.index(STOP))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for tensor, array in (("token_embd", embedding), ("output", output)):
        writer.add_tensor(f"{tensor}.weight", array.astype(np.float16))
    for tensor in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{tensor}.weight", np.ones(WIDTH, np.float32))
    for tensor in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{tensor}.weight", np.zeros((WIDTH, WIDTH), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ensure_model(path: str, reply: str) -> None:
    """Write the model unless it exists. It is written beside its place, so that no server reads half of it."""
    folder = os.path.dirname(path)
    os.makedirs(folder, 0o700, exist_ok=True)
    if os.lstat(folder).st_uid != os.geteuid():
        raise SystemExit(f"{folder} belongs to another user and is not used; delete it, or set TMPDIR")
    if not os.path.exists(path):
        write_model(scratch := f"{path}.{os.getpid()}", reply)
        os.replace(scratch, path)


def main() -> None:
    """Load the model and serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reply", required=True)
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])  # also in the threads that start now
    ensure_model(options.model, options.reply)

    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.model
    parameters.model_alias = {options.alias}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = options.port
    parameters.n_ctx = CONTEXT
    parameters.n_parallel = parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.ui = False
    server = xllamacpp.Server(parameters)  # loads the model; its HTTP threads answer 503 until then
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    os._exit(0)


if __name__ == "__main__":
    main()
