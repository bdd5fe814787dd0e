import json
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.web.secret_masking import KEY_ENTRY_FIELDS, masked_command, masked_text, masked_yaml, named_secrets


class CommandTests(SynchronousTestCase):
    def test_keys_with_a_name_are_masked_and_the_rest_of_their_entry_is_not(self):
        text = (
            "apiKeys:\n  - key: sk-one-1 # mine\n    name: child\n    models: [small]\n"
            f"  - {{key: 'sha256:{'ab' * 32}', name: phone, scopes: [infer]}}\n"
        )
        shown = masked_yaml(text, named_secrets(text))
        for secret in ("sk-one-1", "abab"):
            self.assertNotIn(secret, shown)
        for word in ("name: child", "models: [small]", "# mine", "name: phone, scopes: [infer]"):
            self.assertIn(word, shown)

    def test_values_of_secret_flags_are_hidden_in_both_spellings(self):
        words = ["serve", "--api-key", "one", "--hf-token=two", "-m", "x.gguf", "HF_TOKEN=three", "--password", "four"]
        shown = masked_command(words)
        self.assertEqual(
            shown,
            ["serve", "--api-key", "***", "--hf-token=***", "-m", "x.gguf", "HF_TOKEN=***", "--password", "***"],
        )

    def test_flags_that_only_sound_secret_are_left(self):
        words = ["--max-tokens", "5", "--tokenizer", "x", "--max-num-batched-tokens=8", "--monkey", "z"]
        self.assertEqual(masked_command(words), words)

    def test_known_secrets_are_hidden_wherever_they_stand(self):
        self.assertEqual(masked_command(["--url", "http://u:sesame@x"], ["sesame"]), ["--url", "http://u:***@x"])
        self.assertEqual(masked_text("a abc", ["a"]), "a abc")


class YamlTests(SynchronousTestCase):
    def test_values_of_secret_keys_are_hidden_and_references_stay(self):
        text = (
            "peers:\n  lab:\n    apiKey: pk-1 # note\n    proxy: http://x\n  den: {apiKey: pk-2}\n    token: ${env.T}\n"
        )
        shown = masked_yaml(text, ["pk-2"])
        self.assertNotIn("pk-1", shown)
        self.assertIn("${env.T}", shown)
        self.assertIn("proxy: http://x", shown)
        self.assertEqual(shown.count("\n"), text.count("\n"))

    def test_secrets_inside_commands_and_assignments_are_hidden_and_nothing_else(self):
        text = (
            "models:\n"
            "  a:\n    cmd: serve --api-key one-1 --max-tokens 512 --hf-token=two-2 --api-key ${env.K} --token --port 1"
            "\n"
            "    env: [HF_TOKEN=three-3, 'API_KEY=four-4', NUM_TOKENS=9]\n"
            "  b:\n    cmd: |\n      docker run -e HF_TOKEN=five-5 \\\n      --api-key\n      'six 6' --tokenizer x\n"
            '    env:\n      - "WANDB_API_KEY=seven-7"\n'
            "  # cmd: old --password eight-8\n"
        )
        shown = masked_yaml(text)
        for secret in ("one-1", "two-2", "three-3", "four-4", "five-5", "six 6", "seven-7", "eight-8"):
            self.assertNotIn(secret, shown)
        for plain in ("--max-tokens 512", "${env.K}", "--token --port 1", "NUM_TOKENS=9", "--tokenizer x"):
            self.assertIn(plain, shown)
        self.assertEqual((shown.count("***"), shown.count("\n")), (8, text.count("\n")))


class NamedTests(SynchronousTestCase):
    def test_secrets_in_lists_and_several_lines_are_found_by_their_keys(self):
        text = (
            "apiKeys: [one-1, '${env.KEY}', 12345678]\n"
            "peers:\n  lab:\n    apiKey: |\n      two-2\n    models: [m]\n"
            "models:\n  a:\n    metadata: {max_tokens: 4096, tokens: 77, token: null}\n"
        )
        found = named_secrets(text)
        self.assertEqual(set(found), {"one-1", "12345678", "two-2"})

    def test_invalid_yaml_hides_more_rather_than_less(self):
        text = "apiKeys:\n  - one-1\n  # was two-2\n- 'three-3'\nmodels:\n  a: [\n    cmd: serve\n"
        found = named_secrets(text)
        self.assertLessEqual({"one-1", "two-2", "three-3"}, set(found))
        self.assertNotIn("serve", found)

    KEYS = (
        "apiKeys:\n  - {key: sk-one, name: child, models: [small, big], scopes: [infer], maxTokens: 100}\n"
        "  - key: sk-two # of the phone\n    name: phone\n    models:\n    - small\n    - big\n"
        "    budget: {tokens: 200k, window: 1d}\n    tpm: 300000\n"
        "  - name: guest\n    budget:\n      tokens: 150000\n    key: sk-three\n"
        "models:\n  small:\n    cmd: serve --max 200k --n 150000\n"
        "    filters: {setParams: {max_tokens: 200k, thinking: {budget_tokens: 160000}}}\n"
    )

    def test_numbers_of_tokens_are_no_secrets(self):
        self.assertEqual(set(named_secrets(self.KEYS)), {"sk-one", "sk-two", "sk-three"})
        shown = masked_yaml(self.KEYS, named_secrets(self.KEYS))
        self.assertEqual(shown, re.sub("sk-(one|two|three)", "***", self.KEYS))

    def test_names_and_models_of_keys_are_shown_in_a_text_that_is_no_yaml(self):
        broken = self.KEYS + "  big: [\n"
        shown = masked_yaml(broken, named_secrets(broken))
        for secret in ("sk-one", "sk-two", "sk-three"):
            self.assertNotIn(secret, shown)
        for plain in ("name: child", "models: [small, big]", "- small", "tokens: 200k", "name: guest", "  small:\n"):
            self.assertIn(plain, shown)

    def test_every_setting_of_a_key_is_known(self):
        definitions = json.loads(Path(__file__).parents[2].joinpath("config/schema.json").read_text())["definitions"]
        fields = {*definitions["ApiKey"]["properties"], *definitions["Budget"]["properties"]}
        self.assertEqual(KEY_ENTRY_FIELDS, fields - {"key"})
