"""GET /api/keys and GET /api/usage."""

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import ApiKey, Secret
from llamaswap.config.schema.keys import Budget
from llamaswap.observe.activity_row import ActivityRow
from llamaswap.wire.usage import Usage
from tests.web.doubles import World, example_config, example_router

CHILD = ApiKey(Secret("sk-child"), "child", models=("al*",), scopes=("infer",), rpm=3, budget=Budget(200_000))
ADMIN = ApiKey(Secret("sk-admin"), "admin", scopes=("admin",), expires=1600000000.0)
MINE = [("x-api-key", "sk-mine")]
KEYS = (CHILD, ADMIN, ApiKey(Secret("sk-mine")))


def row(key, model, tokens, at=1699999000, **more):
    usage = Usage(input_tokens=tokens, output_tokens=2 * tokens, cache_tokens=-1)
    return ActivityRow(at, model, "/v1/x", "application/json", 200, usage, 10, key=key, **more)


class UsageTests(SynchronousTestCase):
    def setUp(self):
        self.world = World(example_router(example_config(api_keys=KEYS)))
        rows = [row("child", "alpha", 5), row("child", "alpha", 6, error_msg="e"), row("child", "beta", 1)]
        self.world.store.insert([*rows, row("", "alpha", 100, at=1600000000), row("=cmd", "beta", 0)])

    def ask(self, path):
        return self.world.ask(path, headers=MINE)

    def test_keys_are_shown_by_name_with_limits_and_use_and_never_themselves(self):
        self.world.key_usage.remember("child", 1699999990.0, 1234)
        self.world.key_usage.remember_minute("child", 1699999990.0, 34, 2)
        answer = self.ask("/api/keys")
        child, admin = answer.json["keys"]
        self.assertEqual((child["name"], child["scopes"], child["models"]), ("child", ["infer"], ["al*"]))
        self.assertEqual((child["rpm"], child["budget_tokens"], child["window_s"]), (3, 200_000, 86400))
        self.assertEqual((child["used"], child["tokens_last_minute"], child["expires"]), (1234, 34, ""))
        self.assertEqual((admin["scopes"], admin["expired"]), (["admin", "infer", "read"], True))
        self.assertEqual((admin["expires"], answer.json["unnamed"]), ("2020-09-13T12:26:40Z", 1))
        for key in KEYS:
            self.assertNotIn(key.plain, answer.text)
            self.assertNotIn(key.digest.hex(), answer.text)

    def test_use_is_summed_by_key_and_model(self):
        found = self.ask("/api/usage?by=key,model&since=2023-01-01T00:00:00Z").json
        self.assertEqual(
            [(each["key"], each["model"], each["requests"], each["errors"]) for each in found["rows"]],
            [("child", "alpha", 2, 1), ("child", "beta", 1, 0), ("=cmd", "beta", 1, 0)],
        )
        self.assertEqual([each["output_tokens"] for each in found["rows"]], [22, 2, 0])
        self.assertEqual(found["rows"][0]["cache_tokens"], 0)
        self.assertTrue(found["complete"])

    def test_use_is_summed_over_time_and_filtered(self):
        days = self.ask("/api/usage?by=day&key=child").json["rows"]
        self.assertEqual([(each["day"], each["requests"]) for each in days], [(1699920000, 3)])
        self.assertEqual(len(self.ask("/api/usage?by=key&model=beta").json["rows"]), 2)

    def test_use_is_a_table_for_spreadsheets_too(self):
        answer = self.ask("/api/usage?by=key&format=csv&since=2023-01-01T00:00:00Z")
        self.assertEqual(
            answer.text.splitlines(),
            [
                "key,requests,errors,input_tokens,output_tokens,cache_tokens,duration_ms",
                "child,3,1,12,24,0,30",
                "'=cmd,1,0,0,0,0,10",
            ],
        )

    def test_unknown_groups_and_formats_are_refused(self):
        for query in ("by=key,key", "by=req_path", "format=xml", "since=yesterday"):
            self.assertEqual(self.ask(f"/api/usage?{query}").status, 400, query)

    def test_wrong_time_is_named_as_the_request_names_it(self):
        for query, name in (("since=1h", "'since'"), ("until=1h", "'until'"), ("since=1h&until=1h", "'since'")):
            self.assertIn(name, self.ask(f"/api/usage?{query}").json["error"]["message"])
        late = self.ask("/api/usage?since=2024-01-02T00:00:00Z&until=2024-01-01T00:00:00Z")
        self.assertEqual((late.status, late.json["error"]["message"]), (400, "since must be before until"))

    def test_rows_are_found_by_the_name_of_the_key(self):
        found = self.ask("/api/metrics/activity?key=child").json
        self.assertEqual({each["key"] for each in found["data"]}, {"child"})
        self.assertEqual(found["total"], 3)

    def test_a_key_without_a_meter_is_shown(self):
        self.world.router.config = evolve(self.world.router.config, api_keys=(*KEYS, ApiKey(Secret("n"), "new")))
        self.assertEqual(self.ask("/api/keys").json["keys"][2]["used"], 0)
