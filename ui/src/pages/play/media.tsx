// Pictures, speech and transcription.
import { signal, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ApiError, errorText, maybe, request, send } from "../../lib/api";
import { session } from "../../lib/chat";
import { duration, uid } from "../../lib/format";
import { Icon } from "../../lib/icons";
import { all, put, remove } from "../../lib/idb";
import { ModelSelect } from "../../lib/modelselect";
import { pref } from "../../lib/prefs";
import { Btn, CopyButton, Dialog, Field, IconButton, Problem, Segmented, Spinner, onEnter, saveFile, toast } from "../../lib/widgets";
import { RunButton, runJob } from "./job";

const HEADERS = { "X-Session-ID": session };

interface Picture {
  id: string;
  at: number;
  model: string;
  prompt: string;
  src: string;
}

const imageModel = pref("images.model", "");
const imageMode = pref<"openai" | "sdapi">("images.mode", "openai");
const imageSize = pref("images.size", "1024x1024");
const sd = pref<Record<string, string>>("images.sd", {});
const loras = pref<Record<string, number>>("images.loras", {});
const imageBusy = signal<AbortController | null>(null);
const gallery = signal<Picture[]>([]);
let galleryRead = false;

const SIZES = ["512x512", "768x768", "1024x1024", "1024x768", "768x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792"];
const SD_FIELDS: [string, string, string][] = [
  ["steps", "Steps", "20"],
  ["cfg_scale", "CFG scale", "7"],
  ["seed", "Seed", "-1"],
  ["batch_size", "Pictures", "1"],
  ["sampler_name", "Sampler", "Euler a"],
  ["scheduler", "Scheduler", "Automatic"],
];

function addPictures(list: Picture[]): void {
  gallery.value = [...list, ...gallery.peek()];
  for (const picture of list) put("gallery", picture).catch((error: Error) => toast("error", `A picture could not be stored: ${error.message}`));
}

function pngUrl(data: string): string {
  return data.startsWith("data:") ? data : `data:image/${data.startsWith("/9j/") ? "jpeg" : data.startsWith("UklGR") ? "webp" : "png"};base64,${data}`;
}

const prompt = signal("");

