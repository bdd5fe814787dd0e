"""A model's server from the router's side, in a world of doubles."""

from attrs import evolve
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import ModelUnloaded, ShuttingDown, StartFailed
from tests.servers.doubles import INT, KILL, REFUSED, TERM, model, scene


class StartTests(SynchronousTestCase):
    def test_server_that_answers_200_is_ready(self):
        """core V1 (without the quarter second before the first question)"""
        made = scene()
        ready = made.supervisor.ensure_ready()
        made.wait(0.02)
        self.assertEqual(self.successResultOf(ready), Endpoint("http", "127.0.0.1", 5800))
        self.assertEqual(made.heard.states, [("stopped", "starting"), ("starting", "ready")])
        self.assertEqual(made.asked.questions[0][:2], (5800, "/health"))

    def test_slow_server_is_served_within_one_probe_of_its_readiness(self):
        """core V3 (fix)"""
        made = scene(answer=lambda _: 200 if made.clock.seconds() >= 0.4 else 503)
        ready = made.supervisor.ensure_ready()
        made.wait(0.43)
        self.successResultOf(ready)
        self.assertLess(made.supervisor.status().load_seconds[0], 0.42)

    def test_many_requests_at_once_start_one_process(self):
        """core V13"""
        made = scene()
        wishes = [made.supervisor.ensure_ready() for _ in range(100)]
        made.wait(0.05)
        self.assertEqual([self.successResultOf(wish).port for wish in wishes], [5800] * 100)
        self.assertEqual(len(made.servers()), 1)
        self.assertEqual(made.heard.states.count(("starting", "ready")), 1)

    def test_only_status_200_counts_as_ready(self):
        """core V4"""
        for status in (204, 302, 404, 503):
            made = scene(answer=status)
            ready = made.supervisor.ensure_ready()
            made.wait(5.0)
            self.assertNoResult(ready)
            made.asked.answer = 200
            made.wait(0.2)
            self.successResultOf(ready)

    def test_timeout_stops_a_server_that_never_becomes_ready(self):
        """core V5"""
        made = scene(answer=503)
        ready = made.supervisor.ensure_ready()
        made.wait(15.0)
        made.wait(0.2)
        error = self.failureResultOf(ready, StartFailed).value
        self.assertEqual(error.cause, "health check timed out after 15s: GET /health answered 503")
        self.assertEqual(made.servers()[0].signals, [TERM])
        self.assertEqual(made.supervisor.state, "stopped")

    def test_timed_out_server_that_ignores_sigterm_is_killed_after_five_seconds(self):
        """core V5"""
        made = scene(answer=503, on_become=lambda server: setattr(server, "term_after", None))
        ready = made.supervisor.ensure_ready()
        made.wait(19.5)
        self.assertNoResult(ready)
        made.wait(0.7)
        self.failureResultOf(ready, StartFailed)
        self.assertEqual(made.servers()[0].signals, [TERM, TERM, KILL])

    def test_silent_health_endpoint_does_not_outlast_the_timeout(self):
        """core V8 (fix)"""
        made = scene(answer=None)
        ready = made.supervisor.ensure_ready()
        made.wait(15.3)
        self.failureResultOf(ready, StartFailed)

    def test_server_that_prints_its_progress_past_the_timeout_becomes_ready(self):
        made = scene(answer=REFUSED)
        ready = made.supervisor.ensure_ready()
        for second in range(40):
            made.wait(1.0)
            made.servers()[0].say(b"downloading %d%%\n" % second)
        made.asked.answer = 200
        made.wait(0.2)
        self.successResultOf(ready)

    def test_server_that_grows_in_memory_or_reads_past_the_timeout_becomes_ready(self):
        for work in (lambda second: (second << 21, 0), lambda second: (0, second << 21)):
            made = scene(answer=503)
            ready = made.supervisor.ensure_ready()
            for second in range(40):
                made.world.work = work(second)
                made.wait(1.0)
            made.asked.answer = 200
            made.wait(0.2)
            self.successResultOf(ready)

    def test_log_lines_about_the_health_check_are_not_progress(self):
        for path, line in (("/health", b'127.0.0.1:%d - "GET /health HTTP/1.1" 503\n'), ("/", b'%d GET "/" 503\n')):
            made = scene(answer=503, check_endpoint=path)
            ready = made.supervisor.ensure_ready()
            for port in range(16):
                made.wait(1.0)
                made.servers()[0].say(line % (50000 + port))
            self.failureResultOf(ready, StartFailed)

    def test_paths_in_the_output_are_progress_if_the_health_check_is_the_root_page(self):
        made = scene(answer=503, check_endpoint="/")
        ready = made.supervisor.ensure_ready()
        for _ in range(16):
            made.wait(1.0)
            made.servers()[0].say(b"reading /models/weights.gguf\n")
        self.assertNoResult(ready)

    def test_start_without_progress_fails_the_timeout_after_the_last_progress(self):
        made = scene(answer=503)
        ready = made.supervisor.ensure_ready()
        made.wait(20 * 0.5)
        made.servers()[0].say(b"loading tensors\n")
        made.wait(14.0)
        self.assertNoResult(ready)
        made.wait(1.2)
        cause = self.failureResultOf(ready, StartFailed).value.cause
        self.assertEqual(
            cause, "health check timed out after 25s, 15s after the last output or progress: GET /health answered 503"
        )

    def test_progress_without_end_fails_the_start_after_ten_times_the_timeout(self):
        made = scene(answer=503)
        ready = made.supervisor.ensure_ready()
        for second in range(151):
            if second == 149:
                self.assertNoResult(ready)
            made.world.work = (second << 21, 0)
            made.wait(1.0)
        self.failureResultOf(ready, StartFailed)

    def test_check_endpoint_none_waits_for_the_port_to_accept(self):
        """core V7 (fix: W20)"""
        made = scene(answer=REFUSED, check_endpoint="  none ")
        ready = made.supervisor.ensure_ready()
        made.wait(0.3)
        self.assertNoResult(ready)
        made.asked.answer = 0
        made.wait(0.05)
        self.successResultOf(ready)
        self.assertEqual({path for _, path, _ in made.asked.questions}, {None})

    def test_check_endpoint_none_for_another_machine_is_ready_at_once(self):
        """core V7"""
        far = Endpoint("http", "10.9.8.7", 80)
        made = scene(check_endpoint="none", endpoint=far, proxy=str(far))
        ready = made.supervisor.ensure_ready()
        made.wait(0.005)
        self.successResultOf(ready)
        self.assertEqual(made.asked.questions, [])

    def test_exit_before_readiness_fails_with_the_last_output(self):
        """core V9"""
        made = scene(answer=REFUSED)
        ready = made.supervisor.ensure_ready()
        made.wait(0.6)
        server = made.servers()[0]
        server.say(b"loading\nerror: invalid argument: --no-")
        server.say(b"mmap\n")
        server.die(7)
        made.wait(0.02)
        error = self.failureResultOf(ready, StartFailed).value
        self.assertEqual(error.cause, "upstream command exited prematurely (exit status 7)")
        self.assertEqual((error.exit_status, error.log_tail), (7, "loading\nerror: invalid argument: --no-mmap"))
        self.assertEqual(made.supervisor.state, "stopped")
        self.assertEqual(made.heard.exits, [(7, False)])

    def test_start_error_has_only_the_last_lines(self):
        made = scene(answer=REFUSED)
        ready = made.supervisor.ensure_ready()
        made.wait(0.02)
        made.servers()[0].say(b"".join(b"line %d\n" % number for number in range(5000)))
        made.servers()[0].die(1)
        made.wait(0.02)
        lines = self.failureResultOf(ready, StartFailed).value.log_tail.splitlines()
        self.assertEqual((len(lines), lines[-1]), (20, "line 4999"))

    def test_next_request_after_a_failed_start_starts_again(self):
        made = scene(answer=REFUSED)
        ready = made.supervisor.ensure_ready()
        made.wait(0.02)
        made.servers()[0].die(7)
        made.wait(0.02)
        self.failureResultOf(ready, StartFailed)
        made.asked.answer = 200
        again = made.supervisor.ensure_ready()
        made.wait(0.05)
        self.successResultOf(again)
        self.assertEqual(len(made.servers()), 2)

    def test_impossible_start_says_why_at_once(self):
        cases = [
            ({"cmd": " \n# only a note\n"}, "empty command"),
            ({"proxy": " "}, "upstream proxy missing"),
            ({"proxy": "ftp://x", "endpoint": None}, "upstream proxy 'ftp://x' is not an http or https URL"),
            (
                {"cmd": "missing-server --fast"},
                "failed to start command 'missing-server --fast': missing-server: executable file not found in PATH",
            ),
        ]
        for fields, cause in cases:
            made = scene(**fields)
            self.assertEqual(made.supervisor.preflight().cause, cause)
            ready = made.supervisor.ensure_ready()
            made.wait(0.005)
            made.wait(0.005)
            self.assertEqual(self.failureResultOf(ready, StartFailed).value.cause, cause)
            self.assertEqual(made.supervisor.state, "stopped")
            self.assertEqual(made.world.processes, [])

    def test_taken_fixed_port_is_known_before_other_models_are_stopped(self):
        """core W6"""
        made = scene()
        made.world.new(listens={5800}, name="squatter")
        self.assertIn("port 5800 is already in use by pid", made.supervisor.preflight().cause)
        self.assertIsNone(made.supervisor.preflight({5800}), "the one to be evicted has it")

    def test_taken_port_that_can_be_exchanged_does_not_fail_the_preflight(self):
        made = scene(port=5800)
        made.world.foreign.add(5800)
        self.assertIsNone(made.supervisor.preflight())

    def test_machine_without_free_processes_fails_the_start(self):
        made = scene()
        made.world.refuse_spawn = True
        ready = made.supervisor.ensure_ready()
        made.wait(0.01)
        error = self.failureResultOf(ready, StartFailed).value
        self.assertIn("failed to start command 'server --port 5800': Resource temporarily", error.cause)

    def test_command_that_cannot_be_executed_names_the_reason(self):
        made = scene(answer=REFUSED)
        ready = made.supervisor.ensure_ready()
        made.wait(0.01)
        made.servers()[0].say(b"cannot run /bin/server: Permission denied\n")
        made.servers()[0].die(127)
        made.wait(0.02)
        error = self.failureResultOf(ready, StartFailed).value
        self.assertEqual(error.cause, "failed to start command 'server --port 5800': /bin/server: Permission denied")

    def test_command_is_split_without_a_shell_and_gets_the_environment(self):
        """core V11, core V12"""
        cmd = "# note\nserver \\\n  --a 'x y'\n# tail"
        made = scene(cmd=cmd, env=("MODE=1", "MODE=2", "PATH=/elsewhere"))
        made.supervisor.ensure_ready()
        made.wait(0.01)
        server = made.servers()[0]
        self.assertEqual(server.argv, ("server", "--a", "x y"))
        self.assertEqual(server.environ["MODE"], "2")
        self.assertEqual((server.executable, server.environ["PATH"]), ("/bin/server", "/elsewhere"))

    def test_new_definition_counts_from_the_next_start(self):
        made = scene()
        self.successResultOf(_up(made))
        made.supervisor.set_definition(model(cmd="server --new"))
        self.assertEqual(made.supervisor.status().cmd, ("server", "--port", "5800"))
        made.supervisor.stop()
        made.wait(0.3)
        self.successResultOf(_up(made))
        self.assertEqual(made.supervisor.status().cmd, ("server", "--new"))

    def test_cancelled_request_does_not_cancel_the_start(self):
        made = scene()
        ready = made.supervisor.ensure_ready()
        ready.addErrback(lambda _: None)
        ready.cancel()
        made.wait(0.05)
        self.assertEqual(made.supervisor.state, "ready")


