/** The pictures of the gallery, in this browser's own database. */

/** @typedef {import("./types.js").Picture} Picture */

const STORE = "pictures";
/** So that a browser's quota is never the limit: the oldest make room. */
const MOST = 400;

/** @returns {Promise<IDBDatabase>} */
function open() {
  return new Promise((done, fail) => {
    const request = indexedDB.open("bootpig", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(STORE, { keyPath: "id" }).createIndex("created_at", "created_at");
    };
    request.onsuccess = () => done(request.result);
    request.onerror = () => fail(request.error);
  });
}

/** @type {Promise<IDBDatabase> | undefined} */
let database;

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} work
 * @returns {Promise<T>}
 */
async function within(mode, work) {
  database ??= open();
  const transaction = (await database).transaction(STORE, mode);
  const request = work(transaction.objectStore(STORE));
  return new Promise((done, fail) => {
    transaction.oncomplete = () => done(request.result);
    transaction.onabort = transaction.onerror = () => fail(transaction.error ?? request.error);
  });
}

/** All of them, newest first. @returns {Promise<Picture[]>} */
export async function allPictures() {
  const pictures = await within("readonly", (store) => store.index("created_at").getAll());
  return pictures.reverse();
}

/**
 * Keep a picture. Returns the ids of those that made room for it.
 *
 * @param {Picture} picture
 * @returns {Promise<string[]>}
 */
export async function keepPicture(picture) {
  await within("readwrite", (store) => store.put(picture));
  const all = await within("readonly", (store) => store.index("created_at").getAllKeys());
  const tooOld = all.slice(0, Math.max(0, all.length - MOST)).map(String);
  for (const id of tooOld) await dropPicture(id);
  return tooOld;
}

/** @param {string} id */
export function dropPicture(id) {
  return within("readwrite", (store) => store.delete(id));
}

export function dropAllPictures() {
  return within("readwrite", (store) => store.clear());
}
