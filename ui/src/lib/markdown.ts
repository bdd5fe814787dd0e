// Markdown from a model: parsed, sanitised, and only then put into the page. Nothing in it can run, fetch or submit.
import DOMPurify from "dompurify";
import { Marked, type TokensList, type TokenizerAndRendererExtension } from "marked";
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
  // The sanitiser takes form fields away; a task's box is a character.
  renderer: { checkbox: ({ checked }) => (checked ? "\u2611 " : "\u2610 ") },
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

function toHtml(tokens: TokensList): string {
  return purify.sanitize(marked.parser(tokens), {
    USE_PROFILES: { html: true },
    FORBID_TAGS: ["style", "form", "input", "button", "textarea", "select", "option", "video", "audio", "source", "dialog"],
    FORBID_ATTR: ["style", "class", "id", "name", "srcset", "autofocus", "tabindex", "action", "background"],
    ALLOW_ARIA_ATTR: false,
  });
}

/** The languages of the blocks of code, in order, as the Markdown names them: the sanitiser takes classes away. */
function codeLanguages(tokens: TokensList): string[] {
  const languages: string[] = [];
  marked.walkTokens(tokens, (token) => { if (token.type === "code") languages.push((token.lang ?? "").split(/\s/)[0] ?? ""); });
  return languages;
}

/** Puts text into an element and dresses it: tables that scroll, code with colours and a copy button, formulas. */
export function show(host: HTMLElement, text: string, final: boolean): void {
  const tokens = marked.lexer(text);
  host.innerHTML = toHtml(tokens);
  for (const table of host.querySelectorAll("table")) {
    const box = document.createElement("div");
    box.className = "md-table";
    box.tabIndex = 0;
    table.replaceWith(box);
    box.append(table);
  }
  for (const item of host.querySelectorAll("li")) if (/^[\u2610\u2611] /.test(item.textContent ?? "")) item.className = "task";
  const languages = codeLanguages(tokens);
  host.querySelectorAll("pre").forEach((pre, index) => {
    pre.tabIndex = 0;
    const box = document.createElement("div");
    box.className = "md-code";
    pre.replaceWith(box);
    const head = document.createElement("div");
    head.className = "md-code-head";
    const label = document.createElement("span");
    label.textContent = languages[index] || "text";
    const button = document.createElement("button");
    button.type = "button";
    button.className = "btn small";
    button.textContent = "Copy";
    button.addEventListener("click", () => void copyText(pre.textContent ?? ""));
    head.append(label, button);
    box.append(head, pre);
  });
  if (!final) return;
  if (languages.some(Boolean)) void import("./highlight").then(({ colour }) => colour(host, languages));
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
