"""What a matrix allows, whom it evicts, and what it refuses to read."""

from __future__ import annotations

import time
from itertools import pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import matrix as matrix_module
from llamaswap.config.matrix import MatrixError, Program, Solution, compile_sets

ANIMALS = ("ant", "bee", "cat", "dog", "model-x.v2", "lab/owl")


def matrix(sets: dict[str, str], costs: dict[str, int] | None = None, **vars: str) -> Program:
    return compile_sets(list(sets.items()), vars, ANIMALS, costs or {})


def evicted(program: Program, target: str, *running: str) -> tuple[str, ...]:
    return program.solve(target, running).evict


class ReadingTests(SynchronousTestCase):
    def refused(self, text: str) -> str:
        with self.assertRaises(MatrixError) as caught:
            matrix({"s": text})
        self.assertEqual(caught.exception.set_name, "s")
        return str(caught.exception)

    def test_empty_expression_is_refused(self) -> None:
        """config T111"""
        for text in ("", "  ", "\t\n"):
            self.assertIn("empty", self.refused(text))

    def test_open_parenthesis_must_be_closed(self) -> None:
        """config T111"""
        for text in ("(ant", "((ant)", "ant & (bee"):
            self.assertIn("missing closing parenthesis", self.refused(text))

    def test_misplaced_tokens_are_refused(self) -> None:
        """config T111"""
        for text in (
            "ant)",
            "()",
            "ant bee",
            "ant+bee",
            "& ant",
            "ant |",
            "ant & & bee",
            "ant &",
            "| ant",
            "ant (bee)",
        ):
            self.assertIn("unexpected token", self.refused(text), text)

    def test_plus_must_be_followed_by_the_name_of_a_set(self) -> None:
        """config T111"""
        for text in ("+ x", "+", "ant & +"):
            self.assertIn("+", self.refused(text))

    def test_unexpected_character_is_named_with_its_position(self) -> None:
        """config T111"""
        message = self.refused("ant @ bee")
        self.assertIn("'@'", message)
        self.assertIn("position 5", message)
        self.assertIn("'/'", self.refused("lab/owl"))

    def test_identifiers_are_letters_digits_dashes_underscores_and_dots_of_any_script(self) -> None:
        """config T112"""
        program = compile_sets([("s", "model-x.v2 | été_9")], {}, ("model-x.v2", "été_9"), {})
        self.assertTrue(program.can_coexist(["été_9"]))

    def test_unknown_name_is_reported_with_the_set(self) -> None:
        """config T112, core V77"""
        message = self.refused("zz")
        self.assertIn("'s'", message)
        self.assertIn("zz", message)
        message = self.refused("ant & +zz")
        self.assertIn("zz", message)
        self.assertIn("undefined", message)

    def test_set_may_not_refer_to_itself_in_any_number_of_steps(self) -> None:
        """config T112, core V77"""
        for sets in ({"a": "+b", "b": "+a"}, {"a": "+a"}, {"a": "+b", "b": "ant & +c", "c": "bee | +a"}):
            with self.assertRaises(MatrixError) as caught:
                matrix(sets)
            self.assertIn("circular", str(caught.exception))
            self.assertIn(caught.exception.set_name, sets)

    def test_matrix_needs_a_set(self) -> None:
        with self.assertRaises(MatrixError) as caught:
            matrix({})
        self.assertIn("at least one set", str(caught.exception))

    def test_var_hides_the_model_of_its_name(self) -> None:
        program = matrix({"s": "ant & bee"}, ant="lab/owl")
        self.assertTrue(program.can_coexist(["lab/owl", "bee"]))
        self.assertFalse(program.can_coexist(["ant", "bee"]))

    def test_deeply_nested_expression_is_parsed(self) -> None:
        deep = "(" * 20_000 + "ant" + ")" * 20_000
        self.assertTrue(matrix({"s": f"{deep} & bee"}).can_coexist(["ant", "bee"]))

    def test_expressions_that_are_nested_without_end_are_refused(self) -> None:
        """They raised RecursionError: over `(`, and over references to sets that refer to others."""
        deep = "ant"
        for _ in range(1_000):
            deep = f"bee | ({deep} & cat)"
        self.assertIn("more than 100 deep", self.refused(deep))
        forwards = {f"s{number}": f"+s{number + 1}" for number in range(2_000)} | {"s2000": "ant"}
        backwards = {"s0": "ant"} | {f"s{number}": f"bee | +s{number - 1} & cat" for number in range(1, 2_000)}
        for chain in (forwards, backwards):
            with self.assertRaises(MatrixError) as caught:
                matrix(chain).solve("ant", ())
            self.assertIn("more than 100 deep", str(caught.exception))
        fifty = {f"s{number}": f"bee | (+s{number + 1})" for number in range(50)} | {"s50": "ant & dog"}
        self.assertTrue(matrix(fifty).can_coexist(["ant", "dog"]))


