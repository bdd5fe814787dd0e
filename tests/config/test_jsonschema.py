"""The schema for editors, and the files that are shipped."""

import json
from pathlib import Path

import jsonschema
import yaml

from llamaswap.config import json_schema
from llamaswap.config.field_types import SectionMapType, SectionType, keys_of
from llamaswap.config.schema import Config
from tests.config.loading import LoadCase

SHIPPED = Path(__file__).parents[2] / "config"
OLD_SCHEMA = 'config/schema.json is old: run the command in docs/contributing.rst, "Write the schema for editors"'


class Shipped(LoadCase):
    def test_schema_file_equals_the_records(self):
        self.assertEqual(json.loads((SHIPPED / "schema.json").read_text()), json_schema(), OLD_SCHEMA)

    def test_every_default_fits_its_own_schema(self):
        described = json_schema()
        for record in (described, *described["definitions"].values()):
            for name, key in record["properties"].items():
                if "default" in key and name != "strategy":  # a strategy must be given, its default is none of them
                    schema = {**key, "definitions": described["definitions"]}
                    self.assertTrue(jsonschema.Draft7Validator(schema).is_valid(key["default"]), name)

    def test_shipped_files_load_without_environment_and_fit_the_schema(self):
        for name in ("example.yaml", "minimal.yaml"):
            text = (SHIPPED / name).read_text()
            self.ok(text)
            self.assertEqual([str(warning) for warning in self.loaded.warnings], [])
            jsonschema.validate(yaml.safe_load(text), json_schema())

    def test_example_has_every_key(self):
        tree = yaml.safe_load((SHIPPED / "example.yaml").read_text())

        def missing(record, node, path):
            for name, (_, key) in keys_of(record).items():
                if name not in node:
                    yield f"{path}{name}"
                elif isinstance(key.kind, SectionType) and key.kind.many:
                    yield from missing(key.kind.record, node[name][0], f"{path}{name}[].")
                elif isinstance(key.kind, SectionType) and node[name] is not None:
                    yield from missing(key.kind.record, node[name], f"{path}{name}.")
                elif isinstance(key.kind, SectionMapType) and node[name] is not None:
                    yield from missing(key.kind.record, next(iter(node[name].values())), f"{path}{name}.*.")

        self.assertEqual(list(missing(Config, tree, "")), [])
