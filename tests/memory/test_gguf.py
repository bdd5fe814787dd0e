"""Reading the header of a GGUF file, also of one that was made to do harm."""

import struct
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.memory import gguf
from tests.memory import gguf_files


class GgufTests(SynchronousTestCase):
    def setUp(self):
        self.path = Path(self.mktemp())

    def write(self, metadata, tensors=None):
        gguf_files.write(self.path, {"general.architecture": "llama", **metadata}, tensors or {})
        return gguf.read(self.path)

    def refused(self, data, words):
        self.path.write_bytes(data)
        error = self.assertRaises(gguf.GgufError, gguf.read, self.path)
        self.assertIn(words, str(error))


class MetadataTests(GgufTests):
    def test_numbers_and_texts_of_the_metadata_are_read(self):
        found = self.write({"llama.context_length": 4096, "general.name": "tiny", "llama.flag": True})
        self.assertEqual(found.architecture, "llama")
        self.assertEqual(found.metadata["general.name"], "tiny")
        self.assertEqual(found.number("context_length"), 4096)
        self.assertEqual(found.number("embedding_length", 7), 7)
        self.assertIs(found.metadata["llama.flag"], True)

    def test_number_that_each_layer_has_its_own_of_is_read_for_each_layer(self):
        found = self.write({"llama.block_count": 3, "llama.attention.head_count_kv": [8, 0, 4]})
        self.assertEqual(found.numbers("attention.head_count_kv"), [8, 0, 4])
        self.assertEqual(found.number("attention.head_count_kv"), 8)
        self.assertEqual(found.numbers("attention.head_count", 5), [5, 5, 5])

    def test_short_array_is_extended_by_its_last_number(self):
        found = self.write({"llama.block_count": 4, "llama.x": [8, 2]})
        self.assertEqual(found.numbers("x"), [8, 2, 2, 2])

    def test_vocabulary_is_counted_and_not_kept(self):
        words = [f"word{number}" for number in range(3000)]
        found = self.write({"tokenizer.ggml.tokens": words, "tokenizer.ggml.scores": [0.5] * 3000, "llama.x": 9})
        self.assertEqual(found.lengths, {"tokenizer.ggml.tokens": 3000, "tokenizer.ggml.scores": 3000})
        self.assertNotIn("tokenizer.ggml.tokens", found.metadata)
        self.assertNotIn("tokenizer.ggml.scores", found.metadata)
        self.assertEqual(found.number("x"), 9)

    def test_vocabulary_longer_than_a_piece_is_skipped(self):
        self.patch(gguf, "PIECE", 64)
        words = ["x" * (number % 150) for number in range(400)]
        found = self.write({"tokenizer.ggml.tokens": words, "tokenizer.chat_template": "y" * 5000, "llama.x": 9})
        self.assertEqual(found.number("x"), 9)

    def test_only_so_many_numbers_of_all_arrays_are_kept(self):
        self.patch(gguf, "NUMBER_LIMIT", 5)
        found = self.write({"llama.a": [1, 2, 3], "llama.b": [4, 5, 6], "llama.c": 7})
        self.assertEqual(found.metadata["llama.a"], (1, 2, 3))
        self.assertNotIn("llama.b", found.metadata)
        self.assertEqual(found.number("c"), 7)


