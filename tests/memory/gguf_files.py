"""Writes small GGUF files: a real header, and tensors whose data is a hole in the file."""

import struct

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
F32, F16, Q4_0, Q8_0, Q4_K = 0, 1, 2, 8, 12
TYPE_SIZE = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34), Q4_K: (256, 144)}
ALIGNMENT = 32


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(value):
    """(type, bytes) of a value of the metadata."""
    if isinstance(value, bool):
        return BOOL, struct.pack("<B", value)
    if isinstance(value, int):
        return (UINT32, struct.pack("<I", value)) if value < 2**32 else (UINT64, struct.pack("<Q", value))
    if isinstance(value, float):
        return FLOAT32, struct.pack("<f", value)
    return STRING, text(value)


def entry(name, value):
    if isinstance(value, list):
        kinds = [scalar(item) for item in value] or [(UINT32, b"")]
        body = struct.pack("<IIQ", ARRAY, kinds[0][0], len(value)) + b"".join(data for _, data in kinds)
        return text(name) + body
    kind, data = scalar(value)
    return text(name) + struct.pack("<I", kind) + data


def size_of(shape, kind):
    block, size = TYPE_SIZE[kind]
    count = 1
    for length in shape:
        count *= length
    return count // block * size


def header(metadata, tensors):
    """(the header, the length of the tensors' data, the bytes of the tensors without padding)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(entry(name, value) for name, value in metadata.items())
    offset = total = 0
    for name, (shape, kind) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        size = size_of(shape, kind)
        total += size
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return head, offset, total


def header_size(metadata, tensors):
    return len(header(metadata, tensors)[0])


def write(path, metadata, tensors):
    """Write a file; `tensors` is name -> (shape, type). Returns the bytes of the tensors, without padding."""
    head, length, total = header(metadata, tensors)
    with open(path, "wb") as file:
        file.write(head + b"\0" * (-len(head) % ALIGNMENT))
        file.truncate(file.tell() + length)
    return total


def llama(layers=2, width=1024, hidden=4096, vocab=512, heads=32, kv_heads=8, context=4096, kind=F16, **more):
    """(metadata, tensors) of a model of the llama architecture; `more` is metadata below `llama.`, `__` for a dot."""
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.embedding_length": width,
        "llama.feed_forward_length": hidden,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.context_length": context,
        "llama.vocab_size": vocab,
        "tokenizer.ggml.model": "no_vocab",
        **{f"llama.{name.replace('__', '.')}": value for name, value in more.items()},
    }
    head = width // heads
    tensors = {
        "token_embd.weight": ((width, vocab), kind),
        "output_norm.weight": ((width,), F32),
        "output.weight": ((width, vocab), kind),
    }
    for layer in range(layers):
        block = f"blk.{layer}."
        tensors[block + "attn_norm.weight"] = ((width,), F32)
        tensors[block + "attn_q.weight"] = ((width, width), kind)
        tensors[block + "attn_k.weight"] = ((width, head * kv_heads), kind)
        tensors[block + "attn_v.weight"] = ((width, head * kv_heads), kind)
        tensors[block + "attn_output.weight"] = ((width, width), kind)
        tensors[block + "ffn_norm.weight"] = ((width,), F32)
        tensors[block + "ffn_gate.weight"] = ((width, hidden), kind)
        tensors[block + "ffn_up.weight"] = ((width, hidden), kind)
        tensors[block + "ffn_down.weight"] = ((hidden, width), kind)
    return metadata, tensors
