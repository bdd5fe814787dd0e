import { folded, lineDiff } from "./linediff";

export function DiffView({ before, after, label }: { before: string; after: string; label: string }) {
  const lines = folded(lineDiff(before, after));
  if (!lines.some((line) => line && line.kind !== "same")) return <p class="muted">No difference</p>;
  return (
    <div class="diff" role="region" aria-label={label} tabIndex={0}>
      {lines.map((line, i) =>
        line ? (
          <div key={i} class={`d-${line.kind}`}>
            <span class="d-mark">{line.kind === "add" ? "+" : line.kind === "del" ? "−" : " "}</span>
            {line.text || " "}
          </div>
        ) : (
          <div key={i} class="d-fold" aria-hidden="true">⋯</div>
        ),
      )}
    </div>
  );
}
