// The YAML editor: CodeMirror, fetched with the configuration page's first use.
import { type CompletionContext, type CompletionResult, autocompletion, closeBrackets, completionKeymap } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import { yaml } from "@codemirror/lang-yaml";
import { HighlightStyle, bracketMatching, foldGutter, foldKeymap, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { type Diagnostic, lintGutter, setDiagnostics } from "@codemirror/lint";
import { highlightSelectionMatches, search, searchKeymap } from "@codemirror/search";
import { Compartment, EditorState } from "@codemirror/state";
import { EditorView, drawSelection, highlightActiveLine, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { type Schema, keysAt, pathAt, valuesAt } from "./schema";
import type { Problem } from "./types";

export interface Editor {
  text(): string;
  /** Another text. It can be undone, and marks of the old one go. */
  replace(text: string): void;
  lock(readOnly: boolean): void;
  mark(problems: Problem[]): void;
  goTo(line: number): void;
  destroy(): void;
}

const colours = HighlightStyle.define([
  { tag: [tags.propertyName, tags.definition(tags.propertyName)], color: "var(--c3)" },
  { tag: [tags.string, tags.special(tags.string)], color: "var(--c1)" },
  { tag: [tags.number, tags.bool, tags.null, tags.keyword], color: "var(--c2)" },
  { tag: [tags.comment, tags.lineComment], color: "var(--muted)", fontStyle: "italic" },
  { tag: [tags.punctuation, tags.separator, tags.meta], color: "var(--muted)" },
  { tag: [tags.labelName, tags.typeName], color: "var(--c4)" },
]);

const look = EditorView.theme({
  "&": { height: "100%", fontSize: "12.5px", backgroundColor: "var(--surface)", color: "var(--text)" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.55" },
  ".cm-gutters": { backgroundColor: "var(--raised)", color: "var(--muted)", borderRight: "1px solid var(--line)" },
  ".cm-activeLine, .cm-activeLineGutter": { backgroundColor: "color-mix(in srgb, var(--accent) 8%, transparent)" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  "&.cm-focused .cm-selectionBackground, .cm-selectionBackground": { backgroundColor: "color-mix(in srgb, var(--accent) 28%, transparent) !important" },
  ".cm-tooltip, .cm-panels": { backgroundColor: "var(--surface)", color: "var(--text)", border: "1px solid var(--line)" },
  ".cm-tooltip-autocomplete ul li[aria-selected]": { backgroundColor: "var(--accent-soft)", color: "var(--text)" },
  ".cm-panel input, .cm-panel button": { color: "var(--text)", backgroundImage: "none", backgroundColor: "var(--raised)", border: "1px solid var(--line-strong)" },
});

function completer(schema: () => Schema | null) {
  return (context: CompletionContext): CompletionResult | null => {
    const root = schema();
    if (!root) return null;
    const line = context.state.doc.lineAt(context.pos);
    const before = line.text.slice(0, context.pos - line.from);
    const lines = context.state.doc.toString().split("\n");
    const key = /^(\s*(?:- +)*)([\w$-]*)$/.exec(before);
    if (key) {
      if (!context.explicit && !key[2]) return null;
      const path = pathAt(lines, line.number - 1, (key[1] as string).length);
      return {
        from: context.pos - (key[2] as string).length,
        options: keysAt(root, path).map((offer) => ({
          label: offer.label,
          detail: offer.detail,
          info: offer.info || undefined,
          apply: offer.nested ? `${offer.label}:\n${" ".repeat((key[1] as string).length + 2)}` : `${offer.label}: `,
          type: "property",
        })),
        validFor: /^[\w$-]*$/,
      };
    }
    const value = /^(\s*(?:- +)*)([\w$-]+):\s+([\w-]*)$/.exec(before);
    if (!value) return null;
    const path = [...pathAt(lines, line.number - 1, (value[1] as string).length), value[2] as string];
    const options = valuesAt(root, path).map((label) => ({ label, type: "enum" }));
    return options.length ? { from: context.pos - (value[3] as string).length, options } : null;
  };
}

export function open(options: { host: HTMLElement; text: string; readOnly: boolean; label: string; schema: () => Schema | null; changed: (text: string) => void }): Editor {
  const lock = new Compartment();
  const view = new EditorView({
    parent: options.host,
    state: EditorState.create({
      doc: options.text,
      extensions: [
        lineNumbers(),
        foldGutter(),
        history(),
        drawSelection(),
        bracketMatching(),
        closeBrackets(),
        highlightActiveLine(),
        highlightSelectionMatches(),
        indentUnit.of("  "),
        search({ top: true }),
        lintGutter(),
        yaml(),
        syntaxHighlighting(colours),
        look,
        autocompletion({ override: [completer(options.schema)] }),
        // Tab leaves the editor after Escape: nobody is caught in it.
        keymap.of([...defaultKeymap, ...historyKeymap, ...foldKeymap, ...searchKeymap, ...completionKeymap, indentWithTab]),
        lock.of(EditorState.readOnly.of(options.readOnly)),
        EditorView.contentAttributes.of({ "aria-label": options.label, spellcheck: "false" }),
        EditorView.updateListener.of((update) => { if (update.docChanged) options.changed(update.state.doc.toString()); }),
      ],
    }),
  });
  view.scrollDOM.tabIndex = 0;
  return {
    text: () => view.state.doc.toString(),
    replace(text) {
      if (text !== view.state.doc.toString()) view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: text } });
      view.dispatch(setDiagnostics(view.state, []));
    },
    lock: (readOnly) => view.dispatch({ effects: lock.reconfigure(EditorState.readOnly.of(readOnly)) }),
    mark(problems) {
      const marks: Diagnostic[] = problems
        .filter((problem) => problem.line && problem.line <= view.state.doc.lines)
        .map((problem) => {
          const line = view.state.doc.line(problem.line as number);
          const from = Math.min(line.to, line.from + Math.max(0, (problem.col ?? 1) - 1));
          const text = [problem.message, problem.hint].filter(Boolean).join("\n");
          return { from, to: Math.max(line.to, from), severity: problem.severity === "warning" ? "warning" : "error", message: text };
        });
      view.dispatch(setDiagnostics(view.state, marks));
    },
    goTo(line) {
      const at = view.state.doc.line(Math.min(Math.max(1, line), view.state.doc.lines)).from;
      view.dispatch({ selection: { anchor: at }, effects: EditorView.scrollIntoView(at, { y: "center" }) });
      view.focus();
    },
    destroy: () => view.destroy(),
  };
}
