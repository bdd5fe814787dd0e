"""Write small GGUF models that a real llama.cpp server loads and serves with a known output.

Nothing is downloaded: every tensor is made here from a fixed seed, so the same arguments give the same model.
Needs the packages of the extra `llamaswap[llamacpp]` (gguf, numpy).

Kinds: `chat` answers every prompt with one reply that you choose, then ends its turn (`--loop`: never does);
`embed` gives texts that share words a higher similarity; `rerank` scores a document higher the larger the share
of its words that are "relevant".

How the fixed reply works: embedding rows are orthonormal for the tokens of the reply, and the output row of the
token that follows t points along t's embedding. Channel 0 is the same constant in all rows, so it acts as a bias
and makes the first token of the reply the successor of every other token. The layers really run, but their
contribution is kept too small to change the winner at any usual temperature.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4

DEFAULT_REPLY = (
    "Hello from {name}: a tiny model made of seeded numbers. "
    "It gives this one reply to every question, word after word."
)
TOOL_NAME, TOOL_ARGS = "get_weather", '{"city": "Paris", "days": 3}'

CONTROL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|use_tool|>",  # put by the template where a tool call is to come
    "<|ponder|>",  # put by the template where thinking is to come
    "<image>",
    "<|audio_bos|>",
    "<|audio_eos|>",
]
MARKUP_TOKENS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]

# Trained on by the small BPE below; any plain English would do.
SAMPLE_TEXT = (
    "The server starts a model when the first request for it comes in and stops it when "
    "another model is wanted or when nothing has asked for it for a while. The user asks a "
    "question, the assistant gives an answer, and the system says how the two should talk. "
    "There is no other thing in this text that matters; it is here so that common pairs of "
    "letters are joined into one token, as they would be in any other tokenizer of the kind."
)

CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nYou may call one or more functions.\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\n\\nFor each call, return a json object within <tool_call></tool_call> tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'system' and loop.first %}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant' }}
{%- if message.reasoning_content %}{{- '\\n<think>\\n' + message.reasoning_content + '\\n</think>' }}{%- endif %}
{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{%- if call.function %}{%- set call = call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}{{- call.arguments if call.arguments is string else call.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if tools and messages[-1].role != 'tool' %}{{- '<|use_tool|>' }}
{%- elif enable_thinking is defined and enable_thinking and THINK %}{{- '<|ponder|>' }}
{%- endif %}
{%- endif %}"""


# -- tokenizer --


