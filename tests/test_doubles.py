"""Each double has the methods of what it stands for, so that a changed interface fails here."""

import inspect
from types import FunctionType
from typing import Protocol

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.handover import ServiceHandover
from llamaswap.http_client import SendRequest
from llamaswap.liveness.watched_models import WatchedModels
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.machine import MachineMonitor
from llamaswap.observe.vram_reclaim import VramReclaim
from llamaswap.proxy.exchange import BodySource, ResponseSink
from llamaswap.proxy.forward import RequestForwarder
from llamaswap.proxy.peers import PeerDirectory
from llamaswap.routing.leases import Lease, PendingLease
from llamaswap.routing.router import Router
from llamaswap.routing.swaps import Swaps
from llamaswap.servers.lifecycle_interfaces import Actions
from llamaswap.servers.spawn import Kernel
from llamaswap.servers.supervisor_protocol import Supervised, SupervisorListener
from llamaswap.web.configfile import ConfigFile
from llamaswap.wire.request_info import RequestObserver, RequestObserverFactory
from tests import doubles
from tests.app.test_upgrade_coordinator import FakeHost
from tests.liveness.test_watchdog import FakeModels
from tests.servers.doubles import World as Machine
from tests.servers.test_lifecycle import RecordingActions
from tests.web import doubles as web
from tests.web import pipeline


def public(class_):
    """{name: attribute} of what a class defines, or inherits from classes other than `object`; `__call__` counts."""
    found = {}
    for base in reversed([base for base in class_.__mro__ if base not in (object, Protocol)]):
        found |= {name: value for name, value in vars(base).items() if name[0] != "_" or name == "__call__"}
    return found


# Each double: what it stands for, and the methods that only tests call.
DOUBLES = {
    doubles.FakeRouter: (Router, ()),
    doubles.FakeSwaps: (Swaps, ()),
    doubles.FakeLease: (Lease, ("process",)),
    doubles.FakePendingLease: (PendingLease, ("grant",)),
    doubles.FakeSupervisor: (Supervised, ("endpoint", "become_ready", "become_stopped", "crash")),
    doubles.RecordingListener: (SupervisorListener, ()),
    doubles.NoMemoryReclaim: (VramReclaim, ()),
    doubles.SentRequests: (SendRequest, ("last",)),
    FakeHost: (ServiceHandover, ()),
    FakeModels: (WatchedModels, ()),
    web.FakeInflight: (InflightRequests, ("tell",)),
    web.FakePeers: (PeerDirectory, ()),
    web.FakeMachine: (MachineMonitor, ()),
    web.FakeFiles: (ConfigFile, ()),
    pipeline.FakeForwarder: (RequestForwarder, ()),
    pipeline.FakeSink: (ResponseSink, ("json", "header")),
    pipeline.ArrivingBody: (BodySource, ("feed", "end", "stopProducing", "pauseProducing", "resumeProducing")),
    pipeline.Witness: (RequestObserver, ()),
    pipeline.Witnesses: (RequestObserverFactory, ()),
    Machine: (Kernel, public(Machine)),
    RecordingActions: (Actions, public(RecordingActions)),
}


def parameters(function):
    return [
        (one.name, one.kind, one.default is one.empty)
        for one in inspect.signature(inspect.unwrap(function)).parameters.values()
    ]


def differences(double, real, controls):
    """What a caller of `real` would find different in the double."""
    theirs, ours = public(real), public(double)
    for name, value in ours.items():
        if inspect.isfunction(value) and name in theirs and inspect.isfunction(theirs[name]):
            if parameters(value) != parameters(theirs[name]):
                yield f"{double.__name__}.{name} has other parameters than {real.__name__}"
        elif isinstance(value, (property, FunctionType)) and name not in (*theirs, *controls):
            yield f"{real.__name__} has no {name}"
    if getattr(real, "_is_protocol", False):  # what it declares as a property may be a field of the double
        for name in theirs.keys() - ours.keys():
            if inspect.isfunction(theirs[name]):
                yield f"{double.__name__} has no {name}"


class DoubleTests(SynchronousTestCase):
    def test_each_double_has_the_interface_of_what_it_stands_for(self):
        found = [line for double, (real, controls) in DOUBLES.items() for line in differences(double, real, controls)]
        self.assertEqual(found, [])

    def test_renamed_method_and_changed_parameters_are_found(self):
        class Real(Protocol):
            def start(self, now): ...

            def stop(self): ...

        class Fake:
            def start(self): ...

            def end(self): ...

        self.assertEqual(
            list(differences(Fake, Real, ())),
            ["Fake.start has other parameters than Real", "Real has no end", "Fake has no stop"],
        )
