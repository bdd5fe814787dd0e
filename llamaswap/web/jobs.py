"""Jobs that a server works on after it has answered: later requests about a job go to the server that has it.

A job is what a POST to one of these paths creates. A server forgets its jobs when it stops, so it stays loaded while a
job runs and its client asks for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from urllib.parse import unquote_to_bytes

from attrs import define, field, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llamaswap.config import Config
from llamaswap.errors import BadRequest
from llamaswap.observe.worker import RunBlocking
from llamaswap.proxy.exchange import RequestHead
from llamaswap.routing.leases import Lease
from llamaswap.routing.router import Router
from llamaswap.upgrade.state import HandedJob
from llamaswap.web.errors import HttpError
from llamaswap.web.key_access import KeyAccess
from llamaswap.web.target import Target
from llamaswap.wire.file_ids import file_ids
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.json_body import JsonBody
from llamaswap.wire.json_members import LARGE, json_text, split_members
from llamaswap.wire.request_info import RequestInfo, RequestOutcome

MAX_JOBS = 10_000
LIFETIME = 86_400.0  # seconds since the last request for a job after which it is forgotten
HOLD_TIME = 60.0  # seconds since the last request for a running job in which its server is not stopped for others
CHECK_INTERVAL = 5.0  # seconds between looks at a lease that is kept
DOCUMENT_LIMIT = 1 << 16  # bytes of a job's document that are read
LONGEST_ID = 256  # characters
RUNNING = frozenset(
    ("queued", "pending", "in_progress", "processing", "running", "validating", "finalizing", "cancelling")
)
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # the marks with which such a text may begin
RESPONSES = "responses"  # a kind: a response that its server makes in the background
JOB_PATHS = (b"/v1/videos", b"/v1/batches", b"/v1/files", b"/v1/responses/")
_PATH = re.compile(rb"/v1/(videos|batches|files|responses)(?:/([^/]+)(/.+?)?)?/?")
_STEP_UP = re.compile(rb"(?:^|/)\.{1,2}(?:/|$)")


@frozen
class JobPath:
    """A path about a job of a kind: `id` is empty for all jobs, and `part` for the job itself."""

    kind: str
    id: str
    part: str


def job_path(path: bytes) -> JobPath | None:
    """What a raw path says about a job; None if it is no such path."""
    if not path.startswith(JOB_PATHS) or path in (b"/v1/responses/", b"/v1/responses/input_tokens"):
        return None
    found = _PATH.fullmatch(path)
    if found is None or _STEP_UP.search(unquote_to_bytes(path)):
        return None
    return JobPath(*((text or b"").decode("latin-1") for text in found.groups()))


def may_be_job_path(path: bytes) -> bool:
    """Whether some server may read a raw path as one about its jobs, however it is written."""
    segments: list[bytes] = []
    for segment in unquote_to_bytes(path).split(b"/"):
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    at = segments.index(b"v1") if b"v1" in segments else len(segments)
    return job_path(b"/" + b"/".join(segments[at:])) is not None


@define(eq=False)
class JobLease:
    """The lease of a running job. `requests` about the job that are served with it outlast the job's own use of it."""

    lease: Lease
    requests: int = 0
    _kept: bool = True

    def give_up(self) -> None:
        """The job does not need it any more."""
        self._kept = False
        self._release_unused()

    def request_ended(self) -> None:
        """A request that was served with it has ended."""
        self.requests -= 1
        self._release_unused()

    def _release_unused(self) -> None:
        if not self._kept and not self.requests:
            self.lease.release()


@define(eq=False)
class Job:
    """A job at a server, which is a model's, a replica's or a peer's; `name` is what its client called the model."""

    owner: str
    kind: str
    id: str
    server: str
    name: str
    used: float
    held: JobLease | None = None
    held_until: float = 0.0
    timer: IDelayedCall | None = None

    def release(self) -> None:
        """Let the server be stopped."""
        held, self.held = self.held, None
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
        if held is not None:
            held.give_up()

    def target(self, config: Config) -> Target:
        """Its server, which is not loaded for it: it would not know the job."""
        model = config.models.get(self.server)
        if model is None:
            return Target.named(config, self.server)
        return Target(self.name, model, load_refusal=f"model {self.server} is not loaded, so it has no such job")