def byte_alphabet() -> dict[int, str]:
    """The printable stand-in for each byte in byte-level BPE vocabularies."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {b: chr(b) for b in plain}
    for i, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + i)
    return table


BYTE_CHAR = byte_alphabet()


def spell(text: str) -> str:
    """A text as its byte-level stand-ins."""
    return "".join(BYTE_CHAR[b] for b in text.encode())


def train_bpe(text: str, n_merges: int, longest: int = 3) -> tuple[list[str], list[str]]:
    """Plain BPE training; returns (tokens, merges).  Tokens stay at most `longest` letters."""
    words = Counter(spell(w) for w in re.findall(r" ?\w+| ?[^\s\w]+|\s+", text))
    split = {w: list(w) for w in words}
    tokens: list[str] = []
    merges: list[str] = []
    for _ in range(n_merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in itertools.pairwise(parts):
                if len(pair[0] + pair[1]) <= longest:
                    pairs[pair] += words[word]
        if not pairs:
            break
        # most frequent pair, ties by spelling, so that the result never varies
        left, right = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(f"{left} {right}")
        if left + right not in tokens:
            tokens.append(left + right)
        for word, parts in split.items():
            merged, i = [], 0
            while i < len(parts):
                if parts[i : i + 2] == [left, right]:
                    merged.append(left + right)
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            split[word] = merged
    return tokens, merges


def cut(text: str, taken: set[str]) -> list[str]:
    """Cut a reply into pieces of about a word, each spelled differently from all in `taken`."""
    pieces: list[str] = []
    held = ""
    for word in re.findall(r"<[^<>]*>|\s*[^\s<]+|\s+", text):
        held += word
        name = held if held in MARKUP_TOKENS else spell(held)
        if name not in taken:
            taken.add(name)
            pieces.append(name)
            held = ""
    if held:  # the tail repeats an earlier piece: give it to the last one
        last = pieces.pop()
        taken.discard(last)
        pieces.append(last + spell(held))
        taken.add(pieces[-1])
    return pieces


# -- writing --


def put(writer: gguf.GGUFWriter, name: str, array: Any, dtype: Any = np.float32) -> None:
    writer.add_tensor(name, np.ascontiguousarray(array, dtype=dtype))


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def orthonormal(rng: Any, n: int) -> Any:
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return q * np.sign(np.diag(r))


def shape_for(size_mb: float, n_vocab: int) -> tuple[int, int, int]:
    """(width, feed-forward width, layers) that make about this many MB of 16-bit weights."""
    if size_mb <= 0:
        return 128, 256, 2
    width = 256 if size_mb < 30 else 512 if size_mb < 100 else 1024
    hidden = 4 * width
    per_layer = 4 * width * width + 3 * width * hidden
    layers = round((size_mb * 1e6 / 2 - 2 * n_vocab * width) / per_layer)
    return width, hidden, max(1, layers)


def design_chat(args: argparse.Namespace) -> dict[str, Any]:
    """Vocabulary, sizes and tensors (GGUF names) of a chat model."""
    rng: Any = np.random.default_rng(args.seed)
    joined, merges = train_bpe(SAMPLE_TEXT, args.merges)
    tokens = [*BYTE_CHAR.values(), *joined]
    kinds = [NORMAL] * len(tokens)
    tokens += CONTROL_TOKENS
    kinds += [CONTROL] * len(CONTROL_TOKENS)
    tokens += MARKUP_TOKENS
    kinds += [USER_DEFINED] * len(MARKUP_TOKENS)

    reply = args.reply.format(name=args.name)
    call = f'<tool_call>\n{{"name": "{TOOL_NAME}", "arguments": {TOOL_ARGS}}}\n</tool_call>'
    thought = f"<think>\nWhat would {args.name} say here?\n</think>"

    taken = set(tokens)
    chains: dict[str | None, list[str]] = {None: cut(reply, taken), "<|use_tool|>": [], "<|ponder|>": []}
    # markup tokens exist already; they are spelled as themselves and used once in each chain
    for trigger, text in (("<|use_tool|>", call), ("<|ponder|>", thought)):
        opening, closing = re.findall(r"</?\w+>", text)[0], re.findall(r"</?\w+>", text)[-1]
        inner = text[len(opening) : -len(closing)]
        chains[trigger] = [opening, *cut(inner, taken), closing]

    for chain in chains.values():
        for piece in chain:
            if piece not in tokens:
                tokens.append(piece)
                kinds.append(NORMAL)
    while len(tokens) % 32:
        tokens.append(f"<|unused{len(tokens)}|>")
        kinds.append(CONTROL)
    index = {t: i for i, t in enumerate(tokens)}

    width, hidden, layers = shape_for(args.size_mb, len(tokens))
    heads = width // 32
    if args.layers:
        layers = args.layers

    # successor of each scripted token
    end = index["<|im_end|>"]
    follows: dict[int, int] = {}
    for asked, chain in chains.items():
        ids = [index[p] for p in chain]
        if asked is not None:
            follows[index[asked]] = ids[0]
        for here, after in itertools.pairwise(ids):
            follows[here] = after
        last = ids[-1]
        if asked == "<|ponder|>":
            follows[last] = index[chains[None][0]]
        else:
            follows[last] = ids[0] if args.loop and asked is None else end
    first = index[chains[None][0]]

    axes = orthonormal(rng, width - 1)
    if len(follows) > (width - 1) * 3 // 4:
        raise SystemExit(f"reply too long for width {width}: {len(follows)} pieces")
    scripted = {t: axes[i] for i, t in enumerate(follows)}
    spare = axes[len(follows) :]
    embed = np.zeros((len(tokens), width))
    embed[:, 0] = 1.0
    for t in range(len(tokens)):
        if t in scripted:
            embed[t, 1:] = scripted[t]
        else:
            mix = rng.standard_normal(len(spare))
            embed[t, 1:] = (mix / np.linalg.norm(mix)) @ spare

    gain = 1 / math.sqrt(width / 2)  # undoes the RMS norm of a row with two unit parts
    head = rng.standard_normal((len(tokens), width)) * 0.02
    head[:, 0] = 0.0
    head[first, 0] = 40 * gain
    for here, after in follows.items():
        head[after, 1:] += 80 * gain * embed[here, 1:]
    # Where a JSON grammar rules out the winner: open an object, close what is open, no runs of
    # blanks, no markup; and after one whole reply inside a string, end that string.
    blanks = "".join(BYTE_CHAR[b] for b in b" \t\r\n")
    for t, name in enumerate(tokens):
        if kinds[t] == USER_DEFINED or (kinds[t] == NORMAL and not name.strip(blanks)):
            head[t, 0] -= 20 * gain
    for mark, pull in {"{": 25, "}": 20, "]": 20, ",": 12, '"': 10}.items():
        head[index[mark], 0] += pull * gain
    head[index['"'], 1:] += 60 * gain * embed[index[chains[None][-1]], 1:]

    tensors: dict[str, tuple[Any, type]] = {
        "token_embd.weight": (embed, np.float16),
        "output_norm.weight": (np.ones(width), np.float32),
        "output.weight": (head, np.float16),
    }
    small = 0.05 / math.sqrt(layers)
    unit = 1 / math.sqrt(width)

    def noise(rows: int, cols: int, scale: float) -> tuple[Any, type]:
        a = rng.standard_normal((rows, cols), np.float32)
        a *= np.float32(scale)
        return a.astype(np.float16), np.float16

    for i in range(layers):
        b = f"blk.{i}."
        tensors[b + "attn_norm.weight"] = (np.ones(width), np.float32)
        tensors[b + "ffn_norm.weight"] = (np.ones(width), np.float32)
        for part in ("q", "k", "v"):
            tensors[b + f"attn_{part}.weight"] = noise(width, width, unit)
        tensors[b + "attn_output.weight"] = noise(width, width, unit * small)
        tensors[b + "ffn_gate.weight"] = noise(hidden, width, unit)
        tensors[b + "ffn_up.weight"] = noise(hidden, width, unit)
        tensors[b + "ffn_down.weight"] = noise(width, hidden, small / math.sqrt(hidden))
    return {
        "tokens": tokens,
        "kinds": kinds,
        "merges": merges,
        "index": index,
        "template": CHAT_TEMPLATE.replace(" and THINK", "" if args.think else " and false"),
        "width": width,
        "hidden": hidden,
        "layers": layers,
        "heads": heads,
        "tensors": tensors,
    }


def make_chat(args: argparse.Namespace) -> None:
    d = design_chat(args)
    w = gguf.GGUFWriter(args.out, "llama")
    w.add_name(args.name)
    w.add_description("seeded test model with one fixed reply")
    w.add_license("CC0-1.0")
    w.add_context_length(args.context)
    w.add_embedding_length(d["width"])
    w.add_block_count(d["layers"])
    w.add_feed_forward_length(d["hidden"])
    w.add_head_count(d["heads"])
    w.add_head_count_kv(d["heads"])
    w.add_rope_dimension_count(d["width"] // d["heads"])
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(len(d["tokens"]))
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(d["tokens"])
    w.add_token_types(d["kinds"])
    w.add_token_merges(d["merges"])
    w.add_bos_token_id(d["index"]["<|endoftext|>"])
    w.add_eos_token_id(d["index"]["<|im_end|>"])
    w.add_pad_token_id(d["index"]["<|endoftext|>"])
    w.add_add_bos_token(False)
    for part in ("prefix", "suffix", "middle"):
        w.add_uint32(f"tokenizer.ggml.fim_{part[:3]}_token_id", d["index"][f"<|fim_{part}|>"])
    w.add_chat_template(d["template"])
    for name, (array, dtype) in d["tensors"].items():
        put(w, name, array, dtype)
    finish(w)


def make_encoder(args: argparse.Namespace, rank: bool) -> None:
    rng: Any = np.random.default_rng(args.seed)
    words = sorted(set(re.findall(r"[a-z]+", (SAMPLE_TEXT + " " + args.words).lower())))
    signs = [chr(c) for c in range(33, 127) if not chr(c).isalnum()]
    letters = [chr(c) for c in (*range(48, 58), *range(97, 123))]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    kinds = [CONTROL, UNKNOWN, CONTROL, CONTROL, CONTROL]
    # llama.cpp keeps word-piece vocabularies with a mark on word starts, none on continuations
    plain = [*(f"\u2581{c}" for c in letters + signs), *letters]
    plain += [f"\u2581{x}" for x in words if len(x) > 1]
    tokens += plain
    kinds += [NORMAL] * len(plain)
    index = {t: i for i, t in enumerate(tokens)}

    width, heads, hidden, layers = args.width, 4, args.width * 2, 2
    embed = rng.standard_normal((len(tokens), width))
    embed /= np.linalg.norm(embed, axis=1, keepdims=True)
    embed *= math.sqrt(width)

    w = gguf.GGUFWriter(args.out, "bert")
    w.add_name(args.name)
    w.add_description("seeded test encoder")
    w.add_license("CC0-1.0")
    w.add_context_length(args.context)
    w.add_embedding_length(width)
    w.add_block_count(layers)
    w.add_feed_forward_length(hidden)
    w.add_head_count(heads)
    w.add_layer_norm_eps(1e-12)
    w.add_causal_attention(False)
    w.add_vocab_size(len(tokens))
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_pooling_type(gguf.PoolingType.RANK if rank else gguf.PoolingType.MEAN)
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_type_count(2)
    w.add_bos_token_id(2)
    w.add_eos_token_id(3)
    w.add_unk_token_id(1)
    w.add_sep_token_id(3)
    w.add_pad_token_id(0)
    w.add_mask_token_id(4)
    w.add_uint32("tokenizer.ggml.cls_token_id", 2)
    if rank:
        w.add_classifier_output_labels(["relevance"])

    put(w, "token_embd.weight", embed, np.float16)
    put(w, "token_types.weight", np.zeros((2, width)))
    put(w, "position_embd.weight", rng.standard_normal((args.context, width)) * 0.02)
    put(w, "token_embd_norm.weight", np.ones(width))
    put(w, "token_embd_norm.bias", np.zeros(width))
    unit = 1 / math.sqrt(width)
    for i in range(layers):
        b = f"blk.{i}."
        # no query and key weights: attention is an even mean over the text, so [CLS] gathers it
        put(w, b + "attn_q.weight", np.zeros((width, width)), np.float16)
        put(w, b + "attn_k.weight", np.zeros((width, width)), np.float16)
        put(w, b + "attn_v.weight", np.eye(width), np.float16)
        put(w, b + "attn_output.weight", np.eye(width), np.float16)
        put(w, b + "ffn_up.weight", rng.standard_normal((hidden, width)) * unit, np.float16)
        put(w, b + "ffn_down.weight", rng.standard_normal((width, hidden)) * unit * 0.05, np.float16)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down"):
            put(w, b + part + ".bias", np.zeros(width))
        put(w, b + "ffn_up.bias", np.zeros(hidden))
        for norm in ("attn_output_norm", "layer_output_norm"):
            put(w, b + norm + ".weight", np.ones(width))
            put(w, b + norm + ".bias", np.zeros(width))
    if rank:
        target = embed[index["\u2581relevant"]] * unit
        put(w, "cls.weight", np.eye(width), np.float16)
        put(w, "cls.bias", np.zeros(width))
        put(w, "cls.output.weight", (target * 2).reshape(1, width), np.float16)
        put(w, "cls.output.bias", np.zeros(1))
    finish(w)


def arguments() -> argparse.ArgumentParser:
    """The command line: a kind, a path and what the kind takes."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = top.add_subparsers(dest="kind", required=True)
    for name in ("chat", "embed", "rerank"):
        kind = kinds.add_parser(name)
        kind.add_argument("out")
        kind.add_argument("--name", default=f"tiny-{name}")
        kind.add_argument("--seed", type=int, default=1)
        if name == "chat":
            kind.add_argument("--reply", default=DEFAULT_REPLY)
            kind.add_argument("--loop", action="store_true", help="repeat the reply for ever")
            kind.add_argument("--think", action="store_true", help="think before the reply if asked to")
            kind.add_argument("--size-mb", type=float, default=0, help="about how large; 0 is smallest")
            kind.add_argument("--layers", type=int, default=0)
            kind.add_argument("--merges", type=int, default=120)
            kind.add_argument("--context", type=int, default=32768)
        else:
            kind.add_argument("--width", type=int, default=128)
            kind.add_argument("--context", type=int, default=512)
            kind.add_argument("--words", default="cat dog sat mat on relevant paris weather city france capital")
    return top


def make(words: Sequence[str]) -> None:
    """Write the model that the command line `words` describe."""
    args = arguments().parse_args(words)
    if args.kind == "chat":
        make_chat(args)
    else:
        make_encoder(args, rank=args.kind == "rerank")


if __name__ == "__main__":
    make(sys.argv[1:])
