"""Activity rows as files."""

import csv
import io
import json

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.observe.export import COLUMNS, FORMATS, Export


def document(number, **changes):
    return {
        "id": number,
        "timestamp": "2026-02-02T02:41:40Z",
        "model": "owl",
        "req_path": "/v1/chat/completions",
        "resp_content_type": "application/json",
        "resp_status_code": 200,
        "tokens": {"input_tokens": 3, "output_tokens": 4},
        "duration_ms": 50,
        "has_capture": False,
        **changes,
    }


def written(form, *batches):
    export = Export(form)
    return (export.begin() + b"".join(export.rows(batch) for batch in batches) + export.end()).decode()


class TestExport(SynchronousTestCase):
    def test_json_is_one_array_however_it_was_cut(self):
        found = json.loads(written("json", [document(1), document(2)], [], [document(3)]))
        self.assertEqual([row["id"] for row in found], [1, 2, 3])
        self.assertEqual(json.loads(written("json")), [])

    def test_json_lines(self):
        lines = written("ndjson", [document(1)], [document(2)]).splitlines()
        self.assertEqual([json.loads(line)["id"] for line in lines], [1, 2])

    def test_csv_has_a_header_and_no_formulas(self):
        rows = list(
            csv.reader(io.StringIO(written("csv", [document(1, model="=1+1", error_msg='a,"b"', metadata={"a": "b"})])))
        )
        self.assertEqual(tuple(rows[0]), COLUMNS)
        row = dict(zip(rows[0], rows[1], strict=True))
        self.assertEqual(
            [row[name] for name in ("model", "error_msg", "input_tokens", "metadata")],
            ["'=1+1", 'a,"b"', "3", '{"a": "b"}'],
        )

    def test_markdown_escapes_pipes_and_line_ends(self):
        lines = written("markdown", [document(1, error_msg="a|b\nc")]).splitlines()
        self.assertEqual(len(lines), 3)
        self.assertIn("| a\\|b c |", lines[2])

    def test_every_format_has_a_type_and_a_suffix(self):
        self.assertEqual([Export(form).suffix for form in FORMATS], ["csv", "json", "ndjson", "md"])
