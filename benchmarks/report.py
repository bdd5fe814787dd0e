"""Figures to a page: tables of ratios, the bars they are held against, and plain SVG plots."""

import csv
import os
import platform
import sys
from datetime import date
from pathlib import Path

from benchmarks.subjects import ROOT

# (text, measure, figure, bar as a ratio to nginx; True: at most, False: at least)
BARS = [
    ("CPU per request, 1 KB, 16 connections", "small", "cpu_us", 6.0, True),
    ("CPU per request, 1 KB, 1 connection", "single", "cpu_us", 3.5, True),
    ("CPU per request, 100 KB, 16 connections", "medium", "cpu_us", 4.0, True),
    ("CPU per chunk, 50 streams", "streams50", "cpu_us", 1.4, True),
    ("CPU per chunk, 500 streams", "streams500", "cpu_us", 1.3, True),
    ("p99 latency per chunk, 2000 streams", "streams2000", "p99_ms", 5.0, True),
    ("upload, MB/s", "upload", "mb_per_second", 1.0, False),
    ("download, MB/s", "download", "mb_per_second", 1.0, False),
]
SWAP_P50, SWAP_P99 = 8.0, 15.0  # milliseconds above the servers' own exit and load
STARTUP, IDLE_MB, STREAMS_MB, BODIES_MB = 0.45, 60.0, 90.0, 105.0


def verdicts(results, about, swaps):
    """(what, bar, measured, met) for each bar there are figures for."""
    rows = []
    for text, measure, figure, bar, at_most in BARS:
        figures = results.get(measure, {})
        if "nginx" not in figures or "llamaswap" not in figures:
            continue
        ratio = figures["llamaswap"][figure] / figures["nginx"][figure]
        met = ratio <= bar if at_most else ratio >= bar
        rows.append((text, f"{'at most' if at_most else 'at least'} {bar} x nginx", f"{ratio:.2f} x", met))
    for measure, bar in (("streams50", 1.4), ("streams500", 1.3)):
        if measure in results and f"{measure}short" in results:
            ours, theirs = (chunk_alone(results, measure, who) for who in ("llamaswap", "nginx"))
            text = f"the same, {measure.removeprefix('streams')} streams, without their begin and end"
            rows.append((text, f"at most {bar} x nginx", f"{ours / theirs:.2f} x", ours <= bar * theirs))
    for row in swaps:
        if row["subject"] == "llamaswap":
            text = f"swap above exit + load, servers ready after {row['ready_after_ms']:.0f} ms"
            met = row["above_p50_ms"] <= SWAP_P50 and row["above_p99_ms"] <= SWAP_P99
            got = f"{row['above_p50_ms']:.1f} ms p50, {row['above_p99_ms']:.1f} ms p99"
            rows.append((text, f"{SWAP_P50:.0f} ms p50, {SWAP_P99:.0f} ms p99", got, met))
    for text, measure, figure, bar in (
        ("memory at 2000 streams", "streams2000", "peak_mb", STREAMS_MB),
        ("memory after large bodies", "download", "rss_mb", BODIES_MB),
    ):
        got = results.get(measure, {}).get("llamaswap", {}).get(figure)
        if got is not None:
            rows.append((text, f"{bar:.0f} MB", f"{got:.0f} MB", got <= bar))
    mine = about.get("llamaswap")
    if mine:
        rows.append(("start to listening", f"{STARTUP} s", f"{mine['startup_s']:.2f} s", mine["startup_s"] <= STARTUP))
        idle = mine["idle_rss_mb"]
        rows.append(("memory, one model loaded and idle", f"{IDLE_MB:.0f} MB", f"{idle:.0f} MB", idle <= IDLE_MB))
    return rows


def chunk_alone(results, measure, who):
    """CPU microseconds for each chunk that the streams of a measure have more than those of its short form."""
    more, fewer = results[measure][who], results[f"{measure}short"][who]
    spent = more["cpu_us"] * more["chunks"] - fewer["cpu_us"] * fewer["chunks"]
    return spent / (more["chunks"] - fewer["chunks"])


