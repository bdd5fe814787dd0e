// Markdown from a model: parsed, sanitised, and only then put into the page. Nothing in it can run, fetch or submit.
import DOMPurify from "dompurify";
import { Marked, type TokenizerAndRendererExtension } from "marked";
import { copyText } from "./widgets";

declare const __KATEX_CSS__: string;

const escape = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll('"', "&quot;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const maths = (level: "inline" | "block", pattern: RegExp, start: RegExp): TokenizerAndRendererExtension => ({
  name: `maths-${level}`,
  level,
  start: (source) => {
    const at = source.search(start);
    return at < 0 ? undefined : at;
  },
  tokenizer(source) {
    const match = pattern.exec(source);
    return match ? { type: `maths-${level}`, raw: match[0], text: (match[1] ?? match[2] ?? "").trim() } : undefined;
  },
  renderer: (token) =>
    `<${level === "block" ? "div" : "span"} data-tex="${escape(String(token.text))}" data-display="${level === "block"}">${escape(String(token.text))}</${level === "block" ? "div" : "span"}>`,
});

const marked = new Marked({ gfm: true, breaks: false, extensions: undefined });
marked.use({
  extensions: [
    maths("block", /^(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])(?:\n|$)/, /\$\$|\\\[/),
    maths("inline", /^(?:\$(?![\s$])((?:[^$\n\\]|\\.)*?[^\s$\\])\$(?!\d)|\\\(([\s\S]+?)\\\))/, /\$|\\\(/),
  ],
});

const purify = DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (node.tagName === "IMG") {
    const src = node.getAttribute("src") ?? "";
    if (src.startsWith("data:image/")) return;
    // A picture from elsewhere would tell its server who reads: offer it as a link instead.
    const link = document.createElement("a");
    if (/^https?:/i.test(src)) link.href = src;
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
    link.textContent = `picture: ${node.getAttribute("alt") || src.slice(0, 80)}`;
    node.replaceWith(link);
  }
});

export function toHtml(text: string): string {
  return purify.sanitize(marked.parse(text, { async: false }), {
    USE_PROFILES: { html: true },
    FORBID_TAGS: ["style", "form", "input", "button", "textarea", "select", "option", "video", "audio", "source", "dialog"],
    FORBID_ATTR: ["style", "class", "id", "name", "srcset", "autofocus", "tabindex", "action", "background"],
    ALLOW_ARIA_ATTR: false,
  });
}

/** Puts text into an element and dresses it: tables that scroll, code with colours and a copy button, formulas. */
export function show(host: HTMLElement, text: string, final: boolean): void {
  host.innerHTML = toHtml(text);
  for (const table of host.querySelectorAll("table")) {
    const box = document.createElement("div");
    box.className = "md-table";
    box.tabIndex = 0;
    table.replaceWith(box);
    box.append(table);
  }
  for (const pre of host.querySelectorAll("pre")) {
    pre.tabIndex = 0;
    if (!final) continue;
    const box = document.createElement("div");
    box.className = "md-code";
    pre.replaceWith(box);
    const button = document.createElement("button");
    button.type = "button";
    button.className = "btn small";
    button.textContent = "Copy";
    button.addEventListener("click", () => void copyText(pre.textContent ?? ""));
    box.append(pre, button);
  }
  if (!final) return;
  if (host.querySelector("pre code")) void import("./highlight").then(({ colour }) => colour(host, text));
  if (host.querySelector("[data-tex]")) void formulas(host);
}

async function formulas(host: HTMLElement): Promise<void> {
  const { default: katex } = await import("katex");
  if (!document.querySelector("link[data-katex]")) {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.dataset.katex = "";
    link.href = new URL(__KATEX_CSS__, import.meta.url).href;
    document.head.append(link);
  }
  for (const element of host.querySelectorAll<HTMLElement>("[data-tex]")) {
    katex.render(element.dataset.tex ?? "", element, {
      displayMode: element.dataset.display === "true",
      throwOnError: false,
      trust: false,
      maxExpand: 500,
    });
  }
}
