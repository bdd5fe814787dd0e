// Pages are one path segment below /ui/, parameters are in the query. One level keeps every relative address
// right behind any path prefix, without a <base> element.
import { signal } from "@preact/signals";

export interface Route {
  page: string;
  query: URLSearchParams;
}

const OLD: Record<string, string> = { activity: "requests", performance: "system", hardware: "system", settings: "system" };

/** What the navigation leads to, with the key that follows g. */
export const NAV = [
  { page: "", label: "Overview", icon: "overview", key: "o" },
  { page: "models", label: "Models", icon: "models", key: "m" },
  { page: "requests", label: "Requests", icon: "requests", key: "r" },
  { page: "playground", label: "Playground", icon: "playground", key: "p" },
  { page: "logs", label: "Logs", icon: "logs", key: "l" },
  { page: "usage", label: "Usage", icon: "usage", key: "u" },
  { page: "config", label: "Config", icon: "config", key: "c" },
  { page: "system", label: "System", icon: "system", key: "s" },
] as const;

/** Every page there is; "" is the overview. */
const PAGES = new Set(["", "models", "model", "add", "requests", "swap", "playground", "logs", "usage", "config", "system"]);

/** The page of an address that leads nowhere. */
export const NOWHERE = "?";

function uiRoot(): string {
  const match = /^(.*\/ui)(?:\/|$)/.exec(location.pathname);
  return `${match ? match[1] : "/ui"}/`;
}

export const root = uiRoot();
/** Where the API lives: the page's address without ui/. */
export const prefix = root.slice(0, -3);

function parse(): Route {
  // Addresses of the Go program's interface: /ui/#/models/some/id
  if (location.hash.startsWith("#/")) {
    const [path = "", search = ""] = location.hash.slice(2).split("?");
    const [first = "", ...rest] = path.split("/");
    return moved(first, rest, new URLSearchParams(search));
  }
  const rest = location.pathname.slice(root.length).replace(/\/+$/, "");
  const [first = "", ...more] = rest.split("/");
  const query = new URLSearchParams(location.search);
  return PAGES.has(first) && !more.length ? { page: first, query } : moved(first, more, query);
}

/** An address that is written differently now: the page it means, with its own address. */
function moved(first: string, rest: string[], query: URLSearchParams): Route {
  let page = OLD[first] ?? first;
  if (first === "models" && rest.length) {
    page = "model";
    query.set("id", decoded(rest.join("/")));
  } else if (!PAGES.has(page) || rest.length) return { page: NOWHERE, query: new URLSearchParams() };
  history.replaceState(null, "", href(page, Object.fromEntries(query)));
  return { page, query };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export type Params = Record<string, string | number | boolean | null | undefined>;

export function href(page: string, params: Params = {}): string {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(params)) {
    if (value !== null && value !== undefined && value !== "" && value !== false) query.set(key, String(value));
  }
  const text = query.toString();
  return `${root}${page}${text ? `?${text}` : ""}`;
}

export const route = signal<Route>(parse());

addEventListener("popstate", () => { route.value = parse(); });

export function go(page: string, params: Params = {}): void {
  history.pushState(null, "", href(page, params));
  route.value = parse();
  scrollTo(0, 0);
}

/** Changes some parameters of the page that is open; null removes one. An entry of its own has a state: Back undoes it. */
export function setQuery(changes: Params, replace = true): void {
  const { page, query } = route.value;
  const merged: Params = Object.fromEntries(query);
  Object.assign(merged, changes);
  const address = href(page, merged);
  history[replace ? "replaceState" : "pushState"](replace ? history.state : 1, "", address);
  route.value = parse();
}

/** Plain left clicks on our own links stay in the page. */
export function followLinks(event: MouseEvent): void {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = (event.target as Element | null)?.closest?.("a[href]");
  if (!(link instanceof HTMLAnchorElement) || link.target || link.hasAttribute("download")) return;
  if (link.origin !== location.origin || !link.pathname.startsWith(root) || link.hash) return;
  if (/\.[a-z]+$/.test(link.pathname)) return;
  event.preventDefault();
  history.pushState(null, "", link.href);
  route.value = parse();
  scrollTo(0, 0);
}
