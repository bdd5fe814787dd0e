"""A small world for supervisors: processes that answer signals on a Clock, ports, and a server to be asked."""

import os

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError, ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import Model
from llamaswap.servers import sessionleader
from llamaswap.servers.launcher import Launcher
from llamaswap.servers.procfs import MARK, Stat
from llamaswap.servers.server_request import GET
from llamaswap.servers.supervisor import Supervisor
from tests.doubles import RecordingListener

TERM, KILL, INT = 15, 9, 2


@define(eq=False)
class Process:
    """One process in the world: a leader when it has a protocol. Times are seconds, None is never."""

    world: "World"
    pid: int
    group: int
    start: int
    protocol: object = None
    alive: bool = True
    term_after: float | None = 0.0
    kill_after: float | None = 0.0
    holds_pipe: bool = False
    written: bytes = b""
    words: tuple = ()  # what it was spawned with; `argv` is what it became
    argv: tuple = ()
    environ: dict = field(factory=dict)
    given: dict = field(factory=dict)  # the other arguments of its start
    executable: str = ""
    signals: list = field(factory=list)
    listens: set = field(factory=set)
    mark: str = ""
    paused: bool = False
    stdin_closed: bool = False
    pipes_cut: bool = False
    name: str = "server"
    status: int = 0
    ended: bool = False
    pipes: dict = field(factory=dict)
    parent: int = 1

    # -- what a transport can --

    def watch(self):
        """An adopted process reports its end from its adoption on."""

    def write(self, data):
        self.written += data

    def writeToChild(self, fd, data):
        self.written += data

    def closeStdin(self):
        self.stdin_closed = True
        if self.written and not self.argv and self.written[:1].isdigit():
            payload = self.written.partition(b"\n")[2]
            executable, argv, environ = sessionleader.follow(payload)
            self.executable = executable.decode()
            self.argv = tuple(os.fsdecode(word) for word in argv)
            self.environ = {key.decode(): value.decode() for key, value in environ.items()}
            self.mark = self.environ[MARK]
            self.world.became(self)
        elif not self.written:
            self.die(0)

    def loseConnection(self):
        self.pipes_cut = True
        self.world.clock.callLater(0, self.close)

    def pauseProducing(self):
        self.paused = True

    def resumeProducing(self):
        self.paused = False

    # -- what may happen to it --

    def hear(self, number):
        self.signals.append(number)
        wait = {TERM: self.term_after, INT: self.term_after, KILL: self.kill_after}.get(number)
        if self.alive and wait is not None:
            self.world.clock.callLater(wait, self.die, -number)

    def say(self, data):
        self.protocol.childDataReceived(1, data)

    def die(self, status=0):
        if not self.alive:
            return
        self.alive = False
        self.listens.clear()
        if self.protocol is not None:
            self.status = status
            self.protocol.processExited(reason(status))
        self.world.settle_pipes(self.group)

    def close(self):
        if self.protocol is not None and not self.alive and not self.ended:
            self.ended = True
            self.protocol.processEnded(reason(self.status))


def reason(status):
    if status == 0:
        return Failure(ProcessDone(0))
    return Failure(ProcessTerminated(None if status < 0 else status, -status if status < 0 else None, 0))


