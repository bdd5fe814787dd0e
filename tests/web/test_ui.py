from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.web.doubles import World, example_router


class FileTests(TestCase):
    def setUp(self):
        self.root = Path(self.mktemp())
        (self.root / "assets").mkdir(parents=True)
        self.write("index.html", b"<!doctype html>")
        self.write("app.js", b"plain")
        self.write("app.js.br", b"packed")
        self.write("app.js.gz", b"zipped")
        self.write("assets/page-5XJ2QK7A.js", b"hashed")
        self.write("favicon.ico", b"icon")
        self.world = World(ui=self.root)

    def write(self, name, data):
        (self.root / name).write_bytes(data)

    def get(self, path, **headers):
        return self.world.ask(path, headers=[(name.replace("_", "-"), value) for name, value in headers.items()])

    def test_the_packed_sibling_goes_to_clients_that_take_it(self):
        """http T167"""
        answer = self.get("/ui/app.js", Accept_Encoding="gzip, br")
        self.assertEqual((answer.body, answer.headers["content-encoding"]), (b"packed", "br"))
        self.assertEqual(answer.headers["vary"], "Accept-Encoding")
        self.assertEqual(answer.headers["content-type"], "text/javascript; charset=utf-8")
        self.assertEqual(self.get("/ui/app.js", Accept_Encoding="gzip").body, b"zipped")
        plain = self.get("/ui/app.js", Accept_Encoding="browser")
        self.assertEqual((plain.body, plain.headers["vary"]), (b"plain", "Accept-Encoding"))
        self.assertEqual(self.get("/ui/app.js", Accept_Encoding="br;q=0").body, b"plain")

    def test_pages_of_the_ui_get_its_document_and_missing_files_a_404(self):
        """http T167"""
        for path in ("/ui/", "/ui/models", "/ui/models/a/b"):
            answer = self.get(path)
            self.assertEqual((answer.status, answer.body), (200, b"<!doctype html>"), path)
            self.assertEqual(answer.headers["cache-control"], "no-cache")
        answer = self.get("/ui/missing.js")
        self.assertEqual((answer.status, answer.body), (404, b"404 page not found\n"))

    def test_the_document_some_folders_down_finds_its_files(self):
        self.write("index.html", b'<script src="./app.js">')
        self.assertEqual(self.get("/ui/models/a/b-1.5").body, b'<script src="../../app.js">')
        self.assertEqual(self.get("/ui/models").body, b'<script src="./app.js">')
        self.assertEqual(self.get("/ui/a/b.js").status, 404)

    def test_a_slash_inside_a_name_is_no_folder_to_climb_out_of(self):
        self.write("index.html", b'<script src="./app.js">')
        self.assertEqual(self.get("/ui/models/org%2Fmodel").body, b'<script src="../app.js">')

    def test_address_too_long_for_a_file_is_not_an_internal_error(self):
        self.assertEqual(self.get("/ui/" + "a" * 300).status, 200)
        self.assertEqual(self.get("/ui/" + "a/" * 3000 + "x.js").status, 404)

    def test_scripts_from_elsewhere_and_frames_are_forbidden(self):
        headers = self.get("/ui/").headers
        self.assertIn("default-src 'self'", headers["content-security-policy"])
        self.assertIn("frame-ancestors 'none'", headers["content-security-policy"])
        self.assertEqual(headers["x-content-type-options"], "nosniff")
        self.assertEqual(headers["referrer-policy"], "no-referrer")

    def test_hashed_files_are_cached_for_ever_and_others_are_revalidated(self):
        self.assertIn("immutable", self.get("/ui/assets/page-5XJ2QK7A.js").headers["cache-control"])
        tag = self.get("/ui/app.js").headers["etag"]
        again = self.get("/ui/app.js", If_None_Match=tag)
        self.assertEqual((again.status, again.body), (304, b""))

    def test_range_request_gets_a_part_of_a_file(self):
        part = self.get("/ui/app.js", Range="bytes=1-2")
        self.assertEqual((part.status, part.body, part.headers["content-range"]), (206, b"la", "bytes 1-2/5"))
        self.assertEqual(self.get("/ui/app.js", Range="bytes=-2").body, b"in")
        self.assertEqual(self.get("/ui/app.js", Range="bytes=9-").status, 416)
        self.assertEqual(self.get("/ui/app.js", Range="bytes=0-1,3-4").body, b"plain")

    def test_nothing_outside_the_folder_can_be_named(self):
        (self.root.parent / "secret.txt").write_text("x")
        for path in ("/ui/../secret.txt", "/ui/%2e%2e/secret.txt", "/ui/..%2Fsecret.txt", "/ui/a%00.js", "/ui/.x.js"):
            self.assertEqual(self.get(path).status, 404, path)

    def test_icon_needs_no_key_and_may_be_missing(self):
        self.assertEqual(self.get("/favicon.ico").body, b"icon")
        self.assertEqual(World().ask("/favicon.ico").status, 404)


class PlainPageTests(TestCase):
    def test_without_built_files_a_plain_page_lists_the_models(self):
        page = World(example_router(states={"alpha": "ready"})).ask("/ui/").text
        self.assertIn("org/gamma", page)
        self.assertIn('action="/api/models/unload/alpha"', page)
        self.assertIn('href="/upstream/org/gamma/"', page)
