import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { open } from "node:fs/promises";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { Duplex } from "node:stream";
import * as fc from "fast-check";
import { expect, test } from "vitest";
import { SPARE } from "../worker/supervisor/spare.ts";
import { BINARIES, sanitizerErrors } from "./testing/rig.ts";
import { soon, until } from "../testing/processes.ts";

const FRAME_MAX = 8 << 20;
/** On the socket. */
const SOCKET_FRAME_MAX = 64 << 10;
const { EBADMSG, ECANCELED, ENOENT } = constants.errno;
const FAILED = 2;
const GONE = 3;
const REQUEST = 1;
const NO_ISOLATION = "0";
const NOWHERE = "/nowhere/job"; // no job can be put there
const CGROUP = 5;
const DEVICES = 13;
const READY = 4;
const COUNTS = [
  0,
  1,
  2,
  3,
  255,
  65_536,
  FRAME_MAX - 1,
  FRAME_MAX,
  FRAME_MAX + 1,
  2 ** 30,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
];

interface Reply {
  readonly job: number;
  readonly kind: number;
  readonly pid: number;
  readonly stage: number;
  readonly error: number;
}

/** A spawner on a bare socket, under the sanitizers. */
function bare() {
  const directory = mkdtempSync(join(tmpdir(), "supervisor-frames-"));
  const reports = join(directory, "reports");
  mkdirSync(reports);
  const options = `log_path=${join(reports, "report")}`;
  const child = spawn(BINARIES.sanitized, [directory, NO_ISOLATION, ""], {
    cwd: directory,
    stdio: ["ignore", "ignore", "ignore", "pipe"],
    env: { ASAN_OPTIONS: options, UBSAN_OPTIONS: options },
  });
  const socket = child.stdio[3];
  if (!(socket instanceof Duplex)) throw new Error("no socket");
  const exited = once(child, "exit");
  const parts: Buffer[] = [];
  socket.on("data", (bytes: Buffer) => parts.push(bytes));
  socket.on("error", () => {}); // it may end while it is written to
  const replies = (): Reply[] => {
    const bytes = Buffer.concat(parts);
    return Array.from({ length: Math.floor(bytes.length / 24) }, (_, i) => ({
      job: Number(bytes.readBigUInt64LE(24 * i)),
      kind: bytes.readUInt32LE(24 * i + 8),
      pid: bytes.readInt32LE(24 * i + 12),
      stage: bytes.readInt32LE(24 * i + 16),
      error: bytes.readInt32LE(24 * i + 20),
    }));
  };
  let job = 0;
  return {
    directory,
    socket,
    replies,
    /** Has a spare made, writes `pieces` to it and go, and returns what becomes of it. */
    async give(pieces: readonly Uint8Array[], calledOff = false): Promise<Reply | undefined> {
      const number = ++job;
      const told = (kind?: number): Reply | undefined =>
        replies().find(
          (reply) => reply.job === number && (kind === undefined ? reply.kind !== READY : reply.kind === kind),
        );
      socket.write(frame(3, number, new Uint8Array()));
      await until(() => told(READY) !== undefined, "the spare is ready");
      await using control = await open(join(directory, `${SPARE}${told(READY)?.pid}`, "control"), "w");
      for (const piece of pieces) await control.write(piece);
      await control.write(calledOff ? Buffer.of(0) : Buffer.of(1)).catch(() => {}); // it may have ended
      await until(() => told() !== undefined, "the spare answers or is gone");
      return told();
    },
    /** Closes the socket; returns the exit status once there is one, and what the sanitizers said. */
    async end() {
      socket.end();
      const [code, signal]: unknown[] = await soon(exited, "the spawner ends");
      return { code, signal, said: sanitizerErrors(reports) };
    },
    async [Symbol.asyncDispose]() {
      socket.destroy(); // nothing more is needed for its end
      child.kill("SIGKILL"); // where a test failed
      await exited;
      rmSync(directory, { recursive: true });
    },
  };
}

function frame(type: number, job: number, body: Uint8Array, size = 16 + body.length): Buffer {
  const header = Buffer.alloc(16);
  header.writeUInt32LE(size, 0);
  header.writeUInt32LE(type, 4);
  header.writeBigUInt64LE(BigInt(job), 8);
  return Buffer.concat([header, body]);
}

interface Counts {
  readonly limits?: number;
  readonly groups: number;
  readonly args: number;
  readonly env: number;
  readonly devices?: number;
}

/** The body of a start, whose counts may lie. Its cgroup does not exist: nothing is ever run. */
function startBody({ limits = 0, groups, args, env, devices = 0 }: Counts, strings: readonly string[]): Buffer {
  const start = Buffer.alloc(88);
  [groups, args, env, limits].forEach((count, i) => start.writeUInt32LE(count, 40 + 4 * i));
  start.writeUInt32LE(devices, 72);
  return Buffer.concat([start, Buffer.from(strings.map((string) => `${string}\0`).join(""))]);
}

