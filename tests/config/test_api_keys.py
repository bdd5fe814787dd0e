"""`apiKeys`: what an entry may say, and what is reported about it."""

from hashlib import sha256

from llamaswap.config.api_keys import expired
from llamaswap.config.schema.filters import Bounds
from tests.config.loading import LoadCase

DIGEST = sha256(b"sk-child").hexdigest()
CHILD = f"""
models: {{small: {{cmd: serve, proxy: 'http://h:1'}}}}
apiKeys:
  - plain-text
  - key: sha256:{DIGEST}
    name: child
    models: [sm*]
    scopes: [infer]
    priority: -2
    maxParallel: 2
    rpm: 30
    tpm: 20k
    budget: {{tokens: 0.2M, window: 1w}}
    expires: 2027-01-01
"""


class ApiKeyTests(LoadCase):
    def test_an_entry_is_a_text_or_a_mapping(self):
        text, child = self.ok(CHILD).api_keys
        self.assertEqual((text.value, text.plain, text.name, text.limited), ("plain-text", "plain-text", "", False))
        self.assertEqual((child.name, child.models, child.scopes), ("child", ("sm*",), ("infer",)))
        self.assertEqual((child.priority, child.max_parallel, child.rpm, child.tpm), (-2, 2, 30, 20000))
        self.assertEqual((child.budget.tokens, child.budget.window), (200_000, 7 * 86400.0))
        self.assertEqual((child.expires, child.plain, child.digest.hex()), (1798761600.0, "", DIGEST))
        self.assertNotIn(DIGEST, repr(child))

    def test_a_key_from_the_environment_may_have_a_name(self):
        config = self.ok('apiKeys: [{key: "${env.KEY}", name: me}]', environ={"KEY": "sk-1"})
        self.assertEqual(config.api_keys[0].plain, "sk-1")

    def test_mistakes_are_reported_with_their_place_and_never_show_the_key(self):
        for entry, said in (
            ("{name: x}", "empty api key"),
            ("{key: hush, name: x, scopes: [infr]}", "did you mean `infer`"),
            ("{key: hush, rpm: 1}", "has no name"),
            ("{key: hush, name: 'a b'}", "cannot be the name"),
            ("{key: hush, name: hush-1}", "contains the key"),
            ("{key: 'sha256:hush', name: x}", "64 hexadecimal digits"),
            ("{key: hush, name: x, tpm: many}", "wanted a whole number"),
            ("{key: hush, name: x, expires: soon}", "wanted a date"),
            ("{key: hush, name: x, budget: {tokens: 1k, window: 1s}}", "wanted a duration from 1m"),
            ("{key: [hush], name: x}", "wanted text"),
            ("[hush]", "a list cannot be used"),
            ("~", "is null"),
        ):
            with self.subTest(entry):
                found = self.err(f"apiKeys:\n  - {entry}\n", said)
                self.assertIn(":2:", str(found))
                self.assertNotIn("hush", str(found).replace("hush-1", ""))

    def test_names_and_keys_are_used_once(self):
        self.err("apiKeys: [{key: a, name: x}, {key: b, name: x}]", "is called x too")
        self.err(f"apiKeys: [sk-child, {{key: 'sha256:{DIGEST}', name: x}}]", "is the same key as apiKeys[0]")
        self.assertEqual(len(self.ok("apiKeys: [a, a]").api_keys), 2)

    def test_a_pattern_that_matches_nothing_is_a_warning(self):
        self.ok(
            "models: {small: {cmd: x, proxy: 'http://h:1'}}\n"
            "apiKeys: [{key: a, name: x, scopes: [infer, admin], models: [smal]}]"
        )
        (warning,) = self.loaded.warnings
        self.assertIn("no model is called smal (did you mean `small`?)", str(warning))
        self.assertEqual(warning.line, 2)

    def test_a_limited_key_that_may_change_the_configuration_is_a_warning(self):
        self.ok("apiKeys: [{key: a, name: x, rpm: 3}]")
        (warning,) = self.loaded.warnings
        self.assertIn("scopes: [infer]", str(warning))

    def test_check_finds_expired_keys(self):
        config = self.ok(CHILD)
        self.assertEqual(expired(config, 1798761599.0), [])
        (problem,) = expired(config, 1798761600.0)
        self.assertIn("child has expired at 2027-01-01T00:00:00Z", str(problem))

    def test_the_number_of_keys_is_bounded(self):
        entries = [f"  - {{key: k-{n}, name: n{n}}}\n" for n in range(1001)]
        self.err("apiKeys:\n" + "".join(entries), "at most 1000 are possible")
        self.assertEqual(len(self.ok("apiKeys:\n" + "".join(entries[1:])).api_keys), 1000)

    def test_keys_that_close_the_page_to_everybody_get_a_warning(self):
        admin = ", {key: sk-2, name: me, scopes: [admin]}"
        for others, warned in (("", True), (", {key: sk-2, name: me}", True), (admin, False), (", sk-plain", False)):
            self.ok(f"apiKeys: [{{key: sk-1, name: kid, scopes: [infer]}}{others}]")
            closed = [one for one in self.loaded.warnings if "scope admin" in one.message]
            self.assertEqual(bool(closed), warned, others)

    def test_a_key_may_have_rules_and_bounds(self):
        config = self.ok(
            "apiKeys: [{key: sk-1, name: kid, scopes: [infer], maxTokens: 2k, maxDuration: 90s,"
            " filters: {clampParams: {temperature: {max: 1}}}}, {key: sk-2, name: me, scopes: [admin]}]"
        )
        kid = config.api_keys[0]
        self.assertEqual((kid.max_tokens, kid.max_duration, kid.ruled), (2000, 90.0, True))
        self.assertEqual(kid.filters.clamp_params["temperature"], Bounds(None, 1))
