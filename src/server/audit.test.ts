import { execFileSync } from "node:child_process";
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Writable } from "node:stream";
import { status } from "@grpc/grpc-js";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { unless } from "../testing/root.ts";
import { StartRequest } from "../../proto/generated/jobs/v1/worker.ts";
import { noMounts, smallDisk } from "../testing/disks.ts";
import { openAudit, type AuditRecord } from "./audit.ts";
import { fewOf } from "./few.ts";
import { FEW } from "./limits.ts";
import { NO_METER } from "./meter.ts";
import { recordRefusals } from "./refusals.ts";
import { authority, type Authority, type Pair } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import { answer, clientOf, errorOf, JOB, logTo, running } from "./testing/server.ts";

let trusted: Authority;
let writer: Pair;
beforeAll(async () => {
  trusted = await authority();
  writer = await trusted.client("writer");
});

const RECORD: AuditRecord = { id: "1", event: "call", peer: "127.0.0.1:1", decision: "allowed" };
const START = StartRequest.fromPartial({ command: "true" });

function directory(): string {
  const path = mkdtempSync(join(tmpdir(), "audit-"));
  onTestFinished(() => rmSync(path, { recursive: true }));
  return path;
}

test("records are lines of JSON, on disk when write returns, after what the file had, and readable by its owner alone", () => {
  const path = join(directory(), "audit.log");
  writeFileSync(path, "earlier\n", { mode: 0o644 });
  const audit = openAudit(path);
  audit.write({ ...RECORD, method: "two\nlines" });
  const [earlier, record, end] = readFileSync(path, "utf8").split("\n");
  expect(earlier).toBe("earlier");
  expect(JSON.parse(record ?? "")).toEqual({
    ...RECORD,
    method: "two\nlines",
    time: expect.stringMatching(/^\d{4}-.*Z$/),
  });
  expect(end).toBe("");
  expect(statSync(path).mode & 0o777).toBe(0o600);
  audit.close();
  expect(() => audit.write(RECORD)).toThrow("closed");
});

test("while the audit log cannot be written nothing is started, and stopping and reading go on", async () => {
  const done: string[] = [];
  const change = (what: string) => () => {
    done.push(what);
    return Promise.resolve({ job: JOB, alreadyStarted: false, killed: 0 });
  };
  // /dev/full is a device that is always full.
  await using server = await running(trusted, { start: change("start"), stop: change("stop") }, { audit: "/dev/full" });
  using client = clientOf(server.port, trusted.ca, writer);
  const start = await errorOf(answer((done) => client.start(START, done)));
  expect(start.code).toBe(status.UNAVAILABLE);
  await answer((done) => client.stop({ jobId: JOB.id, grace: undefined }, done));
  expect(start.details).toMatch(/audit log cannot be written/);
  expect(done).toEqual(["stop"]);
  expect(await answer((done) => client.query({ jobId: JOB.id }, done))).toMatchObject({ pid: JOB.pid });
  expect(server.logged.map(({ msg }) => msg)).toContain("audit record lost");
});

test("what a full disk did not take is written first when there is room", unless(noMounts), () => {
  using small = smallDisk(join(directory(), "disk"), 64 * 1024);
  const path = join(small.path, "audit.log");
  const audit = openAudit(path);
  using _closed = { [Symbol.dispose]: () => audit.close() };
  audit.write({ ...RECORD, id: "first" });
  small.fill();
  const long = "x".repeat(3950);
  for (const id of ["second", "third"]) expect(() => audit.write({ ...RECORD, id, reason: long })).toThrow();
  small.empty();
  audit.write({ ...RECORD, id: "fourth" });
  const lines = readFileSync(path, "utf8").split("\n").filter(Boolean);
  const whole = lines.flatMap((line): AuditRecord[] => (line.endsWith("}") ? [JSON.parse(line)] : []));
  expect(whole.map(({ id }) => id)).toEqual(["first", "second", "third", "fourth"]);
});

