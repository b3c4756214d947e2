import { execFileSync } from "node:child_process";
import {
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import type { SQLOutputValue } from "node:sqlite";
import { Job as ProtoJob } from "../../../proto/generated/jobs/v1/worker.ts";
import { fromJob } from "../../server/translate.ts";
import { directoryStore } from "../archive/directory.ts";
import { openArchivedLog } from "../archive/log.ts";
import type { Store } from "../archive/store.ts";
import { endedJob } from "../jobs/end.ts";
import { trackedJob } from "../jobs/tracked-job.ts";
import { removeSpares } from "../jobs/take-up.ts";
import { readJob } from "../journal/job-file.ts";
import { openJournal, record, type JobRecord } from "../journal/journal.ts";
import { recoverJournal } from "../journal/rebuild.ts";
import { compressLog } from "../log/compress.ts";
import { type Log, openCompressedLog, openLog, openPlainLog } from "../log/log.ts";
import { type Live, type Position, readOutput, type StreamOptions } from "../log/reader.ts";
import { JobError } from "../model/errors.ts";
import { isFailing } from "../model/failure.ts";
import type { Job } from "../model/job.ts";
import { readExit } from "../supervisor/exit.ts";
import { eachReply } from "../supervisor/frame.ts";
import { below, mutated, mutatedValue, oneOf, type Random } from "./mutate.ts";

/* The parsers, and what each is given that is damaged: files that real jobs have left, in the directory FILES. */

/** Gives a parser one case. Throws what the parser does. */
export type Target = (random: Random) => Promise<void>;

interface Opened extends Disposable {
  readonly run: Target;
}

/** What FILES holds: logs in both forms, one of a job and one of very many pieces, and a state directory. */
export const FILES = { log: "log", many: "many", state: "state" } as const;
/** fuzz.ts ends what takes too long. */
const never = new AbortController().signal;
const LOGS = [FILES.log, FILES.many] as const;

const LIVE: Live = { ended: () => true, subscribe: () => ({ [Symbol.dispose]() {} }) };
/** What a reader takes before it goes: a gap can be as long as an index says. */
const MOST_PIECES = 20_000;

/** A directory of its own in FILES, removed in the end. */
function workDirectory(files: string): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(files, "work-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

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

/** What comes may be any bytes, but in order, and of the log. */
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
function knownTarget(files: string): Opened {
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
function logTarget(files: string, form: Form, names: readonly [string, ...string[]]): Opened {
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
function compressTarget(files: string): Opened {
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
function archiveTarget(files: string): Opened {
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
          // One that lies about its size gives less.
          const size = random() < 0.05 ? bytes.length + below(random, 100_000) : bytes.length;
          return {
            size,
            read: async (buffer, offset) => (offset > bytes.length ? 0 : bytes.copy(buffer, 0, offset)),
            async [Symbol.asyncDispose]() {},
          };
        },
      };
      const places = { keyOf: (file: string) => file, compressed, directory: work.path };
      // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- no more of it is asked for
      const opened = openArchivedLog(store as Store, { ...places, signal: never });
      await using archived = await opened;
      await readThrough(archived.log, random);
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}

/** What a job is taken for can be told to every client. */
function tell(job: Job): void {
  ProtoJob.encode(fromJob(job)).finish();
  JSON.stringify(ProtoJob.toJSON(fromJob(job)));
}

/** The directory of a job that has ended, a file of which is damaged as bytes and, where it is JSON, as that. */
function jobTarget(files: string, file: "exit" | "job", take: (directory: string) => void): Opened {
  const work = workDirectory(files);
  const [source = ""] = jobsIn(files);
  const bytes = readFileSync(join(source, file));
  const directory = join(work.path, basename(source));
  cpSync(source, directory, { recursive: true, filter: (path) => basename(path) !== "control" });
  return {
    async run(random) {
      const text = file === "job" && random() < 0.7;
      const damaged = text
        ? JSON.stringify(mutatedValue(JSON.parse(bytes.toString()), random))
        : mutated(bytes, random);
      writeFileSync(join(directory, file), damaged);
      take(directory);
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}

function jobsIn(files: string): string[] {
  const jobs = join(files, FILES.state, "jobs");
  const found = readdirSync(jobs).toSorted();
  return found.flatMap((name) => (name.startsWith(".") ? [] : [join(jobs, name)]));
}

const TOLD: Job = {
  id: "01m85bxjqw7ggzm1drbxxphnk6",
  state: "running",
  command: "true",
  args: [],
  envNames: [],
  cwd: "/",
  user: "nobody",
  group: "nobody",
  labels: new Map(),
  limits: new Map(),
  owner: "tester",
  pid: 1,
  createdAt: new Date(0),
  output: { size: 0, first: 0, dropped: 0 },
  warnings: [],
};

function takeExit(directory: string): void {
  const exit = readExit(directory);
  if (exit && exit !== "damaged")
    tell(endedJob(trackedJob(TOLD, directory, { kind: "none", reason: "" }), exit, undefined));
}

function takeJob(directory: string): void {
  const told = readJob(directory);
  if (told) tell(told.job);
}

/** Rows with columns of any kind, which SQLite does not refuse. */
function rowTarget(files: string): Opened {
  using journal = openJournal(join(files, FILES.state));
  const { records: rows } = journal.list(() => true, Number.MAX_SAFE_INTEGER, 1000);
  const texts = jobsIn(files).map((directory) => readFileSync(join(directory, "job"), "utf8"));
  const records: readonly { readonly [column: string]: SQLOutputValue }[] = rows.map(({ seq, job }, i) => ({
    seq: BigInt(seq),
    id: job.id,
    owner: job.owner,
    state: job.state,
    // In it there is all that encode() writes.
    job: JSON.stringify(Reflect.get(Object(JSON.parse(texts[i] ?? texts[0] ?? "{}")), "job")),
    stopped_by: null,
    request_id: null,
    ended_at: 1_790_000_000_000n,
    log: "kept",
    log_bytes: 100n,
    log_zstd: 0n,
    log_at: null,
    log_why: null,
    log_due: 1n,
  }));
  const values: readonly [SQLOutputValue, ...SQLOutputValue[]] = [
    null,
    "x",
    "",
    "kept",
    "pruned",
    "archived",
    -1n,
    2n ** 63n - 1n,
    0.5,
    Buffer.of(255, 0),
  ];
  return {
    async run(random) {
      const row: { [column: string]: SQLOutputValue } = { ...records[below(random, records.length)] };
      if (random() < 0.8) row["job"] = JSON.stringify(mutatedValue(JSON.parse(String(row["job"])), random));
      else row["job"] = mutated(Buffer.from(String(row["job"])), random).toString();
      for (const column of Object.keys(row)) if (random() < 0.05) row[column] = oneOf(random, values);
      const found = record(row);
      if (found) tell(found.job);
    },
    [Symbol.dispose]() {},
  };
}

function useJournal(stateDir: string, ids: readonly string[], random: Random): void {
  using journal = openJournal(stateDir);
  const told = (found: JobRecord | undefined): void => {
    if (found) tell(found.job);
  };
  const calls: (() => unknown)[] = [
    () => journal.list(() => true, Number.MAX_SAFE_INTEGER, 1000).records.forEach(told),
    () => journal.list(() => true, 10, 5, { label: ["a", "b"] }).records.forEach(told),
    () => journal.list(() => true, Number.MAX_SAFE_INTEGER, 5, { alive: true }).records.forEach(told),
    () => journal.alive().forEach(told),
    () => ids.forEach((id) => told(journal.find(id))),
    () => told(journal.findRequest("tester", "x")),
    () => journal.ids(),
    () => journal.newest(),
    () => journal.groupsIn("/tmp"),
    () => ids.forEach((id) => journal.logs.of(id)),
    () => journal.logs.due(),
    () => journal.logs.local(),
    () => journal.logs.oldest(10, true),
    () => journal.logs.expiring(10, false),
    () => journal.logs.removed(ids[0] ?? ""),
    () => journal.insert({ ...TOLD, id: `x${below(random, 1e9)}` }, undefined),
    () => journal.update({ ...TOLD, id: ids[0] ?? "" }),
    () => journal.remove(ids[1] ?? ""),
  ];
  for (const call of calls) orUnavailable(call);
}

/** Whatever is asked of a damaged journal ends as that, and fails no other question. */
function orUnavailable(call: () => unknown): void {
  try {
    call();
  } catch (error) {
    if (error instanceof JobError && error.code === "unavailable") return;
    if (!isFailing(error)) throw error;
  }
}

/** The journal's files with bytes flipped: a daemon's start and all that it asks, then a recovery. */
function journalTarget(files: string): Opened {
  const work = workDirectory(files);
  const source = join(files, FILES.state);
  const ids = jobsIn(files).map((directory) => basename(directory));
  return {
    async run(random) {
      const stateDir = join(work.path, "state");
      mkdirSync(join(stateDir, "jobs"), { recursive: true });
      try {
        const names = readdirSync(source).filter((name) => /^journal\.db(-wal)?$/.test(name));
        const chosen = names[below(random, names.length)];
        for (const name of names) {
          const bytes = readFileSync(join(source, name));
          writeFileSync(join(stateDir, name), name === chosen ? mutated(bytes, random) : bytes);
        }
        orUnavailable(() => useJournal(stateDir, ids, random));
        recoverJournal(stateDir);
      } finally {
        rmSync(stateDir, { recursive: true });
      }
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}

/** What a spawner tells, in pieces of any size. */
function replyTarget(): Opened {
  return {
    async run(random) {
      const bytes = mutated(Buffer.alloc(24 * (1 + below(random, 6)), below(random, 8)), random);
      let heard = 0;
      const hear = eachReply(() => heard++);
      for (let at = 0; at < bytes.length;) {
        const end = Math.min(bytes.length, at + 1 + below(random, 40));
        hear(bytes.subarray(at, end));
        at = end;
      }
      if (heard !== Math.floor(bytes.length / 24)) throw new Error(`${heard} replies of ${bytes.length} bytes`);
    },
    [Symbol.dispose]() {},
  };
}

/** What lies where spares are made: all of it goes, and nothing that it leads to. */
function spareTarget(files: string): Opened {
  const work = workDirectory(files);
  const [spares, kept] = [join(work.path, "spares"), join(work.path, "kept")];
  mkdirSync(kept);
  writeFileSync(join(kept, "file"), "kept");
  return {
    async run(random) {
      mkdirSync(spares);
      let directory = spares;
      for (let left = below(random, 12); left > 0; left--) {
        const path = join(directory, oneOf(random, [".spare-1", "x", "\ud800", "-rf", "*"]) + String(left));
        const kind = below(random, 6);
        if (kind === 0) writeFileSync(path, "x");
        else if (kind === 1) symlinkSync(kept, path);
        else if (kind === 2) symlinkSync("nowhere", path);
        else if (kind === 3) execFileSync("mkfifo", [path]);
        else mkdirSync(path);
        if (kind === 5) directory = path;
      }
      removeSpares(spares);
      if (readdirSync(spares).length > 0) throw new Error(`${readdirSync(spares).join()} is left`);
      if (readFileSync(join(kept, "file"), "utf8") !== "kept") throw new Error("a link was followed");
      rmSync(spares, { recursive: true });
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}

/** In the place of a job's files: what is no file, would hold up whoever reads it, or leads elsewhere. None of it is read. */
function strangerTarget(files: string): Opened {
  const work = workDirectory(files);
  const [source = ""] = jobsIn(files);
  const directory = join(work.path, "root", "worker", basename(source));
  const elsewhere = join(work.path, "elsewhere");
  const put: readonly [(path: string) => void, ...((path: string) => void)[]] = [
    (path) => execFileSync("mkfifo", [path]),
    (path) => symlinkSync(join(elsewhere, basename(path)), path),
    (path) => symlinkSync("/dev/zero", path),
    (path) => mkdirSync(path),
  ];
  const names = ["output", "index", "output.zst", "index.zst", "exit", "job"] as const;
  for (const each of [directory, elsewhere]) {
    mkdirSync(each, { recursive: true });
    for (const name of names) copyFileSync(join(files, FILES.log, name), join(each, name));
  }
  const store = directoryStore(join(work.path, "root"));
  const reads: { readonly [name in (typeof names)[number]]: () => unknown } = {
    output: () => openPlainLog(directory),
    index: () => openPlainLog(directory),
    "output.zst": () => openCompressedLog(directory),
    "index.zst": () => openCompressedLog(directory),
    exit: () => readExit(directory),
    job: () => readJob(directory)?.instance,
  };
  return {
    async run(random) {
      const name = oneOf(random, names);
      const path = join(directory, name);
      rmSync(path);
      try {
        oneOf(random, put)(path);
        expectRefused(reads[name]);
        const key = `worker/${basename(directory)}/${name}`;
        await store.open(key, never).then(
          () => {
            throw new Error(`${name} of the archive was read`);
          },
          (error: unknown) => {
            if (!(error instanceof JobError)) throw error;
          },
        );
      } finally {
        rmSync(path, { recursive: true });
        copyFileSync(join(elsewhere, name), path);
      }
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}

function expectRefused(read: () => unknown): void {
  let found: unknown;
  try {
    found = read();
  } catch (error) {
    if (error instanceof JobError || (error instanceof Error && "syscall" in error)) return;
    throw error;
  }
  if (found !== undefined) throw new Error("what is no file was read");
}

export const targets: ReadonlyMap<string, (files: string) => Opened> = new Map([
  ["a byte of an index", knownTarget],
  ["index", (files) => logTarget(files, "", ["index", "output"])],
  ["index.zst", (files) => logTarget(files, ".zst", ["index.zst"])],
  ["output.zst", (files) => logTarget(files, ".zst", ["output.zst"])],
  ["compression", compressTarget],
  ["archive", archiveTarget],
  ["exit", (files) => jobTarget(files, "exit", takeExit)],
  ["job", (files) => jobTarget(files, "job", takeJob)],
  ["journal rows", rowTarget],
  ["journal.db", journalTarget],
  ["spawner's replies", replyTarget],
  ["spares", spareTarget],
  ["what is no file", strangerTarget],
]);
