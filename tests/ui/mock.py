"""A stand-in for the server, for looking at the web interface: many models, long histories, failures on demand.

`python -m tests.ui.mock [port]` serves it by hand. The real server is what the browser tests judge; this one brings
volume and faults that a small machine has not: sixteen cores, two GPUs, an evil answer, a flood of log lines.
"""

from __future__ import annotations

import base64
import json
import math
import mimetypes
import queue
import random
import re
import sys
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from llamaswap.config import json_schema

DIST = Path(__file__).parents[2] / "llamaswap" / "web" / "ui_dist"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; object-src 'none'"
)
MODELS = [
    ("gpt-oss-120b", "GPT-OSS 120B", "The big one, for planning", "ready", {"function_calling": True}, 131072),
    ("gemma-3-27b", "Gemma 3 27B", "Vision and chat", "starting", {"vision": True}, 32768),
    ("qwen3-coder-30b", "Qwen3 Coder", "Code completion and agents", "ready", {"function_calling": True}, 65536),
    ("org/mistral-small-24b", "", "", "stopped", {}, 32768),
    ("bge-m3", "BGE M3", "Embeddings", "stopped", {}, 8192),
    ("bge-reranker-v2", "", "", "stopped", {"reranker": True}, 8192),
    ("whisper-large-v3", "Whisper", "Speech to text", "stopped", {"audio_transcriptions": True}, 0),
    ("kokoro", "Kokoro", "Text to speech", "stopped", {"audio_speech": True}, 0),
    ("flux-schnell", "FLUX schnell", "Images in four steps", "stopped", {"image_generation": True}, 0),
    ("glm-4.5-air", "", "Does not fit beside the big one", "stopped", {"function_calling": True}, 131072),
    ("draft-test", "", "", "stopped", {}, 4096),
]
# The quantisation, the size of the file and the usual load time of those of which they are known.
FILES = {
    "gpt-oss-120b": ("MXFP4", 63_400_000_000, 22_000),
    "gemma-3-27b": ("Q4_K_M", 16_500_000_000, 14_000),
    "qwen3-coder-30b": ("Q5_K_M", 21_700_000_000, 9_000),
    "org/mistral-small-24b": ("Q4_K_M", 14_300_000_000, None),
    "bge-m3": ("F16", 1_160_000_000, 2_000),
    "bge-reranker-v2": ("Q8_0", 636_000_000, None),
    "whisper-large-v3": (None, 1_620_000_000, None),
    "glm-4.5-air": ("Q4_K_M", 72_900_000_000, 31_000),
}
EVIL = (
    "# Answer\n\nA **list**:\n\n- one\n- two\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n"
    "```python\ndef f(x):\n    return x + 1\n```\n\n"
    'Maths: $e^{i\\pi} = -1$\n\n<img src=x onerror="window.pwned=1"><script>window.pwned=2</script>'
    "<iframe srcdoc='<script>parent.pwned=3</script>'></iframe> ![far](http://example.invalid/x.png) "
    "[link](javascript:window.pwned=4)\n"
)
CONFIG = """healthCheckTimeout: 120
logLevel: info
models:
  gpt-oss-120b:
    cmd: llama-server --port ${PORT} -m /models/gpt-oss-120b.gguf -c 131072
    ttl: 600
  gemma-3-27b:
    cmd: llama-server --port ${PORT} -m /models/gemma-3-27b.gguf
"""


DOWNLOADED = "  tiny-llama:\n    cmd: |\n      llama-server\n      --port ${PORT}\n      -m /hub/tiny-llama.gguf\n"


def device(name: str, total: int, free: int, foreign: int, by: str, *models: tuple[str, int, str]) -> dict[str, object]:
    """A device of /api/memory."""
    rows = [{"model": m, "mib": mib, "source": source, "squeezed": source == "gguf"} for m, mib, source in models]
    return {
        "device": name, "name": "NVIDIA GeForce RTX 3090", "total_mib": total, "free_mib": free, "reserve_mib": 1024,
        "foreign_mib": foreign, "foreign_by": by, "models": rows,
    }  # fmt: skip


def key(name: str, **more: object) -> dict[str, object]:
    """A key of /api/keys."""
    return {
        "name": name, "scopes": ["infer"], "models": ["gemma-*"], "priority": 0, "max_parallel": 2, "rpm": 30,
        "tpm": 0, "budget_tokens": 200_000, "window_s": 86400, "expires": "2030-01-01T00:00:00Z", "expired": False,
        "running": 0, "requests_last_minute": 3, "tokens_last_minute": 1200, "used": 10, "refused": 4, **more,
    }  # fmt: skip


def usage(by: list[str]) -> dict[str, object]:
    """The document of /api/usage: the last days, or two keys with two models."""
    day = int(time.time()) // 86400 * 86400
    values = {"day": [day - 86400 * n for n in range(7)], "hour": [day], "key": ["child", ""], "model": ["gemma-3-27b"]}
    counts = {"requests": 12, "errors": 1, "input_tokens": 9000, "output_tokens": 4000, "cache_tokens": 100}
    rows = [
        {**dict.fromkeys(by, ""), by[0]: value, **counts, "duration_ms": 65000} for value in values.get(by[0], [""])
    ]
    return {"by": by, "rows": rows, "complete": True}