test("the last 1000 lines that a full disk did not take are kept", unless(noMounts), () => {
  using small = smallDisk(join(directory(), "disk"), 1024 * 1024);
  const path = join(small.path, "audit.log");
  const audit = openAudit(path);
  using _closed = { [Symbol.dispose]: () => audit.close() };
  small.fill();
  for (let id = 1; id <= 1500; id++) expect(() => audit.write({ ...RECORD, id: String(id) })).toThrow("ENOSPC");
  small.empty();
  audit.write({ ...RECORD, id: "last" });
  const ids = readFileSync(path, "utf8")
    .trim()
    .split("\n")
    .map((line) => (JSON.parse(line) as AuditRecord).id);
  // The last record makes room for itself.
  expect(ids).toEqual([...Array.from({ length: 999 }, (_, i) => String(502 + i)), "last"]);
});

test("an update whose line cannot be written is refused, and changes nothing", async () => {
  let changed = false;
  const update = (): Promise<typeof JOB> => {
    changed = true;
    return Promise.resolve(JOB);
  };
  await using server = await running(trusted, { update }, { audit: "/dev/full" });
  using client = clientOf(server.port, trusted.ca, writer);
  const refused = await errorOf(answer((done) => client.update({ jobId: JOB.id, resources: undefined }, done)));
  expect([refused.code, refused.details]).toEqual([
    status.UNAVAILABLE,
    expect.stringMatching(/audit log cannot be written/),
  ]);
  expect(changed).toBe(false);
});

test("a stream that was closed is as bad as a full disk", async () => {
  const sink = new Writable({ write: (_chunk, _encoding, done) => done() });
  await using server = await running(trusted, {}, { audit: sink });
  using client = clientOf(server.port, trusted.ca, writer);
  expect(await answer((done) => client.start(START, done))).toMatchObject({ jobId: JOB.id });
  sink.destroy();
  expect((await errorOf(answer((done) => client.start(START, done)))).code).toBe(status.UNAVAILABLE);
});

test("the first few refused connections of a kind in a minute are recorded, and then how many more there were", async () => {
  const records: AuditRecord[] = [];
  const audit = { write: (record: AuditRecord) => void records.push(record) };
  const log = logTo(() => undefined);
  using record = recordRefusals(audit, log, NO_METER, { ...FEW, windowMs: 200 });
  for (let i = 0; i < 1000; i++) record({ peer: `192.0.2.1:${i}`, reason: "TOO_MANY_HANDSHAKES" });
  record({ peer: "192.0.2.2:1", reason: "CERT_HAS_EXPIRED" });
  expect(records.map(({ reason }) => reason)).toEqual([
    ...Array.from({ length: FEW.ofKind }, () => "TOO_MANY_HANDSHAKES"),
    "CERT_HAS_EXPIRED",
  ]);
  await until(() => records.length > FEW.ofKind + 1, "the minute is over");
  expect(records.at(-1)).toEqual({
    id: expect.any(String),
    event: "connection",
    decision: "denied",
    more: { TOO_MANY_HANDSHAKES: 1000 - FEW.ofKind },
    since: expect.stringMatching(/^\d{4}-.*Z$/),
  });
  record({ peer: "192.0.2.1:1", reason: "TOO_MANY_HANDSHAKES" });
  expect(records).toHaveLength(FEW.ofKind + 3);
});

test("a minute has a bounded number of records of refusals, and one more, however many kinds there are", () => {
  const told: Readonly<Record<string, number>>[] = [];
  let passed = 0;
  {
    using few = fewOf(({ more }) => told.push(more));
    for (let i = 0; i < 10_000; i++) if (few.pass(`kind ${i % 1000}`)) passed++;
  }
  expect(passed).toBe(FEW.ofAll);
  expect(told).toHaveLength(1);
  expect(Object.keys(told[0] ?? {}).length).toBeLessThanOrEqual(FEW.ofAll + 1);
  expect(Object.values(told[0] ?? {}).reduce((sum, count) => sum + count, 0)).toBe(10_000 - FEW.ofAll);
});

