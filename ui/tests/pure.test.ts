// The parts without a page: parsers, log lines, figures, differences, places in the configuration.
import { Draft } from "../src/lib/draft";
import assert from "node:assert/strict";
import { test } from "node:test";
import { axisTicks, needsLog, spread } from "../src/lib/axis";
import { Answer, messagesOf, requestTurns, responseAnswer, toolsAnswered } from "../src/lib/convo";
import { bytes, clock, count, duration, plainError, rate, shortFailure, time } from "../src/lib/format";
import { mostOf, phasesOf, usualPhases } from "../src/lib/phases";
import type { ActivityRow } from "../src/lib/types";
import { bySession } from "../src/lib/sessions";
import { parameters, sizeText, weight } from "../src/lib/size";
import { Hub } from "../src/lib/hub";
import { folded, lineDiff } from "../src/lib/linediff";
import { disabled, disabledEntries, enabled, insertUnder, without } from "../src/lib/insert";
import { type FormField, blockOf, entryOf, flagValue, flagsOf, formFields, withFlag } from "../src/lib/entry";
import { TimedText, findLine, lineHash, timeOf } from "../src/lib/logtimes";
import { Lines, ansi, level, matcher, plain } from "../src/lib/loglines";
import { type Schema, keysAt, pathAt, valuesAt } from "../src/lib/schema";
import { type Version, undoable } from "../src/lib/undoable";
import { SseParser } from "../src/lib/sse";

test("an event stream is read however it is cut and whatever ends its lines", () => {
  const text = "event: a\r\ndata: {\"x\":1}\r\n\r\n: beat\n\nid: 7\ndata:one\ndata: two\n\n";
  for (let size = 1; size < 12; size++) {
    const parser = new SseParser();
    const seen = [];
    for (let i = 0; i < text.length; i += size) seen.push(...parser.feed(text.slice(i, i + size)));
    assert.deepEqual(seen, [
      { event: "a", data: '{"x":1}', id: null },
      { event: "message", data: "one\ntwo", id: "7" },
    ]);
  }
});

test("the three chat protocols give one kind of answer", () => {
  const streams = [
    [
      { choices: [{ delta: { reasoning_content: "hm" } }] },
      { choices: [{ delta: { content: "Hel" } }] },
      { choices: [{ delta: { content: "lo" }, finish_reason: "stop" }], usage: { prompt_tokens: 3, completion_tokens: 2 } },
    ],
    [
      { type: "message_start", message: { usage: { input_tokens: 3 } } },
      { type: "content_block_delta", delta: { type: "thinking_delta", thinking: "hm" } },
      { type: "content_block_delta", delta: { type: "text_delta", text: "Hello" } },
      { type: "message_delta", delta: { stop_reason: "stop" }, usage: { output_tokens: 2 } },
    ],
    [
      { type: "response.reasoning_summary_text.delta", delta: "hm" },
      { type: "response.output_text.delta", delta: "Hello" },
      { type: "response.completed", response: { status: "stop", usage: { input_tokens: 3, output_tokens: 2 } } },
    ],
  ];
  for (const events of streams) {
    const answer = new Answer();
    for (const event of events) answer.take(event);
    assert.equal(answer.text, "Hello");
    assert.equal(answer.reasoning, "hm");
    assert.deepEqual([answer.usage.input, answer.usage.output, answer.usage.finish], [3, 2, "stop"]);
  }
});

test("tool calls are put together from their pieces", () => {
  const answer = new Answer();
  answer.take({ choices: [{ delta: { tool_calls: [{ index: 0, function: { name: "look", arguments: '{"a"' } }] } }] });
  answer.take({ choices: [{ delta: { tool_calls: [{ index: 0, function: { arguments: ":1}" } }] } }] });
  assert.deepEqual(answer.tools, [{ name: "look", args: '{"a":1}' }]);
});

