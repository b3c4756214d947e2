import { Source, type StreamResponse } from "../proto/generated/jobs/v1/worker.ts";
import type { Source as Name } from "./shape.ts";

/** Shorter pieces could be found in more than one place. */
const TELLING_BYTES = 12;

/** What a job writes on each source if nothing ends it before. */
export type Written = Readonly<Record<Name, Buffer>>;

/** Compares a stream's messages with what its job writes. */
export interface Reader {
  /** Of the byte that comes next. */
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
  /** The place in each source, or, below 0, the least that it can be, less one. */
  const places: Record<Name, { at: number; known: boolean }> = {
    stdout: { at: 0, known: from === 0 },
    stderr: { at: 0, known: from === 0 },
  };
  let offset = from;
  let [compared, gaps, gapBytes] = [0, 0, 0];

  function takeBytes(name: Name, bytes: Buffer): void {
    const place = places[name];
    const all = written[name];
    if (!place.known) {
      const found = all.indexOf(bytes, place.at);
      if (found < 0)
        throw new Error(`at offset ${offset}: ${bytes.length} bytes that the job did not write to ${name}`);
      // The first place where it could be is as good as any to go on from, but nothing to be sure of.
      place.at = found + bytes.length;
      place.known = bytes.length >= TELLING_BYTES;
      if (place.known) compared += bytes.length;
      return;
    }
    const expected = all.subarray(place.at, place.at + bytes.length);
    if (!expected.equals(bytes))
      throw new Error(
        `at offset ${offset}: ${bytes.length} bytes are not what ${name} has from ${place.at} on of ${all.length}: ${differs(expected, bytes)}`,
      );
    place.at += bytes.length;
    compared += bytes.length;
  }

  function addUp(): void {
    const { stdout, stderr } = places;
    if (stdout.known && stderr.known && stdout.at + stderr.at !== offset)
      throw new Error(
        `at offset ${offset}: the job had written ${stdout.at} bytes to stdout and ${stderr.at} to stderr`,
      );
    // Of two places, one tells the other; a source that writes nothing has but one.
    for (const [name, other] of [
      ["stdout", "stderr"],
      ["stderr", "stdout"],
    ] as const) {
      if (written[name].length === 0) places[name].known = true;
      if (places[other].known && !places[name].known) {
        const at = offset - places[other].at;
        if (at < 0 || at > written[name].length)
          throw new Error(
            `at offset ${offset}: the job writes ${written[name].length} bytes to ${name}, and not ${at}`,
          );
        Object.assign(places[name], { at, known: true });
      }
    }
  }

  if (from > 0) addUp();
  return {
    get offset() {
      return offset;
    },
    get compared() {
      return compared;
    },
    get gaps() {
      return gaps;
    },
    get gapBytes() {
      return gapBytes;
    },
    take(message) {
      const begins = Number(message.offset);
      if (begins !== offset) throw new Error(`offset ${begins} follows ${offset}`);
      if (message.gap > 0n) {
        gaps++;
        gapBytes += Number(message.gap);
        offset += Number(message.gap);
        for (const name of ["stdout", "stderr"] as const) places[name].known = false;
      }
      if (message.output.length > 0) {
        takeBytes(message.source === Source.SOURCE_STDERR ? "stderr" : "stdout", Buffer.from(message.output));
        offset += message.output.length;
      }
      if (message.gap === 0n) addUp();
    },
    whole() {
      const total = written.stdout.length + written.stderr.length;
      if (offset !== total) throw new Error(`the job wrote ${total} bytes, and the log ends at ${offset}`);
    },
  };
}

function differs(expected: Buffer, bytes: Buffer): string {
  const at = bytes.findIndex((byte, index) => byte !== expected[index]);
  return at < 0 ? `${bytes.length - expected.length} too many` : `the byte ${at} differs`;
}