export function Images() {
  const source = useSignal<File | null>(null);
  const error = useSignal("");
  const big = useSignal<Picture | null>(null);
  const offered = useSignal<string[]>([]);
  const picker = useRef<HTMLInputElement>(null);
  useEffect(() => {
    if (galleryRead) return;
    galleryRead = true;
    all<Picture>("gallery").then((list) => (gallery.value = list.sort((a, b) => b.at - a.at)), () => undefined);
  }, []);
  const generate = async () => {
    if (!prompt.peek().trim()) return;
    const model = imageModel.peek();
    const text = prompt.peek();
    const [width, height] = imageSize.peek().split("x").map(Number);
    await runJob(imageBusy, error, async (signal) => {
      let sources: string[];
      if (imageMode.peek() === "sdapi") {
        const body: Record<string, unknown> = { model, prompt: text, width, height };
        for (const [name, value] of Object.entries(sd.peek())) {
          if (value.trim()) body[name] = ["sampler_name", "scheduler", "negative_prompt"].includes(name) ? value : Number(value);
        }
        const used = Object.entries(loras.peek()).filter(([, weight]) => weight > 0);
        if (used.length) body.lora = used.map(([path, multiplier]) => ({ path, multiplier }));
        const answer = await send<{ images: string[] }>("POST", "/sdapi/v1/txt2img", body, HEADERS, signal);
        sources = (answer.images ?? []).map(pngUrl);
      } else {
        let answer: { data: { b64_json?: string; url?: string }[] };
        if (source.peek()) {
          const form = new FormData();
          form.set("model", model);
          form.set("prompt", text);
          form.set("size", imageSize.peek());
          form.set("image", source.peek() as File);
          answer = await send("POST", "/v1/images/edits", form, HEADERS, signal);
        } else {
          answer = await send("POST", "/v1/images/generations", { model, prompt: text, n: 1, size: imageSize.peek() }, HEADERS, signal);
        }
        sources = (answer.data ?? []).map((item) => (item.b64_json ? pngUrl(item.b64_json) : (item.url ?? ""))).filter(Boolean);
      }
      if (!sources.length) throw new Error("The answer holds no picture");
      addPictures(sources.map((src) => ({ id: uid(), at: Date.now(), model, prompt: text, src })));
    });
  };
  const findLoras = async () => {
    const answer = await maybe<{ name?: string; path?: string }[]>("/sdapi/v1/loras", { model: imageModel.peek() }).catch((problem: Error) => {
      toast("error", `LoRAs: ${problem.message}`);
      return null;
    });
    offered.value = (Array.isArray(answer) ? answer : []).map((item) => item.path ?? item.name ?? "").filter(Boolean);
    if (answer && !offered.value.length) toast("info", "This model offers no LoRA");
  };
  return (
    <div class="stack">
      <div class="toolbar">
        <ModelSelect label="Image model" hint value={imageModel.value} onChange={(id) => (imageModel.value = id)} fits={(model) => !!(model.capabilities?.image_generation || model.capabilities?.image_to_image)} />
        <Segmented label="API" value={imageMode.value} options={[["openai", "OpenAI"], ["sdapi", "SD API"]]} onChange={(value) => (imageMode.value = value)} />
        <select class="input" aria-label="Size" value={imageSize.value} onChange={(event) => (imageSize.value = event.currentTarget.value)}>
          {SIZES.map((size) => (
            <option key={size}>{size}</option>
          ))}
        </select>
        {imageMode.value === "openai" && (
          <>
            <input ref={picker} type="file" hidden accept="image/*" onChange={(event) => (source.value = event.currentTarget.files?.[0] ?? null)} />
            <Btn aria-pressed={!!source.value} onClick={() => (source.value ? (source.value = null) : picker.current?.click())}>
              <Icon name="clip" size={14} /> {source.value ? `Edit ${source.value.name}` : "Edit a picture"}
            </Btn>
          </>
        )}
      </div>
      {imageMode.value === "sdapi" && (
        <div class="panel padded stack">
          <div class="cols2">
            {SD_FIELDS.map(([name, label, hint]) => (
              <Field key={name} label={label}>
                <input class="input" placeholder={`not sent (often ${hint})`} value={sd.value[name] ?? ""} onInput={(event) => (sd.value = { ...sd.value, [name]: event.currentTarget.value })} />
              </Field>
            ))}
          </div>
          <Field label="Not in the picture">
            <input class="input" value={sd.value.negative_prompt ?? ""} onInput={(event) => (sd.value = { ...sd.value, negative_prompt: event.currentTarget.value })} />
          </Field>
          <div class="row wrap">
            <Btn small onClick={() => void findLoras()}>Find LoRAs</Btn>
            {offered.value.map((path) => (
              <label key={path} class="check">
                {path}
                <input type="number" class="input small" min="0" max="2" step="0.1" value={loras.value[path] ?? 0} onInput={(event) => (loras.value = { ...loras.value, [path]: Number(event.currentTarget.value) })} />
              </label>
            ))}
          </div>
        </div>
      )}
      <div class="row promptrow">
        <textarea class="input" rows={3} aria-label="Prompt" placeholder="What the picture shows" value={prompt.value} onInput={(event) => (prompt.value = event.currentTarget.value)} onKeyDown={onEnter(() => void generate())} />
        <RunButton busy={imageBusy} label="Generate" disabled={!prompt.value.trim()} run={generate} />
      </div>
      {imageBusy.value && <Spinner label="Generating" />}
      {error.value && <Problem text={error.value} retry={() => void generate()} />}
      <ul class="gallery">
        {gallery.value.map((picture) => (
          <li key={picture.id}>
            <button type="button" onClick={() => (big.value = picture)} aria-label={`Enlarge: ${picture.prompt}`}>
              <img src={picture.src} alt={picture.prompt} loading="lazy" />
            </button>
            <div class="row">
              <span class="clip grow muted" title={picture.prompt}>{picture.prompt}</span>
              <a class="iconbtn" href={picture.src} download={`${picture.id}.png`} aria-label={`Download: ${picture.prompt}`} title="Download">
                <Icon name="download" size={14} />
              </a>
              <IconButton
                icon="trash"
                size={14}
                label={`Delete: ${picture.prompt}`}
                onClick={() => {
                  gallery.value = gallery.value.filter((item) => item.id !== picture.id);
                  void remove("gallery", picture.id);
                }}
              />
            </div>
          </li>
        ))}
      </ul>
      {!gallery.value.length && !imageBusy.value && <p class="muted center-text">Pictures are kept in this browser.</p>}
      {big.value && (
        <Dialog title={big.value.model} class="wide" onClose={() => (big.value = null)}>
          <img src={big.value.src} alt={big.value.prompt} />
          <p>{big.value.prompt}</p>
        </Dialog>
      )}
    </div>
  );
}