test("captured bodies become turns", () => {
  assert.equal(requestTurns({ messages: [{ role: "user", content: [{ type: "text", text: "x" }] }] })?.[0]?.parts[0]?.text, "x");
  assert.equal(requestTurns({ instructions: "s", input: "q", max_output_tokens: 1 })?.length, 2);
  assert.equal(requestTurns({ query: "q" }), null);
  assert.equal(responseAnswer('data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n', "text/event-stream")?.text, "a");
  assert.equal(responseAnswer("not json", "text/plain"), null);
});

test("answers of tools in a captured request stand with their calls, in each dialect", () => {
  const dialects = {
    completions: {
      messages: [
        { role: "user", content: "weather?" },
        { role: "assistant", content: "", tool_calls: [{ id: "a", type: "function", function: { name: "look", arguments: '{"at":"Lima"}' } }, { id: "b", type: "function", function: { name: "look", arguments: "{}" } }] },
        { role: "tool", tool_call_id: "b", content: "dry" },
        { role: "tool", tool_call_id: "a", content: "warm" },
      ],
    },
    messages: {
      messages: [
        { role: "user", content: "weather?" },
        { role: "assistant", content: [{ type: "text", text: "I look." }, { type: "tool_use", id: "a", name: "look", input: { at: "Lima" } }] },
        { role: "user", content: [{ type: "tool_result", tool_use_id: "a", content: [{ type: "text", text: "warm" }] }] },
      ],
    },
    responses: {
      input: [
        { role: "user", content: [{ type: "input_text", text: "weather?" }] },
        { type: "function_call", call_id: "a", name: "look", arguments: '{"at":"Lima"}' },
        { type: "function_call", call_id: "b", name: "look", arguments: "{}" },
        { type: "function_call_output", call_id: "a", output: "warm" },
        { type: "function_call_output", call_id: "b", output: "dry" },
      ],
    },
  } as const;
  for (const endpoint of ["completions", "messages", "responses"] as const) {
    const messages = messagesOf(requestTurns(dialects[endpoint]) ?? []);
    assert.deepEqual(messages.map((message) => message.role), ["user", "assistant"], endpoint);
    assert.ok(messages[1] && toolsAnswered(messages[1]), endpoint);
    const [first] = messages[1]?.tools ?? [];
    assert.deepEqual([first?.id, first?.name, first?.result], ["a", "look", "warm"], endpoint);
    assert.deepEqual(JSON.parse(first?.args ?? ""), { at: "Lima" }, endpoint);
  }
});

test("figures that nobody reported are a dash, not minus one", () => {
  assert.equal(count(-1), "–");
  assert.equal(rate(0), "–");
  assert.equal(duration(null), "–");
  assert.equal(duration(65_000), "1:05");
  assert.equal(clock(3 * 86400), "3 d 0 h");
  assert.equal(bytes(1536), "1.5 KiB");
  assert.equal(time("2026-01-01T00:00:00.123456789Z"), Date.parse("2026-01-01T00:00:00.123Z"));
  assert.ok(Number.isNaN(time("")));
});

test("log text becomes lines; colours become styles, other escapes nothing", () => {
  const lines = new Lines();
  assert.deepEqual(lines.feed("a\nb"), ["a"]);
  assert.deepEqual(lines.feed("c\r\n10%\r20%\n"), ["bc", "20%"]);
  const spans = ansi("\x1b[1;31mred\x1b[0m \x1b[2Kplain");
  assert.equal(spans[0]?.style, "color:var(--ansi-red);font-weight:600;");
  assert.equal(plain("\x1b[1;31mred\x1b[0m \x1b[2Kplain"), "red plain");
  assert.equal(level("[ERROR] x"), "error");
  assert.equal(level("nothing"), "info");
  assert.equal(matcher("/a.c/")?.("xABCx"), true);
  assert.equal(matcher("/(/"), null);
});

