import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openArchivedLog } from "../../archive/log.ts";
import type { Store } from "../../archive/store.ts";
import { compressLog } from "../../log/compress.ts";
import { type Log, openLog } from "../../log/log.ts";
import { type Live, type Position, readOutput, type StreamOptions } from "../../log/reader.ts";
import { below, mutated, oneOf, type Random } from "./mutate.ts";
import { LOGS, never, type Opened, workDirectory } from "./target.ts";

/* Logs that are damaged, as files and in an archive. */

const LIVE: Live = { ended: () => true, subscribe: () => ({ [Symbol.dispose]() {} }) };
/** The most pieces that a reader takes: a gap can be as long as an index says. */
const MOST_PIECES = 20_000;

function streamOptions(random: Random): StreamOptions {
  const count = oneOf(random, [0, 1, 10, 1000, below(random, 300_000)]);
  const positions: readonly [Position, ...Position[]] = [
    { kind: "offset", offset: count },
    { kind: "tail-bytes", count },
    { kind: "tail-lines", count },
  ];
  return {
    times: random() < 0.3,
    ...(random() < 0.7 && { position: oneOf(random, positions) }),
    ...(random() < 0.5 && { source: oneOf(random, ["stdout", "stderr"] as const) }),
  };
}

/** Reads a log to its end. Throws Error when its pieces are not in order; their bytes may be any. */
async function readThrough(log: Log, random: Random): Promise<void> {
  log.extent();
  let at = -1;
  let pieces = 0;
  for await (const piece of readOutput(log, LIVE, streamOptions(random))) {
    if (piece.offset < at) throw new Error(`offset ${piece.offset} comes after ${at}`);
    const length = piece.kind === "gap" ? piece.length : piece.bytes.length;
    if (length <= 0) throw new Error(`a ${piece.kind} of ${length} bytes`);
    at = piece.offset + length;
    if (++pieces > MOST_PIECES) return;
  }
}

type Form = "" | ".zst";

/** Damage that has held up a daemon: bytes by their offsets, those from the end negative. */
const KNOWN: readonly { readonly form: Form; readonly at: number; readonly value: number }[] = [
  { form: ".zst", at: -13, value: 0xf5 }, // how long the last frame is said to be
  { form: "", at: 17, value: 0xff }, // the first record that holds
  { form: "", at: 18, value: 1 },
  { form: "", at: 64, value: 1 }, // where the first record begins
  { form: "", at: 70, value: 3 }, // of which source it is
];

/** A log with one byte that is wrong, read as if it were right. */
export function knownTarget(files: string): Opened {
  const work = workDirectory(files);
  return {
    async run(random) {
      const source = join(files, oneOf(random, LOGS));
      const { form, at, value } = KNOWN[below(random, KNOWN.length)] ?? { form: "", at: 0, value: 0 };
      const [index, output] = [`index${form}`, `output${form}`].map((file) => readFileSync(join(source, file)));
      if (!index || !output) throw new Error("no log");
      index[at < 0 ? index.length + at : at] = value;
      writeFileSync(join(work.path, `index${form}`), index);
      writeFileSync(join(work.path, `output${form}`), output);
      try {
        using log = openLog(work.path);
        await readThrough(log, random);
      } finally {
        for (const file of [`index${form}`, `output${form}`]) rmSync(join(work.path, file));
      }
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}

/** A log in one of its forms, a file of which is damaged. */
export function logTarget(files: string, form: Form, names: readonly [string, ...string[]]): Opened {
  const work = workDirectory(files);
  return {
    async run(random) {
      const source = join(files, oneOf(random, LOGS));
      const damaged = oneOf(random, names);
      for (const file of [`index${form}`, `output${form}`]) {
        const bytes = readFileSync(join(source, file));
        writeFileSync(join(work.path, file), file === damaged ? mutated(bytes, random) : bytes);
      }
      using log = openLog(work.path);
      await readThrough(log, random);
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}

/** A log as its supervisor wrote it is compressed, whatever is in its index. */
export function compressTarget(files: string): Opened {
  const work = workDirectory(files);
  return {
    async run(random) {
      const directory = join(work.path, "job");
      cpSync(join(files, oneOf(random, LOGS)), directory, { recursive: true });
      try {
        for (const name of ["index.zst", "output.zst"]) rmSync(join(directory, name), { force: true });
        const index = join(directory, "index");
        writeFileSync(index, mutated(readFileSync(index), random));
        await compressLog(directory, never, 0);
        using log = openLog(directory);
        await readThrough(log, random);
      } finally {
        rmSync(directory, { recursive: true });
      }
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}

/** An archive that gives out damaged objects. */
export function archiveTarget(files: string): Opened {
  const work = workDirectory(files);
  const objects = LOGS.map(
    (name) =>
      new Map(
        ["index", "output", "index.zst", "output.zst"].map((file) => [file, readFileSync(join(files, name, file))]),
      ),
  );
  return {
    async run(random) {
      const compressed = random() < 0.5;
      const chosen = objects[below(random, objects.length)];
      const damaged = `${random() < 0.7 ? "index" : "output"}${compressed ? ".zst" : ""}`;
      const store: Pick<Store, "open"> = {
        async open(key) {
          const whole = chosen?.get(key) ?? Buffer.alloc(0);
          const bytes = key === damaged ? mutated(whole, random) : whole;
          // An object that lies about its size gives less.
          const size = random() < 0.05 ? bytes.length + below(random, 100_000) : bytes.length;
          return {
            size,
            read: async (buffer, offset) => (offset > bytes.length ? 0 : bytes.copy(buffer, 0, offset)),
            async [Symbol.asyncDispose]() {},
          };
        },
      };
      const places = { keyIn: (file: string) => file, compressed, directory: work.path };
      // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- no more of it is asked for
      const opened = openArchivedLog(store as Store, { ...places, signal: never });
      await using archived = await opened;
      await readThrough(archived.log, random);
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}
