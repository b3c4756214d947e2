import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Writable } from "node:stream";
import { status } from "@grpc/grpc-js";
import { beforeAll, expect, onTestFinished, test } from "vitest";
import { StartRequest } from "../../proto/generated/jobs/v1/worker.ts";
import { noMounts, reason, smallDisk } from "../supervisor/testing/faults.ts";
import { openAudit, type AuditRecord } from "./audit.ts";
import { MAX_REFUSALS_RECORDED_PER_SECOND } from "./limits.ts";
import { recordRefusals } from "./refusals.ts";
import { answer, authority, clientOf, errorOf, JOB, logTo, running, type Authority, type Pair } from "./testing.ts";

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

test("records are lines of JSON, on disk when write returns, behind what the file had, for the owner's eyes only", () => {
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
  // The device that is always full.
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

test.skipIf(noMounts)(`what a full disk did not take is written first when there is room${reason(noMounts)}`, () => {
  using small = smallDisk(join(directory(), "disk"), 64 * 1024);
  const path = join(small.path, "audit.log");
  const audit = openAudit(path);
  using _closed = { [Symbol.dispose]: () => audit.close() };
  audit.write({ ...RECORD, id: "first" });
  small.fill();
  const long = "x".repeat(4096);
  for (const id of ["second", "third"]) expect(() => audit.write({ ...RECORD, id, reason: long })).toThrow();
  small.empty();
  audit.write({ ...RECORD, id: "fourth" });
  const lines = readFileSync(path, "utf8").split("\n").filter(Boolean);
  const whole = lines.flatMap((line): AuditRecord[] => (line.endsWith("}") ? [JSON.parse(line)] : []));
  expect(whole.map(({ id }) => id)).toEqual(["first", "second", "third", "fourth"]);
});

test.skipIf(noMounts)(`of what a full disk did not take, the last 1000 lines are kept${reason(noMounts)}`, () => {
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
  // With the last, which makes room for itself.
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

test("strangers cannot fill the disk with refusals, and how many were not recorded is", () => {
  const records: AuditRecord[] = [];
  const audit = { write: (record: AuditRecord) => void records.push(record), close: () => undefined };
  const record = recordRefusals(
    audit,
    logTo(() => undefined),
  );
  const end = performance.now() + 1100;
  let sent = 0;
  for (; performance.now() < end; sent++) record({ peer: "192.0.2.1:1", reason: "ECONNRESET" });
  const suppressed = records.reduce((sum, each) => sum + (each.suppressed ?? 0), 0);
  expect(suppressed).toBeGreaterThan(MAX_REFUSALS_RECORDED_PER_SECOND);
  expect(records.length).toBeLessThanOrEqual(3 * MAX_REFUSALS_RECORDED_PER_SECOND);
  expect(sent).toBeGreaterThan(records.length + suppressed);
});