test("a difference keeps what is common and folds what is far away", () => {
  const before = Array.from({ length: 30 }, (_, i) => `line ${i}`);
  const after = [...before];
  after[15] = "changed";
  const lines = lineDiff(before.join("\n"), after.join("\n"));
  assert.deepEqual(lines.filter((line) => line.kind !== "same").map((line) => line.text), ["line 15", "changed"]);
  assert.equal(folded(lines).filter((line) => line === null).length, 2);
});

test("a place in the configuration knows its keys and values", () => {
  const root: Schema = {
    properties: {
      logLevel: { enum: ["debug", "info"] },
      models: { additionalProperties: { $ref: "#/$defs/model" } },
    },
    $defs: { model: { properties: { cmd: { type: "string", description: "What to run." }, unlisted: { type: "boolean" } } } },
  };
  const lines = ["models:", "  tiny:", "    cmd: x", "    "];
  assert.deepEqual(pathAt(lines, 3, 4), ["models", "tiny"]);
  assert.deepEqual(keysAt(root, ["models", "tiny"]).map((offer) => offer.label), ["cmd", "unlisted"]);
  assert.deepEqual(valuesAt(root, ["logLevel"]), ["debug", "info"]);
  assert.deepEqual(valuesAt(root, ["models", "tiny", "unlisted"]), ["true", "false"]);
});

test("what was typed last is never overwritten by an answer asked for before", () => {
  const draft = new Draft();
  const first = draft.ask();
  assert.equal(first({ text: "a: 1", tag: "1" }), true);
  const late = draft.ask();
  draft.typed("a: 2");
  assert.equal(late({ text: "a: 3", tag: "3" }), false);
  assert.equal(draft.text.value, "a: 2");
  assert.equal(draft.outside.value, true);
  assert.equal(draft.ask()({ text: "a: 3", tag: "3" }), true);
  assert.deepEqual([draft.text.value, draft.dirty.value, draft.outside.value], ["a: 3", false, false]);
});

test("what was thrown away does not come back", () => {
  const draft = new Draft();
  draft.ask()({ text: "a: 1", tag: "1" });
  draft.typed("a: 7");
  const late = draft.ask();
  assert.equal(draft.discard(), "a: 1");
  assert.equal(late({ text: "a: 7", tag: "7" }), false);
  const older = draft.ask();
  const newer = draft.ask();
  assert.equal(newer({ text: "b", tag: "b" }), true);
  assert.equal(older({ text: "c", tag: "c" }), false);
  draft.typed("d");
  draft.saved("d", "d");
  assert.deepEqual([draft.dirty.value, draft.shown.value?.tag], [false, "d"]);
});

test("what is typed while a save is under way is not taken for saved", () => {
  const draft = new Draft();
  draft.ask()({ text: "a: 1", tag: "1" });
  draft.typed("a: 2");
  const sent = draft.text.value;
  draft.typed("a: 23");
  draft.saved(sent, "2");
  assert.deepEqual([draft.text.value, draft.dirty.value, draft.shown.value], ["a: 23", true, { text: "a: 2", tag: "2" }]);
});

test("a block goes below its section, indented as its neighbours, and nothing else is touched", () => {
  const block = "  new:\n    cmd: x\n";
  assert.equal(insertUnder("", "models", block), "models:\n  new:\n    cmd: x\n");
  assert.equal(insertUnder("logLevel: info\n", "models", block), "logLevel: info\n\nmodels:\n  new:\n    cmd: x\n");
  assert.equal(insertUnder("models: {} # none yet\n", "models", block), "models:\n  new:\n    cmd: x\n");
  assert.equal(insertUnder("models: {a: {cmd: y}}\n", "models", block), null);
  const text = "# mine\nmodels:\n    a:\n        cmd: y # here\n\n# about peers\npeers:\n  p: {}\n";
  const after = "# mine\nmodels:\n    a:\n        cmd: y # here\n    new:\n      cmd: x\n\n# about peers\npeers:\n  p: {}\n";
  assert.equal(insertUnder(text, "models", block), after);
  assert.equal(insertUnder(text.replaceAll("\n", "\r\n"), "models", block), after);
});

