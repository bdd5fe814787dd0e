from twisted.trial.unittest import TestCase

from llamaswap.web.app import Admin
from llamaswap.web.openapi import ALL_METHODS, PATH_VARIABLE, path_template
from llamaswap.web.route_table import ROUTES
from tests.web.doubles import World


class DocumentTests(TestCase):
    def setUp(self):
        self.document = World().ask("/api/openapi.json").json

    def test_every_rule_of_the_map_is_in_the_document_with_its_methods(self):
        for rule in Admin.app.url_map.iter_rules():
            item = self.document["paths"][path_template(rule.rule)]
            for method in (rule.methods or set(ALL_METHODS)) - {"HEAD", "OPTIONS"}:
                self.assertIn(method.lower(), item, rule.rule)

    def test_every_reference_has_its_schema_and_every_operation_id_is_unique(self):
        schemas = self.document["components"]["schemas"]
        identities = []

        def walk(node):
            if isinstance(node, dict):
                if "$ref" in node:
                    self.assertIn(node["$ref"].rpartition("/")[2], schemas)
                if "operationId" in node:
                    identities.append(node["operationId"])
                for value in node.values():
                    walk(value)
            elif isinstance(node, list):
                for value in node:
                    walk(value)

        walk(self.document)
        self.assertEqual(len(identities), len(set(identities)))

    def test_every_path_variable_is_a_parameter(self):
        for route in ROUTES:
            operation = next(iter(self.document["paths"][path_template(route.rule)].values()))
            names = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            self.assertEqual(names, {match[2] for match in PATH_VARIABLE.finditer(route.rule)})

    def test_edit_of_the_configuration_requires_the_header_that_names_the_edited_text(self):
        paths = self.document["paths"]
        for operation in (paths["/api/config"]["put"], paths["/api/config/history/{version}/restore"]["post"]):
            found = [(one["name"], one["required"]) for one in operation["parameters"] if one["in"] == "header"]
            self.assertEqual(found, [("If-Match", True)])
        self.assertNotIn("header", [one["in"] for one in paths["/api/config"]["get"]["parameters"]])

    def test_summary_is_the_first_sentence_of_the_handlers_docstring(self):
        operation = self.document["paths"]["/models/load"]["post"]
        self.assertEqual(operation["summary"], "Begin to load the model that the body names, like llama.cpp's router")

    def test_route_that_needs_no_key_is_documented_so(self):
        self.assertEqual(self.document["paths"]["/health"]["get"]["security"], [])
        self.assertNotIn("security", self.document["paths"]["/running"]["get"])
