"""What the start of a model's server needs: command, executable and port, decided before a process is made."""

from __future__ import annotations

from collections.abc import Callable, Collection

from attrs import frozen

from llamaswap.config.command_line import EmptyCommand, split
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.port_ownership import bind_address, is_local, may_be_external
from llamaswap.servers.spawn import Kernel


class CannotStart(Exception):
    """Why a start is not even tried; `str()` is the cause."""


@frozen
class LaunchPlan:
    """A command that can be started now."""

    model: Model
    endpoint: Endpoint
    executable: str
    argv: tuple[str, ...]

    @property
    def port_can_change(self) -> bool:
        """Whether llamaswap chooses the port, so that any other one will do."""
        return self.model.port is not None and self.model.port == self.endpoint.port


def make_plan(model: Model, find: Callable[[str], str | None]) -> LaunchPlan:
    """The command of `model` in words; `find` looks up executables. Raises CannotStart."""
    if not model.proxy.strip():
        raise CannotStart("upstream proxy missing")
    if model.endpoint is None:
        raise CannotStart(f"upstream proxy {model.proxy!r} is not an http or https URL")
    try:
        argv = split(model.cmd)
    except EmptyCommand as error:
        raise CannotStart(str(error))
    except ValueError as error:
        raise CannotStart(f"failed to start command {model.cmd.strip()!r}: {error}")
    executable = find(argv[0])
    if executable is None:
        reason = "no such executable file" if "/" in argv[0] else "executable file not found in PATH"
        raise CannotStart(f"failed to start command '{' '.join(argv)}': {argv[0]}: {reason}")
    return LaunchPlan(model, model.endpoint, executable, tuple(argv))


def plan_launch(model: Model, launcher: Launcher, other_port: bool = False) -> LaunchPlan:
    """A plan whose port is free. A port that llamaswap chooses is exchanged if it is taken, or with `other_port`."""
    plan = make_plan(model, launcher.find)
    endpoint, kernel = plan.endpoint, launcher.kernel
    if not is_local(endpoint.host):
        return plan
    host = bind_address(endpoint.host)
    if not plan.port_can_change:
        _require_free_port(plan, kernel)
    elif other_port or kernel.taken(host, endpoint.port):
        return make_plan(model.with_port(kernel.free_port(host)), launcher.find)
    return plan


def check_launch(model: Model, launcher: Launcher, ours: Collection[int]) -> None:
    """Raise CannotStart if a start would fail at once. `ours` are ports that other models' servers may give back."""
    plan = make_plan(model, launcher.find)
    if is_local(plan.endpoint.host) and not plan.port_can_change and plan.endpoint.port not in ours:
        _require_free_port(plan, launcher.kernel)


def _require_free_port(plan: LaunchPlan, kernel: Kernel) -> None:
    """A taken port does not prevent a start if `proxy` names a server that llamaswap did not start."""
    port = plan.endpoint.port
    if not kernel.taken(bind_address(plan.endpoint.host), port):
        return
    holder = kernel.holder(port)
    is_model = holder is not None and kernel.mark_of(holder.pid) is not None
    if is_model or not may_be_external(plan.model, plan.endpoint):
        process = f" by pid {holder.pid} ({holder.name})" if holder is not None else ""
        raise CannotStart(f"port {port} is already in use{process}")
