from twisted.trial.unittest import TestCase

from llamaswap.observe.logs import LogRegistry
from tests.web.doubles import World, example_router, with_keys


class HistoryTests(TestCase):
    def test_the_combined_history_is_plain_text(self):
        """http T169"""
        world = World()
        world.book.proxy.write(b"[INFO] one\n")
        for path in ("/logs", "/log"):
            answer = world.ask(path)
            self.assertEqual((answer.status, answer.body), (200, b"[INFO] one\n"))
            self.assertEqual(answer.headers["content-type"], "text/plain")

    def test_browser_that_asks_for_logs_is_redirected_to_the_ui(self):
        answer = World().ask("/logs", headers=[("Accept", "text/html,*/*")])
        self.assertEqual((answer.status, answer.headers["location"]), (302, "/ui/"))

    def test_only_the_chosen_logs_are_combined(self):
        """http T161"""
        world = World(book=LogRegistry(to_stdout="upstream"))
        world.book.proxy.write(b"ours\n")
        world.book.model("alpha").write(b"theirs\n")
        self.assertEqual(world.ask("/logs").body, b"theirs\n")
        self.assertEqual(world.ask("/logs/stream/proxy").body, b"ours\n")


class StreamTests(TestCase):
    def test_head_of_a_log_stream_is_sent_before_the_first_byte(self):
        client = World().open("/logs/stream")
        answer = client.answer()
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["content-type"], "text/plain")
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
        self.assertEqual(answer.headers["x-accel-buffering"], "no")
        self.assertEqual(answer.body, b"")
        client.leave()

    def test_history_comes_first_then_each_write(self):
        world = World()
        world.book.proxy.write(b"old ")
        client = world.open("/logs/stream/")
        world.book.proxy.write(b"new")
        self.assertEqual(client.answer().body, b"old new")
        client.leave()
        self.assertEqual(world.book.combined.readers, 0)
        self.assertEqual(len(world.streams), 0)

    def test_the_history_can_be_left_out(self):
        """http T159"""
        world = World()
        world.book.proxy.write(b"old")
        self.assertEqual(world.ask("/logs/stream?no-history=false").body, b"")

    def test_a_log_is_found_by_the_longest_name_in_the_path(self):
        """http T159"""
        world = World()
        for name in ("alpha", "org", "org/gamma"):
            world.book.model(name).write(name.encode())
        for path, found in (
            ("alpha/extra", b"alpha"),
            ("al", b"alpha"),
            ("org/gamma", b"org/gamma"),
            ("org%2Fgamma", b"org/gamma"),
            ("org/x", b"org"),
            ("upstream", b"alphaorgorg/gamma"),
        ):
            self.assertEqual(world.ask(f"/logs/stream/{path}").body, found, path)

    def test_log_of_an_unknown_name_is_refused(self):
        """http T159"""
        for name in ("zeta", "ghost", "pick"):
            answer = World().ask(f"/logs/stream/{name}")
            self.assertEqual(answer.status, 400)
            message = "invalid logger. Use 'proxy', 'upstream' or a model's ID"
            self.assertEqual(answer.json["error"]["message"], message)

    def test_head_answers_and_ends(self):
        world = World()
        client = world.open("/logs/stream", "HEAD")
        self.assertEqual(client.answer().status, 200)
        self.assertEqual((len(world.streams), world.book.combined.readers), (0, 0))

    def test_paused_reader_loses_bytes_and_finds_a_marker(self):
        world = World()
        client = world.open("/logs/stream")
        client.transport.producer.pauseProducing()
        for _ in range(5):
            world.book.proxy.write(b"x" * 100_000)
        self.assertEqual(client.answer().body, b"")
        client.transport.producer.resumeProducing()
        body = client.answer().body
        self.assertEqual(body.count(b"x"), 200_000)
        self.assertIn("— 300000 bytes dropped —".encode(), body)
        client.leave()

    def test_streams_are_completed_when_the_service_stops(self):
        world = World()
        client = world.open("/logs/stream")
        world.streams.end_all()
        self.assertTrue(client.answer().ended)
        self.assertTrue(world.open("/logs/stream").answer().ended)
        self.assertEqual(world.book.combined.readers, 0)

    def test_log_requests_need_a_key(self):
        self.assertEqual(World(example_router(with_keys("k"))).ask("/logs/stream").status, 401)
