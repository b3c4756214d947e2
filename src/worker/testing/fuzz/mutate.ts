/* Damages bytes and values as disks, crashes and attackers do, each case again from its number. */

/** A generator of numbers in [0, 1), the same for the same seed: mulberry32. */
export type Random = () => number;

export function randomOf(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A whole number below `end`. */
export function below(random: Random, end: number): number {
  return Math.floor(random() * end);
}

export function oneOf<T>(random: Random, from: readonly [T, ...T[]]): T {
  return from[below(random, from.length)] ?? from[0];
}

const EDGES = [0n, 1n, 0x7fn, 0x80n, 0xf5n, 0xffn, 0xffffn, 0x10000n] as const;
const WIDE_EDGES = [
  2n ** 31n - 1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 47n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 1n,
] as const;

/** Anywhere, or where headers and footers have their fields. */
function place(random: Random, size: number): number {
  const near = Math.min(size, 160);
  switch (below(random, 4)) {
    case 0:
      return below(random, near);
    case 1:
      return size - 1 - below(random, near);
    case 2:
      return Math.min(size - 1, 8 * below(random, Math.ceil(size / 8)));
    default:
      return below(random, size);
  }
}

type Change = (bytes: Buffer, random: Random) => Buffer;

function setNumber(bytes: Buffer, random: Random): Buffer {
  const width = oneOf(random, [1, 2, 4, 8]);
  const at = Math.max(0, Math.min(place(random, bytes.length), bytes.length - width));
  const near = BigInt(Math.max(0, bytes.length + below(random, 65) - 32));
  const value = oneOf(random, [...EDGES, ...WIDE_EDGES, near, BigInt(below(random, 2 ** 32))]);
  const number = Buffer.alloc(8);
  number.writeBigUInt64LE(BigInt.asUintN(64, value));
  number.copy(bytes, at, 0, width);
  return bytes;
}

const CHANGES: readonly [Change, ...Change[]] = [
  function flip(bytes, random) {
    const at = place(random, bytes.length);
    bytes[at] = (bytes[at] ?? 0) ^ (1 << below(random, 8));
    return bytes;
  },
  setNumber,
  setNumber,
  function truncate(bytes, random) {
    return bytes.subarray(0, place(random, bytes.length));
  },
  function extend(bytes, random) {
    const more = Buffer.alloc(below(random, 300), random() < 0.5 ? 0 : below(random, 256));
    return Buffer.concat([bytes, more]);
  },
  function splice(bytes, random) {
    const [from, to] = [place(random, bytes.length), place(random, bytes.length)];
    return Buffer.concat([bytes.subarray(0, to), bytes.subarray(from)]);
  },
  function move(bytes, random) {
    const from = place(random, bytes.length);
    bytes.copy(bytes, place(random, bytes.length), from, from + 1 + below(random, 64));
    return bytes;
  },
  function wipe(bytes, random) {
    const at = place(random, bytes.length);
    return bytes.fill(
      random() < 0.5 ? 0 : below(random, 256),
      at,
      Math.min(bytes.length, at + 1 + below(random, 4096)),
    );
  },
];

/** A copy of `bytes` that has been changed in one to four places. */
export function mutated(bytes: Buffer, random: Random): Buffer {
  if (random() < 0.01) return Buffer.from(Array.from({ length: below(random, 3000) }, () => below(random, 256)));
  let made: Buffer = Buffer.from(bytes);
  for (let left = 1 + below(random, 4); left > 0 && made.length > 0; left--)
    made = oneOf(random, CHANGES)(made, random);
  return made;
}
