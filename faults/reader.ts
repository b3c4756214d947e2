import { Source, type StreamResponse } from "../proto/generated/jobs/v1/worker.ts";
import type { Source as Name } from "./shape.ts";

/** Shorter pieces could be found in more than one place. */
const TELLING_BYTES = 12;

/** The bytes that a job writes to each source if nothing ends it before. */
export type Written = Readonly<Record<Name, Buffer>>;

/** Compares a stream's messages with what its job writes. */
export interface Reader {
  /** The offset of the byte that comes next. */
  readonly offset: number;
  readonly compared: number;
  readonly gaps: number;
  readonly gapBytes: number;
  /** Throws Error when the message is not what the job wrote next. */
  take(message: StreamResponse): void;
  /** Throws Error unless all that the job writes has been read, or told as a gap. For readers from offset 0. */
  whole(): void;
}

/**
 * In a log the bytes of each source are in order, and those of both sources before an offset are as many as the offset
 * says, kept or not. So where a reader has begun in the middle or met a gap, it finds its place in each source by what
 * comes, and the places must add up.
 *
 * @param from the offset that the reader asked for; at 0 both places are known
 */
export function reader(written: Written, from: number): Reader {
  const reading: Reading = {
    written,
    places: { stdout: { at: 0, known: from === 0 }, stderr: { at: 0, known: from === 0 } },
    offset: from,
    compared: 0,
    gaps: 0,
    gapBytes: 0,
  };
  if (from > 0) addUp(reading);
  return Object.assign(reading, {
    take: (message: StreamResponse) => take(reading, message),
    whole() {
      const total = written.stdout.length + written.stderr.length;
      if (reading.offset !== total)
        throw new Error(`the job wrote ${total} bytes, and the log ends at ${reading.offset}`);
    },
  });
}

interface Reading {
  readonly written: Written;
  /** The place in each source, or, where it is not known, the least that it can be. */
  readonly places: Readonly<Record<Name, { at: number; known: boolean }>>;
  offset: number;
  compared: number;
  gaps: number;
  gapBytes: number;
}

function take(reading: Reading, { offset, gap, output, source }: StreamResponse): void {
  const begins = Number(offset);
  if (begins !== reading.offset) throw new Error(`offset ${begins} follows ${reading.offset}`);
  if (gap > 0n) {
    reading.gaps++;
    reading.gapBytes += Number(gap);
    reading.offset += Number(gap);
    for (const name of ["stdout", "stderr"] as const) reading.places[name].known = false;
  }
  if (output.length > 0) {
    takeBytes(reading, source === Source.SOURCE_STDERR ? "stderr" : "stdout", Buffer.from(output));
    reading.offset += output.length;
  }
  if (gap === 0n) addUp(reading);
}

function takeBytes(reading: Reading, name: Name, bytes: Buffer): void {
  const place = reading.places[name];
  const all = reading.written[name];
  const here = `at offset ${reading.offset}: ${bytes.length} bytes`;
  if (!place.known) {
    const found = all.indexOf(bytes, place.at);
    if (found < 0) throw new Error(`${here} that the job did not write to ${name}`);
    // The first place where it could be is as good as any to go on from, but nothing to be sure of.
    place.at = found + bytes.length;
    place.known = bytes.length >= TELLING_BYTES;
    if (place.known) reading.compared += bytes.length;
    return;
  }
  const expected = all.subarray(place.at, place.at + bytes.length);
  if (!expected.equals(bytes)) {
    const why = differs(expected, bytes);
    throw new Error(`${here} are not what ${name} has from ${place.at} on of ${all.length}: ${why}`);
  }
  place.at += bytes.length;
  reading.compared += bytes.length;
}

/** Throws Error when the places do not add up to the offset; where one is known, and the other is not, it tells that. */
function addUp({ written, places, offset }: Reading): void {
  const { stdout, stderr } = places;
  if (stdout.known && stderr.known && stdout.at + stderr.at !== offset)
    throw new Error(`at offset ${offset}: the job had written ${stdout.at} bytes to stdout and ${stderr.at} to stderr`);
  for (const [name, other] of [
    ["stdout", "stderr"],
    ["stderr", "stdout"],
  ] as const) {
    // A source that writes nothing has one place only.
    if (written[name].length === 0) places[name].known = true;
    if (!places[other].known || places[name].known) continue;
    const at = offset - places[other].at;
    if (at < 0 || at > written[name].length)
      throw new Error(`at offset ${offset}: the job writes ${written[name].length} bytes to ${name}, and not ${at}`);
    Object.assign(places[name], { at, known: true });
  }
}

function differs(expected: Buffer, bytes: Buffer): string {
  const at = bytes.findIndex((byte, index) => byte !== expected[index]);
  return at < 0 ? `${bytes.length - expected.length} too many` : `the byte ${at} differs`;
}
