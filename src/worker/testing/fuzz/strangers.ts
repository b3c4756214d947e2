import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { directoryStore } from "../../archive/directory.ts";
import { removeSpares } from "../../jobs/take-up.ts";
import { readJob } from "../../journal/job-file.ts";
import { openCompressedLog, openPlainLog } from "../../log/log.ts";
import { JobError } from "../../model/errors.ts";
import { readExit } from "../../supervisor/exit.ts";
import { eachReply } from "../../supervisor/frame.ts";
import { below, mutated, oneOf } from "./mutate.ts";
import { FILES, jobsIn, never, type Opened, workDirectory } from "./target.ts";

/* Replies of a spawner, and files of strangers in the places of spares and of jobs' files. */

/** Replies of a spawner, in pieces of any size. */
export function replyTarget(): Opened {
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

/** Files where spares are made: all of them are removed, and nothing that they lead to. */
export function spareTarget(files: string): Opened {
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

/** FIFOs, links, devices and directories in the place of a job's files. None of them is read. */
export function strangerTarget(files: string): Opened {
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
