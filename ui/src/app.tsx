// The shell: navigation, header, banner, dialogs, keys, and the page that the address names.
import { useSignal } from "@preact/signals";
import type { ComponentType } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { switchProfile, switching } from "./lib/actions";
import { type ApiError, askForKey, declineKey, get, keyNeeded } from "./lib/api";
import { clockTime, seconds } from "./lib/format";
import { Icon } from "./lib/icons";
import { KeyForm } from "./lib/keyform";
import { helpOpen, installKeys, paletteOpen } from "./lib/keys";
import { reopened, retry, stale, start, status } from "./lib/link";
import { part, whyMissing } from "./lib/parts";
import { type Theme, darkNow, theme, title } from "./lib/prefs";
import { NAV, NOWHERE, followLinks, href, route } from "./lib/router";
import { inflight, profiles } from "./lib/state";
import { Btn, Confirm, Dialog, Empty, Guard, IconButton, Problem, Spinner, Toasts } from "./lib/widgets";
import { Overview } from "./pages/overview";

type Page = ComponentType;
const LAZY: Record<string, () => Promise<Page>> = {
  models: () => import("./pages/models").then((m) => m.Models),
  add: () => import("./pages/add").then((m) => m.AddModel),
  model: () => import("./pages/model").then((m) => m.ModelPage),
  requests: () => import("./pages/requests").then((m) => m.Requests),
  swap: () => import("./pages/swap").then((m) => m.SwapPage),
  playground: () => import("./pages/playground").then((m) => m.Playground),
  usage: () => import("./pages/usage").then((m) => m.UsagePage),
  logs: () => import("./pages/logs").then((m) => m.Logs),
  config: () => import("./pages/config").then((m) => m.ConfigPage),
  system: () => import("./pages/system").then((m) => m.System),
};

const current = (page: string): string => (page === "model" || page === "add" ? "models" : page === "swap" ? "" : page);

function ThemeButton() {
  const order: Theme[] = ["system", "light", "dark"];
  const next = order[(order.indexOf(theme.value) + 1) % order.length] as Theme;
  const icon = { system: "auto", light: "sun", dark: "moon" }[theme.value];
  return <IconButton icon={icon} label={`Theme: ${theme.value}. Switch to ${next}`} onClick={() => (theme.value = next)} class="hide-phone" />;
}

function ProfileSelect() {
  const { active, profiles: all } = profiles.value;
  if (!all.length) return null;
  return (
    <label class="profile">
      <span class="hide-phone">Profile</span>
      <select
        class="input small"
        aria-label="Profile"
        disabled={switching.value}
        value={active ?? ""}
        onChange={(event) => void switchProfile(event.currentTarget.value || null)}
      >
        <option value="">None</option>
        {all.map((profile) => (
          <option key={profile.id} value={profile.id} title={profile.description}>{profile.id}</option>
        ))}
      </select>
    </label>
  );
}

const LINK = { open: ["ready", "live", "●"], connecting: ["loading", "connecting", "◐"], auth: ["loading", "key needed", "!"], down: ["failed", "offline", "✕"] };

function LinkMark() {
  const [kind, word, mark] = LINK[status.value.state] as [string, string, string];
  if (status.value.state === "auth") {
    return <button type="button" class="btn small linkmark" onClick={() => (keyNeeded.value = true)}><Icon name="key" size={14} /> Enter the key</button>;
  }
  return (
    <span class={`chip s-${kind} linkmark`} title={`Event stream: ${word}`}>
      <span aria-hidden="true">{mark}</span>
      <span class="linkword">{word}</span>
    </span>
  );
}

function MoreMenu() {
  const open = useSignal(false);
  useEffect(() => {
    if (!open.value) return;
    const shut = (event: Event) => { if (event.type === "click" || (event as KeyboardEvent).key === "Escape") open.value = false; };
    for (const type of ["click", "keydown"]) addEventListener(type, shut);
    return () => { for (const type of ["click", "keydown"]) removeEventListener(type, shut); };
  }, [open.value]);
  const here = current(route.value.page);
  const rest = NAV.slice(4);
  return (
    <div class="tabbar-more">
      <button type="button" class={rest.some((item) => item.page === here) ? "on" : ""} aria-expanded={open.value} onClick={() => (open.value = !open.value)}>
        <Icon name="more" size={20} />
        <span>More</span>
      </button>
      {open.value && (
        <div class="more-sheet">
          {rest.map((item) => (
            <a key={item.page} href={href(item.page)} aria-current={item.page === here ? "page" : undefined}>
              <Icon name={item.icon} size={18} />
              {item.label}
            </a>
          ))}
          <button type="button" onClick={() => (theme.value = darkNow() ? "light" : "dark")}>
            <Icon name={darkNow() ? "sun" : "moon"} size={18} />
            {darkNow() ? "Light theme" : "Dark theme"}
          </button>
        </div>
      )}
    </div>
  );
}