const anyBody = fc.uint8Array({ maxLength: 300 });
const counts = fc.record({
  limits: fc.constantFrom(...COUNTS),
  groups: fc.constantFrom(...COUNTS),
  args: fc.constantFrom(...COUNTS),
  env: fc.constantFrom(...COUNTS),
  devices: fc.constantFrom(...COUNTS),
});
const lyingBody = fc
  .tuple(counts, fc.array(fc.string({ maxLength: 8 }), { maxLength: 8 }), fc.nat(400))
  .map(([counted, strings, length]) => startBody(counted, [NOWHERE, ...strings]).subarray(0, length));
const right = { groups: 0, args: 1, env: 1 };
const strings = [NOWHERE, "/", "true", "A=b"];

test("a start that is not what it says is refused, and the spawner goes on", async () => {
  await using spawner = bare();
  await fc.assert(
    fc.asyncProperty(fc.oneof(anyBody, lyingBody), async (body) => {
      const reply = await spawner.give([frame(1, 0, body)]);
      expect(reply?.kind).toBe(FAILED);
      // The generator may make one that is right, though nothing that can be run.
      if (reply?.stage === REQUEST) expect(reply.error).toBe(EBADMSG);
    }),
    { numRuns: 200 },
  );
  expect(await spawner.end()).toEqual({ code: 0, signal: null, said: [] });
});

test("counts that do not fit the start are refused", async () => {
  await using spawner = bare();
  const wrong = [
    ...COUNTS.slice(2).flatMap((count) => [
      { ...right, limits: count },
      { ...right, groups: Math.min(count * 4, 2 ** 32 - 1) },
      { ...right, args: count },
      { ...right, env: count },
      { ...right, devices: Math.min(count * 16, 2 ** 32 - 1) },
    ]),
    { ...right, args: 0 },
    { ...right, env: 0 },
  ];
  expect(await spawner.give([frame(1, 0, startBody(right, strings))])).toMatchObject({
    kind: FAILED,
    stage: CGROUP,
    error: ENOENT,
  });
  const unended = startBody(right, strings).subarray(0, -1);
  for (const body of [...wrong.map((counted) => startBody(counted, strings)), unended])
    expect(await spawner.give([frame(1, 0, body)])).toMatchObject({ kind: FAILED, stage: REQUEST, error: EBADMSG });
  expect(await spawner.end()).toEqual({ code: 0, signal: null, said: [] });
});

test("a start may come in pieces, be as long as may be, and be called off", async () => {
  await using spawner = bare();
  const fixed = startBody({ groups: 0, args: 1, env: 0 }, [NOWHERE, "/", ""]);
  const argument = "x".repeat(FRAME_MAX - 16 - fixed.length);
  const long = frame(1, 0, startBody({ groups: 0, args: 1, env: 0 }, [NOWHERE, "/", argument]));
  const short = frame(1, 0, startBody(right, strings));
  const cuts = [1, 8, 15, 16, 17, 60, short.length - 1];
  const starts = [[long], ...cuts.map((at) => [short.subarray(0, at), short.subarray(at)])];
  for (const pieces of starts)
    expect(await spawner.give(pieces)).toMatchObject({ kind: FAILED, stage: CGROUP, error: ENOENT });
  const calledOff = frame(1, 0, startBody(right, ["", "/", "true", "A=b"]));
  expect(await spawner.give([calledOff], true)).toMatchObject({ kind: FAILED, stage: REQUEST, error: ECANCELED });
  expect(await spawner.end()).toEqual({ code: 0, signal: null, said: [] });
});

test.each([0, 1, 15, FRAME_MAX + 1, 2 ** 31, 2 ** 32 - 1])("a start of size %i ends only its spare", async (size) => {
  await using spawner = bare();
  expect(await spawner.give([frame(1, 0, new Uint8Array(), size)])).toMatchObject({ kind: GONE });
  expect(await spawner.give([frame(1, 0, startBody(right, strings))])).toMatchObject({ kind: FAILED, stage: CGROUP });
  expect(await spawner.end()).toEqual({ code: 0, signal: null, said: [] });
});

test("what is given to a spare and is no start is refused", async () => {
  await using spawner = bare();
  for (const type of [0, 2, 3, 4, 2 ** 32 - 1])
    expect(await spawner.give([frame(type, 0, startBody(right, strings))])).toMatchObject({
      kind: FAILED,
      stage: REQUEST,
      error: EBADMSG,
    });
  expect(await spawner.end()).toEqual({ code: 0, signal: null, said: [] });
});

