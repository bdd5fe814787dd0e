"""The table of model routes, and what is made from it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.captures import WITHOUT_REQUEST_BODY, WITHOUT_RESPONSE_BODY
from llamaswap.web.inference import JSON_ROUTES, is_model_path
from llamaswap.web.route_table import ROUTES
from llamaswap.wire.model_routes import MODEL_ROUTES


class ModelRouteTests(SynchronousTestCase):
    def test_no_route_is_listed_twice(self):
        named = [(route.method, route.path) for route in MODEL_ROUTES]
        self.assertEqual(len(named), len(set(named)))

    def test_only_query_routes_are_get_routes(self):
        for route in MODEL_ROUTES:
            self.assertEqual(route.method == "GET", route.body == "query", route.path)

    def test_a_path_has_the_same_mask_for_all_of_its_methods(self):
        """A capture knows the path of its request alone."""
        for route in MODEL_ROUTES:
            self.assertEqual(route.path in WITHOUT_REQUEST_BODY, not route.keep_request, route.path)
            self.assertEqual(route.path in WITHOUT_RESPONSE_BODY, not route.keep_response, route.path)

    def test_every_route_is_served_documented_and_gated_by_the_pipeline(self):
        documented = {(method, route.rule): route for route in ROUTES for method in route.methods}
        for route in MODEL_ROUTES:
            self.assertTrue(is_model_path(route.method.encode(), route.path.encode()), route.path)
            self.assertEqual(documented[route.method, route.path].summary, route.summary)
            self.assertEqual(documented[route.method, route.path].key, "by handler")

    def test_get_and_post_of_a_path_are_distinguished(self):
        self.assertTrue(is_model_path(b"HEAD", b"/props"))
        self.assertFalse(is_model_path(b"POST", b"/props"))
        self.assertFalse(is_model_path(b"GET", b"/v1/embeddings"))
        self.assertNotIn(b"/v1/images/edits", JSON_ROUTES)
