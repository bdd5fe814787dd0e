"""Fixtures shared by the tests of memory: trees of kernel files, and NVML's binding."""

from types import SimpleNamespace

MIB = 1024 * 1024


def write_tree(root, files):
    """Files by their path below `root`; a text that begins with -> is a link's target."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("->"):
            path.symlink_to(text[2:])
        else:
            path.write_text(text)


class NvmlError(Exception):
    """NVML's error."""


class ProcessNvml:
    """As much of NVML's binding as lists processes. `compute` and `graphics` have {pid: bytes} for each GPU."""

    NVMLError = NvmlError

    def __init__(self, compute, graphics=()):
        self.compute, self.graphics = compute, graphics
        self.open = 0
        self.broken = False

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        if self.broken:
            raise NvmlError("the GPU is lost")
        return len(self.compute)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, device):
        return _rows(self.compute[device])

    def nvmlDeviceGetGraphicsRunningProcesses(self, device):
        if not self.graphics:
            raise NvmlError("not supported")
        return _rows(self.graphics[device])


def _rows(sizes):
    return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in sizes.items()]
