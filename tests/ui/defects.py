"""Faults that the Go program's interface has, each of which must not come back here."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
import urllib.request
from datetime import datetime

from tests.ui import harness, mock


class MockDefects(harness.MockCase):
    """Against the mock, which brings volume, faults and an evil answer."""

    def chat(self, page: object, text: str = "Hi") -> None:
        page.get_by_label("Message").fill(text)  # type: ignore[attr-defined]
        page.get_by_label("Message").press("Enter")  # type: ignore[attr-defined]

    def answered(self, page: object) -> None:
        """Wait until the answer is complete, shown so and stored."""
        page.locator(".bubble.assistant .md table").wait_for()  # type: ignore[attr-defined]
        page.locator(".bubble.assistant .bubble-foot", has_text="97 tokens").wait_for()  # type: ignore[attr-defined]
        self.stored(page, "Answer")

    def test_html_in_an_answer_stays_inert_also_when_it_is_read_again(self) -> None:
        page = self.page("playground")
        self.live(page)
        self.chat(page)
        page.locator(".bubble.assistant .katex").first.wait_for()
        self.answered(page)
        look = "[window.pwned, document.querySelectorAll('.md script, .md iframe, .md [onerror], .md img').length]"
        self.assertEqual(page.evaluate(look), [None, 0])
        self.assertEqual(page.locator('.md a[href^="javascript"]').count(), 0)
        page.reload()
        page.locator(".bubble.assistant .md table").wait_for()
        page.locator(".bubble.assistant .katex").first.wait_for()
        page.wait_for_timeout(500)
        self.assertEqual(page.evaluate(look), [None, 0])
        self.assertEqual([url for _, url, _ in page.asked if "example.invalid" in url], [])

    def test_code_can_be_read_and_lists_keep_their_bullets_in_the_light_theme(self) -> None:
        page = self.page("playground", theme="light", bypass_csp=True)
        self.live(page)
        self.chat(page)
        page.locator(".hljs-keyword").first.wait_for()
        self.answered(page)
        self.assertEqual(page.evaluate("getComputedStyle(document.querySelector('.md ul')).listStyleType"), "disc")
        self.accessible(page)

    def test_unset_options_are_not_sent(self) -> None:
        page = self.page("playground")
        self.live(page)
        self.chat(page)
        page.locator(".bubble.assistant .md").wait_for()
        body = next(data for method, url, data in page.asked if method == "POST" and "chat/completions" in url)
        self.assertNotIn(b"temperature", body)
        self.assertNotIn(b"max_tokens", body)

    def test_enter_of_an_input_method_does_not_send(self) -> None:
        page = self.page("playground")
        self.live(page)
        page.get_by_label("Message").fill("nihon")
        page.evaluate(
            "document.querySelector('.composer textarea').dispatchEvent("
            "new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, isComposing: true, bubbles: true}))"
        )
        page.wait_for_timeout(300)
        self.assertEqual(page.get_by_label("Message").input_value(), "nihon")
        self.assertEqual(page.locator(".bubble").count(), 0)

    def test_a_large_picture_is_kept_with_its_conversation(self) -> None:
        page = self.page("playground")
        self.live(page)
        picture = {"name": "large.png", "mimeType": "image/png", "buffer": b"\x89PNG" + bytes(7_000_000)}
        page.set_input_files(".composer input[type=file]", files=[picture])
        page.locator(".attach").wait_for()
        self.chat(page, "What is this?")
        self.answered(page)
        page.reload()
        page.locator(".bubble.user img.thumb").wait_for(state="attached")

    def test_ten_tabs_share_one_event_stream(self) -> None:
        context = self.context()
        for _ in range(10):
            page = self.page("models", context)
            self.live(page)
            page.locator("tr", has_text="gpt-oss-120b").first.wait_for()
        harness.until(lambda: self.world.streams == 1)

    def test_a_flood_of_log_lines_leaves_the_page_idle_and_the_selection_alone(self) -> None:
        page = self.page("logs?src=proxy")
        self.live(page)
        page.locator(".log .ln").nth(60).wait_for()
        page.evaluate(
            "() => { const row = document.querySelectorAll('.log .ln')[50]; const range = document.createRange();"
            "range.selectNodeContents(row); getSelection().removeAllRanges(); getSelection().addRange(range); }"
        )
        chosen = page.evaluate("getSelection().toString()")
        stop = threading.Event()

        def flood() -> None:
            number = 0
            while not stop.is_set():
                lines = "".join(f"[INFO] flood {number + k} \x1b[32mgreen\x1b[0m words\n" for k in range(10))
                number += 10
                self.world.tell("logData", {"source": "proxy", "data": lines})
                time.sleep(0.05)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            share = self.busy(page, 4)
        finally:
            stop.set()
            thread.join()
        self.assertLess(share, 0.25)
        self.assertTrue(chosen)
        self.assertEqual(page.evaluate("getSelection().toString()"), chosen)
        harness.until(lambda: page.locator(".log .ln", has_text="flood").count() > 300)

    def test_a_log_that_is_sent_anew_takes_nothing_from_who_reads_it(self) -> None:
        page = self.page("logs?src=proxy")
        self.live(page)
        page.locator(".log .ln").nth(60).wait_for()
        text = "".join(f"[INFO] anew {number}\n" for number in range(80))
        anew = {"source": "proxy", "data": text, "reset": True}
        log = page.get_by_role("log")
        log.evaluate("box => box.scrollTo(0, 90)")
        self.world.tell("logData", anew)
        page.locator(".log .ln", has_text="anew 79").wait_for()
        self.assertEqual(log.evaluate("box => box.scrollTop"), 90)
        page.get_by_role("button", name="Pause", exact=True).click()
        self.world.tell("logData", {"source": "proxy", "data": "[INFO] late\n"})
        page.get_by_role("button", name="Resume, 1 lines held").wait_for()
        self.world.tell("logData", {**anew, "data": "[INFO] other\n" * 40})
        page.get_by_role("button", name="Resume, 40 lines held").wait_for()
        self.assertEqual(page.locator(".log .ln", has_text="anew").count(), 80)
        page.get_by_role("button", name="Resume, 40 lines held").click()
        page.locator(".log .ln", has_text="other").nth(39).wait_for()
        self.assertEqual(page.locator(".log .ln").count(), 40)

    def test_a_load_test_that_the_server_forgot_is_over(self) -> None:
        numbers = {"errors": 0, "statuses": {}, "requests_per_second": 1, "tokens_per_second": 1}
        spreads = {"ttft_ms": None, "itl_ms": None, "duration_ms": None}
        order = {"model": "bge-m3", "concurrency": 1, "elapsed_ms": 5, "done": 1, "total": 9}
        run = {**order, "id": "7", "state": "running", "results": {**numbers, **spreads}}
        answers = iter([run])

        def show(route: object) -> None:
            told = next(answers, None)
            route.fulfill(status=200 if told else 404, json=told or {"error": "load test not found"})  # type: ignore[attr-defined]

        page = self.page("models")
        page.route("**/api/loadtest", lambda route: route.fulfill(json={"runs": [run]}))
        page.route("**/api/loadtest/7", show)
        page.goto(f"{self.url}/ui/playground?tab=loadtest")
        page.get_by_role("heading", name="bge-m3: lost").wait_for()
        page.get_by_role("button", name="Run", exact=True).wait_for()

    def test_a_column_stays_while_the_models_answer_in_it(self) -> None:
        page = self.page("playground?tab=compare")
        self.live(page)
        page.get_by_role("button", name="Model", exact=True).click()
        for number, model in enumerate(("gpt-oss-120b", "qwen3-coder-30b", "gemma-3-27b"), 1):
            page.get_by_label(f"Model {number}", exact=True).select_option(model)
        page.route("**/v1/chat/completions", lambda route: None)
        page.get_by_label("Prompt for all").fill("Hello")
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("button", name="Stop").wait_for()
        self.assertTrue(page.get_by_role("button", name="Remove column 1").is_disabled())
        page.get_by_role("button", name="Stop").click()
        harness.until(lambda: page.get_by_role("button", name="Remove column 1").is_enabled())

    def test_choice_in_one_tab_keeps_those_of_another(self) -> None:
        context = self.context()
        first, second = self.page("models", context), self.page("models", context)
        for page in (first, second):
            page.locator("tr", has_text="gpt-oss-120b").first.wait_for()
        second.get_by_label("Sort by").select_option("size")
        first.get_by_role("button", name="Dense").click()
        first.reload()
        first.get_by_role("button", name="Dense", pressed=True).wait_for()
        self.assertEqual(first.get_by_label("Sort by").input_value(), "size")

    def test_text_that_is_selected_as_soon_as_it_is_there_stays_selected(self) -> None:
        context = self.context()
        context.add_init_script(  # the page's own pauses are long, as on a busy machine
            "const later = window.setTimeout;"
            "window.setTimeout = (call, ms, ...more) => later(call, ms >= 100 && ms < 500 ? ms * 10 : ms, ...more);"
            "new MutationObserver(() => { const row = document.querySelectorAll('.log .ln')[50];"
            "if (!row || window.chosen) return; window.chosen = row.textContent; const range = document.createRange();"
            "range.selectNodeContents(row); getSelection().addRange(range); })"
            ".observe(document, { childList: true, subtree: true })"
        )
        page = self.page("logs?src=proxy", context)
        harness.until(lambda: page.evaluate("window.chosen"))
        page.wait_for_timeout(2500)
        self.assertEqual(page.evaluate("getSelection().toString()"), page.evaluate("window.chosen"))

    def test_running_requests_cost_little(self) -> None:
        page = self.page()
        self.live(page)
        self.settled(page)
        page.wait_for_timeout(2500)
        self.assertLess(self.busy(page, 4), 0.12)

    def test_logs_are_not_sent_to_pages_that_do_not_show_them(self) -> None:
        page = self.page()
        self.live(page)
        self.assertEqual({topic for _, topics in self.world.listeners for topic in topics if "logs" in topic}, set())

    def test_samples_of_the_machine_are_not_fetched_to_learn_a_boolean(self) -> None:
        page = self.page("models")
        self.live(page)
        page.wait_for_timeout(500)
        self.assertEqual([url for _, url, _ in page.asked if "/api/performance" in url], [])

    def test_the_page_that_is_open_is_marked_in_the_navigation(self) -> None:
        page = self.page("requests")
        self.assertEqual(page.locator("nav[aria-label=Main] [aria-current=page]").inner_text(), "Requests")

    def test_title_of_the_tab_names_the_open_page(self) -> None:
        page = self.page("models")
        harness.until(lambda: page.title() == "Models \u00b7 llamaswap")
        self.turn(page, "model?id=gpt-oss-120b")
        harness.until(lambda: page.title() == "gpt-oss-120b \u00b7 llamaswap")
        self.turn(page, "nonsense")
        page.get_by_role("heading", name="No page").wait_for()

    def test_choices_survive_a_reload(self) -> None:
        page = self.page("models")
        page.get_by_role("button", name="Dense").click()
        page.reload()
        page.locator("button[aria-pressed=true]", has_text="Dense").wait_for()

    def test_old_addresses_still_lead_somewhere(self) -> None:
        page = self.page("#/models/org/mistral-small-24b")
        page.get_by_role("heading", name="org/mistral-small-24b").wait_for()
        page = self.page("#/activity")
        page.get_by_role("heading", name="Requests", level=1).wait_for()

    def test_a_histogram_of_one_value_has_coordinates(self) -> None:
        page = self.page("requests")
        page.locator(".hist.decode rect").first.wait_for()
        self.assertNotIn("NaN", page.locator(".stats").inner_html())

    def test_twin_gpus_are_told_apart_and_their_memory_is_absolute(self) -> None:
        page = self.page()
        page.locator(".gpu", has_text="GPU0").wait_for()
        page.locator(".gpu", has_text="GPU1").wait_for()
        page.locator(".gpu", has_text="/ 24.0 GiB").nth(1).wait_for()
        page.locator(".gpu", has_text="fan").nth(1).wait_for()

    def test_the_message_of_a_failed_request_is_on_its_row(self) -> None:
        page = self.page("requests")
        page.locator("tr.row-bad", has_text="upstream closed the connection").first.wait_for()

    def test_a_failed_load_says_so_and_offers_to_retry(self) -> None:
        page = self.page("models")
        self.live(page)
        row = page.locator("tr", has_text="org/mistral-small-24b")
        row.get_by_role("button", name="Load", exact=True).click()
        page.get_by_role("heading", name="Load org/mistral-small-24b?").wait_for()
        page.locator("dialog").get_by_role("button", name="Load", exact=True).click()
        toast = page.locator(".toast.error", has_text="no memory for this model")
        toast.get_by_role("button", name="Retry").wait_for()
        self.assertIn("/api/models/load/org/mistral-small-24b", " ".join(url for _, url, _ in page.asked))

    def test_the_connection_that_is_lost_is_told_within_three_seconds_and_timers_stop(self) -> None:
        page = self.page()
        self.live(page)
        page.locator("tr[data-row]").first.wait_for()
        self.halt()
        page.locator(".banner", has_text="Offline").wait_for(timeout=3000 * harness.SLACK)
        elapsed = page.locator('td[data-label="Elapsed"]').first
        before = elapsed.inner_text()
        page.wait_for_timeout(2500)
        self.assertEqual(elapsed.inner_text(), before)
        if harness.AXE.exists():
            self.assertEqual(self.axe(page), [], "what is old can still be read")

    def test_a_model_that_loads_can_be_stopped(self) -> None:
        page = self.page("models")
        self.live(page)
        row = page.locator("tr", has_text="gemma-3-27b")
        # With its request known, unloading asks first.
        row.locator(".chip", has_text="(1)").wait_for()
        row.get_by_role("button", name="Cancel").click()
        page.locator("dialog").get_by_role("button", name="Unload").click()
        row.locator(".chip", has_text="not loaded").wait_for()

    def test_an_export_leaves_blank_what_nobody_reported(self) -> None:
        page = self.page("requests")
        page.get_by_role("button", name="Export").click()
        with page.expect_download() as got:
            page.get_by_role("button", name="Download").click()
        text = got.value.path().read_text()
        self.assertEqual(len(text.splitlines()), 421)
        self.assertNotIn(",-1,", text)

    def test_a_key_is_asked_for_by_the_page_itself(self) -> None:
        self.world.key = "k-1"
        page = self.page()
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        page.get_by_text("refused this key").wait_for()
        page.get_by_label("API key").fill("k-1")
        page.get_by_role("button", name="Use this key").click()
        self.live(page)
        page.locator(".loaded", has_text="gpt-oss-120b").wait_for()

    def test_discovered_models_are_put_into_the_configuration(self) -> None:
        context, held, released = self.context(), [], []
        context.route("**/api/config", lambda route: route.continue_() if released else held.append(route))
        page = self.page("config?find=1", context)
        harness.until(lambda: page.wait_for_timeout(20) or held)
        self.assertEqual(page.locator("dialog").count(), 0, "what is inserted now would be lost")
        released.append(True)
        for route in held:
            route.continue_()
        page.locator("dialog").get_by_role("button", name="Insert qwen3-8b").click()
        page.locator(".cm-content", has_text="qwen3-8b-Q4_K_M.gguf").wait_for()
        page.get_by_role("button", name="Find models").click()
        page.locator("dialog li", has_text="in use as gemma-3-27b").wait_for()
        page.locator("dialog").get_by_role("button", name="Insert ollama").click()
        page.locator(".cm-content", has_text="peers:").wait_for()
        page.get_by_text("Effect of saving").wait_for()
        self.assertEqual(page.faults, [])

    def test_a_server_without_models_says_what_to_do_first(self) -> None:
        self.world.empty = True
        page = self.page()
        page.get_by_role("heading", name="First steps").wait_for()
        page.get_by_role("link", name="Add a model").click()
        page.get_by_role("button", name="Add phi-4-mini").click()
        page.locator("pre", has_text="phi-4-mini-Q4_K_M.gguf").wait_for()
        page.goto(f"{self.url}/ui/models")
        page.get_by_role("heading", name="First steps").wait_for()
        self.assertEqual(page.faults, [])

    def test_requests_of_a_session_stand_under_one_head_and_waiting_ones_say_for_what(self) -> None:
        page = self.page()
        page.locator(".session-head", has_text="agent-7").get_by_text("2 requests · 1 waiting").wait_for()
        self.assertEqual(page.locator(".session-head").count(), 1)
        page.locator(".queue", has_text="does not fit beside what is loaded (gpt-oss-120b)").wait_for()

    def test_models_are_sorted_by_size_and_peers_say_whether_they_can_be_reached(self) -> None:
        self.world.memory = mock.MEMORY
        page = self.page("models")
        page.get_by_label("Sort by").select_option("size")
        page.locator("tr[data-model=gpt-oss-120b]", has_text="49.8 GiB").wait_for()
        rows = page.locator("tr[data-model]")
        harness.until(lambda: rows.nth(3).get_attribute("data-model") == "org/mistral-small-24b")
        page.locator("li", has_text="lab/llama-405b").locator(".chip", has_text="not reachable").wait_for(
            state="detached"
        )
        page.locator("li", has_text="lab/llama-405b").locator(".chip", has_text="reachable").wait_for()
        page.locator("li", has_text="attic/tiny").locator(".chip", has_text="not reachable").wait_for()

    def test_hosts_are_on_the_overview_where_there_are_some(self) -> None:
        page = self.page()
        self.live(page)
        page.get_by_role("heading", name="Loaded now").wait_for()
        self.assertEqual(page.get_by_role("heading", name="Hosts").count(), 0)
        self.world.hosts = mock.HOSTS
        page.reload()
        page.locator("[data-host=gpu-box]", has_text="GPU0 24.0 GiB").get_by_text("gpt-oss-120b").wait_for()
        page.locator("[data-host=gpu-box]", has_text="answered 1.5 s ago").wait_for()
        page.locator("[data-host=nas]", has_text="offline").get_by_text("its node died").wait_for()
        page.get_by_text("gpu-box lacks /models/big.gguf (needed by glm-4.5-air)").wait_for()
        self.assertEqual(page.faults, [])

    def test_replica_is_shown_with_its_model_while_it_is_loaded(self) -> None:
        self.world.replicas = {"qwen3-coder-30b": "gpt-oss-120b", "whisper-large-v3": "gpt-oss-120b"}
        page = self.page("models")
        page.locator("tr[data-model=qwen3-coder-30b]", has_text="replica of gpt-oss-120b").wait_for()
        self.assertEqual(page.locator("tr[data-model=whisper-large-v3]").count(), 0)
        page.goto(f"{self.url}/ui/model?id=gpt-oss-120b")
        page.locator(".facts", has_text="qwen3-coder-30b (ready), whisper-large-v3 (stopped)").wait_for()

    def test_a_gap_in_a_text_is_filled(self) -> None:
        page = self.page("playground?tab=complete")
        self.live(page)
        page.get_by_role("button", name="Fill in the middle").click()
        page.get_by_label("Model", exact=True).select_option("qwen3-coder-30b")
        page.get_by_label("Before the gap").fill("def add(a, b):\n    ")
        page.get_by_label("After the gap").fill("\n    return total")
        page.get_by_role("button", name="Complete").click()
        page.locator(".answer", has_text="total = a + b").wait_for()
        page.get_by_role("button", name="Put into the gap").click()
        self.assertEqual(page.get_by_label("Before the gap").input_value(), "def add(a, b):\n    total = a + b")
        sent = next(data for _, url, data in page.asked if url.endswith("/infill"))
        self.assertEqual(json.loads(sent)["input_suffix"], "\n    return total")
        self.assertNotIn("n_predict", json.loads(sent))

    def test_tabs_without_a_shared_worker_share_one_stream_and_the_next_leads_on(self) -> None:
        context = self.context()
        context.add_init_script("delete window.SharedWorker")
        first, second, third = [self.page("models", context) for _ in range(3)]
        for page in (first, second, third):
            self.live(page)
            page.locator("tr", has_text="gpt-oss-120b").first.wait_for()
        harness.until(lambda: self.world.streams == 1)
        first.close()
        self.world.set_state("bge-m3", "ready")
        for page in (second, third):
            page.locator("tr[data-model=bge-m3] .chip", has_text="ready").wait_for()
            self.live(page)
        harness.until(lambda: self.world.streams == 1)

    def test_a_leading_tab_that_sleeps_is_not_waited_for(self) -> None:
        context = self.context()
        context.add_init_script("delete window.SharedWorker")
        leader = self.page("models", context)
        self.live(leader)
        leader.evaluate("setTimeout(() => { const end = Date.now() + 6000; while (Date.now() < end); }, 0)")
        page = self.page("models", context)
        self.live(page)
        self.world.set_state("bge-m3", "ready")
        for tab in (page, leader):
            tab.locator("tr[data-model=bge-m3] .chip", has_text="ready").wait_for()
            self.live(tab)
        harness.until(lambda: self.world.streams == 1)

    def test_a_model_that_sleeps_is_woken(self) -> None:
        page = self.page("models")
        row = page.locator("tr[data-model=kokoro]")
        row.locator(".chip", has_text="asleep").wait_for()
        row.get_by_role("button", name="Wake").click()
        page.locator("dialog").get_by_role("button", name="Load").click()
        row.locator(".chip", has_text="ready").wait_for()

    def test_a_model_that_sleeps_says_so_on_its_own_page(self) -> None:
        page = self.page("model?id=kokoro")
        page.locator(".head-actions .chip", has_text="asleep").wait_for()

    def test_search_text_of_requests_stays_and_is_searched_for(self) -> None:
        page = self.page("requests")
        page.locator("tr[data-row]").first.wait_for()
        box = page.get_by_label("Search requests")
        box.press_sequentially("embeddings")
        page.wait_for_url(re.compile("q=embeddings"))
        self.assertEqual(box.input_value(), "embeddings")
        self.gone(page.locator("tr[data-row]", has_text="chat/completions"))

    def test_a_swap_that_the_server_has_forgotten_is_no_error_to_retry(self) -> None:
        page = self.page("swap?id=999")
        page.get_by_text("The server no longer knows this swap").wait_for()
        self.assertEqual(page.get_by_role("button", name="Retry").count(), 0)

    def test_the_figures_above_the_requests_count_the_same_ones_as_the_table(self) -> None:
        page = self.page("requests")
        self.live(page)
        page.locator(".totals dd", has_text="420").wait_for()
        self.world.finish_a_request()
        page.get_by_role("heading", name="421 requests").wait_for()
        page.locator(".totals dd", has_text="421").wait_for()

    def test_requests_of_a_server_that_was_away_are_those_it_has_now(self) -> None:
        page = self.page("requests")
        self.live(page)
        page.get_by_role("heading", name="420 requests").wait_for()
        self.world.down = True
        page.locator(".linkmark.s-failed").wait_for()
        page.get_by_label("Status", exact=True).select_option("error")
        page.get_by_text("Requests: The server cannot be reached").wait_for()
        del self.world.rows[:]
        self.world.down = False
        page.get_by_text("No request matches these filters").wait_for()
        self.gone(page.get_by_text("The server cannot be reached"))
        page.locator(".totals dd").first.get_by_text("0", exact=True).wait_for()

    def test_a_message_that_was_not_sent_is_still_there_after_a_look_elsewhere(self) -> None:
        page = self.page("playground?tab=rerank")
        self.live(page)
        page.get_by_label("Query").fill("Which of them?")
        page.get_by_role("link", name="Chat", exact=True).click()
        box = page.get_by_role("textbox", name="Message")
        box.fill("half a thought")
        page.get_by_role("link", name="Models", exact=True).first.click()
        page.get_by_role("heading", name="Models", exact=True).wait_for()
        page.go_back()
        harness.until(lambda: box.input_value() == "half a thought")
        page.get_by_role("link", name="Rerank").click()
        harness.until(lambda: page.get_by_label("Query").input_value() == "Which of them?")

    def test_a_configuration_that_is_not_saved_is_still_there_after_a_look_elsewhere(self) -> None:
        page = self.page("config")
        page.locator(".cm-content").focus()
        page.keyboard.insert_text("# not saved\n")
        page.get_by_text("changed, not saved").wait_for()
        page.get_by_role("link", name="Models", exact=True).first.click()
        page.get_by_role("heading", name="Models", exact=True).wait_for()
        self.world.config += "# of another client\n"
        page.go_back()
        page.locator(".cm-content", has_text="# not saved").wait_for()
        page.get_by_role("button", name="Discard mine and read it again").click()
        page.locator(".cm-content", has_text="# of another client").wait_for()
        self.gone(page.locator(".cm-content", has_text="# not saved"))
        self.assertEqual(page.faults, [])

    def test_vendor_that_a_processor_is_named_with_is_shown_once(self) -> None:
        page = self.page("system?tab=hardware")
        page.get_by_text("AMD Ryzen 9 5950X", exact=True).wait_for()
        self.assertIn("CPU: AMD Ryzen 9 5950X, 16 cores", page.locator("pre.code").text_content())

    def test_a_configuration_that_is_not_saved_is_compared_with_one_that_was_saved_elsewhere(self) -> None:
        page = self.page("config")
        page.locator(".cm-content").focus()
        page.keyboard.insert_text("# not saved\n")
        page.get_by_text("changed, not saved").wait_for()
        self.world.config += "# of another client\n"
        page.get_by_role("link", name="Models", exact=True).first.click()
        page.get_by_role("heading", name="Models", exact=True).wait_for()
        page.go_back()
        page.get_by_role("button", name="Compare and keep mine").click()
        page.locator("dialog .diff .d-add", has_text="# not saved").wait_for()
        page.locator("dialog .diff .d-del", has_text="# of another client").wait_for()
        page.get_by_role("button", name="Back", exact=True).click()
        page.locator(".cm-content", has_text="# not saved").wait_for()
        self.gone(page.get_by_role("button", name="Discard mine and read it again"))
        self.assertEqual(page.faults, [])

    def test_a_save_that_the_server_refuses_leaves_its_reason_in_view(self) -> None:
        page = self.page("config")
        page.locator(".cm-content").focus()
        page.keyboard.insert_text("# mine\n")
        page.get_by_role("button", name="Review and save").click()
        self.world.config += "# of another client\n"
        page.get_by_role("button", name="Save and apply").click()
        page.get_by_role("alert").get_by_text("was reloaded").wait_for()
        self.gone(page.locator("dialog"))
        page.locator(".cm-content", has_text="# mine").wait_for()

    def test_documents_that_are_no_list_leave_the_reranking_page_whole(self) -> None:
        page = self.page("playground?tab=rerank")
        self.live(page)
        page.get_by_role("button", name="JSON").click()
        page.get_by_label("Documents as JSON").fill('{"a": 1}')
        page.get_by_role("button", name="Table").click()
        page.get_by_role("alert").get_by_text("must be a JSON list of strings").wait_for()
        page.get_by_label("Document 1", exact=True).wait_for()
        self.assertEqual(page.faults, [])

    def test_an_answer_that_was_stopped_by_who_asked_is_no_problem(self) -> None:
        self.world.rows[-1]["error_msg"] = "client disconnected"
        self.world.rows[-2]["error_msg"] = "no such tensor"
        page = self.page()
        page.locator(".notice", has_text="no such tensor").wait_for()
        self.assertEqual(page.locator(".notice", has_text="client disconnected").count(), 0)

    def test_response_that_failed_after_its_status_is_marked_as_failed(self) -> None:
        self.world.rows[-2] |= {"error_msg": "no such tensor", "resp_status_code": 200}
        page = self.page("requests")
        page.locator("tr[data-row]", has_text="no such tensor").locator(".chip.s-failed", has_text="200").wait_for()
        self.turn(page, "")
        page.locator(".notice", has_text="no such tensor").get_by_text("Failed response from").wait_for()

    def test_before_the_server_has_answered_nothing_is_said_to_be_well(self) -> None:
        context = self.context()
        context.route("**/api/version", lambda _: None)
        page = self.page("", context)
        panel = page.locator(".panel", has=page.get_by_role("heading", name="Attention"))
        panel.get_by_text("Waiting for the server").wait_for()
        self.assertEqual(panel.locator(".allwell").count(), 0)

    def test_the_sheet_of_further_pages_closes_at_a_tap_elsewhere(self) -> None:
        page = self.page("models", width=390)
        self.live(page)
        more = page.locator(".tabbar-more > button")
        sheet = page.locator(".more-sheet")
        # It listens once it is painted: what comes earlier is done again.
        for leave in (
            lambda: page.get_by_role("heading", name="Models", exact=True).click(),
            lambda: page.keyboard.press("Escape"),
        ):
            more.click()
            sheet.wait_for()
            harness.until(lambda act=leave: act() or sheet.count() == 0)
        more.click()
        sheet.wait_for()
        more.click()
        self.gone(sheet)

    def test_the_palette_does_what_every_typed_word_names(self) -> None:
        for name in ("family1-model-050", "family3-model-150"):
            self.world.add_model(name)
        page = self.page()
        self.live(page)
        page.keyboard.press("Control+k")
        page.get_by_label("Command", exact=True).fill("load 150")
        page.locator("[role=option]").first.get_by_text("Load family3-model-150", exact=True).wait_for()

    def test_unloading_several_that_is_not_confirmed_keeps_them_selected(self) -> None:
        page = self.page("models")
        box = page.get_by_label("Select gpt-oss-120b")
        box.check()
        page.get_by_role("button", name="Unload 1", exact=True).click()
        page.locator("dialog").get_by_role("button", name="Cancel").click()
        self.gone(page.locator("dialog"))
        self.assertTrue(box.is_checked())

    def test_a_long_name_or_a_long_line_makes_nothing_wider_than_the_screen(self) -> None:
        name = "a-very-long-model-name-" * 6 + "00001-of-00012.gguf"
        self.world.add_model(name)
        # Nothing is loaded, and by its name it comes first: the overview offers it as a button.
        self.world.states = dict.fromkeys(self.world.states, "stopped")
        page = self.page(width=390)
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        for tab in ("chat", "complete", "images", "speech", "transcription", "rerank", "embeddings"):
            self.turn(page, f"playground?tab={tab}")
            page.locator(f"nav a[href$='tab={tab}'][aria-current]").wait_for()
            page.get_by_label("model").first.select_option(name)
            self.assertLessEqual(page.evaluate(wide), 0, tab)
        for where in ("", "logs", "models", "requests"):
            self.turn(page, where)
            page.locator("main").get_by_text(name).first.wait_for(state="attached")
            self.assertLessEqual(page.evaluate(wide), 0, where)
        self.turn(page, "requests?open=420")
        page.locator("dialog").get_by_role("button", name="Raw", exact=True).click()
        page.locator("dialog").get_by_role("button", name="Raw", exact=True).last.click()
        page.locator("dialog pre.code").first.wait_for()
        self.assertTrue(page.evaluate("(b => b.scrollWidth <= b.clientWidth)(document.querySelector('.dialog-body'))"))

    def test_page_works_behind_a_path_prefix(self) -> None:
        page = self.page("../behind/a/prefix/ui/models")
        page.goto(f"{self.url}/behind/a/prefix/ui/models")
        self.live(page)
        page.locator("tr", has_text="gpt-oss-120b").first.wait_for()
        page.get_by_role("link", name="gpt-oss-120b", exact=True).first.click()
        page.get_by_role("heading", name="gpt-oss-120b", exact=True).wait_for()
        self.assertIn("/behind/a/prefix/ui/model?id=gpt-oss-120b", page.url)


class RealDefects(harness.RealCase):
    """Against the real server."""

    def test_twelve_requests_of_a_load_test_run_at_once(self) -> None:
        harness.say(self.url, "poet")
        page = self.page("playground?tab=loadtest")
        self.live(page)
        page.get_by_label("Model to test").select_option("poet")
        page.get_by_label("Parallel requests").fill("12")
        page.get_by_label("Requests", exact=True).fill("36")
        page.get_by_role("button", name="Run").click()
        page.locator("tbody tr", has_text="36/36").wait_for()
        rows = harness.ask(f"{self.url}/api/metrics/activity?limit=36")["data"]
        moments = []
        for row in rows:
            end = datetime.fromisoformat(row["timestamp"]).timestamp()
            moments += [(end - row["duration_ms"] / 1000, 1), (end, -1)]
        most = running = 0
        for _, step in sorted(moments):
            running += step
            most = max(most, running)
        self.assertGreaterEqual(most, 12)
        harness.until(lambda: page.locator(".gantt g").count() == 36)
        page.reload()
        page.locator(".gantt").get_by_role("button", name="Table").click()
        harness.until(lambda: page.locator(".gantt tbody tr").count() == 36)

    def test_the_line_with_the_cursor_is_readable_in_the_editor(self) -> None:
        if not harness.AXE.exists():
            self.skipTest("axe is not installed (npm ci in ui)")
        for theme in ("light", "dark"):
            page = self.page("config", theme=theme, bypass_csp=True)
            self.settled(page)
            for text in ("-I -S", "healthCheckTimeout: 15", "aliases:"):
                line = page.locator(".cm-line", has_text=text).first
                line.click(position={"x": 20, "y": 8})
                page.locator(".cm-activeLine", has_text=text).wait_for()
                with self.subTest(theme=theme, line=text):
                    self.assertEqual(self.axe(page), [])

    def test_a_bare_upstream_address_shows_the_models(self) -> None:
        page = self.page()
        page.goto(f"{self.url}/upstream")
        page.get_by_role("heading", name="Models", exact=True).wait_for()

    def test_an_address_that_leads_nowhere_says_so(self) -> None:
        page = self.page("models/poet")
        page.get_by_role("heading", name="poet", exact=True).wait_for()
        self.assertTrue(page.url.endswith("/ui/model?id=poet"))
        for where in ("nonsense", "no/such/page"):
            page.goto(f"{self.url}/ui/{where}")
            page.get_by_text(f"There is no page at /ui/{where}").wait_for()
        page.get_by_role("main").get_by_role("link", name="Overview").click()
        page.get_by_role("heading", name="Loaded now").wait_for()

    def test_static_files_are_packed_on_plain_http_and_kept_for_good(self) -> None:
        manifest = harness.ask(f"{self.url}/ui/manifest.json")
        request = urllib.request.Request(f"{self.url}/ui/{manifest['script']}", headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=harness.PATIENCE) as answer:
            self.assertEqual(answer.headers["Content-Encoding"], "gzip")
            self.assertIn("immutable", answer.headers["Cache-Control"])
            self.assertIn(b"import", gzip.decompress(answer.read()))