def grid(head, rows):
    """A reStructuredText simple table."""
    cells = [head, *rows]
    widths = [max(len(str(row[column])) for row in cells) for column in range(len(head))]
    rule = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def table(results, about, swaps):
    """The whole result as text."""
    parts = []
    judged = verdicts(results, about, swaps)
    if judged:
        rows = [(text, bar, got, "met" if met else "**not met**") for text, bar, got, met in judged]
        parts.append(grid(("measure", "bar", "measured", ""), rows))
    for name, figures in results.items():
        keys = list(dict.fromkeys(key for row in figures.values() for key in row if key not in ("failed", "complete")))
        rows = [(who, *(f"{row[key]:.4g}" if key in row else "" for key in keys)) for who, row in figures.items()]
        parts.append(f"{name}\n\n" + grid(("subject", *keys), rows))
    added = list(gateway_rows(results))
    if added:
        parts.append("latency added by each gateway\n\n" + grid(GATEWAY_COLUMNS, added))
    if swaps:
        keys = [key for key in swaps[0] if key != "subject"]
        rows = [(row["subject"], *(f"{row[key]:.1f}" for key in keys)) for row in swaps]
        parts.append("swaps\n\n" + grid(("subject", *keys), rows))
    if about:
        rows = [(who, *(f"{value:.4g}" for value in row.values())) for who, row in about.items()]
        parts.append("start and memory\n\n" + grid(("subject", *next(iter(about.values()))), rows))
    return "\n\n".join(parts)


GATEWAY_COLUMNS = (
    "gateway",
    "connections",
    "requests_per_second",
    "failed",
    "p50_ms",
    "p99_ms",
    "added_p50_ms",
    "added_p99_ms",
)


def gateway_rows(results):
    """A row for each gateway and number of connections; what it adds is its latency less that of the server alone."""
    for measure, figures in results.items():
        if not measure.startswith("gateway"):
            continue
        direct = figures["direct"]
        for who, row in figures.items():
            added = [row[name] - direct[name] for name in ("p50_ms", "p99_ms")]
            exact = [row["p50_ms"], row["p99_ms"], *added]
            connections = measure.removeprefix("gateway")
            yield [who, connections, f"{row['per_second']:.0f}", f"{row['failed']:.0f}", *(f"{x:.3f}" for x in exact)]


def write_gateways(path, results):
    """The rows as a CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(GATEWAY_COLUMNS)
        writer.writerows(gateway_rows(results))


def plot(title, unit, bars):
    """Horizontal bars as SVG text; `bars` are (label, value)."""
    top = max(value for _, value in bars) or 1.0
    lines = [f'<text x="8" y="20" font-weight="bold">{title} ({unit})</text>']
    for row, (label, value) in enumerate(bars):
        y = 36 + 26 * row
        width = 420 * value / top
        lines.append(f'<text x="8" y="{y + 14}">{label}</text>')
        lines.append(f'<rect x="130" y="{y}" width="{width:.1f}" height="18" fill="#3b7dd8"/>')
        lines.append(f'<text x="{138 + width:.1f}" y="{y + 14}">{value:.4g}</text>')
    height = 46 + 26 * len(bars)
    style = 'font-family="sans-serif" font-size="13"'
    body = "\n".join(lines)
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{height}" {style}>\n{body}\n</svg>\n'


def machine():
    """The machine in a line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def write(results, about, swaps):
    """Write docs/performance.rst (between its markers) and the plots; returns the tables."""
    page = ROOT / "docs" / "performance.rst"
    plots = ROOT / "docs" / "plots"
    plots.mkdir(exist_ok=True)
    figures = []
    for name, figure, title, unit in (
        ("small", "cpu_us", "CPU per request, 1 KB, 16 connections", "microseconds"),
        ("streams500", "cpu_us", "CPU per chunk, 500 streams", "microseconds"),
        ("upload", "mb_per_second", "Upload", "MB/s"),
    ):
        bars = [(who, row[figure]) for who, row in results.get(name, {}).items() if figure in row]
        if bars:
            (plots / f"{name}.svg").write_text(plot(title, unit, bars), encoding="utf-8")
            figures.append(f".. image:: plots/{name}.svg\n   :alt: {title}")
    text = table(results, about, swaps)
    lead = f"Measured on {date.today().isoformat()} by ``python -m benchmarks`` on\n{machine()}."
    body = "\n\n".join([lead, text, *figures])
    begin, end = ".. measured", ".. end of measured"
    old = page.read_text(encoding="utf-8") if page.exists() else f"Performance\n===========\n\n{begin}\n{end}\n"
    before, _, rest = old.partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n\n{body}\n\n{end}{after}", encoding="utf-8")
    print(f"written: {page}", file=sys.stderr)
    return text