class PortTests(SynchronousTestCase):
    def test_taken_port_that_llamaswap_chose_is_exchanged(self):
        """core V104 (fix)"""
        made = scene(port=5800)
        made.world.foreign.add(5800)
        ready = made.supervisor.ensure_ready()
        made.wait(0.05)
        self.assertEqual(self.successResultOf(ready).port, 40001)
        self.assertEqual(made.servers()[0].argv, ("server", "--port", "40001"))
        self.assertEqual(made.supervisor.status().port, 40001)

    def test_taken_fixed_port_is_an_error_that_names_the_holder(self):
        made = scene()
        squatter = made.world.new(listens={5800}, name="squatter")
        ready = made.supervisor.ensure_ready()
        made.wait(0.01)
        cause = self.failureResultOf(ready, StartFailed).value.cause
        self.assertEqual(cause, f"port 5800 is already in use by pid {squatter.pid} (squatter)")
        self.assertEqual(made.servers(), [])

    def test_external_server_is_used_if_the_command_names_no_port(self):
        """As the Go program does: `proxy` is written out, and the command is a placeholder."""
        made = scene(cmd="server infinity")
        outside = made.world.new(listens={5800}, name="ollama")
        said = []
        globalLogPublisher.addObserver(said.append)
        self.addCleanup(globalLogPublisher.removeObserver, said.append)
        self.assertIsNone(made.supervisor.preflight())
        for _ in range(2):
            ready = made.supervisor.ensure_ready()
            made.wait(0.05)
            self.assertEqual(self.successResultOf(ready).port, 5800)
            made.supervisor.stop()
            made.wait(0.3)
        self.assertTrue(outside.alive)
        warnings = [formatEvent(event) for event in said if event["log_level"] is LogLevel.warn]
        self.assertEqual(len(warnings), 1)
        self.assertIn(f"served by pid {outside.pid} (ollama), which cmd did not start", warnings[0])

    def test_server_of_another_model_is_not_used_as_external(self):
        made = scene(cmd="server infinity")
        other = made.world.new(listens={5800}, name="other")
        other.mark = "of another model"
        ready = made.supervisor.ensure_ready()
        made.wait(0.01)
        cause = self.failureResultOf(ready, StartFailed).value.cause
        self.assertEqual(cause, f"port 5800 is already in use by pid {other.pid} (other)")

    def test_port_in_the_environment_of_the_command_is_not_external(self):
        made = scene(cmd="server", env=("HOST=127.0.0.1:5800",))
        made.world.new(listens={5800}, name="squatter")
        self.assertIn("port 5800 is already in use", made.supervisor.preflight().cause)

    def test_start_that_lost_its_port_is_repeated_on_another_one(self):
        made = scene(answer=REFUSED, port=5800)
        ready = made.supervisor.ensure_ready()
        made.wait(0.05)
        made.world.foreign.add(5800)
        made.servers()[0].die(1)
        made.asked.answer = 200
        made.wait(0.05)
        self.assertEqual(self.successResultOf(ready).port, 40001)
        self.assertEqual([server.argv[2] for server in made.servers()], ["5800", "40001"])

    def test_start_after_a_stop_tries_the_lost_port_again(self):
        made = scene(answer=REFUSED, port=5800)
        made.supervisor.ensure_ready().addErrback(lambda failure: None)
        made.wait(0.05)
        made.world.foreign.add(5800)
        made.servers()[0].die(1)
        made.supervisor.stop()
        made.wait(0.3)
        made.world.foreign.clear()
        made.asked.answer = 200
        ready = made.supervisor.ensure_ready()
        made.wait(0.05)
        self.assertEqual(self.successResultOf(ready).port, 5800)

    def test_second_lost_port_is_an_error(self):
        made = scene(answer=REFUSED, port=5800)
        ready = made.supervisor.ensure_ready()
        for lost in (5800, 40001):
            made.wait(0.05)
            made.world.foreign.add(lost)
            made.servers()[-1].die(1)
        made.wait(0.05)
        self.failureResultOf(ready, StartFailed)
        self.assertEqual(len(made.servers()), 2)

    def test_answer_of_an_older_process_is_not_readiness(self):
        made = scene(answer=200)
        squatter = made.world.new(name="squatter")
        ready = made.supervisor.ensure_ready()
        squatter.listens.add(5800)
        made.wait(15.2)
        cause = self.failureResultOf(ready, StartFailed).value.cause
        self.assertIn(f"port 5800 is answered by pid {squatter.pid} (squatter), which is not this model's", cause)

    def test_answer_of_another_models_server_is_not_readiness(self):
        made = scene(answer=200)
        ready = made.supervisor.ensure_ready()
        made.wait(0.005)
        made.world.new(listens={5800}, mark="run.77")
        made.wait(15.2)
        self.failureResultOf(ready, StartFailed)

    def test_younger_listener_counts_as_the_containers_proxy_after_a_while(self):
        made = scene(answer=200)
        ready = made.supervisor.ensure_ready()
        made.wait(0.005)
        made.world.new(listens={5800}, name="docker-proxy")
        made.wait(1.0)
        self.assertNoResult(ready)
        made.wait(1.2)
        self.successResultOf(ready)

    def test_listener_in_the_childs_group_is_the_server(self):
        made = scene(answer=200)
        ready = made.supervisor.ensure_ready()
        made.world.orphan(made.servers()[0], listens={5800})
        made.wait(0.05)
        self.successResultOf(ready)

    def test_timeout_names_the_port_on_which_the_server_listens(self):
        made = scene(answer=REFUSED)
        ready = made.supervisor.ensure_ready()
        made.servers()[0].listens.add(9999)
        made.wait(15.2)
        cause = self.failureResultOf(ready, StartFailed).value.cause
        self.assertIn("nothing listens on 127.0.0.1:5800", cause)
        self.assertIn("the server listens on port 9999 instead", cause)


