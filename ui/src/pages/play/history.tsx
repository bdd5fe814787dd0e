// The conversations of this browser: found again, renamed, deleted.
import { useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";
import { type Conversation, bring, byDate, conversation, forget, pick, rename, saved } from "../../lib/conversation";
import { IconButton, confirm, onEnter, saveFile } from "../../lib/widgets";

function Item({ item, onPick }: { item: Conversation; onPick: () => void }) {
  const name = useSignal<string | null>(null);
  const done = () => {
    if (name.peek() !== null) rename(item, name.peek() ?? "");
    name.value = null;
  };
  if (name.value !== null) {
    return (
      <li class="row">
        <input
          class="input small grow"
          aria-label="Name of the conversation"
          autofocus
          ref={(box) => box?.focus()}
          maxLength={200}
          value={name.value}
          onInput={(event) => (name.value = event.currentTarget.value)}
          onBlur={done}
          onKeyDown={(event) => {
            if (event.key !== "Escape") return onEnter(done)(event);
            event.stopPropagation();
            event.preventDefault();
            name.value = null;
          }}
        />
      </li>
    );
  }
  return (
    <li class="row">
      <button type="button" class="grow histitem" aria-current={item.id === conversation.value.id ? "true" : undefined} onClick={onPick}>
        <span class="clip">{item.title}</span>
        <span class="muted clip">{item.model}</span>
      </button>
      <IconButton icon="edit" size={14} label={`Rename ${item.title}`} onClick={() => (name.value = item.title)} />
      <IconButton
        icon="trash"
        size={14}
        label={`Delete ${item.title}`}
        onClick={() => void confirm("Delete this conversation?", <p>{item.title}</p>, "Delete", true).then((yes) => { if (yes) forget(item); })}
      />
    </li>
  );
}

export function History({ onPick }: { onPick: () => void }) {
  const wanted = useSignal("");
  const picker = useRef<HTMLInputElement>(null);
  const list = saved.value.filter(
    (item) => !wanted.value || [item.title, ...item.messages.map((message) => message.text)].join("\n").toLowerCase().includes(wanted.value.toLowerCase()),
  );
  return (
    <div class="history">
      <div class="row">
        <input class="input small grow" type="search" aria-label="Search conversations" placeholder="Search conversations" data-filter value={wanted.value} onInput={(event) => (wanted.value = event.currentTarget.value)} />
        <input ref={picker} type="file" hidden accept="application/json" onChange={(event) => void bring(event.currentTarget.files?.[0])} />
        <IconButton icon="upload" label="Import conversations" onClick={() => picker.current?.click()} />
        <IconButton icon="download" label="Export all conversations" disabled={!saved.value.length} onClick={() => saveFile("conversations.json", JSON.stringify(saved.value, null, 1), "application/json")} />
      </div>
      {byDate(list, Date.now()).map(([name, members]) => (
        <section key={name} aria-label={name}>
          <h3 class="muted">{name}</h3>
          <ul class="plainlist">
            {members.map((item) => <Item key={item.id} item={item} onPick={() => (pick(item), onPick())} />)}
          </ul>
        </section>
      ))}
      {!list.length && <p class="muted pad">{saved.value.length ? "No conversation contains this" : "Conversations are kept in this browser"}</p>}
    </div>
  );
}