@define(eq=False, slots=False)
class World:
    """IReactorProcess and Kernel in one. `on_become` shapes a process when it learns its command."""

    clock: Clock = field(factory=Clock)
    processes: list = field(factory=list)
    foreign: set = field(factory=set)
    on_become: object = lambda process: None
    refuse_spawn: bool = False
    work: tuple = (0, 0)
    next_pid: int = 100
    next_free: int = 40000

    def new(self, **fields):
        self.next_pid += 1
        defaults = {"world": self, "pid": self.next_pid, "group": self.next_pid, "start": self.next_pid * 10}
        process = Process(**{**defaults, **fields})
        self.processes.append(process)
        return process

    def spawnProcess(self, protocol, executable, args=(), env=None, path=None, uid=None, gid=None, usePTY=0, **rest):
        if self.refuse_spawn:
            raise OSError(11, "Resource temporarily unavailable")
        process = self.new(protocol=protocol, words=tuple(args), environ=dict(env or {}), given=rest)
        protocol.makeConnection(process)
        return process

    def became(self, process):
        self.on_become(process)

    def orphan(self, leader, **fields):
        """A process the leader left in its group."""
        return self.new(group=leader.group, mark=leader.mark, **fields)

    def settle_pipes(self, group):
        if not any(one.alive and (one.protocol or one.holds_pipe) for one in self.processes if one.group == group):
            for one in self.processes:
                if one.group == group:
                    self.clock.callLater(0, one.close)

    def commands(self):
        """The processes that became a command, in order."""
        return [one for one in self.processes if one.argv]

    # -- Kernel --

    def _stat(self, one):
        return Stat(one.pid, one.name, "S" if one.alive else "Z", one.parent, one.group, one.group, one.start)

    def stat(self, pid):
        return next((self._stat(one) for one in self.processes if one.pid == pid and one.alive), None)

    def members(self, leader, start, mark):
        living = [one for one in self.processes if one.alive and one.start >= start]
        return [self._stat(one) for one in living if one.group == leader or (mark and one.mark == mark)]

    def descendants(self, pid):
        children = [one for one in self.processes if one.alive and one.parent == pid]
        return [self._stat(one) for one in children] + [two for one in children for two in self.descendants(one.pid)]

    def signal_group(self, group, number):
        if number == 0:
            return any(one.alive and one.group == group for one in self.processes)
        return bool([one.hear(number) for one in list(self.processes) if one.alive and one.group == group])

    def signal_one(self, pid, number):
        return bool([one.hear(number) for one in list(self.processes) if one.alive and one.pid == pid])

    def taken(self, host, port):
        return port in self.foreign or any(port in one.listens for one in self.processes if one.alive)

    def free_port(self, host):
        self.next_free += 1
        return self.next_free

    def listening(self, port):
        return {one.pid * 1000 + port for one in self.processes if one.alive and port in one.listens}

    def sockets(self, pid):
        return {one.pid * 1000 + port for one in self.processes if one.pid == pid for port in one.listens}

    def holder(self, port):
        return next((self._stat(one) for one in self.processes if one.alive and port in one.listens), None)

    def ports_of(self, pids):
        return {port for one in self.processes if one.pid in pids for port in one.listens}

    def work_of(self, pid):
        return self.work

    def mark_of(self, pid):
        return next((one.mark or None for one in self.processes if one.pid == pid and one.alive), None)


class Asked:
    """Answers readiness questions: a status, an exception to fail with, or None to stay silent."""

    def __init__(self, answer=200):
        self.answer = answer
        self.questions = []
        self.requests = []
        self.steps = {}
        self.pending = []

    def __call__(self, endpoint, path, limit, how=GET):
        if how is not GET:
            return self.asked_for(f"{how.method} {how.path} {how.body}".strip())
        self.questions.append((endpoint.port, path, limit))
        answer = self.answer(endpoint) if callable(self.answer) else self.answer
        asked = Deferred()
        if isinstance(answer, Exception):
            asked.errback(answer)
        elif answer is None:
            self.pending.append(asked)
        else:
            asked.callback(answer)
        return asked

    def asked_for(self, step):
        """A request that is to do something: 200, or what `steps` says (a Deferred stays open)."""
        self.requests.append(step)
        answer = self.steps.get(step, 200)
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)


REFUSED = ConnectionRefusedError("refused")


def model(**fields):
    port = fields.pop("port", None)
    endpoint = Endpoint("http", "127.0.0.1", port or 5800)
    rebuild = fields.pop("rebuild", None)
    defaults = {"id": "kiwi", "cmd": f"server --port {endpoint.port}", "proxy": str(endpoint), "endpoint": endpoint}
    made = Model(**{**defaults, "port": port, "health_check_timeout": 15.0, **fields})
    if port is not None and rebuild is None:
        made = evolve(made, rebuild=lambda other, gpu_ids: model(**{**fields, "port": other}))
    return made


@define(eq=False)
class Scene:
    """A supervisor in its world."""

    world: World
    asked: Asked
    heard: RecordingListener
    said: list
    supervisor: Supervisor

    @property
    def clock(self):
        return self.world.clock

    def wait(self, seconds):
        """Let time pass in small steps, as a reactor would."""
        steps = max(1, round(seconds / 0.005))
        for _ in range(steps):
            self.clock.advance(seconds / steps)

    def servers(self):
        return [one for one in self.world.commands() if one.argv[0] == "server"]


def scene(answer=200, watchers=(), on_become=None, **fields):
    world = World()
    if on_become is not None:
        world.on_become = on_become
    launcher = Launcher(
        world, world.clock, {"PATH": "/bin", "MODE": "0"}, "run", kernel=world, watchers=watchers, which=which
    )
    asked, heard, said = Asked(answer), RecordingListener(), []
    supervisor = Supervisor(model(**fields), launcher=launcher, ask=asked, log=said.append, listener=heard)
    return Scene(world, asked, heard, said, supervisor)


def which(name, path):
    """Every command exists here but those called missing."""
    return None if name.startswith("missing") else f"/bin/{name}"
