import os
from pathlib import Path

from twisted.trial.unittest import TestCase

from llamaswap.config import ConfigText, load
from llamaswap.errors import ConfigError
from llamaswap.web.config_history import ConfigHistory, VersionSource
from llamaswap.web.configfile import ConfigFile

OLD = "models:\n  a:\n    cmd: serve --port ${PORT}\n"
NEW = OLD + "  b:\n    cmd: serve b --port ${PORT}\n"


class ConfigFileTests(TestCase):
    def setUp(self):
        self.path = Path(self.mktemp())
        self.path.write_text(OLD)
        self.path.chmod(0o600)
        self.reloads = []
        config = load([ConfigText(str(self.path), OLD)], {}).config
        self.file = ConfigFile(
            self.path,
            {},
            lambda: config,
            lambda: [ConfigText(str(self.path), self.path.read_text())],
            lambda: self.reloads.append(1),
            allowed=True,
        )

    def test_a_text_is_checked_as_the_loader_would(self):
        self.assertEqual(self.file.check(NEW).impact.add, ["b"])
        self.assertEqual(self.file.check(OLD).impact.restart, [])
        self.assertRaises(ConfigError, self.file.check, "models: [")

    def told(self, text):
        """Everything that a check says of a text."""
        try:
            return repr(self.file.check(text))
        except ConfigError as error:
            return f"{error} {error.problems}"

    def test_check_without_edit_rights_shows_no_value_of_the_environment(self):
        self.file.environ = {"SECRET": "Sesame-Open"}
        owl = "models:\n  owl:\n    cmd: serve --port ${PORT}\n"
        texts = (
            owl + "    ttl: ${env.SECRET}\n",
            owl + "    aliases: ['${env.SECRET}', '${env.SECRET}']\n",
            owl + "    proxy: '${env.SECRET}'\n",
            owl + "logLevel: '${env.SECRET}'\n",
            owl + "groups:\n  g:\n    members: ['${env.SECRET}']\n",
            owl + "upstream:\n  ignorePaths: ['(${env.SECRET}']\n",
            "models:\n  '${env.SECRET}':\n    cmd: serve --port ${PORT}\n",
            "'${env.SECRET}': 1\n",
            "macros:\n  word: ${env.SECRET}\n" + owl + "    concurrencyLimit: ${word}\n",
        )
        for allowed in (False, True):
            self.file.allowed = allowed
            for text in texts:
                self.assertNotIn("sesame", self.told(text).lower(), text)

    def test_check_without_edit_rights_reads_variables_as_numbers_with_a_warning(self):
        self.file.allowed = False
        checked = self.file.check(OLD + "    ttl: ${env.NOT_SET}\n    aliases: ['${env.A}', '${env.B}']\n")
        self.assertIn("environment variables are not expanded without --allow-config-edit", str(checked.warnings[0]))
        self.assertEqual(self.file.check(OLD).warnings, [])

    def test_file_that_a_new_or_changed_model_needs_and_is_missing_is_a_warning(self):
        text = OLD.replace("serve", "/bin/sh") + "  new:\n    cmd: /bin/sh -m /missing/m.gguf ${PORT}\n"
        (warning,) = self.file.check(text).warnings
        self.assertIn("/missing/m.gguf does not exist", warning.message)
        self.assertIn("new", warning.message)
        self.assertEqual(self.file.check(text, find_missing=False).warnings, [])
        self.file.allowed = False
        self.assertEqual(self.file.check(text).warnings, [])
        self.file.allowed, self.file.config = True, lambda: load([ConfigText("", text)], {}).config
        self.assertEqual(self.file.check(text).warnings, [])

    def test_the_file_is_replaced_in_one_step_with_its_mode_and_a_backup(self):
        self.file.write(NEW, VersionSource("saved"))
        self.assertEqual((self.file.read(), self.reloads), (NEW, [1]))
        backup = self.path.with_name(self.path.name + ".bak")
        self.assertEqual(backup.read_text(), OLD)
        for path in (self.path, backup):
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_empty_file_has_no_backup_and_no_earlier_version(self):
        self.path.write_text("")
        self.file.write(NEW, VersionSource("saved"))
        self.assertFalse(self.path.with_name(self.path.name + ".bak").exists())
        self.assertEqual([version.why for version in self.file.versions()], ["saved"])

    def test_a_link_stays_a_link(self):
        link = Path(self.mktemp())
        link.symlink_to(self.path.resolve())
        self.file.path = link
        self.file.write(NEW, VersionSource("saved"))
        self.assertTrue(link.is_symlink())
        self.assertEqual(self.path.read_text(), NEW)

    def test_a_folder_is_shown_and_not_edited(self):
        self.file.path = None
        self.file.sources = lambda: [ConfigText("a.yaml", "x: 1\n"), ConfigText("b.yaml", "y: 2\n")]
        self.assertFalse(self.file.editable)
        self.assertEqual(self.file.read(), "# a.yaml\nx: 1\n---\n# b.yaml\ny: 2\n")

    def test_old_and_new_texts_of_an_edit_are_kept(self):
        self.file.write(NEW, VersionSource("saved", "10.0.0.7", "a browser"))
        saved, found = self.file.versions()
        self.assertEqual((saved.why, found.why), ("saved", "found"))
        self.assertEqual((saved.address, found.address), ("10.0.0.7", ""))
        self.assertEqual((self.file.version(saved.id), self.file.version(found.id)), (NEW, OLD))

    def test_a_text_that_is_written_is_loaded_also_where_no_version_of_it_can_be_kept(self):
        usual = ConfigHistory.keep

        def full(versions, content, *more):
            if content == NEW.encode():
                raise OSError(28, "No space left on device")
            usual(versions, content, *more)

        self.patch(ConfigHistory, "keep", full)
        self.file.write(NEW, VersionSource("saved"))
        self.assertEqual((self.file.read(), self.reloads), (NEW, [1]))
        self.assertEqual([version.why for version in self.file.versions()], ["found"])

    def test_restored_version_names_its_origin(self):
        self.file.write(NEW, VersionSource("saved"))
        found = self.file.versions()[-1]
        self.file.write(OLD, VersionSource("restored", of=found.id))
        newest = self.file.versions()[0]
        self.assertEqual((newest.why, newest.restored_from, len(self.file.versions())), ("restored", found.id, 3))

    def test_a_folder_has_no_versions(self):
        self.file.path = None
        self.assertEqual((self.file.versions(), self.file.version("0000000000001-00000000")), ((), None))