class MeaningTests(SynchronousTestCase):
    def test_and_binds_tighter_than_or(self) -> None:
        """config T113, core V73"""
        program = matrix({"s": "ant | bee & cat"})
        self.assertTrue(program.can_coexist(["bee", "cat"]))
        self.assertFalse(program.can_coexist(["ant", "cat"]))
        self.assertEqual(evicted(program, "ant", "bee"), ("bee",))
        self.assertEqual(evicted(program, "cat", "bee"), ())

    def test_and_pairs_every_alternative(self) -> None:
        """config T113, core V72"""
        program = matrix({"s": "(ant | bee) & (cat | dog)"})
        for pair in product(("ant", "bee"), ("cat", "dog")):
            self.assertTrue(program.can_coexist(pair))
        self.assertFalse(program.can_coexist(["ant", "bee"]))
        self.assertFalse(program.can_coexist(["cat", "dog"]))
        self.assertEqual(evicted(program, "ant", "bee", "cat"), ("bee",))

    def test_repeated_model_counts_once(self) -> None:
        """config T113"""
        self.assertEqual(matrix({"s": "ant & ant"}).solve("ant", ()).members, ("ant",))

    def test_reference_means_the_family_of_the_other_set(self) -> None:
        """config T113"""
        program = matrix({"l": "ant|bee", "t": "+l & cat", "u": "+t & dog"})
        self.assertTrue(program.can_coexist(["ant", "cat", "dog"]))
        self.assertTrue(program.can_coexist(["bee", "cat", "dog"]))
        self.assertFalse(program.can_coexist(["ant", "bee"]))

    def test_set_may_be_referred_to_before_its_definition(self) -> None:
        program = matrix({"u": "+t & dog", "t": "ant"})
        self.assertTrue(program.can_coexist(["ant", "dog"]))
        self.assertEqual([one.name for one in program.sets], ["t", "u"])

    def test_no_models_can_always_coexist(self) -> None:
        self.assertTrue(matrix({"s": "ant"}).can_coexist([]))
        self.assertFalse(matrix({"s": "ant"}).can_coexist(["dog"]))


class SolvingTests(SynchronousTestCase):
    def test_models_of_the_set_stay_and_others_are_evicted(self) -> None:
        """config T116, core V71"""
        program = matrix({"pair": "ant & bee", "solo": "cat"})
        self.assertEqual(program.solve("bee", ("ant",)), Solution((), "pair", "ant & bee", ("ant", "bee"), 0))
        self.assertEqual(program.solve("cat", ("ant", "bee")), Solution(("ant", "bee"), "solo", "cat", ("cat",), 2))
        self.assertEqual(program.solve("ant", ()), Solution((), "pair", "ant & bee", ("ant",), 0))

    def test_the_cheapest_eviction_wins_over_the_earlier_set(self) -> None:
        """config T117, core V69"""
        program = matrix({"one": "cat & ant", "two": "cat & bee"}, {"bee": 5})
        solution = program.solve("cat", ("ant", "bee"))
        self.assertEqual((solution.set_name, solution.evict, solution.cost), ("two", ("ant",), 1))

    def test_ties_go_to_the_earlier_set_then_to_the_left(self) -> None:
        program = matrix({"one": "cat & ant", "two": "cat & bee"})
        self.assertEqual(program.solve("cat", ("ant", "bee")).set_name, "one")
        program = matrix({"s": "cat & (bee | ant)"})
        self.assertEqual(evicted(program, "cat", "ant", "bee"), ("ant",))

    def test_model_in_no_set_runs_alone(self) -> None:
        """config T119, core V75"""
        program = matrix({"pair": "ant & bee"})
        solution = program.solve("dog", ("ant", "bee"))
        self.assertEqual(solution, Solution(("ant", "bee"), None, "", ("dog",), 0))
        self.assertEqual(evicted(program, "ant", "dog"), ("dog",))

    def test_running_target_evicts_no_model(self) -> None:
        """config T119"""
        program = matrix({"pair": "ant & bee"})
        self.assertEqual(evicted(program, "ant", "ant", "dog"), ())
        self.assertEqual(program.solve("ant", ("ant", "bee")).set_name, "pair")
        self.assertIsNone(program.solve("ant", ("ant", "dog")).set_name)

    def test_wider_alternative_keeps_more_models(self) -> None:
        """config T120"""
        program = matrix({"s": "ant & (bee | (bee & cat))"})
        self.assertEqual(evicted(program, "ant", "bee", "cat"), ())
        program = matrix({"base": "bee & cat", "ext": "ant & +base & cat"})
        solution = program.solve("ant", ("bee", "cat"))
        self.assertEqual((solution.evict, solution.members), ((), ("ant", "bee", "cat")))

    def test_products_of_many_groups_are_not_enumerated(self) -> None:
        """config T121"""
        groups = [[f"g{group}m{member}" for member in range(10)] for group in range(6)]
        models = ["target", "outsider", *(model for group in groups for model in group)]
        text = " & ".join(["target", *("(" + " | ".join(group) + ")" for group in groups)])
        program = compile_sets([("s", text)], {}, models, {})
        began = time.perf_counter()
        chosen = [group[at] for at, group in enumerate(groups)]
        self.assertEqual(evicted(program, "target", *chosen, "outsider"), ("outsider",))
        everything = [model for model in models if model != "target"]
        self.assertEqual(len(evicted(program, "target", *everything)), 55)
        self.assertTrue(program.can_coexist([*chosen, "target"]))
        self.assertLess(time.perf_counter() - began, 1.0)

    def test_more_models_than_a_machine_word_has_bits_may_run(self) -> None:
        """config T121"""
        models = [f"m{number:02}" for number in range(71)]
        program = compile_sets([("s", " & ".join(models))], {}, [*models, "outsider"], {})
        began = time.perf_counter()
        self.assertEqual(evicted(program, "m70", *models[:70], "outsider"), ("outsider",))
        self.assertLess(time.perf_counter() - began, 1.0)

    def test_overlapping_alternatives_in_a_row_stay_cheap(self) -> None:
        models = [f"m{number:02}" for number in range(60)]
        text = " & ".join(f"({left} | {right})" for left, right in pairwise(models))
        program = compile_sets([("s", text)], {}, models, {})
        began = time.perf_counter()
        self.assertEqual(evicted(program, "m00", *models[1:]), ("m59",))  # 59 places for 60
        self.assertLess(time.perf_counter() - began, 1.0)

    def test_cached_answers_have_a_bound(self) -> None:
        self.patch(matrix_module, "MAX_CACHED_ANSWERS", 3)
        program = matrix({"pair": "ant & bee"})
        answers = {target: program.solve(target, ()) for target in ANIMALS}
        self.assertIs(program.solve(ANIMALS[-1], ()), answers[ANIMALS[-1]])
        self.assertIsNot(program.solve(ANIMALS[0], ()), answers[ANIMALS[0]])


