import { readFile } from "node:fs/promises";
import { connect, type ConnectionOptions } from "node:tls";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { AuditRecord } from "./testing/api.ts";
import { issueOdd } from "./testing/certificates.ts";
import { type Daemon, startDaemon } from "./testing/daemon.ts";

const SERVICE = "/jobs.v1.WorkerService";

const made = new AsyncDisposableStack();
let daemon: Daemon;
beforeAll(async () => {
  daemon = made.use(await startDaemon());
  await issueOdd(daemon.certificates);
});
afterAll(() => made.disposeAsync());

/** The records that `act` leaves, of which there is one at least: a client may know of its refusal before the audit log does. */
async function recorded<Result>(act: () => Promise<Result>): Promise<{ result: Result; records: AuditRecord[] }> {
  const before = (await daemon.audit()).length;
  const result = await act();
  const left = async (): Promise<AuditRecord[]> => (await daemon.audit()).slice(before);
  await vi.waitUntil(async () => (await left()).length > 0, { timeout: 20_000, interval: 200 });
  return { result, records: await left() };
}

/** The record of a call that was not allowed. */
function denial(method: string, principal: AuditRecord["principal"], reason: string) {
  const decided = { decision: "denied", reason, code: "PERMISSION_DENIED" };
  return { event: "call", method: `${SERVICE}/${method}`, principal, ...decided };
}

/** What a client without the CLI learns: how its connection ended, and what it was told on it. */
async function outcome(options: ConnectionOptions): Promise<{ end: string; told: string }> {
  const [host = "", port] = daemon.server.split(":");
  const ca = await readFile(daemon.certificates.file("ca.crt"));
  const socket = connect({ host, port: Number(port), ca, servername: "localhost", ALPNProtocols: ["h2"], ...options });
  let told = "";
  socket.on("data", (bytes) => (told += bytes.toString("hex")));
  const end = await new Promise<string>((resolve) => {
    socket.on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    socket.on("close", () => resolve("closed"));
    socket.setTimeout(20_000, () => resolve("let in"));
  });
  socket.destroy();
  return { end, told };
}

describe("a reader", () => {
  it("may query, stream, list and wait", async () => {
    const id = await daemon.start("--label", "test=reader", "--", "echo", "seen");
    expect(await daemon.jobs("reader", "wait", id)).toMatchObject({ code: 0, stdout: `${id} exited with code 0\n` });
    expect(await daemon.jobs("reader", "stream", id)).toEqual({ code: 0, stdout: "seen\n", stderr: "" });
    expect(await daemon.jobs("reader", "list", "-q", "--label", "test=reader")).toMatchObject({ stdout: `${id}\n` });
    expect(await daemon.query(id)).toMatchObject({ exited: true, exitCode: 0 });
  });

  it("may not start or stop, is told which role it takes, and is recorded", async () => {
    const id = await daemon.start("--", "sleep", "1000");
    const { result, records } = await recorded(async () => ({
      start: await daemon.jobs("reader", "start", "--label", "test=denied", "--", "true"),
      run: await daemon.jobs("reader", "run", "--label", "test=denied", "--", "true"),
      stop: await daemon.jobs("reader", "stop", "--grace", "0", id),
    }));
    const needs = (method: string): string =>
      `jobsctl: ${method} needs the role writer or admin; the certificate of "reader" has reader\n`;
    expect(result).toEqual({
      start: { code: 125, stdout: "", stderr: needs("Start") },
      run: { code: 125, stdout: "", stderr: needs("Start") },
      stop: { code: 1, stdout: "", stderr: needs("Stop") },
    });
    const denied = (method: string) => denial(method, { name: "reader", role: "reader" }, "ROLE_NOT_ALLOWED");
    expect(records).toMatchObject([denied("Start"), denied("Start"), denied("Stop")]);
    expect((await daemon.query(id)).job.state).toBe("STATE_RUNNING");
    expect(await daemon.jobs("reader", "list", "-q", "--label", "test=denied")).toMatchObject({ code: 0, stdout: "" });
    await daemon.jobs("writer", "stop", "--grace", "0", id);
  });
});

describe("a writer", () => {
  it("may do all, and what changes something is recorded before it happens and when it has", async () => {
    const { result: id, records } = await recorded(async () => {
      const started = await daemon.start(
        "--env",
        "TOKEN=hidden-value",
        "--",
        "sh",
        "-c",
        "sleep 1000",
        "hidden-argument",
      );
      await daemon.jobs("writer", "stop", "--grace", "0", started);
      return started;
    });
    const by = { event: "call", principal: { name: "writer", role: "writer" }, decision: "allowed" };
    expect(records).toMatchObject([
      { ...by, method: `${SERVICE}/Start`, stage: "begin", request: { command: "sh", argc: 3 } },
      { ...by, method: `${SERVICE}/Start`, stage: "end", code: "OK", jobId: id },
      { ...by, method: `${SERVICE}/Stop`, stage: "begin", jobId: id },
      { ...by, method: `${SERVICE}/Stop`, stage: "end", code: "OK", jobId: id },
    ]);
    expect(JSON.stringify(records)).not.toContain("hidden");
    for (const command of [["query", id], ["stream", id], ["list"], ["wait", id]]) {
      expect((await daemon.jobs("writer", ...command)).stderr).toBe("");
    }
  });
});