function Banner() {
  const at = useSignal(Date.now());
  useEffect(() => {
    if (!stale.value) return;
    const timer = setInterval(() => (at.value = Date.now()), 1000);
    return () => clearInterval(timer);
  }, [stale.value]);
  return (
    <div role="alert">
      {stale.value && (
        <div class="banner">
          <Icon name="warn" />
          <span class="grow">
            <b>Offline.</b> {status.value.error || "The event stream is down"}. What you see is from {clockTime(status.value.since)}.
            {status.value.retryAt ? ` Trying again in ${seconds(Math.max(0, status.value.retryAt - at.value))}.` : " Trying again."}
          </span>
          <Btn small onClick={retry}>Retry now</Btn>
        </div>
      )}
    </div>
  );
}

function KeyPrompt() {
  return (
    <Dialog title="This server asks for a key" class="narrow" onClose={declineKey}><KeyForm /></Dialog>
  );
}

const pages = new Map<string, Page>([["", Overview]]);

function Current() {
  const { page } = route.value;
  const ready = useSignal(0);
  const failed = useSignal("");
  useEffect(() => {
    failed.value = "";
    if (pages.has(page)) return;
    const open = LAZY[page];
    if (!open) return;
    let alive = true;
    const before = reopened.peek();
    open().then(
      (component) => {
        pages.set(page, component);
        if (alive) ready.value += 1;
      },
      () => {
        if (!alive) return;
        // The link may be back before the browser gives the fetch up: then nothing else would reload the page.
        if (reopened.peek() !== before) location.reload();
        else void whyMissing().then((why) => (failed.value = why));
      },
    );
    return () => { alive = false; };
  }, [page]);
  // Browsers may remember that a part could not be fetched; a document that is read again asks for it again.
  const again = () => { if (failed.peek()) location.reload(); };
  useEffect(again, [reopened.value]);
  // A short loss of the network does not end the event stream.
  useEffect(() => { addEventListener("online", again); return () => removeEventListener("online", again); }, []);
  void ready.value;
  if (page === NOWHERE) {
    return <div class="page"><h1 class="sr">No page</h1><Empty title={`There is no page at ${location.pathname}`}><p><a href={href("")}>Overview</a></p></Empty></div>;
  }
  const Component = pages.get(page);
  if (Component) return <Guard key={page}><Component /></Guard>;
  if (failed.value) return <Problem text={failed.value} retry={() => location.reload()} retryLabel="Reload" />;
  return <div class="page center"><Spinner /></div>;
}

function PaletteHost() {
  const palette = useSignal<{ Part: Page } | null>(null);
  useEffect(() => {
    if (paletteOpen.value || helpOpen.value) part(import("./pages/palette"), ({ Palette: Part }) => (palette.value = { Part }), () => (paletteOpen.value = helpOpen.value = false));
  }, [paletteOpen.value, helpOpen.value]);
  const Shown = palette.value?.Part;
  return Shown && (paletteOpen.value || helpOpen.value) ? <Shown /> : null;
}

export function App() {
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  useEffect(() => {
    document.addEventListener("click", followLinks);
    const keys = installKeys();
    // The first call finds out whether a key is needed; the stream starts once that is known.
    get("/api/version").then(start, (error: ApiError) => {
      if (error.status !== 401 && error.status !== 403) return start();
      askForKey(); // also the key that the browser remembers may not see the page
      status.value = { ...status.peek(), state: "auth" };
    });
    return () => {
      document.removeEventListener("click", followLinks);
      keys();
    };
  }, []);
  const here = current(route.value.page);
  useEffect(() => {
    if (first.current) first.current = false;
    else main.current?.focus({ preventScroll: true });
  }, [route.value.page]);
  const busy = inflight.value.length;
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), main.current?.focus())}>Skip to content</a>
      <header class="top">
        <a class="brand" href={href("")}>
          <svg width="22" height="22" viewBox="0 0 32 32" aria-hidden="true">
            <rect width="32" height="32" rx="8" class="brand-box" />
            <path d="M7 12h15l-4-4M25 20H10l4 4" class="brand-line" />
          </svg>
          <span class="brand-name">{title.value || "llamaswap"}</span>
        </a>
        <nav class="nav" aria-label="Main">
          {NAV.map((item) => (
            <a key={item.page} href={href(item.page)} aria-current={item.page === here ? "page" : undefined}>
              {item.label}
              {item.page === "" && busy > 0 && <span class="count" title={`${busy} requests in progress`}>{busy}</span>}
            </a>
          ))}
        </nav>
        <div class="top-end">
          <ProfileSelect />
          <button type="button" class="btn small palette-btn" title="Commands (Ctrl K)" onClick={() => (paletteOpen.value = true)}>
            <span class="sr">Commands</span>
            <Icon name="search" size={14} />
            <kbd class="hide-phone" aria-hidden="true">Ctrl K</kbd>
          </button>
          <ThemeButton />
          <LinkMark />
        </div>
      </header>
      <Banner />
      <main id="main" ref={main} tabIndex={-1}><Current /></main>
      <nav class="tabbar" aria-label="Main, for small screens">
        {NAV.slice(0, 4).map((item) => (
          <a key={item.page} href={href(item.page)} aria-current={item.page === here ? "page" : undefined}>
            <Icon name={item.icon} size={20} />
            <span>{item.label}</span>
          </a>
        ))}
        <MoreMenu />
      </nav>
      <Toasts />
      <Confirm />
      {keyNeeded.value && <KeyPrompt />}
      <PaletteHost />
    </>
  );
}
