// Phases one below the other, each with its share of the time and what it usually takes.
import { duration } from "./format";

export interface WaterfallRow {
  label: string;
  /** Names the colour: a lane of the timeline. */
  kind: string;
  start: number;
  end: number;
  usual?: number;
}

export function Waterfall({ rows }: { rows: WaterfallRow[] }) {
  const begin = Math.min(...rows.map((row) => row.start));
  const whole = Math.max(...rows.map((row) => row.end), begin + 1) - begin;
  const share = (ms: number) => `${(ms / whole) * 100}%`;
  return (
    <table class="plain waterfall">
      <thead>
        <tr>
          <th scope="col">Phase</th>
          <th scope="col">Took</th>
          <th scope="col">Usually</th>
          <th scope="col"><span class="sr">When</span></th>
        </tr>
      </thead>
      <tbody>
        {rows.map(({ label, kind, start, end, usual }) => (
          <tr key={`${label}${start}`}>
            <th scope="row">{label}</th>
            <td class={`num ${usual !== undefined && end - start > usual * 3 && end - start > 500 ? "bad" : ""}`}>{duration(end - start)}</td>
            <td class="num muted">{duration(usual)}</td>
            <td class="wf-track" aria-hidden="true">
              <div class={`wf-bar lane-${kind}`} style={{ left: share(start - begin), width: `max(2px, ${share(end - start)})` }} />
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
