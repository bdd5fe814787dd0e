"""The examples of Ollama's own client for Python, as its source package has them, against the product."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.product import ROOT, Product
from tests.live.test_ollama import PNG, free_port

# These need the internet, Ollama's cloud, a model of images, or an API that only Ollama has; the last one never ends.
LEFT_OUT = re.compile(r"web.search|generate-image|multimodal-generate|systemone|chat-with-history")
SAID = {  # what the last line of an example's output has
    "chat.py": "Rayleigh scattering.",
    "chat-logprobs.py": "logprob=-0.100",
    "create.py": "success",
    "embed.py": "[[1",
    "structured-outputs.py": "age=22",
    "tools.py": "Final response: Rayleigh scattering.",
    "show.py": "'tools'",
    "pull.py": "success",
}


class ExampleTests(SynchronousTestCase):
    timeout = 300

    def setUp(self):
        if importlib.util.find_spec("ollama") is None:
            raise SkipTest("the package ollama is not installed (extra: live)")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        version = importlib.metadata.version("ollama")
        words = ["download", "-q", "--no-deps", "--no-binary", "ollama", f"ollama=={version}", "-d", folder.name]
        got = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, timeout=150, check=False)
        if got.returncode:
            raise SkipTest("the source package of ollama cannot be downloaded")
        with tarfile.open(self.folder / f"ollama-{version}.tar.gz") as archive:
            archive.extractall(self.folder, filter="data")
        self.examples = self.folder / f"ollama-{version}" / "examples"

    def config(self, port):
        """One model, under every name that an example asks for."""
        sources = "".join(path.read_text(encoding="utf-8") for path in self.examples.glob("*.py"))
        names = set(re.findall(r"['\"]((?:gemma|llama|qwen|deepseek|gpt-oss|codellama|mistral)[\w.:-]*)['\"]", sources))
        engine = f'"{sys.executable}" -S "{ROOT}/tests/live/example_engine.py" --port ${{PORT}}'
        model = {"cmd": engine, "checkEndpoint": "/health", "aliases": sorted(names)}
        model["capabilities"] = {"in": ["text", "image"], "out": ["text"], "tools": True, "context": 8192}
        return json.dumps({"ollama": {"listen": f"127.0.0.1:{port}"}, "models": {"every": model}})

    def run_example(self, path, port):
        """(name, exit status, output)."""
        image = self.folder / "image.png"
        image.write_bytes(PNG)
        ran = subprocess.run(
            [sys.executable, str(path)],
            input=f"{image}\n",
            cwd=self.examples,
            env={**os.environ, "OLLAMA_HOST": f"http://127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return path.name, ran.returncode, ran.stdout + ran.stderr

    def test_official_examples_run_unmodified(self):
        port = free_port()
        paths = [
            path for path in sorted(self.examples.glob("*.py")) if not LEFT_OUT.search(path.name.replace("_", "-"))
        ]
        self.assertGreater(len(paths), 20)
        with Product(self.config(port), "--allow-config-edit"), ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda path: self.run_example(path, port), paths))
        self.assertEqual([(name, output) for name, status, output in found if status], [])
        outputs = {name: output.strip().splitlines()[-1:] for name, _, output in found}
        for name, words in SAID.items():
            self.assertIn(words, "".join(outputs[name]), name)
