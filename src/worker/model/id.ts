import { randomBytes } from "node:crypto";

const ID = /^[a-z0-9][a-z0-9.-]{0,99}$/;
const CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz";
const TIME_CHARS = 10;
const ULID_TIME = /^[0-7][0-9a-hjkmnp-tv-z]{9}/;
const RANDOM_CHARS = 16;

/** Random bytes for ids to come: many at a time, because a call costs more than the bytes. */
let unused = Buffer.alloc(0);

let lastMs = 0;

/** Returns the part of an id that sorts by time, whatever worker made it; undefined when the id contains no time. */
export function orderOf(id: string): string | undefined {
  const order = id.slice(id.lastIndexOf(".") + 1);
  return order.length === TIME_CHARS + RANDOM_CHARS && ULID_TIME.test(order) ? order : undefined;
}

/** When an id was made, in ms since the epoch; undefined when the id contains no time. */
export function timeOf(id: string): number | undefined {
  const [time] = ULID_TIME.exec(id.slice(id.lastIndexOf(".") + 1)) ?? [];
  if (time === undefined) return undefined;
  let ms = 0;
  for (let i = 0; i < TIME_CHARS; i++) ms = ms * 32 + CROCKFORD.indexOf(time.charAt(i));
  return ms;
}

/** Makes ids from now on sort behind `id`, even if the clock has gone back since. */
export function sortBehind(id: string): void {
  lastMs = Math.max(lastMs, timeOf(id) ?? 0);
}

/**
 * A new ULID (github.com/ulid/spec) in lower case, behind the worker's name: the present time, or a little later so that
 * each id sorts behind those before it, and 80 random bits.
 */
export function newId(name: string | undefined): string {
  lastMs = Math.max(Date.now(), lastMs + 1);
  let time = lastMs;
  let id = "";
  for (let i = 0; i < TIME_CHARS; i++) {
    id = CROCKFORD.charAt(time % 32) + id;
    time = Math.floor(time / 32);
  }
  if (unused.length < RANDOM_CHARS) unused = randomBytes(RANDOM_CHARS * 64);
  for (const byte of unused.subarray(0, RANDOM_CHARS)) id += CROCKFORD.charAt(byte % 32);
  unused = unused.subarray(RANDOM_CHARS);
  return name === undefined ? id : `${name}.${id}`;
}

/** Whether a job of this or another worker could have this id. */
export function isId(text: string): boolean {
  return ID.test(text);
}
