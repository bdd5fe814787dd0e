// A text that is edited while answers about it are on their way. What was typed last is never overwritten by an
// answer to something asked before, and what was thrown away does not come back.
import { computed, signal } from "@preact/signals";

export interface Shown {
  text: string;
  tag: string;
}

export class Draft {
  /** What the server has, as it was last read. */
  readonly shown = signal<Shown | null>(null);
  readonly text = signal("");
  /** The server has something newer than what is being edited. */
  readonly outside = signal(false);
  readonly dirty = computed(() => this.shown.value !== null && this.text.value !== this.shown.value.text);
  private asked = 0;
  private edits = 0;

  typed(text: string): void {
    if (text === this.text.peek()) return;
    this.edits += 1;
    this.text.value = text;
  }

  /** Back to what the server had when it was last read, without asking it. */
  discard(): string {
    this.edits += 1;
    this.asked += 1;
    this.text.value = this.shown.peek()?.text ?? "";
    return this.text.peek();
  }

  /** The server took this text and calls it so; what was typed meanwhile is not saved. */
  saved(text: string, tag: string): void {
    this.asked += 1;
    this.shown.value = { text, tag };
    this.outside.value = false;
  }

  /** Call it when the text is asked for; give the answer to what it returns, which says whether it is now shown.
   * What was typed before the question makes way for the answer, unless it is to be kept. */
  ask(keep = false): (fresh: Shown) => boolean {
    const asked = ++this.asked;
    const edits = keep ? -1 : this.edits;
    return (fresh) => {
      if (asked !== this.asked) return false;
      if (edits !== this.edits && this.dirty.peek()) {
        if (fresh.tag !== this.shown.peek()?.tag) this.outside.value = true;
        return false;
      }
      this.shown.value = fresh;
      this.text.value = fresh.text;
      this.outside.value = false;
      return true;
    };
  }
}
