import { useEffect, useRef } from "preact/hooks";

/** Rendered Markdown; while it still grows it is rendered a few times a second and dressed at the end. */
export function Markdown({ text, final }: { text: string; final: boolean }) {
  const host = useRef<HTMLDivElement>(null);
  const last = useRef(0);
  useEffect(() => {
    let alive = true;
    const draw = () =>
      void import("./markdown").then(
        ({ show }) => { if (alive && host.current) show(host.current, text, final); },
        // A server that was updated no longer has the part that dresses it: the answer is still there to read.
        () => { if (alive && host.current) host.current.textContent = text; },
      );
    const wait = final ? 0 : Math.max(0, 150 - (performance.now() - last.current));
    const timer = setTimeout(() => {
      last.current = performance.now();
      draw();
    }, wait);
    return () => {
      alive = !final && performance.now() - last.current < 150;
      clearTimeout(timer);
    };
  }, [text, final]);
  return <div class="md" ref={host} />;
}
