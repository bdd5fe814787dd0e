"""Small makers for configuration tests."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Config, ConfigText, load
from llamaswap.errors import ConfigError

W = 'models: {owl: {cmd: "srv -p ${PORT}"}}\n'
ABC = (
    'models: {ant: {cmd: a, proxy: "http://h:1"}, bee: {cmd: b, proxy: "http://h:2"}, '
    'cat: {cmd: c, proxy: "http://h:3"}}\n'
)
PE = 'peers: {hub: {proxy: "http://hub:1", models: [big, lab/x]}, alt: {proxy: "http://alt:1", models: [big, tiny]}}\n'
PX = 'proxy: "http://h:9"'


def owl(body):
    return "models: {owl: {" + body.replace("px", PX) + "}}\n"


class LoadCase(SynchronousTestCase):
    """Loads texts, and says what must be in an error."""

    def ok(self, *texts, environ=None, **more) -> Config:
        sources = [ConfigText(f"f{number}.yaml", text) for number, text in enumerate(texts)]
        self.loaded = load(sources, environ or {}, **more)
        return self.loaded.config

    def warned(self, *words):
        said = "\n".join(str(warning) for warning in self.loaded.warnings)
        for word in words:
            self.assertIn(word, said)

    def err(self, *texts_and_words, environ=None, **more):
        text, *words = texts_and_words
        texts = (text,) if isinstance(text, str) else text
        sources = [ConfigText(f"f{number}.yaml", text) for number, text in enumerate(texts)]
        error = self.assertRaises(ConfigError, load, sources, environ or {}, **more)
        for word in words:
            self.assertIn(word, str(error))
        return str(error)

    def owl(self, body, before="", **more):
        return self.ok(before + owl(body), **more).models["owl"]
