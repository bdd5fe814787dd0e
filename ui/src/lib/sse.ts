// Server-sent events from a fetch body: incremental, tolerant of any chunking and line ending.

export interface SseMessage {
  event: string;
  data: string;
  id: string | null;
}

export class SseParser {
  private rest = "";
  private event = "";
  private data: string[] = [];
  private id: string | null = null;

  feed(text: string): SseMessage[] {
    const out: SseMessage[] = [];
    this.rest += text;
    let start = 0;
    for (;;) {
      const cut = this.rest.indexOf("\n", start);
      if (cut < 0) break;
      const line = this.rest.slice(start, this.rest[cut - 1] === "\r" ? cut - 1 : cut);
      start = cut + 1;
      if (line === "") {
        if (this.data.length) out.push({ event: this.event || "message", data: this.data.join("\n"), id: this.id });
        this.event = "";
        this.data = [];
        this.id = null;
        continue;
      }
      if (line.startsWith(":")) continue;
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
      if (field === "data") this.data.push(value);
      else if (field === "event") this.event = value;
      else if (field === "id") this.id = value;
    }
    this.rest = this.rest.slice(start);
    return out;
  }

  /** What was left when the stream ended without its last blank line. */
  end(): SseMessage[] {
    return this.rest || this.data.length ? this.feed("\n\n") : [];
  }
}

export async function* sseOf(response: Response): AsyncGenerator<SseMessage> {
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      yield* parser.feed(decoder.decode(value, { stream: true }));
    }
    yield* parser.end();
  } finally {
    reader.cancel().catch(() => undefined);
  }
}