test("only the last save can be undone, by the version before it", () => {
  const version = (id: string, why: string, in_force = false): Version => ({ id, why, in_force, time: "", size: 1 });
  assert.equal(undoable([]), null);
  assert.equal(undoable([version("2", "saved", true), version("1", "found")])?.id, "1");
  assert.equal(undoable([version("3", "restored", true), version("2", "saved")]), null);
  assert.equal(undoable([version("2", "saved"), version("1", "found")]), null);
});

test("lines keep the times they were written at, also for a tab that comes later", () => {
  const log = new TimedText(1000);
  log.addHistory("old\na\nb\n", [[1, 5000]]);
  log.add("c\nd", 9000);
  log.add("d\n", 9500);
  assert.equal(log.text(), "old\na\nb\nc\ndd\n");
  const marks = log.times();
  assert.deepEqual(marks, [[0, 0], [1, 5000], [3, 9000]]);
  assert.deepEqual([0, 1, 2, 3, 4].map((line) => timeOf(line, marks)), [0, 5000, 5000, 9000, 9000]);
  for (let i = 0; i < 500; i++) log.add(`line ${i}\n`, 10_000 + i * 1000);
  assert.ok(log.text().length <= 1500);
  assert.ok(log.text().endsWith("line 499\n"));
});

test("an address of a line finds it by its text and time, a request its first line", () => {
  const lines = [{ text: "x", at: 0 }, { text: "same", at: 1000 }, { text: "y", at: 2000 }, { text: "same", at: 3000 }];
  assert.equal(findLine(lines, 2900, lineHash("same")), 3);
  assert.equal(findLine(lines, 900, lineHash("same")), 1);
  assert.equal(findLine(lines, 1500, ""), 2);
  assert.equal(findLine(lines, 4000, ""), -1);
  assert.equal(findLine(lines, 4000, lineHash("gone")), -1);
});

test("requests of one session are one group, in the order of its first", () => {
  const entries = [["a", "1"], ["", "2"], ["b", "3"], ["a", "4"], ["", "5"]] as const;
  const groups = bySession(entries, ([session]) => session);
  assert.deepEqual(groups.map((group) => [group.session, group.entries.map(([, id]) => id).join("")]), [["a", "14"], ["", "2"], ["", "3"], ["", "5"]]);
});

test("the size of a model is what it was seen to take, else what its name tells", () => {
  assert.equal(parameters("qwen3-30b-a3b"), 30);
  assert.equal(parameters("mixtral-8x7B-instruct"), 56);
  assert.equal(parameters("SmolLM2-135M"), 0.135);
  assert.equal(parameters("org/llama-3.2-1.5b"), 1.5);
  assert.equal(parameters("parrot", "Phi 4 14B"), 14);
  assert.equal(parameters("bge-m3"), 0);
  assert.deepEqual([sizeText(0.135), sizeText(8), sizeText(0)], ["135M", "8B", "–"]);
  assert.ok(weight(21_300, 0) > weight(0, 8));
});

test("a log that was left and is opened again is asked for whole, not from the last event on", async () => {
  const asked: (string | undefined)[] = [];
  const lines = ["one", "two", "three"];
  const usual = globalThis.fetch;
  globalThis.fetch = (async (address: string, init: { headers: Record<string, string> }) => {
    asked.push(init.headers["Last-Event-ID"]);
    const source = /logs%3A(\w+)/.exec(address)?.[1];
    const data = JSON.stringify({ type: "logData", data: { source, data: `${lines.shift()}\n`, reset: true } });
    return new Response(new ReadableStream({ start: (out) => out.enqueue(new TextEncoder().encode(`id:${asked.length}\ndata:${data}\n\n`)) }));
  }) as typeof fetch;
  const hub = new Hub();
  const number = hub.join(() => undefined);
  const settle = () => new Promise((done) => setTimeout(done, 5));
  try {
    hub.handle(number, { kind: "hello", prefix: "http://x/", key: "", topics: ["logs:a"] });
    await settle();
    for (const topic of ["logs:b", "logs:a"]) {
      hub.handle(number, { kind: "topics", topics: [topic] });
      await settle();
    }
    assert.deepEqual(asked, [undefined, undefined, undefined]);
    hub.handle(number, { kind: "retry" });
    await settle();
    assert.equal(asked[3], "3");
  } finally {
    hub.handle(number, { kind: "bye" });
    globalThis.fetch = usual;
  }
});

