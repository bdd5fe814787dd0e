// A live log: lines are appended to the document and never rendered again, so that text stays selected.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { count } from "./format";
import { type Mark, findLine, lineHash, timeOf } from "./logtimes";
import { type Level, LEVELS, Lines, ansi, level, matcher, plain } from "./loglines";
import { on, subscribe, whyUnknown } from "./link";
import { pref } from "./prefs";
import { Icon } from "./icons";
import { Btn, CopyButton, IconButton, copyText, saveFile } from "./widgets";

const KEPT = 5000;

interface Line {
  source: string;
  text: string;
  at: number;
  level: Level;
  row: HTMLDivElement | null;
}

const wrap = pref<boolean>("log.wrap", false);
const stamps = pref<boolean>("log.stamps", true);
const fontSize = pref<number>("log.font", 12);
const floor = pref<Level>("log.level", "debug");

/** A place in the logs: a time, until when (of a request), and the hash of a line (of a link to it). */
export interface Place {
  at: number;
  to: number;
  line: string;
}

interface Props {
  sources: string[];
  title?: string;
  compact?: boolean;
  initial?: string;
  onFilter?: (text: string) => void;
  place?: Place | null;
  onPick?: (place: Place | null) => void;
}

export function LogView(props: Props) {
  const pane = useRef<HTMLDivElement>(null);
  const store = useRef({ lines: [] as Line[], held: [] as Line[], parts: new Map<string, Lines>(), stale: new Set<string>() });
  const include = useSignal(props.initial ?? "");
  const exclude = useSignal("");
  const search = useSignal("");
  const paused = useSignal(false);
  const held = useSignal(0);
  const away = useSignal(false);
  const total = useSignal(0);
  const hits = useSignal(0);
  const hit = useSignal(-1);
  const picked = useSignal<Line | null>(null);
  const sought = useRef<Place | null>(props.place ?? null);
  const reach = useSignal("");
  const many = props.sources.length > 1;
  const key = props.sources.join("\n");

  const passes = (line: Line): boolean => {
    if (LEVELS.indexOf(line.level) < LEVELS.indexOf(floor.peek())) return false;
    const bare = plain(line.text);
    const wanted = matcher(include.peek());
    if (wanted && !wanted(bare)) return false;
    const unwanted = exclude.peek().trim() ? matcher(exclude.peek()) : null;
    return !unwanted?.(bare);
  };

  const rowOf = (line: Line): HTMLDivElement => {
    const row = document.createElement("div");
    row.className = `ln l-${line.level}`;
    const span = props.place;
    if (span?.to && line.at >= span.at - 1000 && line.at <= span.to + 1000) row.classList.add("within");
    if (line.at) row.dataset.at = new Date(line.at).toLocaleTimeString("en-GB");
    if (many) {
      const prefix = document.createElement("span");
      prefix.className = `src c${(parseInt(lineHash(line.source), 36) % 6) + 1}`;
      prefix.textContent = `${line.source} `;
      row.append(prefix);
    }
    for (const span of ansi(line.text)) {
      if (!span.style) row.append(span.text);
      else {
        const element = document.createElement("span");
        element.setAttribute("style", span.style);
        element.textContent = span.text;
        row.append(element);
      }
    }
    return row;
  };

  const atTail = (): boolean => {
    const box = pane.current;
    return !box || box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  };

  const toTail = (): void => {
    pane.current?.scrollTo(0, pane.current.scrollHeight);
    away.value = false;
  };

  // A whole log that comes anew takes the place of these sources' lines.
  const forget = (sources: ReadonlySet<string>): void => {
    for (const line of store.current.lines) if (sources.has(line.source)) line.row?.remove();
    store.current.lines = store.current.lines.filter((line) => !sources.has(line.source));
  };

  const append = (fresh: Line[]): void => {
    const box = pane.current;
    if (!box || !fresh.length) return;
    const follow = atTail();
    const part = document.createDocumentFragment();
    for (const line of fresh) {
      if (!passes(line)) continue;
      line.row = rowOf(line);
      part.append(line.row);
    }
    box.append(part);
    const { lines } = store.current;
    lines.push(...fresh);
    if (lines.length > KEPT) for (const old of lines.splice(0, lines.length - KEPT)) old.row?.remove();
    total.value = lines.length;
    if (follow) toTail();
    else away.value = true;
  };

  const mark = (line: Line | null): void => {
    for (const row of pane.current?.querySelectorAll(".picked") ?? []) row.classList.remove("picked");
    picked.value = line;
    line?.row?.classList.add("picked");
  };

  // The place of the address, as soon as the lines are here. It is sought again when they are sent anew.
  const seek = (): void => {
    const place = sought.current;
    if (!place) return;
    const { lines } = store.current;
    const found = lines[findLine(lines, place.to ? place.at - 1000 : place.at, place.line)];
    const first = lines.find((line) => line.at)?.at ?? 0;
    const day = new Date(place.at).toLocaleTimeString("en-GB");
    if (!found) reach.value = lines.length ? `The log has nothing ${place.line ? "of" : "since"} ${day} any more` : "";
    else reach.value = !place.line && first > place.at ? `The log does not reach back to ${day}` : "";
    if (!found?.row) return;
    if (place.line) mark(found);
    found.row.scrollIntoView({ block: "center" });
    away.value = !atTail();
  };

  const redraw = (): void => {
    const box = pane.current;
    if (!box) return;
    const part = document.createDocumentFragment();
    for (const line of store.current.lines) {
      line.row = passes(line) ? rowOf(line) : null;
      if (line.row) part.append(line.row);
    }
    box.replaceChildren(part);
    toTail();
    mark(picked.peek());
    seek();
  };

  useEffect(() => {
    store.current = { lines: [], held: [], parts: new Map(), stale: new Set() };
    total.value = 0;
    held.value = 0;
    pane.current?.replaceChildren();
    const stops = props.sources.map((source) => subscribe(`logs:${source}`));
    stops.push(
      on<{ source: string; data: string; reset?: boolean; times?: Mark[] }>("logData", (log) => {
        if (!props.sources.includes(log.source)) return;
        const lines = store.current.parts.get(log.source) ?? new Lines();
        store.current.parts.set(log.source, lines);
        const read = atTail() ? null : (pane.current?.scrollTop ?? null);
        if (log.reset) {
          lines.reset();
          store.current.held = store.current.held.filter((line) => line.source !== log.source);
          // Who pauses wants to read what is there; it goes when the rest comes.
          if (paused.peek()) store.current.stale.add(log.source);
          else forget(new Set([log.source]));
        }
        const now = Date.now();
        const fresh = lines.feed(log.data).map((text, i) => ({ source: log.source, text, at: log.reset ? timeOf(i, log.times ?? []) : now, level: level(text), row: null }));
        if (paused.peek()) {
          store.current.held = [...store.current.held, ...fresh].slice(-KEPT);
          held.value = store.current.held.length;
        } else append(fresh);
        if (!log.reset) return;
        // Several histories become one, as far as their times are known.
        if (many) store.current.lines.sort((a, b) => a.at - b.at);
        if (many) redraw();
        if (read !== null) {
          pane.current?.scrollTo(0, read);
          away.value = true;
        }
        seek();
      }),
    );
    return () => stops.forEach((stop) => stop());
  }, [key]);

  const filters = [include.value, exclude.value, floor.value].join("\n");
  const drawn = useRef(filters);
  useEffect(() => {
    const timer = setTimeout(() => {
      if (filters === drawn.current) return; // what was drawn as it came stays, and what is selected of it
      drawn.current = filters;
      redraw();
      props.onFilter?.(include.value);
    }, 150);
    return () => clearTimeout(timer);
  }, [filters]);

  const rows = (): HTMLElement[] => {
    const wanted = search.peek().toLowerCase();
    return wanted ? ([...(pane.current?.children ?? [])] as HTMLElement[]).filter((row) => row.textContent?.toLowerCase().includes(wanted)) : [];
  };
  const step = (by: number): void => {
    const all = rows();
    hits.value = all.length;
    for (const row of pane.current?.querySelectorAll(".hit") ?? []) row.classList.remove("hit");
    hit.value = !all.length ? -1 : hit.value < 0 ? (by > 0 ? 0 : all.length - 1) : (hit.value + by + all.length) % all.length;
    const row = all[hit.value];
    if (!row) return;
    row.classList.add("hit");
    row.scrollIntoView({ block: "center" });
    if (props.onPick) {
      mark(null);
      choose(store.current.lines.find((line) => line.row === row) ?? null);
    }
    paint(all, search.peek().toLowerCase());
  };
  const resume = (): void => {
    paused.value = false;
    const waiting = store.current.held;
    store.current.held = [];
    held.value = 0;
    forget(store.current.stale);
    store.current.stale.clear();
    append(waiting);
  };
  const pick = (event: MouseEvent): void => {
    const row = (event.target as Element).closest<HTMLElement>(".ln");
    if (!row || !props.onPick || getSelection()?.toString()) return;
    choose(store.current.lines.find((line) => line.row === row) ?? null);
  };
  const choose = (line: Line | null): void => {
    sought.current = null;
    mark(line === picked.peek() ? null : line);
    const now = picked.peek();
    props.onPick?.(now ? { at: now.at, to: 0, line: lineHash(now.text) } : null);
  };
  const text = (): string => store.current.lines.filter((line) => line.row).map((line) => plain(line.text)).join("\n");
  const valid = matcher(include.value) !== null && matcher(exclude.value) !== null;

  return (
    <div class={`logview ${props.compact ? "compact" : ""}`}>
      <div class="toolbar" role="toolbar" aria-label="Log">
        <input
          class="input small grow"
          type="search"
          data-filter
          aria-label="Show lines that contain"
          placeholder="Show lines with… or /regex/"
          aria-invalid={!valid}
          value={include.value}
          onInput={(event) => (include.value = event.currentTarget.value)}
        />
        {!props.compact && (
          <>
            <input
              class="input small hide-phone"
              type="search"
              aria-label="Hide lines that contain"
              placeholder="Hide lines with…"
              value={exclude.value}
              onInput={(event) => (exclude.value = event.currentTarget.value)}
            />
            <div class="row find">
              <input
                class="input small"
                type="search"
                aria-label="Find in log"
                placeholder="Find…"
                value={search.value}
                onInput={(event) => {
                  search.value = event.currentTarget.value;
                  hit.value = -1;
                  hits.value = rows().length;
                  paint(rows(), search.value.toLowerCase());
                }}
                onKeyDown={(event) => { if (event.key === "Enter") step(event.shiftKey ? -1 : 1); }}
              />
              <span class="num muted" aria-live="polite">{search.value ? `${hit.value + 1}/${hits.value}` : ""}</span>
              <IconButton icon="left" label="Previous match" onClick={() => step(-1)} disabled={!search.value} />
              <IconButton icon="right" label="Next match" onClick={() => step(1)} disabled={!search.value} />
            </div>
          </>
        )}
        <select class="input small" aria-label="Lowest level" value={floor.value} onChange={(event) => (floor.value = event.currentTarget.value as Level)}>
          <option value="debug">all levels</option>
          <option value="info">info and up</option>
          <option value="warn">warnings</option>
          <option value="error">errors</option>
        </select>
        <IconButton
          icon={paused.value ? "play" : "pause"}
          label={paused.value ? `Resume, ${held.value} lines held` : "Pause"}
          pressed={paused.value}
          onClick={() => (paused.value ? resume() : (paused.value = true))}
        />
        <IconButton icon="wrap" label="Wrap long lines" pressed={wrap.value} onClick={() => (wrap.value = !wrap.value)} />
        {!props.compact && (
          <>
            <button type="button" class="btn small hide-phone" aria-pressed={stamps.value} onClick={() => (stamps.value = !stamps.value)}>Times</button>
            <Btn small class="hide-phone" aria-label={`${fontSize.value} px text size`} onClick={() => (fontSize.value = fontSize.value >= 16 ? 11 : fontSize.value + 1)}>{fontSize.value} px</Btn>
            <IconButton icon="copy" label="Copy the lines shown" onClick={() => void copyText(text())} />
            <IconButton icon="download" label="Download the lines shown" onClick={() => saveFile(`${props.sources.join("+")}.log`, `${text()}\n`)} />
            <IconButton icon="trash" label="Clear this view" onClick={() => (forget(new Set(props.sources)), (total.value = 0))} />
          </>
        )}
      </div>
      <div class="logwrap">
        <div
          ref={pane}
          class={`log ${wrap.value ? "wrapped" : ""} ${stamps.value ? "stamped" : ""}`}
          style={{ fontSize: `${fontSize.value}px` }}
          tabIndex={0}
          role="log"
          aria-live="off"
          aria-label={props.title ?? `Log of ${props.sources.join(", ")}`}
          onClick={pick}
          onWheel={() => (sought.current = null)}
          onTouchMove={() => (sought.current = null)}
          onKeyDown={() => (sought.current = null)}
          onScroll={() => { if (atTail()) away.value = false; }}
        />
        {(reach.value || picked.value) && (
          <div class="log-note" role="status">
            {picked.value ? `Line of ${picked.value.at ? new Date(picked.value.at).toLocaleTimeString("en-GB") : "an unknown time"}` : reach.value}
            {picked.value && <CopyButton text={() => location.href} label="Copy a link to this line" />}
            <IconButton icon="close" size={13} label={picked.value ? "Leave this line" : "Close"} onClick={() => (picked.value ? choose(picked.value) : (reach.value = ""))} />
          </div>
        )}
        {!total.value && <p class="log-empty muted">{whyUnknown("No lines yet")}</p>}
        {(away.value || paused.value) && (
          <button type="button" class="btn small primary tail" onClick={() => (paused.value ? resume() : undefined, toTail())}>
            <Icon name="bottom" size={14} /> {paused.value ? `Resume (${count(held.value)} held)` : "Newest"}
          </button>
        )}
      </div>
    </div>
  );
}

/** Marks matches without touching the document, where the browser can. */
function paint(rows: HTMLElement[], wanted: string): void {
  const registry = (CSS as unknown as { highlights?: Map<string, unknown> }).highlights;
  const Make = (globalThis as unknown as { Highlight?: new (...ranges: Range[]) => unknown }).Highlight;
  if (!registry || !Make) return;
  registry.delete("found");
  if (!wanted) return;
  const ranges: Range[] = [];
  for (const row of rows.slice(0, 2000)) {
    const walker = document.createTreeWalker(row, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const text = node.textContent?.toLowerCase() ?? "";
      for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
        const range = document.createRange();
        range.setStart(node, at);
        range.setEnd(node, at + wanted.length);
        ranges.push(range);
      }
    }
  }
  registry.set("found", new Make(...ranges));
}
