"""What a release consists of, built so that the same commit gives the same bytes: `python release.py [FOLDER]`.

Wheel, sdist and `llamaswap.pyz`, one file with everything but Python in it (compiled parts included: it is for the
system, processor and Python it was built with). Needs the packages `build` and `shiv`. Version and date are the
commit's; the date of every file inside is the commit's too, or $SOURCE_DATE_EPOCH.
"""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent


def commit_time() -> int:
    """Seconds since 1970 of what is built."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    return int(done.stdout or 315532800)  # 1980, where zip files begin


def settle_sdist(path: Path, when: int) -> None:
    """Rewrite an sdist without what depends on the machine: order, owners, times."""
    with tarfile.open(path) as archive:
        entries = [
            (entry, archive.extractfile(entry) if entry.isfile() else None)
            for entry in sorted(archive, key=lambda entry: entry.name)
        ]
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as settled:
            for entry, content in entries:
                entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = when, 0, 0, "", ""
                entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
                entry.pax_headers = {}
                settled.addfile(entry, content)
    with open(path, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=when) as packed:
        packed.write(tar.getvalue())


def build(folder: Path) -> list[Path]:
    """Build everything into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    when = commit_time()
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(when), "PYTHONHASHSEED": "0"}

    def run(*words: object) -> None:
        subprocess.run([str(word) for word in words], cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory() as scratch:
        run(sys.executable, "-m", "build", "--outdir", scratch, ROOT)
        (wheel,), (sdist,) = Path(scratch).glob("*.whl"), Path(scratch).glob("*.tar.gz")
        settle_sdist(sdist, when)
        single = Path(scratch) / "llamaswap.pyz"
        words = [sys.executable, "-m", "shiv", "-c", "llamaswap", "-p", "/usr/bin/env python3", "--reproducible"]
        # By name, not by path: pip writes the path of a file it installed into the result.
        version = wheel.name.split("-")[1]
        run(*words, "-o", single, "--find-links", scratch, f"llamaswap[tls]=={version}")
        made = []
        for path in (wheel, sdist, single):
            target = folder / path.name
            target.write_bytes(path.read_bytes())
            target.chmod(0o755 if path is single else 0o644)
            made.append(target)
    return made


if __name__ == "__main__":
    for made in build(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")):
        sys.stdout.write(f"{hashlib.sha256(made.read_bytes()).hexdigest()}  {made}\n")