class StopTests(SynchronousTestCase):
    def test_stop_sends_one_sigterm_and_ends_with_the_last_process(self):
        """core V32"""
        made = scene(on_become=lambda server: setattr(server, "term_after", 0.2))
        _up(made)
        stops = [made.supervisor.stop(), made.supervisor.stop()]
        self.assertEqual(made.supervisor.state, "stopping")
        made.wait(0.25)
        for stop in stops:
            self.successResultOf(stop)
        self.assertEqual(made.servers()[0].signals, [TERM])
        self.assertEqual(made.heard.states[-2:], [("ready", "stopping"), ("stopping", "stopped")])
        self.assertEqual(made.heard.exits, [(-TERM, True)])

    def test_sigterm_is_repeated_halfway_and_sigkill_ends_the_grace(self):
        """core V23 (fix: the grace that was asked for)"""
        made = scene(on_become=lambda server: setattr(server, "term_after", None))
        _up(made)
        stop = made.supervisor.stop(2.0)
        made.wait(0.99)
        self.assertEqual(made.servers()[0].signals, [TERM])
        made.wait(0.1)
        self.assertEqual(made.servers()[0].signals, [TERM, TERM])
        self.assertNoResult(stop)
        made.wait(0.95)
        self.successResultOf(stop)
        self.assertEqual(made.servers()[0].signals, [TERM, TERM, KILL])

    def test_default_grace_is_the_unload_timeout_of_the_model(self):
        made = scene(unload_timeout=3.0, on_become=lambda server: setattr(server, "term_after", None))
        _up(made)
        stop = made.supervisor.stop()
        made.wait(2.9)
        self.assertNoResult(stop)
        made.wait(0.2)
        self.successResultOf(stop)

    def test_second_stop_with_less_grace_shortens_the_first(self):
        made = scene(on_become=lambda server: setattr(server, "term_after", None))
        _up(made)
        patient, hasty = made.supervisor.stop(100), made.supervisor.stop(1.0)
        made.wait(1.1)
        self.successResultOf(patient)
        self.successResultOf(hasty)

    def test_stop_of_a_stopped_server_is_done_at_once(self):
        made = scene()
        stop = made.supervisor.stop()
        made.wait(0.005)
        self.successResultOf(stop)
        self.assertEqual(made.heard.states, [])

    def test_stop_during_the_start_takes_at_most_five_seconds(self):
        """core V31"""
        made = scene(answer=503, on_become=lambda server: setattr(server, "term_after", None))
        ready = made.supervisor.ensure_ready()
        made.wait(0.1)
        stop = made.supervisor.stop(100.0)
        made.wait(4.9)
        self.assertEqual(made.supervisor.state, "starting")
        self.assertNoResult(stop)
        made.wait(0.2)
        self.successResultOf(stop)
        self.failureResultOf(ready, ModelUnloaded)
        self.assertEqual(made.supervisor.state, "stopped")

    def test_request_during_a_stop_gets_a_new_process(self):
        """core V20, core V33"""
        made = scene(on_become=lambda server: setattr(server, "term_after", 2.0))
        _up(made)
        stop = made.supervisor.stop()
        ready = made.supervisor.ensure_ready()
        made.wait(1.9)
        self.assertEqual(len(made.servers()), 1)
        made.wait(0.2)
        self.successResultOf(stop)
        self.successResultOf(ready)
        self.assertEqual(len(made.servers()), 2)
        self.assertEqual(
            made.heard.states[2:],
            [("ready", "stopping"), ("stopping", "stopped"), ("stopped", "starting"), ("starting", "ready")],
        )

    def test_leftover_processes_get_a_moment_then_sigkill(self):
        """core V29"""
        made = scene()
        _up(made)
        polite = made.world.orphan(made.servers()[0], term_after=0.1)
        rude = made.world.orphan(made.servers()[0], term_after=None)
        stop = made.supervisor.stop(10)
        made.wait(0.2)
        self.assertFalse(polite.alive)
        self.assertNoResult(stop)
        made.wait(0.1)
        self.successResultOf(stop)
        self.assertEqual(rude.signals, [TERM, KILL])

    def test_descendant_that_left_the_session_is_known_by_its_mark(self):
        made = scene()
        _up(made)
        escaped = made.world.new(mark=made.servers()[0].mark, term_after=None)
        stop = made.supervisor.stop(1)
        made.wait(0.4)
        self.successResultOf(stop)
        self.assertFalse(escaped.alive)

    def test_process_that_survives_sigkill_is_given_up_and_the_model_stopped(self):
        made = scene(on_become=lambda one: (setattr(one, "term_after", None), setattr(one, "kill_after", None)))
        _up(made)
        stop = made.supervisor.stop(1)
        made.wait(5.9)
        self.assertNoResult(stop)
        made.wait(0.2)
        self.successResultOf(stop)
        self.assertEqual(made.supervisor.state, "stopped")
        self.assertIn(f"pid {made.servers()[0].pid} ", made.supervisor.status().last_error)
        self.assertIn("given up as lost", made.supervisor.status().last_error)
        made.servers()[0].die(-9)
        self.assertEqual(made.supervisor.state, "stopped")

    def test_output_pipe_of_an_invisible_process_is_closed(self):
        """core V37 (fix: not ten seconds)"""
        made = scene()
        _up(made)
        holder = made.world.orphan(made.servers()[0], holds_pipe=True)
        holder.mark, holder.group, holder.start = "", 1, 0
        made.world.settle_pipes = lambda group: None
        stop = made.supervisor.stop(1)
        made.wait(0.4)
        self.successResultOf(stop)
        made.wait(0.3)
        self.assertTrue(made.servers()[0].pipes_cut)

    def test_closed_supervisor_stops_the_server_and_refuses_requests(self):
        made = scene(on_become=lambda server: setattr(server, "term_after", None))
        _up(made)
        closed = made.supervisor.close()
        self.assertEqual(made.supervisor.state, "shutdown")
        self.failureResultOf(_up(made), ShuttingDown)
        made.wait(1.1)
        self.successResultOf(closed)
        self.assertEqual(made.heard.states[-1], ("ready", "shutdown"))

    def test_close_answers_all_that_wait_and_nothing_starts_afterwards(self):
        for phase, starts in (("stopped", 0), ("starting", 1), ("stopping", 1)):
            made = scene(answer=REFUSED)
            waiting = [made.supervisor.ensure_ready()] if starts else []
            made.wait(0.05)
            if phase == "stopping":
                made.servers()[0].term_after = 1.0
                waiting += [made.supervisor.stop(5.0), made.supervisor.ensure_ready()]
            closed = made.supervisor.close()
            self.assertEqual(made.supervisor.state, "shutdown", phase)
            waiting += [made.supervisor.stop(), made.supervisor.suspend(), made.supervisor.ensure_ready()]
            made.wait(2.0)
            self.successResultOf(closed)
            self.assertTrue(all(one.called for one in waiting), phase)
            self.failureResultOf(waiting[-1], ShuttingDown)
            for one in waiting[:-1]:
                one.addErrback(lambda failure: failure.trap(ShuttingDown, ModelUnloaded))
            self.assertEqual((len(made.servers()), made.supervisor.state), (starts, "shutdown"), phase)

    def test_close_after_a_start_that_was_not_tried_runs_no_stop_command(self):
        made = scene(cmd="missing", cmd_stop="halt")
        starting = made.supervisor.ensure_ready()
        closed = made.supervisor.close()
        made.wait(1.0)
        self.successResultOf(closed)
        self.failureResultOf(starting, ShuttingDown)
        self.assertEqual(made.world.commands(), [])


