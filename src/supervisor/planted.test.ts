import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Duplex } from "node:stream";
import { describe, expect, test } from "vitest";
import { BINARIES } from "./testing/rig.ts";
import { needsRoot, unless } from "../testing/root.ts";
import { noStrace } from "../testing/strace.ts";
import { until } from "../testing/processes.ts";

/* Whoever can write where spares are made must not have a supervisor write elsewhere, or into what is there already. */

const DIRECTORY = 2;
const SPARE_FRAME = 3;
const READY = 4;
const REPLY_BYTES = 24;
/** As long as it may take on a loaded machine to plant something. */
const HELD_MS = 3000;

interface Held extends AsyncDisposable {
  readonly directory: string;
  /** What strace has seen. */
  readonly trace: string;
  /** What the spare tells when it has gone on. */
  told(): Promise<{ readonly kind: number; readonly stage: number }>;
}

/** A spare that strace holds when it has made its directory, and nothing in it. */
async function heldSpare(): Promise<Held> {
  const root = mkdtempSync(join(tmpdir(), "supervisor-planted-"));
  const spares = join(root, "spares");
  const trace = join(root, "trace");
  mkdirSync(spares);
  const rules = [
    "-e",
    "trace=?mkdir,mkdirat,openat,?mknod,mknodat",
    "-e",
    `inject=?mkdir,mkdirat:delay_exit=${HELD_MS * 1000}`,
  ];
  const strace = spawn("strace", ["-f", "-qq", "-o", trace, ...rules, BINARIES.hardened, spares, "0", ""], {
    cwd: root,
    stdio: ["ignore", "ignore", "ignore", "pipe"],
    detached: true,
  });
  const exited = once(strace, "exit");
  const socket = strace.stdio[3];
  if (!(socket instanceof Duplex)) throw new Error("no socket");
  const parts: Buffer[] = [];
  socket.on("data", (bytes: Buffer) => parts.push(bytes));
  socket.on("error", () => {});
  const ask = Buffer.alloc(17);
  ask.writeUInt32LE(17, 0);
  ask.writeUInt32LE(SPARE_FRAME, 4);
  ask.writeUInt32LE(1, 8);
  socket.write(ask);
  await until(() => readdirSync(spares).length > 0, "the spare has its directory");
  const [name = ""] = readdirSync(spares);
  const find = (): Buffer | undefined => {
    const bytes = Buffer.concat(parts);
    for (let at = 0; at + REPLY_BYTES <= bytes.length; at += REPLY_BYTES)
      if (bytes.readUInt32LE(at) === 1) return bytes.subarray(at);
    return undefined;
  };
  return {
    directory: join(spares, name),
    trace,
    async told() {
      await until(() => find() !== undefined, "the spare tells how it is");
      const reply = find() ?? Buffer.alloc(REPLY_BYTES);
      return { kind: reply.readUInt32LE(8), stage: reply.readInt32LE(16) };
    },
    async [Symbol.asyncDispose]() {
      socket.destroy();
      await exited;
      rmSync(root, { recursive: true });
    },
  };
}

const FILES = ["output", "index", "exit.new", "control"] as const;

const planted: readonly (readonly [string, string, (path: string, victim: string) => void])[] = FILES.flatMap(
  (name) => [
    [`a link is in place of ${name}`, name, (path: string, victim: string) => symlinkSync(victim, path)],
    [
      `a link to nothing is in place of ${name}`,
      name,
      (path: string, victim: string) => symlinkSync(`${victim}.new`, path),
    ],
    [`a file is in place of ${name}`, name, (path: string) => writeFileSync(path, "planted")],
  ],
);

describe("where strace can hold a spare,", unless(noStrace), () => {
  test.concurrent.each(planted)(
    `a supervisor is not made where %s, and nothing is written there`,
    async (_what, name, plant) => {
      await using spare = await heldSpare();
      const victim = join(spare.directory, "../../victim");
      writeFileSync(victim, "kept");
      plant(join(spare.directory, name), victim);
      expect(readdirSync(spare.directory), "it is planted in time").toEqual([name]);
      expect(await spare.told()).toMatchObject({ kind: 2, stage: DIRECTORY });
      expect(readFileSync(victim, "utf8")).toBe("kept");
      expect(existsSync(`${victim}.new`)).toBe(false);
    },
  );

  test.concurrent(`a supervisor is not made in a directory that another has put in place of its own`, async () => {
    await using spare = await heldSpare();
    const elsewhere = join(spare.directory, "../../elsewhere");
    mkdirSync(elsewhere);
    renameSync(spare.directory, `${elsewhere}-own`);
    symlinkSync(elsewhere, spare.directory);
    expect(await spare.told()).toMatchObject({ kind: 2, stage: DIRECTORY });
    expect(readdirSync(elsewhere)).toEqual([]);
  });

  test.concurrent(`a supervisor's files are new, its alone, and no links`, needsRoot, async () => {
    await using spare = await heldSpare();
    expect(lstatSync(spare.directory).mode & 0o777).toBe(0o700);
    expect(await spare.told()).toMatchObject({ kind: READY });
    for (const name of FILES) expect(lstatSync(join(spare.directory, name)).mode & 0o777, name).toBe(0o600);
    const opened = readFileSync(spare.trace, "utf8")
      .split("\n")
      .filter((line) => FILES.some((name) => line.includes(`, "${name}", `)));
    const flags = opened.flatMap((line) => /"([\w.]+)", ([A-Z_|]+)/.exec(line)?.slice(1).join(" ") ?? []);
    expect(flags.filter((each) => each.includes("O_CREAT"))).toEqual(
      ["output", "index", "exit.new"].map((name) => `${name} O_RDWR|O_CREAT|O_EXCL|O_NOFOLLOW|O_CLOEXEC`),
    );
    expect(flags.find((each) => each.startsWith("control O_"))).toContain("O_NOFOLLOW");
  });
});
