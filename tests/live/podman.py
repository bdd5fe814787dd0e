"""A podman with its own storage and an image of busybox, for tests of models in containers."""

import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from pathlib import Path
from unittest import SkipTest

IMAGE = "localhost/llamaswap-test"
# What podman needs on a machine without init, registry and network; harmless elsewhere.
GLOBAL = ["--cgroup-manager=cgroupfs", "--runtime=runc", "--storage-driver=vfs"]
LIMITS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"""


class Podman:
    """`command` is the start of a command line, `env` what it needs; raises SkipTest where no container can run."""

    def __init__(self):
        busybox = shutil.which("busybox")
        if shutil.which("podman") is None or shutil.which("runc") is None or busybox is None:
            raise SkipTest("podman, runc and busybox (static) are not all on this machine")
        self.folder = Path(tempfile.mkdtemp(prefix="llamaswap-podman-"))
        (self.folder / "containers.conf").write_text(LIMITS)
        (self.folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.env = {"CONTAINERS_CONF": str(self.folder / "containers.conf")}
        self.command = [
            *("podman", *GLOBAL, "--root", str(self.folder / "root"), "--runroot", str(self.folder / "run")),
            *("--tmpdir", str(self.folder / "tmp")),
        ]
        try:
            self._make_image(busybox)
        except BaseException:
            self.clean()
            raise

    def _make_image(self, busybox):
        tree = self.folder / "image.tar"
        with tarfile.open(tree, "w") as archive:
            archive.add(busybox, "bin/busybox")
            for folder in ("www", "tmp", "proc", "dev", "sys", "etc"):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
        imported = self.run("import", str(tree), IMAGE)
        if imported.returncode:
            raise SkipTest(f"podman cannot be used here: {imported.stderr[-300:]}")
        probe = self.run("run", "--rm", "--network=host", IMAGE, "/bin/busybox", "true")
        if probe.returncode:
            raise SkipTest(f"podman cannot run a container here: {probe.stderr[-300:]}")

    def run(self, *words):
        """A podman command, completed."""
        env = {**os.environ, **self.env}
        return subprocess.run([*self.command, *words], env=env, capture_output=True, text=True, timeout=60)

    def names(self):
        """The names of the running containers."""
        return self.run("ps", "--format", "{{.Names}}").stdout.split()

    def clean(self):
        """Remove the containers and the storage, and end what supervises a container whose client was killed early."""
        try:
            self.run("rm", "-f", "-t", "0", "-a")
        finally:
            self._end_supervisors()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _end_supervisors(self):
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
                if words and words[0].endswith(b"conmon") and any(bytes(self.folder) in word for word in words):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue  # it has ended