test("a failure is short enough for a table and says what it was", () => {
  const short = {
    "upstream command exited prematurely (exit status 3)": "exit 3",
    "upstream command exited unexpectedly (signal SIGSEGV)": "signal SIGSEGV",
    "health check timed out after 2m0s": "timed out",
    "failed to start command '/no/such 5901': /no/such: no such executable file": "no such executable file",
    "port 5800 is in use": "port 5800 is in use",
  };
  for (const [text, expected] of Object.entries(short)) assert.equal(shortFailure(text), expected);
  assert.equal(plainError("unspecific error: no weights"), "no weights");
});

test("the phases of a request add up to its duration", () => {
  const row = (more: object, tokens: object = {}) =>
    ({ duration_ms: 10_000, tokens: { input_tokens: 100, output_tokens: 5, prompt_per_second: -1, ...tokens }, ...more }) as unknown as ActivityRow;
  const show = (item: ActivityRow) => phasesOf(item).map((part) => `${part.name} ${part.ms}`).join(" ");
  const slow = row({ queued_ms: 1000, loaded_ms: 6000, ttft_ms: 7500 });
  assert.equal(show(slow), "queue 1000 load 6000 prefill 500 decode 2500");
  assert.equal(mostOf(slow), "Most of the time its model was being loaded: 6.00 s of 10.0 s.");
  assert.equal(show(row({}, { prompt_per_second: 50 })), "prefill 2000 decode 8000");
  assert.equal(show(row({ loaded_ms: 99_000 })), "load 10000");
  assert.equal(show(row({})), "answer 10000");
  assert.equal(show(row({ ttft_ms: 12_000 })), "prefill 10000");
  // One cold request of three makes a load no usual part.
  const usual = usualPhases([slow, row({ ttft_ms: 400 }), row({ ttft_ms: 600 })]);
  assert.deepEqual([usual.get("prefill"), usual.get("load")], [500, undefined]);
});

test("a scale is logarithmic if values span more than twenty times, and labels at line ends stay apart", () => {
  const line = (...values: (number | null)[]) => ({ label: "a", values });
  assert.equal(needsLog([line(1, 25)]), true);
  assert.equal(needsLog([line(2, null, 3), line(30)]), false);
  assert.equal(needsLog([line(0, 90)]), false);
  assert.equal(needsLog([line()]), false);
  assert.deepEqual(spread([50, 10, 51], 120), [50, 10, 62]);
  assert.deepEqual(spread([100, 99], 100), [100, 88]);
  assert.deepEqual(axisTicks(0, 60_000), [0, 15_000, 30_000, 45_000]);
});

test("an entry is taken apart and written again as it was", () => {
  const block = "  # /models\n  \"3b\":\n    cmd: |\n      llama-server\n      --port ${PORT}\n      -m \"/a b/x.gguf\"\n    checkEndpoint: /\n";
  const entry = entryOf(block);
  assert.deepEqual(entry, { id: "3b", cmd: 'llama-server\n--port ${PORT}\n-m "/a b/x.gguf"', values: { checkEndpoint: "/" }, rest: [] });
  assert.equal(blockOf(entry, []), block.replace("  # /models\n", ""));
  const fields: FormField[] = [
    { key: "ttl", kind: "number", info: "", choices: [] },
    { key: "aliases", kind: "list", info: "", choices: [] },
  ];
  const more = { ...entry, values: { ttl: "60", aliases: "a\n\n7", name: "yes", description: "" } };
  assert.match(blockOf(more, fields), /    ttl: 60\n    aliases:\n      - a\n      - "7"\n    name: "yes"\n$/);
});