test("after the first few a client's denied calls are counted, while another client's are still recorded", async () => {
  const [reader, other] = await Promise.all([
    trusted.client("reader"),
    trusted.client("reader", { name: "another reader" }),
  ]);
  await using server = await running(trusted);
  using client = clientOf(server.port, trusted.ca, reader);
  using another = clientOf(server.port, trusted.ca, other);
  for (let i = 0; i < 20; i++) await errorOf(answer((done) => client.start(START, done)));
  await errorOf(answer((done) => another.start(START, done)));
  await server.close();
  const names = server.audit.map(({ principal }) => principal?.name);
  expect(names.filter((name) => name === "some reader")).toHaveLength(FEW.ofKind);
  expect(names.filter((name) => name === "another reader")).toHaveLength(1);
  expect(server.audit.at(-1)?.more).toEqual({ "reader some reader: ROLE_NOT_ALLOWED": 20 - FEW.ofKind });
});

test("no record is longer than a few kilobytes, whatever a stranger gives", () => {
  const path = join(directory(), "audit.log");
  const audit = openAudit(path);
  const long = "\u0001€x".repeat(20_000);
  const claimed = { name: long, serial: long, fingerprint: long, role: long };
  audit.write({
    ...RECORD,
    method: long,
    peer: long,
    principal: claimed,
    presented: claimed,
    reason: long,
    code: long,
    jobId: long,
    request: { command: long, argc: 1, limits: Array.from({ length: 50 }, () => long) },
  });
  audit.close();
  const text = readFileSync(path, "utf8");
  expect(Buffer.byteLength(text)).toBeLessThan(64 * 1024);
  const { presented, request } = JSON.parse(text) as AuditRecord;
  expect(presented?.name).toBe(`${long.slice(0, 256)}…`);
  expect(request?.limits).toHaveLength(17);
});

test("a stranger's certificate with a name of 30 kB leaves a short record", async () => {
  const stranger = await authority();
  const pair = await stranger.client("writer", { name: "x".repeat(30_000) });
  const path = join(directory(), "audit.log");
  await using server = await running(trusted, {}, { audit: path });
  using client = clientOf(server.port, trusted.ca, pair);
  await errorOf(answer((done) => client.start(START, done)));
  await until(() => statSync(path).size > 0, "it is recorded");
  expect(statSync(path).size).toBeLessThan(4096);
  const { decision, presented } = JSON.parse(readFileSync(path, "utf8")) as AuditRecord;
  expect({ decision, name: presented?.name }).toEqual({ decision: "denied", name: `${"x".repeat(256)}…` });
});

