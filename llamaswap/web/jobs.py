"""Jobs that a server works on after it has answered: later requests about a job go to the server that has it.

A job is what a POST to one of these paths creates. A server forgets its jobs when it stops, so it stays loaded while a
job runs and its client asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import define, field, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llamaswap.config import Config
from llamaswap.proxy.exchange import RequestHead
from llamaswap.routing.leases import Lease
from llamaswap.routing.router import Router
from llamaswap.web.target import Target
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.json_members import json_text, split_members
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
RESPONSES = "responses"  # a kind: a response that its server makes in the background
JOB_PATHS = (b"/v1/videos", b"/v1/batches", b"/v1/files", b"/v1/responses/")
_PATH = re.compile(rb"/v1/(videos|batches|files|responses)(?:/([^/]+)(/.*)?)?")


@frozen
class JobPath:
    """A path about a job of a kind: `id` is empty for all jobs, and `part` for the job itself."""

    kind: str
    id: str
    part: str


def job_path(path: bytes) -> JobPath | None:
    """What a raw path says about a job; None if it is no such path."""
    if not path.startswith(JOB_PATHS) or path == b"/v1/responses/input_tokens":
        return None
    found = _PATH.fullmatch(path)
    return None if found is None else JobPath(*((text or b"").decode("latin-1") for text in found.groups()))


@define(eq=False)
class Job:
    """A job at a server, which is a model's, a replica's or a peer's; `name` is what its client called the model."""

    server: str
    name: str
    used: float
    lease: Lease | None = None
    held_until: float = 0.0
    timer: IDelayedCall | None = None

    def release(self) -> None:
        """Let the server be stopped."""
        lease, self.lease = self.lease, None
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
        if lease is not None:
            lease.release()

    def target(self, config: Config) -> Target:
        """Its server, which is not loaded for it: it would not know the job."""
        model = config.models.get(self.server)
        if model is None:
            return Target.named(config, self.server)
        return Target(self.name, model, load_refusal=f"model {self.server} is not loaded, so it has no such job")


@define(eq=False)
class JobDirectory:
    """Knows which server has which job of which key. It forgets the jobs that were not asked for longest."""

    router: Router
    clock: IReactorTime
    _jobs: dict[tuple[str, str, str], Job] = field(factory=dict, init=False)

    def find(self, owner: str, kind: str, identity: str) -> Job | None:
        """The job of this key, kind and ID; None if there is none."""
        job = self._jobs.pop((owner, kind, identity), None)
        if job is None or job.used + LIFETIME < self.clock.seconds():
            return None
        job.used = self.clock.seconds()
        self._jobs[owner, kind, identity] = job  # as the last
        return job

    def is_of_any_key(self, kind: str, identity: str) -> bool:
        """Whether any key has a job of this kind and ID."""
        return any(job[2] == identity and job[1] == kind for job in self._jobs)

    def add(self, owner: str, kind: str, identity: str, server: str, name: str) -> Job:
        """A server has this job now."""
        self.forget(owner, kind, identity)
        job = self._jobs[owner, kind, identity] = Job(server, name, self.clock.seconds())
        for key in list(self._outdated()):
            self.forget(*key)
        return job

    def forget(self, owner: str, kind: str, identity: str) -> None:
        """The job is deleted."""
        job = self._jobs.pop((owner, kind, identity), None)
        if job is not None:
            job.release()

    def _outdated(self) -> Iterator[tuple[str, str, str]]:
        too_many = len(self._jobs) - MAX_JOBS
        for place, (key, job) in enumerate(self._jobs.items()):
            if place >= too_many and job.used + LIFETIME >= self.clock.seconds():
                return
            yield key

    def hold(self, job: Job, lease: Lease) -> None:
        """Keep the lease of a running job for a while."""
        if job.lease is not lease:
            job.release()
            job.lease = lease
        job.held_until = self.clock.seconds() + HOLD_TIME
        if job.timer is None:
            job.timer = self.clock.callLater(CHECK_INTERVAL, self._check, job)

    def _check(self, job: Job) -> None:
        job.timer = None
        if job.lease is None or job.lease.lost or job.held_until <= self.clock.seconds():
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
    _status: int = field(default=0, init=False)
    _text: bytearray = field(factory=bytearray, init=False)

    @property
    def lease(self) -> Lease | None:
        """The lease of the running job, with which its requests are served: another might have to wait for it."""
        lease = self.job.lease if self.job is not None else None
        return lease if lease is not None and not lease.lost else None

    def takes(self, lease: Lease) -> bool:
        """Whether the lease of the request, which has ended, is kept for the job."""
        if self.request is not None:
            self.request.flush()
        running = self._learn()
        job = self.job
        if job is None or running is False:
            if job is not None:
                job.release()
            return False
        if running:
            self.directory.hold(job, lease)
        return job.lease is lease

    def _learn(self) -> bool | None:
        """Whether the job runs now; None if the response does not tell."""
        owner, path, request = self.owner, self.path, self.request
        success = 200 <= self._status < 300
        if self.method == b"DELETE" and not path.part and (success or self._status == 404):
            self.directory.forget(owner, path.kind, path.id)
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