class StopCommandTests(SynchronousTestCase):
    def test_stop_command_gets_the_pid_and_replaces_sigterm(self):
        """core V25"""
        made = scene(cmd_stop="kill -INT ${PID}")
        _up(made)
        server = made.servers()[0]
        server.term_after = 0.2
        stop = made.supervisor.stop(10)
        made.wait(0.01)
        stopper = made.world.commands()[-1]
        self.assertEqual(stopper.argv, ("kill", "-INT", str(server.pid)))
        server.hear(INT)
        stopper.die(0)
        made.wait(0.3)
        self.successResultOf(stop)
        self.assertEqual(server.signals, [INT])

    def test_failing_stop_command_is_followed_by_sigterm_at_once(self):
        made = scene(cmd_stop="stopper")
        _up(made)
        stop = made.supervisor.stop(10)
        made.wait(0.01)
        made.world.commands()[-1].die(1)
        made.wait(0.02)
        self.successResultOf(stop)
        self.assertEqual(made.servers()[0].signals, [TERM])

    def test_missing_stop_command_is_followed_by_sigterm_at_once(self):
        """core V28"""
        for words in ("missing-stopper", "'missing-unbalanced", "# nothing"):
            made = scene(cmd_stop=words)
            _up(made)
            stop = made.supervisor.stop(10)
            made.wait(0.02)
            self.successResultOf(stop)
            self.assertEqual(made.servers()[0].signals, [TERM])

    def test_stop_command_without_effect_is_followed_by_sigterm_halfway(self):
        made = scene(cmd_stop="stopper")
        _up(made)
        stop = made.supervisor.stop(4)
        made.wait(0.01)
        made.world.commands()[-1].die(0)
        made.wait(1.9)
        self.assertEqual(made.servers()[0].signals, [])
        made.wait(0.2)
        self.successResultOf(stop)

    def test_hanging_stop_command_does_not_delay_sigkill(self):
        """core V27"""
        made = scene(cmd_stop="sleep 60", on_become=_stubborn_server)
        _up(made)
        stop = made.supervisor.stop(3)
        made.wait(3.05)
        self.assertEqual(made.servers()[0].signals[-1], KILL)
        self.assertFalse(made.servers()[0].alive)
        made.wait(5.2)
        self.successResultOf(stop)
        self.assertFalse(made.world.commands()[-1].alive)

    def test_stop_command_runs_again_after_sigkill(self):
        made = scene(cmd_stop="stopper", on_become=_stubborn_server)
        _up(made)
        stop = made.supervisor.stop(1)
        made.wait(0.01)
        made.world.commands()[-1].die(1)
        made.wait(1.1)
        again = made.world.commands()[-1]
        self.assertEqual(len(made.world.commands()), 3)
        self.assertTrue(again.alive)
        self.assertNoResult(stop)
        again.die(0)
        made.wait(0.15)
        self.successResultOf(stop)

    def test_stop_command_runs_after_a_crash_before_the_model_counts_as_stopped(self):
        made = scene(cmd_stop="stopper c1")
        _up(made)
        made.servers()[0].die(-9)
        made.wait(0.2)
        stopper = made.world.commands()[-1]
        self.assertEqual((stopper.argv, stopper.alive), (("stopper", "c1"), True))
        self.assertEqual(made.supervisor.state, "stopping")
        stopper.die(0)
        made.wait(0.2)
        self.assertEqual((made.supervisor.state, len(made.world.commands())), ("stopped", 2))

    def test_stop_command_after_a_crash_has_a_time_limit(self):
        made = scene(cmd_stop="stopper", unload_timeout=10.0)
        _up(made)
        made.servers()[0].die(-9)
        made.wait(14.9)
        self.assertEqual(made.supervisor.state, "stopping")
        made.wait(0.3)
        self.assertEqual(made.supervisor.state, "stopped")
        self.assertFalse(made.world.commands()[-1].alive)

    def test_stop_command_runs_after_a_failed_start(self):
        made = scene(answer=REFUSED, cmd_stop="stopper")
        ready = made.supervisor.ensure_ready()
        made.wait(0.02)
        made.servers()[0].die(125)  # as podman does when the name is in use
        made.wait(0.2)
        self.assertNoResult(ready)
        made.world.commands()[-1].die(0)
        made.wait(0.2)
        self.failureResultOf(ready, StartFailed)

    def test_stop_command_that_outlives_the_client_is_waited_for(self):
        made = scene(cmd_stop="stopper")
        _up(made)
        stop = made.supervisor.stop(10)
        made.wait(0.01)
        stopper = made.world.commands()[-1]
        made.servers()[0].die(0)
        made.wait(1)
        self.assertNoResult(stop)
        stopper.die(0)
        made.wait(0.2)
        self.successResultOf(stop)
        self.assertEqual(len(made.world.commands()), 2)

    def test_stop_command_cleans_up_after_a_stopped_server(self):
        made = scene(cmd_stop="stopper c1")
        for _ in range(2):
            cleaned = made.supervisor.clean_up()
            made.wait(0.01)
            stopper = made.world.commands()[-1]
            self.assertEqual((stopper.argv, made.servers()), (("stopper", "c1"), []))
            also = made.supervisor.clean_up()
            self.assertNoResult(cleaned)
            stopper.die(0)
            made.wait(0.2)
            self.successResultOf(cleaned)
            self.successResultOf(also)
        self.assertEqual((made.supervisor.state, made.heard.states, len(made.world.commands())), ("stopped", [], 2))

    def test_watchers_learn_the_stop_command_unless_it_needs_the_process(self):
        for command, words in (("docker stop kiwi", ("docker", "stop", "kiwi")), ("kill ${PID}", ()), ("", ())):
            records = []
            watcher = type("Watcher", (), {"started": lambda self, record, to=records: to.append(record)})()
            made = scene(watchers=(watcher,), cmd_stop=command, env=("A=1",))
            made.supervisor.ensure_ready()
            made.wait(0.02)
            self.assertEqual((records[0].stop_words, records[0].env), (words, ("A=1",) if words else ()))

    def test_stop_command_with_pid_does_not_run_without_a_process(self):
        for words in ("kill ${PID}", "", "missing-stopper"):
            made = scene(cmd_stop=words)
            cleaned = made.supervisor.clean_up()
            made.wait(0.2)
            self.successResultOf(cleaned)
            self.assertEqual(made.world.commands(), [])

    def test_impossible_start_runs_no_stop_command(self):
        made = scene(cmd="missing-server", cmd_stop="stopper")
        ready = made.supervisor.ensure_ready()
        made.wait(0.2)
        self.failureResultOf(ready, StartFailed)
        self.assertEqual(made.world.commands(), [])

    def test_output_of_the_stop_command_goes_to_the_log(self):
        made = scene(cmd_stop="stopper")
        _up(made)
        made.supervisor.stop(1)
        made.world.commands()[-1].say(b"stopping kiwi\n")
        self.assertEqual(made.said, [b"stopping kiwi\n"])