describe("an audit log", () => {
  const LIMITS = { limitBytes: 64 * 1024, keepMs: 3600_000, turnMs: 3600_000 };
  const size = JSON.stringify({ time: new Date().toISOString(), ...RECORD }).length + 1;

  function filesIn(path: string): string[] {
    return readdirSync(path).toSorted((a, b) => b.length - a.length || (a < b ? -1 : 1));
  }

  test("goes on in another file with an eighth of its limit, loses no line, and drops the oldest files beyond it", () => {
    const path = directory();
    const file = join(path, "audit.log");
    writeFileSync(join(path, "audit.log.notes"), "of somebody else");
    const audit = openAudit(file, LIMITS);
    const count = Math.ceil((2 * LIMITS.limitBytes) / size);
    const sizeOfAll = (): number =>
      readdirSync(path).reduce((sum, name) => sum + statSync(join(path, name)).size, 0) - "of somebody else".length;
    let most = 0;
    for (let i = 0; i < count; i++) {
      audit.write({ ...RECORD, durationMs: i });
      most = Math.max(most, sizeOfAll());
    }
    audit.close();
    expect(most).toBeLessThanOrEqual(LIMITS.limitBytes);
    const lines = filesIn(path)
      .filter((name) => !name.endsWith("notes"))
      .flatMap((name) => readFileSync(join(path, name), "utf8").trim().split("\n"))
      .map((text) => (JSON.parse(text) as AuditRecord).durationMs ?? -1)
      .toSorted((a, b) => a - b);
    // The newest lines are there without a hole, three quarters of the limit at the least.
    expect(lines).toEqual(Array.from({ length: lines.length }, (_, i) => count - lines.length + i));
    expect(lines.length * size).toBeGreaterThan((LIMITS.limitBytes * 3) / 4);
    expect(existsSync(join(path, "audit.log.notes"))).toBe(true);
    for (const name of filesIn(path).filter((each) => !each.endsWith("notes")))
      expect(statSync(join(path, name)).mode & 0o777).toBe(0o600);
  });

  test("goes on in another file when it is old, and removes files that are too old", async () => {
    const path = directory();
    const file = join(path, "audit.log");
    const old = `${file}.2026-01-02T03-04-05.678Z`;
    writeFileSync(old, "old\n");
    utimesSync(old, new Date(0), new Date(0));
    const audit = openAudit(file, { ...LIMITS, turnMs: 20 });
    expect(existsSync(old)).toBe(false);
    audit.write({ ...RECORD, id: "before" });
    await new Promise((resolve) => setTimeout(resolve, 40));
    audit.write({ ...RECORD, id: "after" });
    audit.close();
    expect(readFileSync(file, "utf8")).toMatch(/^.*"after".*\n$/);
    expect(filesIn(path)).toHaveLength(2);
  });

  test("stays one file without a limit", () => {
    const path = directory();
    const audit = openAudit(join(path, "audit.log"), { ...LIMITS, limitBytes: 0 });
    for (let i = 0; i < 2000; i++) audit.write(RECORD);
    audit.close();
    expect(readdirSync(path)).toEqual(["audit.log"]);
  });

  test("goes on in the same file where there can be no other file, and says so", () => {
    const path = directory();
    const [file, failures] = [join(path, "audit.log"), [] as unknown[]];
    const audit = openAudit(file, LIMITS, (error) => failures.push(error));
    // Not even root can rename a file that is gone.
    unlinkSync(file);
    for (let i = 0; i < 200; i++) audit.write(RECORD);
    expect(failures.length).toBeGreaterThan(0);
    expect(failures.length).toBeLessThan(5);
    expect(failures[0]).toMatchObject({ code: "ENOENT" });
    audit.reopen()();
    audit.write({ ...RECORD, id: "last" });
    expect(readFileSync(file, "utf8")).toContain('"last"');
    audit.close();
  });

  test("is written where a link leads, and the link stays", () => {
    const [path, elsewhere] = [directory(), directory()];
    symlinkSync(join(elsewhere, "real.log"), join(path, "audit.log"));
    const audit = openAudit(join(path, "audit.log"), LIMITS);
    for (let i = 0; i < 200; i++) audit.write(RECORD);
    audit.close();
    expect(readdirSync(path)).toEqual(["audit.log"]);
    expect(readdirSync(elsewhere).length).toBeGreaterThan(1);
  });

  test("that is no regular file is written to, and otherwise left as it is; a FIFO without a reader is an error", () => {
    const path = directory();
    const before = statSync("/dev/null").mode;
    const audit = openAudit("/dev/null", LIMITS);
    for (let i = 0; i < 200; i++) audit.write(RECORD);
    audit.reopen()();
    audit.close();
    expect(statSync("/dev/null").mode).toBe(before);
    expect(() => openAudit(path)).toThrow("EISDIR");
    execFileSync("mkfifo", [join(path, "fifo")]);
    // Opening does not wait for a reader.
    expect(() => openAudit(join(path, "fifo"))).toThrow("ENXIO");
  });
});