MEMORY = {
    "mode": "advise",
    "devices": [
        device("ram", 131072, 60000, 40000, "firefox", ("gpt-oss-120b", 30000, "measured"), ("gemma-3-27b", 48, "gguf")),
        device("gpu0", 24576, 1500, 0, "", ("gpt-oss-120b", 21000, "measured"), ("gemma-3-27b", 2076, "gguf")),
        device("gpu1", 24576, 4000, 900, "Xorg", ("qwen3-coder-30b", 19676, "measured")),
    ],
    "needs": {
        "bge-m3": {"ram_mib": 200, "gpus": [[1024]], "source": "learned", "samples": 40, "p95_mib": 1210,
                   "load_seconds": 2.5},
        "glm-4.5-air": {"ram_mib": 50000, "gpus": [[20000, 20000]], "source": "gguf", "samples": 0, "p95_mib": None,
                        "load_seconds": None},
    },
    "advice": ["bge-m3 would fit beside qwen3-coder-30b: llamaswap memory enable lets them stay loaded together"],
}  # fmt: skip


def host(name: str, online: bool, **more: object) -> dict[str, object]:
    """A host of /api/hosts."""
    return {
        "host": name, "address": "10.0.0.7:6400", "online": online, "drained": False, "problem": "",
        "seen_seconds": 1.5, "labels": {}, "devices": [], "models": [], **more,
    }  # fmt: skip


HOSTS = {
    "hosts": [
        host("here", True, address="", seen_seconds=None),
        host("gpu-box", True, models=["gpt-oss-120b"], devices=[
            {"device": "gpu0", "name": "NVIDIA RTX 4090", "total_mib": 24576, "foreign_mib": 0},
            {"device": "ram", "name": "", "total_mib": 65536, "foreign_mib": 4096},
        ]),
        host("nas", False, problem="its node died", seen_seconds=75.0),
    ],
    "problem": "",
    "missed": [],
    "findings": ["gpu-box lacks /models/big.gguf (needed by glm-4.5-air)"],
}  # fmt: skip


