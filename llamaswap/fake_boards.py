"""GPUs made of files, for tests on a machine without one: LLAMASWAP_FAKE_BOARDS names their folder.

It has a folder for each board, named by its number: a file `total`, and for each process that uses the board a file
named by its pid; both contain MiB. Blocks: for a worker's thread.
"""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen

FAKE_BOARDS = "LLAMASWAP_FAKE_BOARDS"


@frozen
class FakeBoard:
    """One board: MiB in total, and by process."""

    id: int
    total: int
    processes: dict[int, int]


def fake_boards(folder: str) -> list[FakeBoard]:
    """The boards in the folder, by ascending number; a name like gpu0 is the board 0."""
    found = []
    for board in Path(folder).iterdir():
        number = re.fullmatch(r"(?:gpu)?(\d+)", board.name)
        if number is None:
            continue
        files = [path for path in board.iterdir() if path.name.isdigit()]
        sizes = {int(path.name): _number(path) for path in files}
        found.append(FakeBoard(int(number[1]), _number(board / "total"), sizes))
    return sorted(found, key=lambda board: board.id)


def _number(path: Path) -> int:
    """MiB in a file; 0 if it was removed meanwhile, or is being written."""
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