const speechModel = pref("speech.model", "");
const speechVoice = pref("speech.voice", "");
const autoplay = pref("speech.autoplay", true);
const VOICES = ["alloy", "ash", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer"];
const SUFFIX: Record<string, string> = { "audio/mpeg": "mp3", "audio/wav": "wav", "audio/x-wav": "wav", "audio/ogg": "ogg", "audio/flac": "flac", "audio/aac": "aac" };

function voiceNames(answer: unknown): string[] {
  const list = Array.isArray(answer) ? answer : ((answer as Record<string, unknown> | null)?.voices ?? (answer as Record<string, unknown> | null)?.data);
  if (Array.isArray(list)) return list.map((item) => (typeof item === "string" ? item : String((item as Record<string, unknown>).id ?? (item as Record<string, unknown>).name ?? ""))).filter(Boolean);
  return list && typeof list === "object" ? Object.keys(list) : [];
}

const text = signal("");

export function Speech() {
  const voices = useSignal<string[]>(VOICES);
  const sound = useSignal<{ url: string; type: string; took: number } | null>(null);
  const error = useSignal("");
  const busy = useSignal<AbortController | null>(null);
  const findVoices = async () => {
    try {
      const response = await request(`/v1/audio/voices?model=${encodeURIComponent(speechModel.peek())}`);
      const found = response.ok ? voiceNames(await response.json()) : [];
      if (!found.length) throw new Error(`the model lists none (HTTP ${response.status})`);
      voices.value = found;
      if (!found.includes(speechVoice.peek())) speechVoice.value = found[0] as string;
    } catch (problem) {
      toast("error", `Voices: ${(problem as Error).message}`);
    }
  };
  const speak = async () => {
    if (!text.peek().trim()) return;
    const began = performance.now();
    await runJob(busy, error, async (signal) => {
      const body: Record<string, string> = { model: speechModel.peek(), input: text.peek() };
      if (speechVoice.peek()) body.voice = speechVoice.peek();
      const response = await request("/v1/audio/speech", { method: "POST", headers: { "Content-Type": "application/json", ...HEADERS }, body: JSON.stringify(body), signal: signal });
      if (!response.ok) throw new ApiError(response.status, errorText(response.status, await response.text()));
      const blob = await response.blob();
      if (sound.peek()) URL.revokeObjectURL((sound.peek() as { url: string }).url);
      sound.value = { url: URL.createObjectURL(blob), type: blob.type.split(";")[0] as string, took: performance.now() - began };
    });
  };
  return (
    <div class="stack">
      <div class="toolbar">
        <ModelSelect label="Speech model" hint value={speechModel.value} onChange={(id) => (speechModel.value = id)} fits={(model) => !!model.capabilities?.audio_speech} />
        <select class="input" aria-label="Voice" value={speechVoice.value} onChange={(event) => (speechVoice.value = event.currentTarget.value)}>
          <option value="">the model's default voice</option>
          {(voices.value.includes(speechVoice.value) || !speechVoice.value ? voices.value : [speechVoice.value, ...voices.value]).map((voice) => (
            <option key={voice}>{voice}</option>
          ))}
        </select>
        <Btn onClick={() => void findVoices()} title="Asks the model, which loads it"><Icon name="restart" size={14} /> List voices</Btn>
        <label class="check">
          <input type="checkbox" checked={autoplay.value} onChange={(event) => (autoplay.value = event.currentTarget.checked)} />
          Play at once
        </label>
      </div>
      <textarea class="input" rows={5} aria-label="Text to speak" placeholder="Text to speak" value={text.value} onInput={(event) => (text.value = event.currentTarget.value)} onKeyDown={onEnter(() => void speak())} />
      <div class="row">
        <RunButton busy={busy} label="Speak" disabled={!text.value.trim()} run={speak} />
        <Btn disabled={!text.value && !sound.value} onClick={() => ((text.value = ""), (sound.value = null))}>Clear</Btn>
        {busy.value && <Spinner label="Generating" />}
      </div>
      {error.value && <Problem text={error.value} retry={() => void speak()} />}
      {sound.value && (
        <div class="row wrap">
          <audio controls autoplay={autoplay.value} src={sound.value.url} />
          <a class="btn" href={sound.value.url} download={`speech.${SUFFIX[sound.value.type] ?? "bin"}`}><Icon name="download" size={14} /> Download</a>
          <span class="muted num">{duration(sound.value.took)}</span>
        </div>
      )}
    </div>
  );
}

const hearModel = pref("transcription.model", "");

export function Transcription() {
  const file = useSignal<File | null>(null);
  const result = useSignal("");
  const took = useSignal(0);
  const error = useSignal("");
  const busy = useSignal<AbortController | null>(null);
  const recorder = useSignal<MediaRecorder | null>(null);
  const picker = useRef<HTMLInputElement>(null);
  const hear = async () => {
    if (!file.peek()) return;
    const began = performance.now();
    await runJob(busy, error, async (signal) => {
      const form = new FormData();
      form.set("model", hearModel.peek());
      form.set("file", file.peek() as File);
      const answer = await send<{ text?: string } | string>("POST", "/v1/audio/transcriptions", form, HEADERS, signal);
      result.value = typeof answer === "string" ? answer : (answer.text ?? JSON.stringify(answer, null, 1));
      took.value = performance.now() - began;
    });
  };
  const record = async () => {
    if (recorder.peek()) {
      recorder.peek()?.stop();
      return;
    }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      const made = new MediaRecorder(stream);
      const pieces: Blob[] = [];
      made.ondataavailable = (event) => pieces.push(event.data);
      made.onstop = () => {
        for (const track of stream.getTracks()) track.stop();
        recorder.value = null;
        const type = made.mimeType.split(";")[0] || "audio/webm";
        file.value = new File(pieces, `recording.${type.split("/")[1] ?? "webm"}`, { type });
      };
      made.start();
      recorder.value = made;
    } catch (problem) {
      toast("error", `Microphone: ${(problem as Error).message}`);
    }
  };
  return (
    <div class="stack">
      <div class="toolbar">
        <ModelSelect label="Transcription model" hint value={hearModel.value} onChange={(id) => (hearModel.value = id)} fits={(model) => !!model.capabilities?.audio_transcriptions} />
      </div>
      <div
        class="dropzone"
        onDragOver={(event) => event.preventDefault()}
        onDrop={(event) => {
          event.preventDefault();
          file.value = event.dataTransfer?.files[0] ?? null;
        }}
      >
        <input ref={picker} type="file" hidden accept="audio/*,video/*" onChange={(event) => (file.value = event.currentTarget.files?.[0] ?? null)} />
        <p>{file.value ? <b>{file.value.name}</b> : "Drop a sound file here"}</p>
        <div class="row wrap center">
          <Btn onClick={() => picker.current?.click()}>Choose a file</Btn>
          {isSecureContext && "mediaDevices" in navigator && (
            <Btn aria-pressed={!!recorder.value} onClick={() => void record()}>
              <Icon name="mic" size={14} /> {recorder.value ? "Stop recording" : "Record"}
            </Btn>
          )}
        </div>
      </div>
      <div class="row">
        <RunButton busy={busy} label="Transcribe" disabled={!file.value} run={hear} />
        <Btn disabled={!file.value && !result.value} onClick={() => ((file.value = null), (result.value = ""))}>Clear</Btn>
        {busy.value && <Spinner label="Transcribing" />}
      </div>
      {error.value && <Problem text={error.value} retry={() => void hear()} />}
      {result.value && (
        <div class="panel padded">
          <div class="row">
            <span class="grow muted num">{duration(took.value)}</span>
            <CopyButton text={result.value} />
            <IconButton icon="download" label="Download" onClick={() => saveFile("transcript.txt", result.value)} />
          </div>
          <pre class="plaintext">{result.value}</pre>
        </div>
      )}
    </div>
  );
}
