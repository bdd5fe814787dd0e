"""Asking the engine what it will use: a program beside it, with a limit on its time and its output."""

import os
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.memory import engine_estimate
from llamaswap.memory.engine_estimate import DeviceRow, ask_engine
from llamaswap.memory.llama_flags import settings_of


class EngineTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def program(self, name, script):
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    def ask(self, script, flags=""):
        program = self.program("llama-fit-params", script)
        return ask_engine(program, Path("/m.gguf"), settings_of(["llama-server", *flags.split()], {}), os.environ)

    def test_rows_of_its_output_are_read(self):
        rows = self.ask("echo 'a note'; echo 'CUDA0 4000 500 300 '; echo 'Host 100 0 20'")
        self.assertEqual(rows, [DeviceRow("CUDA0", 4000, 500, 300), DeviceRow("Host", 100, 0, 20)])

    def test_settings_of_memory_are_passed_and_others_are_not(self):
        flags = "--port 9 -c 4096 --n-gpu-layers 5 --cpu-moe --no-mmap -np 2 --jinja"
        rows = self.ask('echo "$@" >"$0.words"; env >"$0.env"; echo Host 1 2 3', flags)
        words = (self.folder / "llama-fit-params.words").read_text().split()
        self.assertEqual(" ".join(words), "-m /m.gguf --fit off --fit-print on -ngl 5 -ncmoe 9999 -c 4096")
        environment = (self.folder / "llama-fit-params.env").read_text().splitlines()
        for line in ("LLAMA_ARG_MMAP=0", "LLAMA_ARG_N_PARALLEL=2", "LLAMA_ARG_OFFLINE=1"):
            self.assertIn(line, environment)
        self.assertEqual(rows, [DeviceRow("Host", 1, 2, 3)])

    def test_program_that_fails_or_prints_nothing_is_an_error(self):
        for script in ("exit 3", "echo Host 1 2 3; exit 1", "echo nothing of use", "echo CUDA0 1 2 3"):
            self.assertRaises(OSError, self.ask, script)

    def test_program_that_hangs_is_killed_with_its_children(self):
        self.patch(engine_estimate, "TIMEOUT", 0.2)
        error = self.assertRaises(OSError, self.ask, 'sleep 30 & echo $! >"$0.pid"; wait')
        self.assertIn("took longer than 0.2 s", str(error))
        pid = int((self.folder / "llama-fit-params.pid").read_text())
        state = Path(f"/proc/{pid}/stat")
        deadline = time.monotonic() + 5
        while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertFalse(state.exists() and state.read_text().split()[2] != "Z", "its child was not killed")

    def test_output_is_read_up_to_a_limit(self):
        self.patch(engine_estimate, "OUTPUT_LIMIT", 1000)
        self.assertRaises(OSError, self.ask, "while echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; do :; done")
