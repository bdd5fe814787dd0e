"""What Prometheus reads."""

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.errors import TooManyRequests, UnknownModel
from llamaswap.events import EventBus, StateChanged, SwapBegan, SwapEnded
from llamaswap.observe.activity_row import ActivityRow
from llamaswap.observe.exposition import MetricFamily, render
from llamaswap.observe.inflight import InflightRequests
from llamaswap.observe.metrics import MAX_REASONS, Metrics, error_kind
from llamaswap.wire.headers import ResponseHeaders
from llamaswap.wire.usage import Usage
from tests.observe.doubles import request_info


def finished(ending="complete", error=None, status=200, model="owl"):
    """A request that was granted its model after 0.25 s, began to be answered after 0.5 s, and ended after 2 s."""
    clock, entries = Clock(), []
    entry = InflightRequests(clock, entries.append).open(request_info(model=model))
    clock.advance(0.25)
    entry.granted()
    clock.advance(0.25)
    if status:
        entry.head(status, ResponseHeaders.of([]))
    entry.data(bytes(10))
    clock.advance(1.5)
    entry.ended(ending, error)
    return entries[0]


def row(usage):
    return ActivityRow(0, "owl", "/", "", 200, usage, 0)


def busy():
    """Meters that have seen everything once."""
    bus = EventBus(on_error=print)
    meters = Metrics(in_flight=lambda: {"owl": 2})
    meters.listen(bus)
    bus.publish(StateChanged("owl", "stopped", "starting"))
    bus.publish(StateChanged("owl", "starting", "ready"))
    bus.publish(SwapBegan(1, "owl", ("hen",), "request", 0.0))
    bus.publish(SwapEnded(1, "owl", None, 3.0, {"queued": 9.0, "stop": 1.0, "start": 2.0}))
    bus.publish(SwapEnded(2, "hen", "no", 3.0, {"start": 2.0}))
    meters.finished(finished())
    meters.finished(finished("gone", status=0))
    meters.stored([row(Usage(3, 4, 2))])
    meters.stored([row(Usage(1, 0, -1))])
    return meters


class MetersTests(SynchronousTestCase):
    def test_a_page(self):
        lines = busy().render().decode().splitlines()
        for line in (
            'llamaswap_requests_total{model="owl",code="200"} 1',
            'llamaswap_request_errors_total{model="owl",kind="client_gone"} 1',
            'llamaswap_input_tokens_total{model="owl"} 4',
            'llamaswap_output_tokens_total{model="owl"} 4',
            'llamaswap_cached_tokens_total{model="owl"} 2',
            'llamaswap_request_duration_seconds_sum{model="owl"} 4',
            'llamaswap_time_to_first_byte_seconds_bucket{model="owl",le="0.5"} 2',
            'llamaswap_queue_wait_seconds_bucket{model="owl",le="0.1"} 0',
            'llamaswap_model_load_seconds_sum{model="owl"} 2',
            'llamaswap_model_state{model="owl",state="ready"} 1',
            'llamaswap_model_state{model="owl",state="starting"} 0',
            'llamaswap_swaps_total{reason="request"} 1',
            'llamaswap_swap_errors_total{model="hen"} 1',
            'llamaswap_evictions_total{model="hen"} 1',
            'llamaswap_requests_in_flight{model="owl"} 2',
            "# TYPE llamaswap_requests_total counter",
        ):
            self.assertIn(line, lines)

    def test_requests_that_ended_leave_the_gauge(self):
        running = {"owl": 1}
        meters = Metrics(in_flight=lambda: running)
        self.assertIn(b'in_flight{model="owl"} 1', meters.render())
        running.clear()
        self.assertNotIn(b"in_flight{", meters.render())

    def test_names_that_are_not_configured_make_no_series(self):
        meters = Metrics()
        meters.finished(finished("refused", UnknownModel("x" * 99), 404, model="x" * 99))
        self.assertIn(b'llamaswap_request_errors_total{model="",kind="unknown_model"} 1', meters.render())

    def test_reasons_are_bounded(self):
        meters = Metrics()
        for number in range(100):
            meters.swap_began(SwapBegan(number, "owl", (), f"r{number}", 0.0))
        self.assertEqual(meters.render().count(b"llamaswap_swaps_total{"), MAX_REASONS + 1)

    def test_kinds_of_errors(self):
        self.assertEqual(error_kind(finished()), None)
        self.assertEqual(error_kind(finished(status=404)), "upstream_4xx")
        self.assertEqual(error_kind(finished(status=503)), "upstream_5xx")
        self.assertEqual(error_kind(finished("refused", TooManyRequests("owl", 1), 429)), "too_many_requests")
        self.assertEqual(error_kind(finished("refused")), "refused")
        self.assertEqual(error_kind(finished("cancelled")), "cancelled")
        self.assertEqual(error_kind(finished("truncated")), "truncated")


class ExpositionTests(SynchronousTestCase):
    def test_whole_numbers_are_written_as_such_and_label_values_are_escaped(self):
        gauge = MetricFamily("gauge", "g", "a\\b\nc", "b", "a")
        gauge.add(8589934592, 'A "B"\\\n', "x")
        gauge.add(10.5, "", "")
        gauge.add(float("nan"), "n")
        counter = MetricFamily("counter", "c", "text")
        counter.add(3)
        empty = MetricFamily("gauge", "none", "text", "a")
        self.assertEqual(
            render([gauge, counter, empty]).decode(),
            "# HELP llamaswap_g a\\\\b\\nc\n# TYPE llamaswap_g gauge\n"
            'llamaswap_g{b="A \\"B\\"\\\\\\n",a="x"} 8589934592\nllamaswap_g{b="",a=""} 10.5\nllamaswap_g{b="n"} NaN\n'
            "# HELP llamaswap_c_total text\n# TYPE llamaswap_c_total counter\nllamaswap_c_total 3\n",
        )

    def test_prometheus_library_reads_the_page(self):
        families = {family.name: family for family in text_string_to_metric_families(busy().render().decode())}
        requests = families["llamaswap_requests"]
        self.assertEqual((requests.type, len(requests.samples)), ("counter", 2))
        self.assertEqual(requests.samples[0].labels, {"model": "owl", "code": "200"})
        loads = families["llamaswap_model_load_seconds"]
        self.assertEqual((loads.type, [sample.value for sample in loads.samples][-3:]), ("histogram", [1, 1, 2]))