class CrashTests(SynchronousTestCase):
    def test_exit_while_idle_is_seen_at_once_and_the_next_request_starts_again(self):
        """core V36"""
        made = scene()
        _up(made)
        made.servers()[0].die(-11)
        self.assertEqual(made.heard.exits, [(-11, False)])
        made.wait(0.01)
        self.assertEqual(made.supervisor.state, "stopped")
        self.assertEqual(made.supervisor.status().last_error, "upstream command exited unexpectedly (signal SIGSEGV)")
        self.successResultOf(_up(made))
        self.assertEqual(len(made.servers()), 2)

    def test_another_definition_ends_the_failure_of_the_earlier_one(self):
        made = scene()
        _up(made)
        made.servers()[0].die(-11)
        made.wait(0.01)
        supervisor = made.supervisor
        supervisor.set_definition(evolve(supervisor.model, ttl=5))
        self.assertIn("SIGSEGV", supervisor.status().last_error)
        supervisor.set_definition(evolve(supervisor.model, cmd="another"))
        self.assertEqual(supervisor.status().last_error, "")

    def test_crash_leaves_no_group_member_and_does_not_wait_for_the_pipe(self):
        """core V37 (fix)"""
        made = scene()
        _up(made)
        left = made.world.orphan(made.servers()[0], term_after=None, holds_pipe=True)
        made.servers()[0].die(1)
        made.wait(0.05)
        self.assertEqual(left.signals, [KILL])
        self.assertEqual(made.supervisor.state, "stopped")

    def test_exit_of_an_earlier_process_does_not_affect_the_present_one(self):
        made = scene(on_become=lambda one: (setattr(one, "term_after", None), setattr(one, "kill_after", None)))
        _up(made)
        made.supervisor.stop(0.1)
        made.wait(5.3)
        made.world.on_become = lambda one: None
        self.successResultOf(_up(made))
        made.servers()[0].die(-9)
        made.wait(0.05)
        self.assertEqual(made.supervisor.state, "ready")