# -- the plain reading of the same grammar, to compare with ------------------------------------------------

NAMES = ("a", "b", "c", "d", "e")


def expressions(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.recursive(
        st.sampled_from(names),
        lambda inner: st.tuples(inner, st.sampled_from("|&"), inner).map(
            lambda made: f"({made[0]} {made[1]} {made[2]})"
        ),
        max_leaves=8,
    )


def family(text: str, others: dict[str, list[frozenset[str]]]) -> list[frozenset[str]]:
    """Every member set of a fully parenthesised expression, written out, in order."""
    if not text.startswith("("):
        return others[text[1:]] if text.startswith("+") else [frozenset(text)]
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 1 and char in "|&":
            left, right = family(text[1 : at - 1], others), family(text[at + 2 : -1], others)
            return left + right if char == "|" else [one | other for one in left for other in right]
    raise AssertionError(text)


class AgainstEnumerationTests(SynchronousTestCase):
    @settings(max_examples=400, deadline=None)
    @given(
        st.data(),
        expressions(NAMES[:4]),
        st.sets(st.sampled_from(NAMES)),
        st.sampled_from(NAMES),
        st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3)),
    )
    def test_answer_equals_that_of_enumerating_every_set(self, data, first, running, target, costs) -> None:
        second = data.draw(expressions((*NAMES[:4], "+one")))
        program = compile_sets([("one", first), ("two", second)], {}, NAMES, costs)
        families: dict[str, list[frozenset[str]]] = {}
        families["one"] = family(first, families)
        families["two"] = family(second, families)
        order = [one.name for one in program.sets]
        self.assertEqual(order, ["one", "two"])
        every = [(name, member) for name in order for member in families[name]]
        up = tuple(sorted(running))
        self.assertEqual(program.can_coexist(up), not up or any(running <= member for _, member in every))
        if target in running:
            self.assertEqual(program.solve(target, up).evict, ())
            return
        best = None
        for name, member in every:
            if target in member:
                evict = tuple(model for model in up if model not in member)
                cost = sum(costs.get(model, 1) for model in evict)
                if best is None or cost < best[0]:
                    best = cost, name, evict
        solution = program.solve(target, up)
        wanted = best or (0, None, up)
        self.assertEqual((solution.cost, solution.set_name, solution.evict), wanted)