@define(eq=False)
class JobDirectory:
    """Knows which server has which job of which key.

    Of the key that has the most it forgets the jobs that were not asked for longest, so no key pushes out the jobs of
    others.
    """

    router: Router
    clock: IReactorTime
    _jobs: dict[str, dict[tuple[str, str], Job]] = field(factory=dict, init=False)  # by the key's name
    _files: Counter[str] = field(factory=Counter, init=False)  # how many of them are files

    def find(self, access: KeyAccess, kind: str, identity: str) -> Job | None:
        """The job of this kind and ID that a key may reach; None if there is none."""
        job = self._jobs.get(access.name, {}).get((kind, identity))
        if job is None and access.sees_all_jobs:
            job = next((jobs[kind, identity] for jobs in self._jobs.values() if (kind, identity) in jobs), None)
        if job is None or job.used + LIFETIME < self.clock.seconds():
            return None
        job.used = self.clock.seconds()
        jobs = self._jobs[job.owner]
        jobs[kind, identity] = jobs.pop((kind, identity))  # as the last
        return job

    def of_client(self, access: KeyAccess, kind: str, identity: str, *, names_model: bool) -> Job | None:
        """The job of this ID. None if there is no ID, or if the request `names_model` and the key may ask the server of
        that model for any job. Raises HttpError(404)."""
        job = self.find(access, kind, identity)
        if job is None and identity and not (names_model and access.sees_all_jobs):
            way_out = "; to ask a server for it, name its model as ?model=NAME" if access.sees_all_jobs else ""
            raise HttpError(404, f"{kind} with id '{identity[:LONGEST_ID]}' not found{way_out}")
        return job

    def hides_files(self, access: KeyAccess) -> bool:
        """Whether there are files that a key may not reach."""
        return not access.sees_all_jobs and self._files.total() > self._files[access.name]

    async def require_own_files(self, access: KeyAccess, text: bytes, run: RunBlocking) -> None:
        """Raise HttpError(404) if a JSON body names a file of another key."""
        if b"\0" in text[:4] or text.startswith(UTF_16):  # some servers read it, but no name would be found here
            raise BadRequest("the body must be JSON in UTF-8")
        work = partial(self._hidden_file, access.name, text)
        identity = work() if len(text) <= LARGE else await run(work)
        if identity is not None:
            raise HttpError(404, f"files with id '{identity}' not found")

    def _hidden_file(self, owner: str, text: bytes) -> str | None:
        own, others = self._jobs.get(owner, {}), list(self._jobs.values())
        named = (("files", identity) for identity in file_ids(text))
        return next((key[1] for key in named if key not in own and any(key in jobs for jobs in others)), None)

    def servers(self, owner: str, kind: str) -> dict[str, set[str]]:
        """The IDs of a key's jobs of a kind, by the server that has them."""
        found: dict[str, set[str]] = {}
        for job in self._jobs.get(owner, {}).values():
            if job.kind == kind:
                found.setdefault(job.server, set()).add(job.id)
        return found

    def add(self, owner: str, kind: str, identity: str, server: str, name: str) -> Job:
        """A server has this job now."""
        replaced = self._jobs.get(owner, {}).get((kind, identity))
        if replaced is not None:
            self.forget(replaced)
        job = Job(owner, kind, identity, server, name, self.clock.seconds())
        self._jobs.setdefault(owner, {})[kind, identity] = job
        self._files[owner] += kind == "files"
        outdated = self.clock.seconds() - LIFETIME
        for jobs in list(self._jobs.values()):
            for old in list(takewhile(lambda job: job.used < outdated, jobs.values())):
                self.forget(old)
        while sum(map(len, self._jobs.values())) > MAX_JOBS:
            most = max(self._jobs.values(), key=len)
            self.forget(next(iter(most.values())))
        return job

    def hand_over(self) -> tuple[HandedJob, ...]:
        """The jobs for the next program of an upgrade, whose servers run on."""
        now = self.clock.seconds()
        jobs = sorted((job for jobs in self._jobs.values() for job in jobs.values()), key=lambda job: job.used)
        return tuple(HandedJob(job.owner, job.kind, job.id, job.server, job.name, now - job.used) for job in jobs)

    def adopt(self, jobs: Sequence[HandedJob]) -> None:
        """Know what the program before an upgrade knew."""
        for one in jobs:
            self.add(one.owner, one.kind, one.id, one.server, one.name).used -= one.age

    def release_leases(self) -> None:
        """Let every server be stopped, until its jobs are asked for again."""
        for jobs in self._jobs.values():
            for job in jobs.values():
                job.release()

    def forget(self, job: Job) -> None:
        """The job is deleted."""
        jobs = self._jobs.get(job.owner, {})
        if jobs.get((job.kind, job.id)) is job:
            del jobs[job.kind, job.id]
            self._files[job.owner] -= job.kind == "files"
            if not jobs:
                del self._jobs[job.owner], self._files[job.owner]
        job.release()

    def hold(self, job: Job, lease: Lease, borrowed: JobLease | None = None) -> None:
        """Keep the lease of a running job for a while. `borrowed` is that of the request which tells that it runs."""
        if borrowed is not None and borrowed is not job.held:
            return  # the job has another one, or has ended
        if job.held is None or job.held.lease is not lease:
            job.release()
            job.held = JobLease(lease)
        job.held_until = self.clock.seconds() + HOLD_TIME
        if job.timer is None:
            job.timer = self.clock.callLater(CHECK_INTERVAL, self._check, job)

    def _check(self, job: Job) -> None:
        job.timer = None
        held = job.held
        over = job.held_until <= self.clock.seconds() and not (held is not None and held.requests)
        over = over or job.server not in self.router.config.models  # then no client can ask for the job
        if held is None or held.lease.lost or over:
            job.release()
        else:
            job.timer = self.clock.callLater(CHECK_INTERVAL, self._check, job)