class WatchTests(SynchronousTestCase):
    def test_watchers_hear_of_servers_and_not_of_stop_commands(self):
        told = []

        class Watcher:
            def started(self, record):
                told.append(("started", record.model, record.port))

            def ended(self, record):
                told.append(("ended", record.model, record.port))

        made = scene(watchers=[Watcher()], cmd_stop="stopper")
        _up(made)
        made.supervisor.stop()
        made.world.commands()[-1].die(1)
        made.wait(0.3)
        self.assertEqual(told, [("started", "kiwi", 5800), ("ended", "kiwi", 5800)])

    def test_status_describes_the_running_process(self):
        made = scene()
        status = made.supervisor.status()
        self.assertEqual((status.state, status.pid, status.port, status.cmd), ("stopped", None, 5800, ()))
        _up(made)
        status = made.supervisor.status()
        self.assertEqual((status.state, status.pid), ("ready", made.servers()[0].pid))
        self.assertEqual(status.started_at, 0.0)
        self.assertAlmostEqual(status.ready_at, status.load_seconds[0])

    def test_stopped_server_has_no_timer(self):
        made = scene()
        _up(made)
        made.supervisor.stop()
        made.wait(2.0)
        self.assertEqual(made.clock.getDelayedCalls(), [])


def _up(made):
    ready = made.supervisor.ensure_ready()
    made.wait(0.02)
    return ready


def _stubborn_server(process):
    if process.argv[0] == "server":
        process.term_after = None