describe("a certificate without an extended key usage, as openssl makes them,", () => {
  it("is for any use, so that its role alone counts", async () => {
    expect(await daemon.jobs("bare", "run", "--", "echo", "in")).toEqual({ code: 0, stdout: "in\n", stderr: "" });
  });
});

describe("a certificate of the right CA lets nobody in", () => {
  it.each([
    ["without a role", "roleless", "ROLE_MISSING", "it has no role extension 1.2.840.10070.8.1"],
    ["with an unknown role", "guest", "ROLE_UNKNOWN", 'its role "guest" is none of reader, writer, admin'],
    [
      "with a role that is no UTF8String",
      "printable",
      "ROLE_MALFORMED",
      "its role extension 1.2.840.10070.8.1 is not one DER UTF8String",
    ],
    ["with two roles", "double", "ROLE_REPEATED", "it has several role extensions 1.2.840.10070.8.1"],
  ])("%s", async (_, party, reason, fault) => {
    const { result, records } = await recorded(async () => ({
      list: await daemon.jobs(party, "list"),
      start: await daemon.jobs(party, "start", "--label", `test=${party}`, "--", "true"),
    }));
    const stderr = `jobsctl: certificate of "${party}": ${fault}; sign one with the role reader, writer, admin\n`;
    expect(result).toEqual({ list: { code: 1, stdout: "", stderr }, start: { code: 125, stdout: "", stderr } });
    const denied = (method: string) => denial(method, { name: party }, reason);
    expect(records).toMatchObject([denied("List"), denied("Start")]);
    for (const { principal } of records) expect(principal).not.toHaveProperty("role");
    expect(await daemon.jobs("reader", "list", "-q", "--label", `test=${party}`)).toMatchObject({
      code: 0,
      stdout: "",
    });
  });
});

describe("a connection is refused, the person is told why, and it is recorded", () => {
  it.each([
    [
      "when another CA of the same name signed",
      "stranger",
      /^UNABLE_TO|^CERT_SIGNATURE_FAILURE/,
      "is signed by another CA of the same name, CN=jobs CA",
    ],
    ["when the certificate has expired", "expired", /^CERT_HAS_EXPIRED$/, "expired at "],
    ["when the certificate is not valid yet", "future", /^CERT_NOT_YET_VALID$/, "is valid only from "],
    ["when the certificate is made for a server", "server", /^INVALID_PURPOSE$/, "is not for clients"],
  ])("%s", async (_, party, reason, fault) => {
    const { result, records } = await recorded(async () => ({
      list: await daemon.jobs(party, "list"),
      start: await daemon.jobs(party, "start", "--label", `test=${party}`, "--", "true"),
    }));
    expect(result).toMatchObject({ list: { code: 1, stdout: "" }, start: { code: 125, stdout: "" } });
    for (const { stderr } of Object.values(result)) {
      expect(stderr).toContain(`jobsctl: no connection: your certificate (CN=${party}) ${fault}`);
    }
    // A client that gives up in the middle of another attempt has shown nothing yet.
    const shown = records.filter(({ presented }) => presented);
    expect(shown.length).toBeGreaterThanOrEqual(2);
    for (const record of shown) {
      expect(record).toMatchObject({ reason: expect.stringMatching(reason), presented: { name: party } });
    }
    for (const record of records) {
      expect(record).toMatchObject({ event: "connection", decision: "denied" });
      expect(record).not.toHaveProperty("principal");
    }
    expect(await daemon.jobs("reader", "list", "-q", "--label", `test=${party}`)).toMatchObject({
      code: 0,
      stdout: "",
    });
  });

  it("when there is no certificate", async () => {
    const { result, records } = await recorded(() => outcome({}));
    expect(result).toEqual({ end: expect.stringMatching(/^(closed|ECONNRESET)$/), told: "" });
    expect(records).toMatchObject([{ event: "connection", decision: "denied", reason: "NO_CERTIFICATE" }]);
  });

  it("when the client is of TLS 1.2, whatever its certificate", async () => {
    const { file } = daemon.certificates;
    const [cert, key] = await Promise.all([readFile(file("writer.crt")), readFile(file("writer.key"))]);
    const { result, records } = await recorded(() => outcome({ cert, key, maxVersion: "TLSv1.2" }));
    expect(result).toEqual({ end: "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION", told: "" });
    expect(records).toMatchObject([
      { event: "connection", decision: "denied", reason: "ERR_SSL_UNSUPPORTED_PROTOCOL" },
    ]);
  });
});
