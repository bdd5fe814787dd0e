// Code colours, fetched when the first block of code is shown.
import type { Language } from "highlight.js";
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import cpp from "highlight.js/lib/languages/cpp";
import go from "highlight.js/lib/languages/go";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";

/** The library's own lists every property there is, which is most of its size. */
const css = (): Language => ({
  contains: [
    hljs.C_BLOCK_COMMENT_MODE, hljs.QUOTE_STRING_MODE, hljs.APOS_STRING_MODE,
    { scope: "keyword", begin: /@[\w-]+|!important/ },
    { scope: "attr", begin: /[\w-]+(?=:\s)/ },
    { scope: "title", begin: /[.#:]+[a-z][\w-]*(?=[^;{}]*\{)/i },
    { scope: "number", begin: /#[\da-f]{3,8}\b|\b\d*\.?\d+(%|[a-z]+)?/i },
  ],
});
const LANGUAGES = { bash, cpp, css, go, java, javascript, json, python, rust, sql, typescript, xml, yaml };
for (const [name, language] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, language);

export function colour(host: HTMLElement, languages: readonly string[]): void {
  [...host.querySelectorAll<HTMLElement>("pre code")].forEach((block, index) => {
    const name = languages[index] ?? "";
    if (!name || !hljs.getLanguage(name)) return;
    block.innerHTML = hljs.highlight(block.textContent ?? "", { language: name, ignoreIllegals: true }).value;
  });
}
