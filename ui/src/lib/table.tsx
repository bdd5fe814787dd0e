// Rows of fixed height: past a few hundred only those in view are in the document.
import { useSignal } from "@preact/signals";
import { type RefObject } from "preact";
import { useEffect } from "preact/hooks";

export interface Window {
  from: number;
  to: number;
  before: number;
  after: number;
}

export function useWindow(host: RefObject<HTMLElement | null>, rows: number, height: number, limit = 200): Window {
  const range = useSignal<[number, number]>([0, 120]);
  useEffect(() => {
    const box = host.current;
    if (!box || rows <= limit) return;
    const look = () => {
      const from = Math.max(0, Math.floor(box.scrollTop / height) - 20);
      const to = Math.min(rows, from + Math.ceil(box.clientHeight / height) + 40);
      const [a, b] = range.peek();
      if (Math.abs(a - from) > 8 || Math.abs(b - to) > 8 || to === rows) range.value = [from, to];
    };
    look();
    box.addEventListener("scroll", look, { passive: true });
    return () => box.removeEventListener("scroll", look);
  }, [rows, height, limit]);
  if (rows <= limit) return { from: 0, to: rows, before: 0, after: 0 };
  const from = Math.min(range.value[0], rows);
  const to = Math.min(Math.max(range.value[1], from), rows);
  return { from, to, before: from * height, after: (rows - to) * height };
}