class TensorTests(GgufTests):
    def test_tensor_has_its_shape_type_and_size(self):
        shapes = {"a": ((64, 4), gguf_files.F16), "b": ((32,), gguf_files.F32), "c": ((256, 8), gguf_files.Q4_K)}
        found = self.write({}, shapes)
        self.assertEqual(found.tensors["a"], gguf.Tensor((64, 4), gguf_files.F16, 512))
        self.assertEqual(found.tensors["b"], gguf.Tensor((32,), gguf_files.F32, 128))
        self.assertEqual(found.tensors["c"].size, 8 * 144)

    def test_tensors_of_all_shards_are_found_from_any_of_them(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        first, second = (folder / f"big-0000{number}-of-00002.gguf" for number in (1, 2))
        gguf_files.write(first, {"general.architecture": "llama", "llama.block_count": 2}, {"a": ((64,), 0)})
        gguf_files.write(second, {"split.no": 1}, {"b": ((32,), 0)})
        for path in (first, second):
            found = gguf.read(path)
            self.assertEqual(found.layers, 2)
            self.assertEqual({name: tensor.size for name, tensor in found.tensors.items()}, {"a": 256, "b": 128})
        second.unlink()
        self.assertRaises(FileNotFoundError, gguf.read, first)

    def test_name_that_counts_too_many_shards_is_refused(self):
        path = Path("model-00001-of-90000.gguf")
        self.assertRaises(gguf.GgufError, gguf.shards, path)

    def test_download_that_is_incomplete_is_refused(self):
        self.write({}, {"a": ((64, 64), 0), "b": ((64, 64), 0)})
        data = self.path.read_bytes()
        self.refused(data[:-20000], "incomplete")


class HostileTests(GgufTests):
    def head(self, tensors=0, entries=0, version=3):
        return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)

    def test_file_of_another_kind_is_refused(self):
        self.refused(b"PK\x03\x04 something", "not a GGUF file")
        self.assertFalse(gguf.is_gguf(self.path))
        self.assertFalse(gguf.is_gguf(Path("no such file")))

    def test_other_versions_are_refused(self):
        self.refused(self.head(version=1), "version 1")
        self.refused(b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian")

    def test_huge_counts_are_refused(self):
        self.refused(self.head(tensors=2**62), "counts")
        self.refused(self.head(entries=2**62), "counts")

    def test_file_that_ends_within_its_header_is_refused_at_every_byte(self):
        metadata = {"tokenizer.ggml.tokens": ["a", "bc"], "llama.x": [1, 2], "llama.y": 1.5}
        tensors = {"blk.0.attn_q.weight": ((64, 4), gguf_files.F16)}
        gguf_files.write(self.path, metadata, tensors)
        whole = self.path.read_bytes()[: gguf_files.header_size(metadata, tensors)]
        for length in range(len(whole)):
            self.path.write_bytes(whole[:length])
            self.assertRaises(gguf.GgufError, gguf.read, self.path)

    def test_huge_name_text_or_array_is_refused(self):
        huge = struct.pack("<Q", 2**63)
        self.refused(self.head(entries=1) + huge, "the name of an entry")
        name = self.head(entries=1) + gguf_files.text("llama.x")
        self.refused(name + struct.pack("<I", gguf_files.STRING) + huge, "larger than")
        for item in (gguf_files.UINT32, gguf_files.STRING):
            self.refused(name + struct.pack("<II", gguf_files.ARRAY, item) + huge, "the ")
        text = name + struct.pack("<IIQ", gguf_files.ARRAY, gguf_files.STRING, 2) + huge
        self.refused(text, "larger than")

    def test_array_of_arrays_is_refused(self):
        name = self.head(entries=1) + gguf_files.text("llama.x")
        self.refused(name + struct.pack("<IIQ", gguf_files.ARRAY, gguf_files.ARRAY, 2), "unknown type 9")

    def test_value_of_an_unknown_type_is_refused(self):
        self.refused(self.head(entries=1) + gguf_files.text("llama.x") + struct.pack("<I", 77), "unknown type 77")

    def test_header_without_an_end_is_refused(self):
        self.patch(gguf, "HEADER_LIMIT", 4096)
        self.patch(gguf, "PIECE", 64)
        self.refused(self.head(entries=1000) + gguf_files.entry("llama.x", 1) * 1000, "larger than 4096 bytes")

    def test_tensor_with_many_dimensions_is_refused(self):
        self.refused(self.head(tensors=1) + gguf_files.text("a") + struct.pack("<I", 2**31), "dimensions")

    def test_model_with_more_layers_than_any_is_refused(self):
        error = self.assertRaises(gguf.GgufError, self.write, {"llama.block_count": 4_000_000_000})
        self.assertIn("4000000000 layers", str(error))
