"""The API document, held against the service that serves it: generated requests to every described operation."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product
from tests.live.test_service import config

# Answers without an end, other people's servers, and what is answered 501 because it cannot be done here.
APART = "^/(upstream|comfyui|logs/stream|api/events|api/push|api/blobs)"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
PARAMETERS = '[parameters]\n"path.model" = "one"\n"query.model" = "one"\n'


class ContractTests(SynchronousTestCase):
    if importlib.util.find_spec("schemathesis") is None:
        skip = "schemathesis is not installed (extra: live)"

    timeout = 300

    def test_every_operation_answers_as_its_document_says(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        settings = (folder / "schemathesis.toml").absolute()
        settings.write_text(PARAMETERS, encoding="utf-8")
        with Product(config(one="", two="")) as product:
            words = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
            words += ["--config-file", str(settings), "run", f"{product.url}/api/openapi.json", "--checks", CHECKS]
            words += ["--exclude-path-regex", APART, "--phases", "examples,coverage,fuzzing"]
            words += ["--max-examples", "4", "--seed", "1", "--request-timeout", "20", "--no-color"]
            words += ["--generation-database", ":memory:"]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=280)
            self.assertEqual(done.returncode, 0, done.stdout[-8000:] + done.stderr[-2000:])
            self.assertNotIn("Traceback", product.output)