test("a frame of unknown type is refused", async () => {
  await using spawner = bare();
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 5, max: 2 ** 32 - 1 }), anyBody, async (type, body) => {
      const before = spawner.replies().length;
      spawner.socket.write(frame(type, 7, body));
      await until(() => spawner.replies().length > before, "a reply comes");
      expect(spawner.replies().at(-1)).toMatchObject({ job: 7, kind: FAILED, stage: REQUEST, error: EBADMSG });
    }),
    {
      numRuns: 100,
      examples: [
        [0, new Uint8Array()],
        [1, startBody(right, strings)],
      ],
    },
  );
  expect(await spawner.end()).toEqual({ code: 0, signal: null, said: [] });
});

test("device rules that name no cgroup, or are no program, are refused", async () => {
  await using spawner = bare();
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom("", NOWHERE, "/tmp", "/sys/fs/cgroup"),
      fc.boolean(),
      anyBody,
      async (path, end, bytes) => {
        const before = spawner.replies().length;
        spawner.socket.write(
          frame(4, 7, Buffer.concat([Buffer.from(end ? `${path}\0` : path), end ? bytes : Buffer.of()])),
        );
        await until(() => spawner.replies().length > before, "a reply comes");
        const stages = end ? [CGROUP, DEVICES] : [REQUEST];
        expect(spawner.replies().at(-1)).toMatchObject({ job: 7, kind: FAILED, stage: expect.toBeOneOf(stages) });
      },
    ),
    { numRuns: 100 },
  );
  expect(await spawner.end()).toEqual({ code: 0, signal: null, said: [] });
});

/** Bodies of ADOPT that name no directory there is. */
const noDirectory = fc.oneof(
  anyBody.map((bytes) => bytes.filter((byte) => byte !== 0)),
  fc.nat(5000).map((length) => Buffer.from(`${NOWHERE}${"/x".repeat(length)}\0`)),
);

test("an adoption that names no directory is of a job that is gone", async () => {
  await using spawner = bare();
  await fc.assert(
    fc.asyncProperty(noDirectory, async (body) => {
      const before = spawner.replies().length;
      spawner.socket.write(frame(2, 7, body));
      await until(() => spawner.replies().length > before, "a reply comes");
      expect(spawner.replies().at(-1)).toMatchObject({ job: 7, kind: GONE });
    }),
    { numRuns: 100 },
  );
  expect(await spawner.end()).toEqual({ code: 0, signal: null, said: [] });
});

test("frames are the same however they are cut into pieces", async () => {
  await using spawner = bare();
  let sent = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(anyBody, { minLength: 1, maxLength: 6 }),
      fc.infiniteStream(fc.integer({ min: 1, max: 200 })),
      async (bodies, cuts) => {
        const bytes = Buffer.concat(bodies.map((body, i) => frame(9, sent + i, body)));
        sent += bodies.length;
        for (let at = 0; at < bytes.length;) {
          const end = at + cuts.next().value;
          await new Promise((resolve) => {
            spawner.socket.write(bytes.subarray(at, end), resolve);
          });
          at = end;
        }
        await until(() => spawner.replies().length === sent, "every frame is answered");
      },
    ),
    { numRuns: 100 },
  );
  expect(spawner.replies().map(({ job }) => job)).toEqual(Array.from({ length: sent }, (_, i) => i));
  expect(await spawner.end()).toEqual({ code: 0, signal: null, said: [] });
});

test.each([0, 1, 15, SOCKET_FRAME_MAX + 1, 2 ** 31, 2 ** 32 - 1])(
  "a frame of size %i ends the spawner",
  async (size) => {
    await using spawner = bare();
    spawner.socket.write(frame(1, 1, new Uint8Array(), size));
    await soon(once(spawner.socket, "close"), "the spawner closes its socket");
    expect(await spawner.end()).toEqual({ code: 1, signal: null, said: [] });
    expect(spawner.replies()).toEqual([]);
  },
);

test("a frame that breaks off anywhere does nothing, and the spawner ends with its daemon", async () => {
  const whole = frame(2, 1, Buffer.from(`${NOWHERE}\0`));
  await fc.assert(
    fc.asyncProperty(fc.nat(whole.length - 1), async (length) => {
      await using spawner = bare();
      spawner.socket.write(whole.subarray(0, length));
      expect(await spawner.end()).toEqual({ code: 0, signal: null, said: [] });
      expect(spawner.replies()).toEqual([]);
    }),
    { numRuns: 40 },
  );
});

test("random bytes end the spawner or are answered, and break nothing", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.uint8Array({ maxLength: 2000 }), { maxLength: 4 }), async (pieces) => {
      await using spawner = bare();
      for (const piece of pieces) spawner.socket.write(piece);
      const { code, signal, said } = await spawner.end();
      expect({ signal, said }).toEqual({ signal: null, said: [] });
      expect([0, 1]).toContain(code);
    }),
    { numRuns: 60 },
  );
});
