// Conversations and results in IndexedDB: large attachments fit, and a failed write is told.

let opened: Promise<IDBDatabase> | null = null;

function database(): Promise<IDBDatabase> {
  opened ??= new Promise((resolve, reject) => {
    const ask = indexedDB.open("llamaswap", 1);
    ask.onupgradeneeded = () => {
      for (const name of ["conversations", "gallery"]) ask.result.createObjectStore(name, { keyPath: "id" });
    };
    ask.onsuccess = () => resolve(ask.result);
    ask.onerror = () => reject(ask.error ?? new Error("IndexedDB cannot be opened"));
  });
  return opened;
}

type Store = "conversations" | "gallery";

async function act<T>(store: Store, mode: IDBTransactionMode, call: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const db = await database();
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(store, mode);
    const ask = call(transaction.objectStore(store));
    transaction.oncomplete = () => resolve(ask.result);
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser refused to store it"));
    transaction.onerror = () => reject(transaction.error ?? new Error("the browser refused to store it"));
  });
}

export const all = <T>(store: Store): Promise<T[]> => act(store, "readonly", (s) => s.getAll() as IDBRequest<T[]>);
export const put = (store: Store, value: unknown): Promise<unknown> => act(store, "readwrite", (s) => s.put(value));
export const remove = (store: Store, id: string): Promise<unknown> => act(store, "readwrite", (s) => s.delete(id));
export const clear = (store: Store): Promise<unknown> => act(store, "readwrite", (s) => s.clear());
