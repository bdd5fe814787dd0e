// Four figures over the range of the overview, each with its course.
import { Sparkline } from "./chart";
import { count, duration, known, rate } from "./format";
import { type Metrics, metrics, steps } from "./metrics";
import { href } from "./router";

interface Figure {
  label: string;
  value: string;
  hint: string;
  link: string;
  bad?: boolean;
  course: (number | null)[];
}

/** The speed of all models in some steps: each model counts as often as it was asked. */
function speedOf(speeds: Metrics["speeds"] = []): number | null {
  const requests = speeds.reduce((sum, item) => sum + item.requests, 0);
  return requests ? speeds.reduce((sum, item) => sum + item.p50 * item.requests, 0) / requests : null;
}

export function figuresOf(data: Metrics): Figure[] {
  const at = steps(data);
  const series = new Map((data.series ?? []).map((item) => [item.start * 1000, item]));
  const speeds = data.speeds ?? [];
  const failed = (data.series ?? []).reduce((sum, item) => sum + item.failed, 0);
  const perMinute = data.total_requests / Math.max(1, (data.to - data.from) / 60_000);
  const share = data.total_requests ? (failed / data.total_requests) * 100 : 0;
  return [
    {
      label: "Requests per minute",
      value: perMinute >= 10 ? count(perMinute) : perMinute.toFixed(1),
      hint: `${count(data.total_requests)} requests`,
      link: href("requests"),
      course: at.map((t) => series.get(t)?.requests ?? 0),
    },
    {
      label: "Tokens per second",
      value: rate(speedOf(speeds) ?? undefined),
      hint: "of one request",
      link: href("requests", { sort: "gen_speed", order: "asc" }),
      course: at.map((t) => speedOf(speeds.filter((item) => item.start * 1000 === t))),
    },
    {
      label: "First token, p95",
      value: duration(data.first_token_p95_ms),
      hint: data.first_token_p95_ms ? "95 % took less" : "no answer was streamed",
      link: href("requests", { sort: "first_token", order: "desc" }),
      course: at.map((t) => series.get(t)?.first_token_p95_ms ?? null),
    },
    {
      label: "Errors",
      value: data.total_requests ? `${share > 0 && share < 10 ? share.toFixed(1) : Math.round(share)} %` : "–",
      hint: failed ? `${count(failed)} failed` : "none failed",
      link: href("requests", { status: "error" }),
      bad: failed > 0,
      course: at.map((t) => { const item = series.get(t); return item ? item.failed / item.requests : 0; }),
    },
  ];
}

export function Figures() {
  const data = metrics.value;
  if (!data) return null;
  if (!data.total_requests) return <p class="muted figures-none">No request ended in this time.</p>;
  return (
    <ul class="figures" aria-label="Figures over the chosen time">
      {figuresOf(data).map((figure) => (
        <li key={figure.label}>
          <a href={figure.link}>
            <span class="figure-label">{figure.label}</span>
            <span class={`figure-value ${figure.bad ? "bad" : ""}`}>{figure.value}</span>
            <span class="muted">{figure.hint}</span>
            <Sparkline wide values={figure.course} label={`${figure.label} over the chosen time, at most ${rate(Math.max(...figure.course.filter(known), 0))}`} />
          </a>
        </li>
      ))}
    </ul>
  );
}
