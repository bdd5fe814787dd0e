"""A household with three keys, from `keys add` to /api/usage, and refused keys that leave no trace."""

import csv
import json
import tempfile
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.product import Product, group_members, wait_for
from tests.live.test_commands import command
from tests.live.test_service import config


def chat(model, **more):
    return {"model": model, "messages": [{"role": "user", "content": "hello " * 40}], **more}


class HouseholdTests(SynchronousTestCase):
    timeout = 120

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.file = self.folder / "config.yaml"
        document = json.loads(config(one="--env LLAMASWAP_API_KEY", two=""))
        document |= {"store": {"path": str(self.folder / "activity.db")}, "logLevel": "debug", "logToStdout": "both"}
        self.file.write_text(json.dumps(document))

    def add(self, name, *options):
        status, key, said = command("keys", "add", name, str(self.file), *options)
        self.assertEqual(status, 0, said)
        return key.strip()

    def product(self):
        return Product(self.file.read_text())

    def test_three_keys_from_add_to_usage(self):
        child = self.add("child", "--model", "one", "--budget", "200k/1d")
        phone = self.add("phone", "--max-parallel", "4", "--rpm", "100")
        parent = self.add("parent", "--scope", "admin")
        with self.product() as product:

            def ask(path, key, body=None, **more):
                return product.ask(path, body, headers={"Authorization": f"Bearer {key}"}, **more)

            status, headers, data = ask("/v1/chat/completions", child, chat("one"))
            self.assertEqual(status, 200, data)
            self.assertEqual(headers["x-ratelimit-limit-tokens"], "200000")
            self.assertLess(int(headers["x-ratelimit-remaining-tokens"]), 200_000)
            stream = ask("/v1/chat/completions", child, chat("one", stream=True))
            self.assertEqual((stream[0], stream[1]["x-ratelimit-limit-tokens"]), (200, "200000"))
            status, headers, _ = ask("/v1/chat/completions", parent, chat("one"))
            self.assertEqual(status, 200)
            self.assertEqual([name for name in headers if "ratelimit" in name.lower()], [])
            self.assertEqual(ask("/v1/chat/completions", phone, chat("two"))[0], 200)
            self.assertEqual(ask("/v1/chat/completions", child, chat("two"))[0], 403)
            self.assertEqual(ask("/api/models/unload", child, {}, method="POST")[0], 403)
            self.assertEqual(ask("/api/config", phone)[0], 403)
            listed = [[row["id"] for row in json.loads(ask("/v1/models", key)[2])["data"]] for key in (child, parent)]
            self.assertEqual(listed, [["one"], ["one", "two"]])

            def usage(query):
                status, _, data = ask(f"/api/usage?{query}", parent)
                self.assertEqual(status, 200, data)
                return data

            wait_for(lambda: len(json.loads(usage("by=key"))["rows"]) == 3, 10, "the rows")
            rows = {row["key"]: row for row in json.loads(usage("by=key,model"))["rows"]}
            self.assertEqual((rows["child"]["model"], rows["child"]["requests"]), ("one", 2))
            self.assertEqual((rows["phone"]["model"], rows["phone"]["requests"]), ("two", 1))
            table = list(csv.DictReader(usage("by=key&format=csv").decode().splitlines()))
            self.assertEqual({row["key"] for row in table}, {"child", "phone", "parent"})
            keys = {row["name"]: row for row in json.loads(ask("/api/keys", parent)[2])["keys"]}
            self.assertEqual(keys["child"]["models"], ["one"])
            used = keys["child"]["used"]
            self.assertEqual(used, rows["child"]["input_tokens"] + rows["child"]["output_tokens"])
            metrics = ask("/metrics", parent)[2].decode()
            self.assertIn('llamaswap_key_requests_total{key="child",code="200"} 2', metrics)
            self.assertIn("key=child\n", product.output)
        text = self.file.read_text()
        for key in (child, phone, parent):
            self.assertNotIn(key, text)
        with self.product() as product:  # what was used is known after a restart
            headers = {"X-Api-Key": parent}

            def remembered():
                found = json.loads(product.ask("/api/keys", headers=headers)[2])["keys"]
                rows = {row["name"]: row for row in found}
                return rows["child"]["used"] == used and rows["phone"]["requests_last_minute"] > 0

            wait_for(remembered, 10, "the child's tokens and the phone's requests")

    def test_refused_keys_leave_no_trace(self):
        child = self.add("child", "--model", "one", "--rpm", "2")
        expired = self.add("old", "--expires", "2020-01-01")
        reader = self.add("watcher", "--scope", "read")
        admin = self.add("parent", "--scope", "admin")
        secrets = [child, expired, reader, admin, "sk-of-nobody"]
        secrets += [sha256(key.encode()).hexdigest() for key in secrets]
        secrets += [b64encode(f"me:{key}".encode()).decode() for key in secrets[:5]]
        paths = ("/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/upstream/one/v1/chat/completions")

        def clean(text):
            for secret in secrets:
                self.assertNotIn(secret, text)

        with self.product() as product:
            for _ in range(2):
                ask = product.ask("/v1/chat/completions", chat("one"), headers={"X-Api-Key": child})
                self.assertEqual(ask[0], 200, ask[2])
            for path in paths:
                for key, model, status in (
                    (child, "one", 429),
                    (child, "two", 403),
                    (expired, "one", 401),
                    (reader, "one", 403),
                    ("sk-of-nobody", "one", 401),
                ):
                    basic = b64encode(f"me:{key}".encode()).decode()
                    for headers in (
                        {"X-Api-Key": key},
                        {"Authorization": f"Bearer {key}"},
                        {"Authorization": f"Basic {basic}"},
                    ):
                        if path.startswith("/upstream/") and model == "two":
                            continue
                        got, sent, data = product.ask(path, chat(model), headers=headers)
                        self.assertEqual(got, status, (path, data))
                        self.assertEqual(sent["Retry-After"] is not None, status == 429)
                        clean(data.decode() + str(sent))
            headers = {"X-Api-Key": admin}
            rows = lambda: json.loads(product.ask("/api/metrics/activity?limit=999", headers=headers)[2])
            wait_for(lambda: rows()["total"] >= 14, 10, "the rows")
            self.assertEqual({row.get("key") for row in rows()["data"]}, {"child"})
            views = [f"/api/captures/{row['id']}" for row in rows()["data"] if row["has_capture"]]
            self.assertTrue(views)
            views += ["/api/metrics/activity?limit=999", "/api/keys", "/api/config", "/logs", "/metrics", "/running"]
            for view in views:
                status, _, data = product.ask(view, headers=headers)
                self.assertEqual(status, 200, view)
                clean(data.decode("utf-8", "replace"))
            for pid in group_members(product.process.pid):
                clean(Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace"))
            clean(product.output)
