"""A request's way to a lease."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Endpoint
from llamaswap.routing.leases import Lease, PendingLease, ProcessInstance
from llamaswap.scheduling.effects import Ticket


class Owner:
    def __init__(self):
        self.released = []

    def lease_released(self, lease):
        self.released.append(lease)

    def reader_stalled(self, lease, since):
        raise AssertionError


class PendingLeaseTests(SynchronousTestCase):
    def test_a_lease_granted_after_the_client_left_is_released(self):
        owner, ticket = Owner(), Ticket(1, "owl", 0.0)
        pending = PendingLease("owl", lambda: None)
        pending.granted.addErrback(lambda failure: None)
        pending.cancel()
        lease = Lease(ticket, ProcessInstance(Endpoint("http", "127.0.0.1", 9000), 1), owner)
        pending.settle(lease)
        self.assertEqual(owner.released, [lease])
