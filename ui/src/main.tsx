import { render } from "preact";
import { effect } from "@preact/signals";
import "./lib/notify";
import { accent, density, theme, title } from "./lib/prefs";
import { status } from "./lib/link";
import { NAV, route } from "./lib/router";
import { App } from "./app";

const dark = matchMedia("(prefers-color-scheme: dark)");

function paint(): void {
  const wanted = theme.value === "system" ? (dark.matches ? "dark" : "light") : theme.value;
  document.documentElement.dataset.theme = wanted;
  document.documentElement.dataset.accent = accent.value;
  document.documentElement.dataset.density = density.value;
}

dark.addEventListener("change", paint);
effect(paint);
effect(() => {
  const mark = { open: "", connecting: "", down: "\u26a0 ", auth: "\u{1f511} " }[status.value.state];
  const { page, query } = route.value;
  const here = page === "model" ? query.get("id") : NAV.find((item) => item.page === page)?.label ?? page;
  document.title = mark + [here, title.value || "llamaswap"].filter(Boolean).join(" \u00b7 ");
});

render(<App />, document.getElementById("app") as HTMLElement);
