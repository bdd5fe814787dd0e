"""Steps: requests to a running server, or commands; and the `sleep` of a model that is made of them."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config.schema.model import SuspendSettings
from llamaswap.config.steps import StepRequest, problem_of, request_of
from tests.config.loading import LoadCase


class StepTests(SynchronousTestCase):
    def test_step_of_a_method_and_a_path_is_a_request(self):
        self.assertEqual(request_of("POST /sleep?level=1"), StepRequest("POST", "/sleep?level=1"))
        self.assertEqual(
            request_of(' POST  /collective_rpc {"method": "reload_weights"}\n'),
            StepRequest("POST", "/collective_rpc", '{"method": "reload_weights"}'),
        )

    def test_other_step_is_a_command(self):
        for text in ("nap --pid 1", "/usr/bin/POST /x", "POSTAL /x", "POST"):
            self.assertIsNone(request_of(text))
            self.assertEqual(problem_of(text), "")

    def test_impossible_step_has_a_reason(self):
        self.assertIn("begins with a /", problem_of("POST http://localhost/sleep"))
        self.assertEqual(problem_of("# nothing"), "empty command")


class SleepTests(LoadCase):
    def given(self, text):
        return self.ok(f"models: {{ant: {{cmd: 'a ${{PORT}}', sleep: {text}}}}}").models["ant"]

    def test_single_text_is_a_list_of_one_step(self):
        model = self.given("{sleep: POST /sleep, wake: [POST /wake_up, 'nudge ${PORT} ${PID}'], timeout: 5s, ttl: 1h}")
        self.assertEqual(
            model.sleep,
            SuspendSettings(("POST /sleep",), ("POST /wake_up", "nudge 5800 ${PID}"), timeout=5.0, ttl=3600.0),
        )
        self.assertEqual(model.with_port(6000).sleep.wake[1], "nudge 6000 ${PID}")

    def test_model_without_sleep_steps_does_not_sleep(self):
        self.assertEqual(self.ok("models: {ant: {cmd: a, proxy: 'http://h'}}").models["ant"].sleep.sleep, ())

    def test_incomplete_sleep_settings_are_refused(self):
        def bad(text, *words):
            self.err(f"models: {{ant: {{cmd: 'a ${{PORT}}', sleep: {text}}}}}", "ant", *words)

        bad("{sleep: POST /sleep}", "wake")
        bad("{wake: POST /wake_up}", "no sleep")
        bad("{sleep: POST sleep, wake: POST /wake_up}", "sleep.sleep", "begins with a /")
        bad("{sleep: POST /sleep, wake: '# x'}", "sleep.wake", "empty")
        bad("{sleep: POST /sleep, wake: POST /wake_up, timeout: 0s}", "timeout")
        bad("{sleep: POST /sleep, wake: POST /wake_up, ttl: -1s}", "ttl")
        bad("{sleep: 'POST /sleep/${ghost}', wake: POST /wake_up}", "ghost")


class SlotsTests(LoadCase):
    def test_slot_saving_is_off_by_default_and_needs_a_folder(self):
        cmd = "cmd: 'a ${PORT} --slot-save-path /x'"
        self.assertFalse(self.ok(f"models: {{ant: {{{cmd}}}}}").models["ant"].slots.save)
        slots = self.ok(f"models: {{ant: {{{cmd}, slots: {{save: true, maxSize: 64}}}}}}").models["ant"].slots
        self.assertEqual((slots.save, slots.timeout, slots.max_size), (True, 5.0, 64))
        self.err(f"models: {{ant: {{{cmd}, slots: {{save: true, timeout: 0s}}}}}}", "slots.timeout")
        self.err(f"models: {{ant: {{{cmd}, slots: {{save: true, maxSize: 0}}}}}}", "slots.maxSize")
        self.ok("models: {ant: {cmd: 'a ${PORT}', slots: {save: true}}}")
        self.warned("--slot-save-path")


class LogFilesTests(LoadCase):
    def test_log_files_have_bounds(self):
        self.assertEqual(self.ok("models: {}").log_files.folder, "")
        files = self.ok("logFiles: {folder: ' /var/log/models ', size: 50, keep: 0}").log_files
        self.assertEqual((files.folder, files.size, files.keep), ("/var/log/models", 50, 0))
        self.err("logFiles: {size: 0}", "logFiles.size")
        self.err("logFiles: {keep: -1}", "logFiles.keep")
