"""`python -m tests.ui.pictures`: takes the pictures of the README and the manual, of an hour of mixed requests.

They are of the stand-in server, which has two GPUs and models that this machine need not have.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ui import harness, mock

FOLDER = harness.ROOT / "docs" / "images"
WIDTH, SCALE = 1280, 1.5
HOUR = 3600.0
# Each model: when it was loaded, from minute to minute of the hour, the seconds of a load, and tokens a second.
LANES = {
    "gemma-3-27b": ([(0, 17), (33, 39)], 14.0, 24.0),
    "gpt-oss-120b": ([(17.4, 32.6), (49, 60)], 22.0, 31.0),
    "qwen3-coder-30b": ([(39.3, 60)], 9.0, 58.0),
    "bge-m3": ([(2, 60)], 2.0, -1.0),
}

# What the models say, their tokens a second, and the tokens of the prompt.
ANSWERS = {
    "qwen3-coder-30b": (
        "Compare the text with its reverse, without case and punctuation:\n\n```python\ndef is_palindrome(text: str) -> "
        "bool:\n    letters = [char for char in text.lower() if char.isalnum()]\n    return letters == letters[::-1]\n```"
        "\n\n`is_palindrome(\"A man, a plan, a canal: Panama\")` is `True`.",
        58.2, 31,
    ),
    "glm-4.5-air": ("221 is **not** prime. It is divisible by 13:\n\n221 / 13 = 17", 24.8, 14),
    "gpt-oss-120b": ("No. **221 = 13 × 17**, so it is not prime: each of the two factors is.", 31.4, 14),
}  # fmt: skip


def an_hour(world: mock.World) -> None:
    """Requests of one hour, each of a model that was loaded at that time."""
    chance = random.Random(11)
    began = time.time() - HOUR
    rows: list[dict[str, Any]] = []
    lanes: list[dict[str, object]] = []
    for model, (spans, load, speed) in LANES.items():
        for first, last in spans:
            begin, end = began + first * 60, began + last * 60
            open_end = None if last == 60 else mock.stamp(end)
            more = {"reason": "", "swap_id": 8, **({"busy": int(speed > 0), "vram_mb": 21_300} if last == 60 else {})}
            lanes.append(
                {"model": model, "state": "starting", "t0": mock.stamp(begin - load), "t1": mock.stamp(begin), **more}
            )
            lanes.append({"model": model, "state": "ready", "t0": mock.stamp(begin), "t1": open_end, **more})
            at, cold = begin, True
            while at < end - 5:
                embeds = speed < 0
                prompt = chance.randint(60, 9000)
                generated = 0 if embeds else chance.randint(40, 700)
                pace = speed * chance.uniform(0.86, 1.1) * (1 - prompt / 60_000)
                read = prompt / (950 * chance.uniform(0.8, 1.2)) * 1000
                queued, loaded = (chance.randint(300, 7000), int(load * 1000)) if cold else (0, 0)
                ttft = queued + loaded + read + 60
                took = read if embeds else ttft + generated / pace * 1000
                at += took / 1000 * 0.4 + chance.expovariate(1 / (9 if embeds else 14))
                failed = chance.random() < 0.012
                rows.append({
                    "timestamp": mock.stamp(min(at, end)), "model": model,
                    "req_path": "/v1/embeddings" if embeds else "/v1/chat/completions",
                    "resp_content_type": "application/json" if embeds else "text/event-stream",
                    "resp_status_code": 502 if failed else 200, "duration_ms": int(took), "has_capture": True,
                    "tokens": {"cache_tokens": -1, "draft_tokens": -1, "draft_acc_tokens": -1, "input_tokens": prompt,
                               "output_tokens": generated, "prompt_per_second": prompt / read * 1000,
                               "tokens_per_second": -1 if embeds else pace},
                    "key": chance.choice(["laptop", "phone", "agents"]), "client": "192.168.1.23",
                    **({} if embeds else {"ttft_ms": int(ttft)}),
                    **({"queued_ms": queued, "loaded_ms": loaded} if cold else {}),
                    **({"error_msg": "upstream closed the connection before answering"} if failed else {}),
                })  # fmt: skip
                cold = False
    rows.sort(key=lambda row: str(row["timestamp"]))
    world.rows = [{"id": number, **row} for number, row in enumerate(rows, 1)]
    world.residency = lambda: lanes  # type: ignore[method-assign]
    world.set_state("gemma-3-27b", "stopped")
    world.set_state("bge-m3", "ready")
    world.entries = [entry for entry in world.entries if entry["model"] != "gemma-3-27b"]
    world.memory = json.loads(json.dumps(mock.MEMORY).replace("gemma-3-27b", "bge-m3"))


def overview(page: Any, url: str) -> Any:
    """Figures, and what is loaded, running and wrong."""
    page.goto(f"{url}/ui/")
    page.locator(".figures li").nth(3).wait_for()
    page.locator(".chart .u-over").first.wait_for()


def timeline(page: Any, url: str) -> Any:
    """Which model was loaded when, and how fast it was."""
    overview(page, url)
    return page.locator(".timeline")


def slow_request(page: Any, url: str) -> Any:
    """Where the time of a request went."""
    rows = harness.ask(f"{url}/api/metrics/activity?limit=999")["data"]
    cold = next(row for row in rows if row.get("loaded_ms") and row["model"] == "gpt-oss-120b")
    page.goto(f"{url}/ui/requests?open={cold['id']}")
    page.locator("table.waterfall").wait_for()
    return page.locator("dialog.drawer")


def models(page: Any, url: str) -> Any:
    """The models with what tells them apart."""
    page.goto(f"{url}/ui/models")
    page.get_by_text("MXFP4").first.wait_for()


def requests(page: Any, url: str) -> Any:
    """The finished requests."""
    page.goto(f"{url}/ui/requests")
    page.locator("tr[data-id] .phasebar").first.wait_for()


def swap(page: Any, url: str) -> Any:
    """One swap with its phases, among the others."""
    page.goto(f"{url}/ui/swap?id=8")
    page.locator("table.waterfall tbody th").nth(2).wait_for()


def answering(page: Any) -> None:
    """Let each model answer a question with its own words."""

    def answer(route: Any) -> None:
        text, speed, prompt = ANSWERS[route.request.post_data_json["model"]]
        pieces = [{"choices": [{"delta": {"content": text}}]}]
        timings = {"prompt_n": prompt, "prompt_per_second": 950.0, "predicted_per_second": speed}
        usage = {"prompt_tokens": prompt, "completion_tokens": len(text) // 4}
        last = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage, "timings": timings}
        time.sleep(0.3)
        events = "".join(f"data: {json.dumps(event)}\n\n" for event in [*pieces, last])
        route.fulfill(status=200, content_type="text/event-stream", body=events + "data: [DONE]\n\n")

    page.route("**/v1/chat/completions", answer)


def chat(page: Any, url: str) -> Any:
    """A conversation with code in it."""
    answering(page)
    page.goto(f"{url}/ui/playground?model=qwen3-coder-30b")
    page.get_by_role("textbox", name="Message").fill("A function that says whether a text is a palindrome, in Python")
    page.get_by_role("textbox", name="Message").press("Enter")
    page.locator(".hljs-keyword").first.wait_for()
    page.locator(".bubble-foot", has_text="tokens").wait_for()


def compare(page: Any, url: str) -> Any:
    """One question to two models."""
    answering(page)
    page.goto(f"{url}/ui/playground?tab=compare")
    for number, model in enumerate(("gpt-oss-120b", "glm-4.5-air"), 1):
        page.get_by_label(f"Model {number}", exact=True).select_option(model)
    page.get_by_label("Prompt for all").fill("Is 221 prime?")
    page.get_by_role("button", name="Ask").click()
    page.locator(".column .md", has_text="13").nth(1).wait_for()


PICTURES: dict[str, tuple[Callable[[Any, str], Any], int]] = {
    "overview": (overview, 760),
    "timeline": (timeline, 900),
    "request": (slow_request, 640),
    "page-models": (models, 640),
    "page-requests": (requests, 640),
    "swap": (swap, 640),
    "page-chat": (chat, 640),
    "compare": (compare, 520),
}


def main(names: list[str]) -> None:
    """Take all pictures, or those that are named."""
    from playwright.sync_api import sync_playwright

    server = mock.serve()
    world = server.RequestHandlerClass.world  # type: ignore[attr-defined]
    an_hour(world)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=harness.CHROMIUM, args=harness.FLAGS)
        for name, (prepare, height) in PICTURES.items():
            if names and name not in names:
                continue
            size = {"width": WIDTH, "height": height}
            page = browser.new_page(viewport=size, device_scale_factor=SCALE, reduced_motion="reduce")
            part = prepare(page, url)
            page.wait_for_timeout(1500)
            path = FOLDER / f"{name}.png"
            (part or page).screenshot(path=path)
            print(f"{path.relative_to(Path.cwd())}: {path.stat().st_size // 1024} KiB")
            page.close()
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