def stamp(seconds: float) -> str:
    """RFC 3339 with a fraction."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


class World:
    """Everything the mock knows; one lock is enough for it."""

    def __init__(self) -> None:
        self.start = time.time()
        self.random = random.Random(7)
        self.listeners: list[tuple[queue.Queue[tuple[str, object] | None], set[str]]] = []
        self.lock = threading.Lock()
        self.models = list(MODELS)
        self.states = {model[0]: model[3] for model in MODELS}
        self.profile: str | None = None
        self.key = ""
        self.down = False
        self.empty = False
        self.pace = 0.01  # seconds between the pieces of an answer
        self.config = CONFIG
        self.memory: dict[str, object] = {"mode": "off", "devices": [], "needs": {}, "advice": []}
        self.hosts: dict[str, object] = {"hosts": [], "problem": "", "missed": [], "findings": []}
        self.offline = False
        self.downloads: list[dict[str, Any]] = []
        self.replicas: dict[str, str] = {}
        self.streams = 0
        self.busy = 0
        self.most = 0
        self.pins: set[str] = set()
        now = self.start
        self.rows: list[dict[str, object]] = []
        for number in range(1, 421):
            model = self.random.choice(["gpt-oss-120b", "qwen3-coder-30b", "gemma-3-27b", "bge-m3"])
            failed = number % 37 == 0
            self.rows.append(
                {
                    "id": number,
                    "timestamp": stamp(now - (421 - number) * 17),
                    "model": model,
                    "req_path": "/v1/embeddings" if model == "bge-m3" else "/v1/chat/completions",
                    "resp_content_type": "text/event-stream",
                    "resp_status_code": 502 if failed else 200,
                    "tokens": {
                        "cache_tokens": self.random.choice([-1, 0, 512, 4096]),
                        "draft_tokens": -1,
                        "draft_acc_tokens": -1,
                        "input_tokens": 0 if failed else self.random.randint(20, 9000),
                        "output_tokens": 0 if failed or model == "bge-m3" else self.random.randint(5, 1500),
                        "prompt_per_second": -1 if failed else self.random.gauss(900, 150),
                        "tokens_per_second": -1 if failed or model == "bge-m3" else self.random.gauss(42, 9),
                    },
                    **self.times(number, model),
                    "has_capture": not failed and number > 380,
                    **({"error_msg": "upstream closed the connection before answering"} if failed else {}),
                }
            )
        self.entries = [
            self.entry(
                "101",
                "gpt-oss-120b",
                "streaming",
                14.2,
                tokens_out=412,
                tps=31.4,
                ttft_ms=820,
                resp_bytes=88211,
                session="agent-7",
            ),
            self.entry("102", "gpt-oss-120b", "prefill", 2.1, prompt_progress=0.43, session="agent-7"),
            self.entry(
                "103", "qwen3-coder-30b", "streaming", 6.8, tokens_out=388, tps=58.2, ttft_ms=211, resp_bytes=40211
            ),
            self.entry("104", "gemma-3-27b", "loading", 14.0),
            self.entry(
                "105",
                "glm-4.5-air",
                "queued",
                9.0,
                queue_pos=1,
                session="agent-7",
                reason="does not fit beside what is loaded",
                waits_for=["gpt-oss-120b"],
            ),
            self.entry("106", "glm-4.5-air", "queued", 4.0, queue_pos=2),
        ]

    def times(self, number: int, model: str) -> dict[str, object]:
        """How long a request took, and for what: the first of each dozen finds its model cold."""
        queued = self.random.randint(200, 9000) if number % 12 == 0 else 0
        loaded = self.random.randint(12000, 24000) if number % 12 == 0 else 0
        first = queued + loaded + int(self.random.lognormvariate(6.2, 0.7))
        made = int(self.random.lognormvariate(8.3, 0.8))
        return {
            "duration_ms": first + made,
            **({} if model == "bge-m3" else {"ttft_ms": first}),
            **({"queued_ms": queued, "loaded_ms": loaded} if loaded else {}),
            **({"key": self.random.choice(["laptop", "phone"])} if number % 3 else {}),
        }

    def stats(self, rows: list[dict[str, object]], bucket: int) -> dict[str, object]:
        """What the server sums over time."""
        parts: dict[int, list[dict[str, object]]] = {}
        speeds: dict[tuple[str, int], list[float]] = {}
        firsts = sorted(row["ttft_ms"] for row in rows if "ttft_ms" in row)
        for row in rows:
            start = int(datetime.fromisoformat(str(row["timestamp"])).timestamp()) // bucket * bucket
            parts.setdefault(start, []).append(row)
            speed = row["tokens"]["tokens_per_second"]
            if speed > 0:
                speeds.setdefault((str(row["model"]), start), []).append(speed)

        def p95(values: list[int]) -> int | None:
            return values[int(len(values) * 0.95)] if values else None

        return {
            "first_token_p95_ms": p95(firsts),
            "series": [
                {"start": start, "requests": len(part), "errors": sum("error_msg" in row for row in part),
                 "failed": sum("error_msg" in row for row in part), "output_tokens": 0,
                 "first_token_p95_ms": p95(sorted(row["ttft_ms"] for row in part if "ttft_ms" in row))}
                for start, part in sorted(parts.items())
            ],
            "speeds": [
                {"model": model, "start": start, "requests": len(found), "p10": min(found),
                 "p50": sorted(found)[len(found) // 2], "p90": max(found)}
                for (model, start), found in sorted(speeds.items())
            ],
        }  # fmt: skip

    def entry(self, number: str, model: str, phase: str, age: float, **more: object) -> dict[str, object]:
        """A request in flight."""
        return {
            "id": number,
            "timestamp": stamp(time.time() - age),
            "model": model,
            "req_path": "/v1/chat/completions",
            "method": "POST",
            "req_headers": {"User-Agent": "openai-python/1.99", "X-Session-Id": f"agent-{number}"},
            "remote_ip": "192.168.1.23",
            "resp_headers": {},
            "resp_bytes": 0,
            "elapsed_ms": int(age * 1000),
            "phase": phase,
            "session": f"agent-{number}",
            **more,
        }

    def model_status(self) -> list[dict[str, object]]:
        """What modelStatus says."""
        if self.empty:
            return []
        local: list[dict[str, object]] = [
            {
                "id": i,
                "name": name,
                "description": about,
                "state": self.states[i],
                "unlisted": i == "draft-test",
                "peerID": "",
                "capabilities": caps,
                "context_length": context,
                "aliases": ["big", "gpt"] if i == "gpt-oss-120b" else [],
                "asleep": i == "kokoro" and self.states[i] == "stopped",
                **({"replica_of": self.replicas[i]} if i in self.replicas else {}),
            }
            for i, name, about, _, caps, context in self.models
        ]
        peers = [
            {"id": f"{peer}/{name}", "name": "", "description": "", "state": "", "unlisted": False, "peerID": peer}
            for peer, name in (("lab", "llama-405b"), ("attic", "tiny"))
        ]
        return [*local, *peers]

    def tell(self, kind: str, data: object) -> None:
        """Send an event to everybody who subscribed."""
        with self.lock:
            listeners = list(self.listeners)
        for inbox, topics in listeners:
            if kind == "logData" and f"logs:{data['source']}" not in topics:  # type: ignore[index]
                continue
            inbox.put((kind, data))

    def set_state(self, model: str, state: str) -> None:
        """A model changes state."""
        self.states[model] = state
        self.tell("modelStatus", self.model_status())

    def add_model(self, model: str, state: str = "stopped") -> None:
        """One more, before the page is opened."""
        self.models.append((model, "", "", state, {}, 8192))
        self.states[model] = state

    def finish_a_request(self) -> None:
        """One more row, and the event that says so."""
        self.rows.append({**self.rows[-1], "id": len(self.rows) + 1, "timestamp": stamp(time.time())})
        self.tell("activity", {"id": len(self.rows)})

    def performance(self, after: str) -> dict[str, object]:
        """An hour of samples, one each ten seconds."""
        since = datetime.fromisoformat(after).timestamp() if after else 0
        now = time.time()
        sys_stats, gpu_stats = [], []
        for step in range(360, -1, -1):
            at = math.floor((now - step * 10) / 10) * 10
            if at <= since:
                continue
            wave = math.sin(at / 300)
            sys_stats.append(
                {
                    "timestamp": stamp(at),
                    "cpu_util_per_core": [max(0, 20 + 15 * math.sin(at / 60 + core)) for core in range(16)],
                    "mem_total_mb": 128000,
                    "mem_used_mb": 61000 + 4000 * wave,
                    "mem_free_mb": 67000,
                    "swap_total_mb": 8192,
                    "swap_used_mb": 120,
                    "load_avg_1": 3.1 + wave,
                    "load_avg_5": 2.8,
                    "load_avg_15": 2.5,
                    "net_io": [{"name": "eth0", "bytes_recv": int(at * 90000), "bytes_sent": int(at * 240000)}],
                }
            )
            for gpu in range(2):
                gpu_stats.append(
                    {
                        "timestamp": stamp(at),
                        "id": gpu,
                        "name": "NVIDIA GeForce RTX 3090",
                        "uuid": f"GPU-{gpu}",
                        "temp_c": 64 + gpu * 7 + 3 * wave,
                        "vram_temp_c": 0,
                        "gpu_util_pct": max(0, min(100, 60 + 38 * math.sin(at / 45 + gpu))),
                        "mem_util_pct": 88,
                        "mem_used_mb": 21600 + 1500 * wave - gpu * 1900,
                        "mem_total_mb": 24576,
                        "fan_speed_pct": 45,
                        "power_draw_w": 290 + 40 * wave,
                    }
                )
        return {"enabled": True, "sys_stats": sys_stats, "gpu_stats": gpu_stats}

    def swaps(self) -> list[dict[str, object]]:
        """Three swaps: done, done, failed."""
        now = time.time()

        def one(
            number: int, model: str, ago: float, parts: list[tuple[str, float]], **more: object
        ) -> dict[str, object]:
            at = now - ago
            phases = []
            for name, took in parts:
                phases.append({"name": name, "start": stamp(at), "end": stamp(at + took), "seconds": took})
                at += took
            return {
                "id": number,
                "model": model,
                "evicted": ["qwen3-coder-30b"],
                "reason": "group gpu allows one model at a time",
                "began": stamp(now - ago),
                "ended": stamp(at),
                "error": None,
                "phases": phases,
                **more,
            }

        usual = [("queued", 3.2), ("stop", 1.4), ("start", 18.1)]
        return [
            one(9, "glm-4.5-air", 400, [("queued", 0.1), ("stop", 0.9), ("start", 6.1)],
                error="exited with 1 before it was healthy", log_tail="error loading model: out of memory\n"),
            one(8, "gpt-oss-120b", 1500, usual),
            one(7, "gpt-oss-120b", 3000, [(name, took * 1.1) for name, took in usual], evicted=["gemma-3-27b"]),
        ]  # fmt: skip

    def residency(self) -> list[dict[str, object]]:
        """Two hours of lanes."""
        now = time.time()
        out: list[dict[str, object]] = []

        def lane(model: str, *parts: tuple[str, float, float | None]) -> None:
            for state, begin, end in parts:
                t1 = None if end is None else stamp(now - end)
                out.append(
                    {
                        "model": model,
                        "state": state,
                        "t0": stamp(now - begin),
                        "t1": t1,
                        "reason": "",
                        "swap_id": 8,
                        **({"busy": 2 if "120b" in model else 0, "vram_mb": 21_300} if end is None else {}),
                    }
                )

        lane("gpt-oss-120b", ("starting", 3000, 2976), ("ready", 2976, 2000), ("stopping", 2000, 1994),
             ("starting", 1500, 1476), ("ready", 1476, None))  # fmt: skip
        lane("qwen3-coder-30b", ("starting", 1990, 1980), ("ready", 1980, 1510), ("stopping", 1510, 1500),
             ("starting", 900, 888), ("ready", 888, None))  # fmt: skip
        lane("gemma-3-27b", ("ready", 7000, 3010), ("stopping", 3010, 3000), ("starting", 14, None))
        lane("glm-4.5-air", ("starting", 406, 400), ("failed", 400, 380))
        return out

    def versions(self) -> list[tuple[dict[str, object], str]]:
        """The texts that were in the configuration file, newest first."""
        texts = [self.config, CONFIG.replace("info", "debug"), CONFIG.replace("ttl: 600", "ttl: 60")]
        whys = ["saved", "restored", "found"]
        agent = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36"
        return [
            (
                {"id": f"17638{number}", "time": stamp(self.start - number * 40000), "size": len(text), "why": why,
                 "address": "192.168.1.23" if number < 2 else "", "agent": agent if number < 2 else "",
                 "restored_from": None, "in_force": number == 0},
                text,
            )
            for number, (text, why) in enumerate(zip(texts, whys, strict=True))
        ]  # fmt: skip

    def peers(self) -> list[dict[str, object]]:
        """Two peers, one of which cannot be reached."""
        one = {"proxy": "http://lab.lan:8080", "auto": True, "models": ["llama-405b"], "state": "up", "error": None}
        two = {"proxy": "http://attic.lan:8080", "auto": False, "models": ["tiny"], "state": "down",
               "error": "connection refused"}  # fmt: skip
        since = {"since": stamp(self.start - 7200), "checked": stamp(time.time() - 4)}
        return [{"id": "lab", **one, **since}, {"id": "attic", **two, **since}]


def discovered() -> dict[str, object]:
    """What the machine of the mock has."""

    def model(name: str, size: int, used: str | None = None, usable: bool = True) -> dict[str, object]:
        path = f"/models/{name}-Q4_K_M.gguf"
        return {
            "name": name, "note": "/models", "command": ["/usr/local/bin/llama-server", "-m", path], "bytes": size,
            "usable": usable, "configured_as": used, "section": "models",
            "yaml": f"  {name}:\n    cmd: |\n      /usr/local/bin/llama-server --port ${{PORT}}\n      -m {path}\n",
        }  # fmt: skip

    server = {"name": "ollama", "url": "http://127.0.0.1:11434", "models": ["llama3.2:3b", "nomic"], "section": "peers",
              "configured_as": None,
              "yaml": "  ollama:\n    proxy: http://127.0.0.1:11434\n    models: [llama3.2:3b, nomic]\n"}  # fmt: skip
    engine = {"name": "vllm", "path": "/opt/vllm/bin/vllm",
              "yaml": "  my-vllm:\n    cmd: /opt/vllm/bin/vllm serve PUBLISHER/MODEL --port ${PORT}\n"}  # fmt: skip
    return {
        "models": [
            model("gemma-3-27b", 17_000_000_000, "gemma-3-27b"),
            model("qwen3-8b", 5_030_000_000),
            model("phi-4-mini", 2_490_000_000),
            model("whisper-small", 488_000_000, None, False),
        ],
        "engines": [engine],
        "servers": [server],
        "complete": True,
    }


class Handler(BaseHTTPRequestHandler):
    """The routes."""

    protocol_version = "HTTP/1.1"
    world: World

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def json(self, data: object, status: int = 200, **headers: str) -> None:
        """A JSON answer."""
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def tag(self) -> str:
        """The configuration's ETag."""
        return f'"{hash(self.world.config) & 0xFFFF:x}"'

    def text(self, text: str) -> None:
        """The configuration."""
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/yaml")
        self.send_header("ETag", self.tag())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def missing(self, text: str = "not found") -> None:
        """404 in the server's envelope."""
        self.json({"error": {"message": text, "code": 404}}, 404)

    def refused(self) -> bool:
        """Whether the key is wrong; answers if so."""
        if not self.world.key or self.headers.get("Authorization") == f"Bearer {self.world.key}":
            return False
        self.json({"error": {"message": "unauthorized"}}, 401, WWW_Authenticate='Basic realm="llama-swap"')
        return True

    def body(self) -> bytes:
        """The request's body."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        """Pages and questions."""
        world = self.world
        if world.down:
            self.close_connection = True
            return
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/behind/a/prefix")
        query = parse_qs(parts.query)

        def first(name: str) -> str:
            return query.get(name, [""])[0]

        if path.startswith("/ui/") or path == "/favicon.ico":
            self.static(path.removeprefix("/ui/").lstrip("/"))
        elif self.refused():
            pass
        elif path == "/api/events":
            self.events({topic for value in query.get("topics", []) for topic in value.split(",")})
        elif path == "/api/version":
            self.json({"version": "0.2.0", "commit": "abcd1234", "build_date": "2026-11-22"})
        elif path == "/api/features":
            self.json(
                {
                    "performance": True,
                    "hardware": True,
                    "config_edit": True,
                    "captures": True,
                    "store": False,
                    "loadtest": True,
                }
            )
        elif path == "/api/profiles":
            pins = {"coder": "qwen3-coder-30b", "big": "gpt-oss-120b", "draw": ""}
            self.json(
                {"active": world.profile, "profiles": [{"id": "coding", "description": "Agents at work", "pins": pins}]}
            )
        elif path == "/api/performance":
            self.json(world.performance(first("after")))
        elif path == "/api/memory":
            self.json(world.memory)
        elif path == "/api/hosts":
            self.json(world.hosts)
        elif path == "/api/keys":
            self.json({"keys": [key("child", used=150_000), key("phone", budget_tokens=0, rpm=0)], "unnamed": 1})
        elif path == "/api/usage":
            self.json(usage(query.get("by", ["key,model"])[0].split(",")))
        elif path == "/api/hardware":
            gpu = {"index": 0, "kind": "gpu", "vendor": "NVIDIA", "model": "GeForce RTX 3090", "architecture": "Ampere",
                   "memory": {"kind": "dedicated", "capacity_bytes": 25769803776},
                   "driver": {"name": "nvidia", "version": "580.1"}, "power_limit_watts": 350}  # fmt: skip
            self.json(
                {
                    "captured_at": stamp(world.start),
                    "architecture": {"name": "x86_64"},
                    "operating_system": {"family": "linux", "name": "Debian", "version": "12", "kernel": "6.1.0"},
                    "environment": {"kind": "native"},
                    "cpu": {
                        "vendor": "AMD",
                        "model": "AMD Ryzen 9 5950X",
                        "physical_core_count": 16,
                        "logical_thread_count": 32,
                    },
                    "memory": {"capacity_bytes": 137438953472},
                    "accelerators": [gpu, {**gpu, "index": 1}],
                }
            )
        elif path == "/api/metrics/activity":
            self.activity(query)
        elif path == "/api/metrics/stats":
            rows = self.filtered(query)
            self.json(
                {
                    "total_requests": len(rows),
                    "total_input_tokens": sum(r["tokens"]["input_tokens"] for r in rows),
                    "total_output_tokens": sum(r["tokens"]["output_tokens"] for r in rows),
                    "total_cache_tokens": 91234,
                    "prompt_histogram": {
                        "bins": [2, 9, 30, 61, 80, 42, 12, 3],
                        "min": 480,
                        "max": 1340,
                        "binSize": 107.5,
                        "p50": 905,
                        "p95": 1140,
                        "p99": 1255,
                    },
                    "gen_histogram": {"bins": [5], "min": 42, "max": 42, "binSize": 0, "p50": 42, "p95": 42, "p99": 42},
                    **(world.stats(rows, int(first("bucket"))) if first("bucket") else {}),
                }
            )
        elif path == "/api/metrics/export":
            lines = ["id,model,generated_tokens,prefill_tps"]
            for row in self.filtered(query):
                speed = row["tokens"]["prompt_per_second"]
                lines.append(
                    f"{row['id']},{row['model']},{row['tokens']['output_tokens']},{'' if speed < 0 else speed}"
                )
            self.text("\n".join(lines) + "\n")
        elif path.startswith("/api/captures/"):
            self.capture(int(path.rsplit("/", 1)[1]))
        elif path == "/api/residency":
            self.json(world.residency())
        elif path == "/api/swaps":
            self.json(world.swaps())
        elif path.startswith("/api/swaps/"):
            found = [swap for swap in world.swaps() if str(swap["id"]) == path.rsplit("/", 1)[1]]
            self.json(found[0]) if found else self.missing()
        elif path == "/api/plan":
            evicts = [{"model": "qwen3-coder-30b", "active": 1}]
            self.json({"running": False, "evicts": evicts, "waits_for": ["qwen3-coder-30b"], "eta_ms": 22000})
        elif path == "/api/catalog":
            rows = [
                {"id": name, "state": world.states[name], "failed": None, "pinned": name in world.pins,
                 "groups": ["big"] if "120b" in name else ["(default)"], "context_length": context or None,
                 **dict(zip(("quant", "file_bytes", "load_ms"), FILES.get(name, (None, None, None)), strict=True))}
                for name, _, _, _, _, context in world.models
            ]  # fmt: skip
            self.json({"models": rows})
        elif path.startswith("/api/models/"):
            self.detail(unquote(path.removeprefix("/api/models/")))
        elif path == "/api/names":
            records: list[dict[str, object]] = [
                {"id": i, "name": name, "capabilities": caps, "context_length": context,
                 "status": {"value": "unloaded" if world.states[i] == "stopped" else "loaded"},
                 "meta": {"llamaswap": {"type": "model"}}}
                for i, name, _, _, caps, context in world.models if i != "draft-test"
            ]  # fmt: skip
            targets = ["gpt-oss-120b", "qwen3-coder-30b"]
            records.append(
                {"id": "any-chat", "meta": {"llamaswap": {"type": "selector", "strategy": "warm", "targets": targets}}}
            )
            records.append({"id": "lab/llama-405b", "meta": {"llamaswap": {"type": "peer", "peerID": "lab"}}})
            self.json({"object": "list", "data": records})
        elif path == "/v1/audio/voices":
            self.json({"voices": ["af_heart", "am_adam"]})
        elif path == "/api/config":
            self.text(world.config)
        elif path == "/api/config/status":
            self.json({"editable": True})
        elif path == "/api/config/history":
            self.json({"versions": [facts for facts, _ in world.versions()]})
        elif path.startswith("/api/config/history/"):
            found_text = [text for facts, text in world.versions() if facts["id"] == path.rsplit("/", 1)[1]]
            self.text(found_text[0]) if found_text else self.missing()
        elif path == "/api/discover":
            self.json(discovered())
        elif path == "/api/peers":
            self.json({"peers": world.peers()})
        elif path == "/api/loadtest":
            self.json({"runs": []})
        elif path == "/api/hub/models":
            if world.offline:
                self.json({"error": {"message": "Hugging Face cannot be reached: timed out"}}, 502)
                return
            row = {"repository": "org/tiny-llama-GGUF", "downloads": 71230, "likes": 9, "gated": False}
            self.json({"models": [{**row, "updated": stamp(world.start - 86400)}]})
        elif path.startswith("/api/hub/models/"):
            quants = [
                {"quant": quant, "files": [], "bytes": size << 30} for quant, size in (("Q4_K_M", 2), ("F16", 90))
            ]
            self.json({"repository": path.removeprefix("/api/hub/models/"), "quants": quants})
        elif path == "/api/hub/downloads":
            for download in world.downloads:
                if download["state"] == "running":
                    download["completed"] += 40
                    if download["completed"] >= 100:
                        download |= {"state": "done", "models": [{"name": "tiny-llama", "yaml": DOWNLOADED}]}
            self.json({"downloads": world.downloads})
        elif path == "/api/config/schema":
            self.json(json_schema())
        else:
            self.missing()

    def static(self, name: str) -> None:
        """The built files."""
        name = name or "index.html"
        target = DIST / name
        if not target.is_file():
            if "." in name:
                self.missing()
                return
            target = DIST / "index.html"
        data = target.read_bytes()
        self.send_response(200)
        kind = {".js": "text/javascript", ".webmanifest": "application/manifest+json"}.get(target.suffix)
        self.send_header("Content-Type", kind or mimetypes.guess_type(target.name)[0] or "application/octet-stream")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def chunk(self, text: str) -> None:
        """One chunk of a stream."""
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def stream_head(self) -> None:
        """The head of an event stream."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def events(self, topics: set[str]) -> None:
        """The event stream."""
        world = self.world
        inbox: queue.Queue[tuple[str, object] | None] = queue.Queue()
        number = 0
        self.stream_head()

        def tell(kind: str, data: object) -> None:
            nonlocal number
            number += 1
            envelope = json.dumps({"type": kind, "data": json.dumps(data)})
            self.chunk(f"id:{number}\nevent:message\ndata:{envelope}\n\n")

        with world.lock:
            world.streams += 1
            world.listeners.append((inbox, topics))
        try:
            for topic in sorted(topics):
                if topic.startswith("logs:"):
                    history = "".join(f"[INFO] line {n} of {topic[5:]}\n" for n in range(60))
                    history += "\x1b[33m[WARN]\x1b[0m slow disk\n[ERROR] \x1b[1;31mout of memory\x1b[0m: retrying\n"
                    tell("logData", {"source": topic[5:], "data": history})
            tell("modelStatus", world.model_status())
            tell("uiConfig", {"activity": {"session_id": ["X-Session-ID"]}})
            tell("profileChanged", {"active": world.profile})
            tell("inflight", {"operation": "snapshot", "requests": world.entries})
            while not world.down:
                try:
                    item = inbox.get(timeout=0.2)
                except queue.Empty:
                    self.chunk(": \n\n")
                    continue
                if item is None:
                    break
                tell(*item)
        except OSError:
            pass
        finally:
            with world.lock:
                world.streams -= 1
                world.listeners = [one for one in world.listeners if one[0] is not inbox]
            self.close_connection = True

    def filtered(self, query: dict[str, list[str]]) -> list[dict]:
        """Rows after the filter."""
        rows = self.world.rows
        if query.get("model"):
            rows = [row for row in rows if row["model"] in query["model"]]
        if query.get("has_error"):
            wanted = query["has_error"][0] == "true"
            rows = [row for row in rows if ("error_msg" in row) == wanted]
        for name, test in (("min_id", int.__ge__), ("max_id", int.__le__)):
            if query.get(name):
                rows = [row for row in rows if test(row["id"], int(query[name][0]))]
        if query.get("start"):
            start = query["start"][0]
            rows = [row for row in rows if datetime.fromisoformat(row["timestamp"]) >= datetime.fromisoformat(start)]
        if query.get("q"):
            rows = [row for row in rows if query["q"][0].lower() in json.dumps(row).lower()]
        return rows

    def activity(self, query: dict[str, list[str]]) -> None:
        """A page of rows."""
        rows = sorted(self.filtered(query), key=lambda row: row["id"], reverse=query.get("order") != ["asc"])
        limit = int(query.get("limit", ["25"])[0])
        page = int(query.get("page", ["1"])[0])
        part = rows[(page - 1) * limit : page * limit]
        total = math.ceil(len(rows) / limit)
        self.json({"data": part, "page": page, "limit": limit, "total": len(rows), "total_pages": total})

    def capture(self, number: int) -> None:
        """A captured chat."""
        if number <= 380:
            self.missing("capture not found")
            return
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {number}?"}]
        request = json.dumps({"model": "gpt-oss-120b", "messages": messages, "temperature": 0.3})
        deltas = ["Because ", "it ", "<b>is</b> ", "so."]
        response = "".join(f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n" for text in deltas)

        def pack(text: str) -> str:
            return base64.b64encode(text.encode()).decode()

        self.json(
            {
                "id": number,
                "req_path": "/v1/chat/completions",
                "req_headers": {"Content-Type": "application/json", "Authorization": "[REDACTED]"},
                "req_body": pack(request),
                "resp_headers": {"Content-Type": "text/event-stream"},
                "resp_body": pack(response + "data: [DONE]\n\n"),
            }
        )

    def detail(self, model: str) -> None:
        """One model's page."""
        if model not in self.world.states:
            self.missing()
            return
        up = self.world.states[model] in ("ready", "starting")
        self.json(
            {
                "id": model,
                "state": self.world.states[model],
                "cmd": [
                    "llama-server",
                    "--port",
                    "5801",
                    "-m",
                    f"/models/{model}.gguf",
                    "-c",
                    "32768",
                    "--api-key",
                    "[masked]",
                ],
                "proxy": "http://127.0.0.1:5801",
                "pid": 41234 if up else None,
                "port": 5801,
                "uptime_s": 14 if self.world.states[model] == "starting" else 1503 if up else None,
                "ttl_s": 600,
                "pinned": model in self.world.pins,
                "slots": 4,
                "groups": ["gpu"],
                "last_error": "exited with 1 before it was healthy" if model == "glm-4.5-air" else None,
                "log_tail": "error loading model: out of memory" if model == "glm-4.5-air" else "",
                "load_ms": [21000, 22500, 20100, 24800, 22000],
            }
        )

    def do_PUT(self) -> None:
        """Profile and configuration."""
        data = self.body()
        if self.refused():
            return
        if self.path.endswith("/api/profiles/active"):
            self.world.profile = json.loads(data)["name"] or None
            self.json({"active": self.world.profile})
            self.world.tell("profileChanged", {"active": self.world.profile})
        elif self.path.endswith("/api/config"):
            self.put_config(data.decode())
        else:
            self.missing()

    def put_config(self, text: str) -> None:
        """Another configuration, if the client knows the present one."""
        if self.headers.get("If-Match") != self.tag():
            self.json({"error": {"message": "changed meanwhile"}}, 412)
            return
        self.world.config = text
        self.json({"warnings": [], "impact": {"restart": [], "add": [], "remove": []}}, ETag=self.tag())

    def do_POST(self) -> None:
        """Actions and inference."""
        world = self.world
        data = self.body()
        path = unquote(urlsplit(self.path).path.removeprefix("/behind/a/prefix"))
        if self.refused():
            return
        if path == "/api/models/unload":
            for model in world.states:
                world.states[model] = "stopped"
            self.json({"msg": "ok"})
            world.tell("modelStatus", world.model_status())
        elif path.startswith("/api/models/"):
            action, _, model = path.removeprefix("/api/models/").partition("/")
            if model not in world.states:
                self.missing("model not found")
                return
            if model == "org/mistral-small-24b" and action == "load":
                self.json({"error": {"message": "no memory for this model"}}, 503)
                return
            if action == "pin":
                (world.pins.add if json.loads(data or b"{}").get("pinned", True) else world.pins.discard)(model)
            else:
                world.set_state(model, {"load": "starting", "unload": "stopped", "restart": "starting"}[action])
                if action != "unload":
                    threading.Timer(1.0, world.set_state, (model, "ready")).start()
            self.json({"msg": "ok"}, 202)
        elif path.startswith("/api/inflight/"):
            number = path.split("/")[3]
            if not any(entry["id"] == number for entry in world.entries):
                self.missing("inflight request not found")
                return
            world.entries = [entry for entry in world.entries if entry["id"] != number]
            self.json({"msg": "ok"})
            world.tell("inflight", {"operation": "remove", "id": number})
        elif path == "/v1/chat/completions":
            self.chat(json.loads(data))
        elif path == "/infill":
            self.stream_head()
            for word in ("total ", "= a ", "+ b"):
                self.chunk(f"data: {json.dumps({'content': word, 'stop': False})}\n\n")
            timings = {"prompt_n": 9, "prompt_per_second": 500.0, "predicted_n": 3, "predicted_per_second": 60.0}
            self.chunk(f"data: {json.dumps({'content': '', 'stop': True, 'timings': timings})}\n\n")
            self.wfile.write(b"0\r\n\r\n")
        elif path == "/v1/embeddings":
            texts = json.loads(data)["input"]
            rows = [{"index": i, "embedding": [math.sin(i + k) for k in range(16)]} for i in range(len(texts))]
            self.json({"data": rows, "usage": {"prompt_tokens": 12}})
        elif path == "/v1/rerank":
            documents = json.loads(data)["documents"]
            results = [{"index": i, "relevance_score": 1 - i / 3} for i in range(len(documents))]
            self.json({"results": results, "usage": {"total_tokens": 42}})
        elif path.startswith("/api/config/history/") and path.endswith("/restore"):
            self.put_config(next(text for facts, text in world.versions() if facts["id"] == path.split("/")[4]))
        elif path == "/api/config/validate":
            if b"bad" in data:
                self.json(
                    {
                        "valid": False,
                        "errors": [{"path": "models", "line": 3, "col": 1, "message": "models.bad: no cmd"}],
                    }
                )
            else:
                self.json(
                    {"valid": True, "errors": [], "impact": {"restart": ["gpt-oss-120b"], "add": [], "remove": []}}
                )
        elif path == "/api/hub/downloads":
            name = json.loads(data)["name"]
            fresh = {"id": "1", "name": name, "state": "running", "file": "x.gguf", "total": 100, "completed": 0}
            world.downloads.insert(0, {**fresh, "error": "", "models": []})
            self.json(world.downloads[0], 202)
        elif path == "/api/memory/estimate":
            context = re.search(r"--ctx-size (\d+)", json.loads(data)["cmd"])
            need = 4000 + int(context[1]) // 8 if context else 4000
            self.json({"known": True, "why": "gguf header", "needs": [{"device": "gpu1", "mib": need}]})
        elif path == "/control":
            self.control(json.loads(data))
        else:
            self.missing()

    def chat(self, body: dict) -> None:
        """A streamed answer that carries everything that must stay inert."""
        world = self.world
        with world.lock:
            world.busy += 1
            world.most = max(world.most, world.busy)
        try:
            self.stream_head()
            time.sleep(0.15)
            for word in ("Let me ", "think. "):
                delta = {"choices": [{"delta": {"reasoning_content": word}}]}
                self.chunk(f"data: {json.dumps(delta)}\n\n")
            for begin in range(0, len(EVIL), 24):
                delta = {"choices": [{"delta": {"content": EVIL[begin : begin + 24]}}]}
                self.chunk(f"data: {json.dumps(delta)}\n\n")
                time.sleep(world.pace)
            usage = {"prompt_tokens": 21, "completion_tokens": 97}
            timings = {"prompt_n": 21, "prompt_per_second": 812.0, "predicted_n": 97, "predicted_per_second": 44.2}
            last = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage, "timings": timings}
            self.chunk(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        finally:
            with world.lock:
                world.busy -= 1

    def control(self, order: dict) -> None:
        """What a test asks of the mock itself."""
        world = self.world
        if "log" in order:
            world.tell("logData", {"source": order["source"], "data": order["log"]})
        if "down" in order:
            world.down = order["down"]
        if "key" in order:
            world.key = order["key"]
        if "state" in order:
            world.set_state(order["model"], order["state"])
        if "event" in order:
            world.tell(order["event"], order["data"])
        self.json({"streams": world.streams, "most": world.most})


class Server(ThreadingHTTPServer):
    """Browsers leave in the middle of answers; that is no news."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def serve(port: int = 0) -> ThreadingHTTPServer:
    """A running mock; shut it down with `.shutdown()`."""
    handler = type("Bound", (Handler,), {"world": World()})
    server = Server(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    running = serve(int(sys.argv[1]) if len(sys.argv) > 1 else 9393)
    print(f"http://127.0.0.1:{running.server_address[1]}/ui/")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        running.shutdown()