test("aliases, a system prompt and parameters of a model that Ollama has stay out of its command", () => {
  const filters = '    filters:\n      systemPrompt: "You are terse"\n      setParams:\n        stop?: ["<|im_end|>"]  # if the client sends none\n';
  const head = '  qwen3-8b:\n    cmd: |\n      llama-server\n      --port ${PORT}\n      -m /blobs/sha256-1\n';
  const entry = entryOf(`  # Ollama: qwen3:8b\n${head}    aliases: ["qwen3:8b", small]\n${filters}`);
  assert.equal(entry.cmd, "llama-server\n--port ${PORT}\n-m /blobs/sha256-1");
  assert.equal(entry.values.aliases, "qwen3:8b\nsmall");
  const fields: FormField[] = [{ key: "aliases", kind: "list", info: "", choices: [] }];
  assert.equal(blockOf(entry, fields), `${head}    aliases:\n      - "qwen3:8b"\n      - small\n${filters}`);
});

test("a flag of a command is read, changed, added and taken out", () => {
  const cmd = "llama-server\n--port ${PORT}\n-c 4096\n-m x.gguf";
  const { context, layers } = flagsOf(cmd);
  assert.equal(flagValue(cmd, context), "4096");
  assert.equal(withFlag(cmd, context, "8192"), cmd.replace("4096", "8192"));
  assert.equal(withFlag(cmd, context, ""), "llama-server\n--port ${PORT}\n-m x.gguf");
  assert.equal(withFlag(cmd, layers, "99"), `${cmd}\n--n-gpu-layers 99`);
  assert.deepEqual(flagsOf("ollama serve").context, []);
});

test("the form has the simple keys of a model, by the schema", () => {
  const model = {
    properties: {
      cmd: { type: "string" },
      ttl: { anyOf: [{ type: "integer" }, { type: "string" }], description: "Idle seconds." },
      unlisted: { anyOf: [{ type: "boolean" }, { type: "string" }] },
      policy: { type: "string", enum: ["", "a", "b"] },
      aliases: { type: ["array", "null"], items: { type: "string" } },
      gpus: { anyOf: [{ const: "auto" }, { type: "integer" }, { type: "array", items: { type: "integer" } }] },
      filters: { allOf: [{ $ref: "#/definitions/Filters" }] },
    },
  };
  const schema = { properties: { models: { type: ["object", "null"], additionalProperties: { $ref: "#/definitions/Model" } } }, definitions: { Model: model, Filters: { type: "object", properties: {} } } };
  const kinds = Object.fromEntries(formFields(schema as Schema).map((field) => [field.key, field.kind]));
  assert.deepEqual(kinds, { ttl: "number", unlisted: "flag", policy: "choice", aliases: "list", gpus: "number" });
});

test("an entry is deleted, disabled and enabled without touching the rest", () => {
  const text = "models:\n  # the first\n  \"a\":\n    cmd: |\n      x\n\n      y\n    ttl: 3\n  b:\n    cmd: z\n# end\ngroups: {}\n";
  assert.equal(without(text, "models", "a"), "models:\n  # the first\n  b:\n    cmd: z\n# end\ngroups: {}\n");
  assert.equal(without(text, "models", "c"), null);
  assert.equal(without("models: {a: {cmd: x}}\n", "models", "a"), null);
  const off = disabled(disabled(text, "models", "a") ?? "", "models", "b") ?? "";
  assert.match(off, /\n  #off "a":\n    #off cmd: \|\n/);
  assert.equal(without(off, "models", "a"), null);
  assert.deepEqual(disabledEntries(off).map((entry) => entry.name), ["a", "b"]);
  assert.equal(enabled(enabled(off, "a"), "b"), text);
});
