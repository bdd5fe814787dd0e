"""One spelling for each path."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.wire.paths import normalised_target


class NormalisedTargetTests(SynchronousTestCase):
    def test_spellings_of_one_path_become_one(self):
        for given, normal in (
            (b"/", b"/"),
            (b"/api/config?a=%61//..", b"/api/config?a=%61//.."),
            (b"/%61pi/%63onfig", b"/api/config"),
            (b"//api///config", b"/api/config"),
            (b"/api/./config", b"/api/config"),
            (b"/x/../api/%2e%2E/api/config", b"/api/config"),
            (b"/../../api", b"/api"),
            (b"/api/", b"/api/"),
            (b"/api//", b"/api/"),
            (b"/api/x/..", b"/api/"),
            (b"/api/.", b"/api/"),
            (b"/..", b"/"),
            (b"//", b"/"),
        ):
            self.assertEqual(normalised_target(given), normal, given)

    def test_escapes_with_another_meaning_stay(self):
        for given, normal in (
            (b"/api%2fconfig", b"/api%2Fconfig"),
            (b"/a%252Fb", b"/a%252Fb"),
            (b"/a%2", b"/a%252"),
            (b"/a%zz", b"/a%25zz"),
            (b"/%6%31pi", b"/%2561pi"),
            (b"/a%c3%a4", b"/a%C3%A4"),
            (b"/.x/..y", b"/.x/..y"),
            (b"*", b"*"),
            (b"", b""),
        ):
            self.assertEqual(normalised_target(given), normal, given)

    def test_the_path_of_a_servers_own_page_crosses_as_it_came(self):
        for target in (b"/upstream/a//b/../%61", b"/comfyui/%2e%2e/x//y"):
            self.assertEqual(normalised_target(target), target)

    def test_a_normal_form_is_its_own(self):
        for given in (b"/%2%35", b"/%6%31", b"/%", b"/%25%36%31", b"/x/%2e./y", b"/%2F..%2F/", b"/upstrea%6d//x/.."):
            once = normalised_target(given)
            self.assertEqual(normalised_target(once), once, given)