@define(eq=False)
class JobFollower:
    """Observes one request about jobs: learns the ID of a new one, and whether a known one still runs.

    `job` is the one that the request is about, if it is known.
    """

    directory: JobDirectory
    owner: str
    path: JobPath
    method: bytes
    job: Job | None = None
    request: RequestInfo | None = None
    _borrowed: JobLease | None = field(default=None, init=False)
    _status: int = field(default=0, init=False)
    _text: bytearray = field(factory=bytearray, init=False)

    def borrow(self) -> Lease | None:
        """The lease of the running job, with which its requests are served: another might have to wait for it."""
        held = self.job.held if self.job is not None else None
        if held is None or held.lease.lost:
            return None
        held.requests += 1
        self._borrowed = held
        return held.lease

    def takes(self, lease: Lease) -> bool:
        """Whether the lease of the request, which has ended, is kept for the job."""
        if self.request is not None:
            self.request.flush()
        running = self._learn()
        job, borrowed = self.job, self._borrowed
        self._borrowed = None
        if job is not None and running is False:
            job.release()
        elif job is not None and running:
            self.directory.hold(job, lease, borrowed)
        if borrowed is not None:
            borrowed.request_ended()
            return True
        return job is not None and job.held is not None and job.held.lease is lease

    def _learn(self) -> bool | None:
        """Whether the job runs now; None if the response does not tell."""
        owner, path, request = self.owner, self.path, self.request
        success = 200 <= self._status < 300
        if self.method == b"DELETE" and not path.part and (success or self._status == 404):
            if self.job is not None:
                self.directory.forget(self.job)
            return False
        document = {} if self.method == b"GET" and path.part else split_members(bytes(self._text))
        identity, status = (_text(document.get(name)) for name in ("id", "status"))
        if not success or not identity or len(identity) > LONGEST_ID or request is None:
            return False if self._status == 404 and not path.part else None
        if self.method == b"POST" and identity != path.id and self._text:
            self.job = self.directory.add(owner, path.kind, identity, request.server, request.requested)
            self._text.clear()
        return status in RUNNING

    # -- what an observer sees -----------------------------------------------------------------------------

    def granted(self) -> None:
        """A server was reserved, which says nothing about the job."""

    def retargeted(self) -> None:
        """Another server will be asked, which says nothing about the job."""

    def head(self, status: int, headers: ResponseHeaders) -> None:
        """The response's status."""
        self._status = status

    def data(self, data: bytes) -> None:
        """Some of the job's document."""
        if len(self._text) <= DOCUMENT_LIMIT:
            self._text += data[: DOCUMENT_LIMIT + 1]

    def ended(self, outcome: RequestOutcome, error: Exception | None) -> None:
        """A peer's response has no lease, and is learned from here."""
        self._learn()
        self.request = None


def _text(raw: bytes | None) -> str:
    return json_text(raw) or "" if raw is not None and raw[:1] == b'"' else ""


def readable(head: RequestHead) -> RequestHead:
    """The head of a request whose response is read: it asks for no content coding."""
    if head.first(b"accept-encoding") is None:
        return head
    headers = [item for item in head.headers if item[0].lower() != b"accept-encoding"]
    return RequestHead(head.method, head.target, headers, head.version)


def input_file(access: KeyAccess, body: JsonBody | None) -> str:
    """The ID of the file that a new batch reads, "" if it names none. Raises BadRequest if its server could find
    another one in the body."""
    name = "input_file_id"
    identity = body.scalar(name) if body is not None else ""
    if access.sees_all_jobs:
        return identity
    if body is None or body.repeats(name) or (body.raw(name) is not None and not identity):
        raise BadRequest(f"the body must be a JSON object with one {name}, the ID of a file")
    return identity
