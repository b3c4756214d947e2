import { closeSync, constants as flags, openSync, readFileSync, writeSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";

const SOURCES = ["gap", "stdout", "stderr"] as const;

export interface Piece {
  readonly source: (typeof SOURCES)[number];
  readonly offset: number;
  readonly timeMs: number;
}

/** A job's output log, read by the description in log.c and nothing else. */
export function readLog(directory: string) {
  const index = readFileSync(join(directory, "index"));
  const number = (at: number): number => Number(index.readBigUInt64LE(at));
  const firstRecord = number(16);
  const pieces: Piece[] = [];
  for (let at = 64 + 16 * firstRecord; at + 16 <= index.length; at += 16)
    pieces.push({
      source: SOURCES[index.readUInt16LE(at + 6)] ?? "gap",
      offset: index.readUIntLE(at, 6),
      timeMs: number(at + 8),
    });
  return {
    magic: index.toString("latin1", 0, 8),
    first: number(8),
    dropped: number(24),
    gapEnd: number(32),
    startedNs: index.readBigInt64LE(40),
    main: index.readInt32LE(48),
    supervisor: index.readInt32LE(52),
    startedClockNs: index.readBigInt64LE(56),
    pieces,
    bytes: readFileSync(join(directory, "output")),
  };
}

/** The bytes of one source that the log holds, from `first` on and without the gaps. */
export function bytesOf({ pieces, bytes, first }: ReturnType<typeof readLog>, source: Piece["source"]): Buffer {
  return Buffer.concat(
    pieces.map((piece, i) =>
      piece.source === source
        ? bytes.subarray(Math.max(piece.offset, first), pieces[i + 1]?.offset ?? bytes.length)
        : Buffer.alloc(0),
    ),
  );
}

/** The exit record: numbers, but for `cause`. */
export type Exit = Readonly<Record<string, number | string>>;

export function readExit(directory: string): Exit {
  const lines = readFileSync(join(directory, "exit"), "utf8").trimEnd().split("\n");
  return Object.fromEntries(
    lines.map((line) => {
      const [key = "", value = ""] = line.split(" ");
      return [key, /^-?\d+$/.test(value) ? Number(value) : value];
    }),
  );
}

/** Stops a job as the daemon does: `struct order` into its FIFO. */
export function order(directory: string, signal: NodeJS.Signals, graceMs: number): void {
  const bytes = Buffer.alloc(16);
  bytes.writeInt32LE(constants.signals[signal], 0);
  bytes.writeBigInt64LE(BigInt(graceMs), 8);
  const control = openSync(join(directory, "control"), flags.O_WRONLY | flags.O_NONBLOCK);
  writeSync(control, bytes);
  closeSync(control);
}
