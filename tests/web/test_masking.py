from twisted.trial.unittest import SynchronousTestCase

from llamaswap.web.masking import masked_command, masked_text, masked_yaml


class CommandTests(SynchronousTestCase):
    def test_values_of_secret_flags_are_hidden_in_both_spellings(self):
        words = ["serve", "--api-key", "one", "--hf-token=two", "-m", "x.gguf", "HF_TOKEN=three", "--password", "four"]
        shown = masked_command(words)
        self.assertEqual(
            shown,
            ["serve", "--api-key", "***", "--hf-token=***", "-m", "x.gguf", "HF_TOKEN=***", "--password", "***"],
        )

    def test_flags_that_only_sound_like_it_are_left(self):
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
