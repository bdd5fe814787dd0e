"""`bench MODEL`: measures a model's speed as a client sees it: time to first token, tokens per second, percentiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import click
from rich.markup import escape

from llamaswap.cli.client import ApiClient, ClientError, JsonObject
from llamaswap.cli.context import CliContext, by_name, model_names, remote, table
from llamaswap.cli.streaming import StreamStats, collect
from llamaswap.observe.stats import percentile

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
COLUMNS = ("mean", "min", *PERCENTILES, "max")


def summary(values: Sequence[float], digits: int = 4) -> dict[str, float | None]:
    """Mean, extremes and percentiles of the values; None for each if there are no values."""
    if not values:
        return dict.fromkeys(COLUMNS)
    ordered = sorted(values)
    ranked = [percentile(ordered, share) for share in PERCENTILES.values()]
    found = (sum(values) / len(values), ordered[0], *ranked, ordered[-1])
    return {name: round(value, digits) for name, value in zip(COLUMNS, found, strict=True)}


def measure(
    client: ApiClient,
    body: JsonObject,
    requests: int,
    concurrency: int,
    done: Callable[[], None],
) -> tuple[list[StreamStats | ClientError], float]:
    """Make all requests, `concurrency` at a time; returns (measurements or errors, seconds for all)."""

    def one(_: int) -> StreamStats | ClientError:
        try:
            return collect(client, body)
        except ClientError as error:
            return error
        finally:
            done()

    began = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        results = list(pool.map(one, range(requests)))
    return results, time.perf_counter() - began


def report(
    model: str, results: Sequence[StreamStats | ClientError], elapsed: float, warm_s: float | None
) -> JsonObject:
    """The result of a benchmark, for --json."""
    good = [result for result in results if isinstance(result, StreamStats)]
    tokens = sum(stats.tokens for stats in good)
    errors = [str(result) for result in results if isinstance(result, ClientError)]
    return {
        "model": model,
        "requests": len(results),
        "failed": len(errors),
        "errors": sorted(set(errors))[:5],
        "elapsed_s": round(elapsed, 3),
        "load_and_first_request_s": None if warm_s is None else round(warm_s, 3),
        "tokens": tokens,
        "tokens_per_second_overall": round(tokens / elapsed, 2) if elapsed > 0 else None,
        "requests_per_second": round(len(good) / elapsed, 3) if elapsed > 0 else None,
        "ttft_s": summary([stats.first for stats in good if stats.first is not None]),
        "total_s": summary([stats.total for stats in good]),
        "tokens_per_second": summary([stats.rate for stats in good if stats.rate is not None], 2),
    }


@click.command()
@click.argument("model", shell_complete=model_names)
@click.option("-n", "--requests", type=click.IntRange(min=1), default=10, show_default=True, help="Requests.")
@click.option("-c", "--concurrency", type=click.IntRange(1, 1000), default=1, show_default=True, help="At a time.")
@click.option("--prompt", default="Write a short story about a river.", show_default=True, help="The prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Token limit.")
@click.option("--warm/--cold", default=True, help="Send one request before measuring (default).")
@remote
def bench(
    context: CliContext, model: str, requests: int, concurrency: int, prompt: str, max_tokens: int, warm: bool
) -> None:
    """Measure a model's speed over the proxy."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}
    warm_s: float | None = None
    if warm:
        first = {**body, "max_tokens": 1}
        model, warm_s = by_name(
            context.client, model, lambda name: (name, collect(context.client, {**first, "model": name}).total)
        )
        body["model"] = model
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    with Progress(TextColumn("{task.description}"), MofNCompleteColumn(), console=context.err, transient=True) as bar:
        task = bar.add_task("requests", total=requests)
        results, elapsed = measure(context.client, body, requests, concurrency, lambda: bar.advance(task))
    found = report(model, results, elapsed, warm_s)
    if context.as_json:
        context.document(found)
    else:
        _show(context, found)
    if found["failed"] == requests:
        raise SystemExit(1)


def _show(context: CliContext, found: JsonObject) -> None:
    titles = {
        "ttft_s": "time to first token (s)",
        "total_s": "whole response (s)",
        "tokens_per_second": "tokens/s of one response",
    }
    number = lambda value: "" if value is None else f"{value:.3f}"
    rows = [[title, *(number(found[key][name]) for name in COLUMNS)] for key, title in titles.items()]
    context.show(table((escape(found["model"]), *COLUMNS), rows, right=COLUMNS))
    context.say(
        f"{found['requests']} requests in {found['elapsed_s']:.2f}s, {found['failed']} failed; "
        f"{found['tokens']} tokens, {found['tokens_per_second_overall'] or 0:.1f} tokens/s over all"
    )
    if found["load_and_first_request_s"] is not None:
        context.note(f"before that, one request to warm up: {found['load_and_first_request_s']:.2f}s")
    for error in found["errors"]:
        context.note(error, "red")
