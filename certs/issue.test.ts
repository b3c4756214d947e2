import { execFile } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import { mkdtempDisposable, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import tls from "node:tls";
import { promisify } from "node:util";
import { beforeAll, describe, expect, it } from "vitest";
import { type Issued, issueAll } from "./issue.ts";

const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";
const SERVER_AUTH = "1.3.6.1.5.5.7.3.1";
const DAY_MS = 86_400_000;

const lifeMs = ({ validFromDate, validToDate }: X509Certificate) => validToDate.getTime() - validFromDate.getTime();
const temporary = () => mkdtempDisposable(join(tmpdir(), "jobs-certs-"));

describe("the certificates of a CA, a worker, a writer and a reader", () => {
  let issued: Issued[];
  let files: Record<Issued["name"], { readonly crt: string; readonly key: string }>;
  let parsed: Record<Issued["name"], X509Certificate>;

  beforeAll(async () => {
    const dir = await temporary();
    issued = await issueAll({ out: join(dir.path, "made/here"), hosts: ["Worker.Internal", "10.0.0.7"], bits: 2048 });
    const read = async (name: Issued["name"]) => {
      const { crt, key } = issued.find((one) => one.name === name) ?? expect.fail(`no ${name}`);
      return { crt: await readFile(crt, "utf8"), key: await readFile(key, "utf8") };
    };
    const [ca, worker, writer, reader] = await Promise.all([
      read("ca"),
      read("worker"),
      read("writer"),
      read("reader"),
    ]);
    files = { ca, worker, writer, reader };
    parsed = {
      ca: new X509Certificate(ca.crt),
      worker: new X509Certificate(worker.crt),
      writer: new X509Certificate(writer.crt),
      reader: new X509Certificate(reader.crt),
    };
    const { mode } = await stat(join(dir.path, "made/here"));
    expect(mode & 0o777).toBe(0o700);
    for (const { crt, key } of issued) {
      expect((await stat(key)).mode & 0o777).toBe(0o600);
      expect((await stat(crt)).mode & 0o777).toBe(0o644);
    }
    return () => dir.remove();
  });

  it("chain to the CA, whose key signed them", () => {
    for (const name of ["ca", "worker", "writer", "reader"] as const) {
      expect(parsed[name].checkIssued(parsed.ca)).toBe(true);
      expect(parsed[name].verify(parsed.ca.publicKey)).toBe(true);
      expect(parsed[name].signatureAlgorithm).toBe("sha256WithRSAEncryption");
    }
  });

  it("are CA:TRUE for the CA alone, each leaf for one purpose", () => {
    expect(parsed.ca.ca).toBe(true);
    expect([parsed.worker.ca, parsed.writer.ca, parsed.reader.ca]).toEqual([false, false, false]);
    expect(parsed.worker.keyUsage).toEqual([SERVER_AUTH]);
    expect(parsed.writer.keyUsage).toEqual([CLIENT_AUTH]);
    expect(parsed.reader.keyUsage).toEqual([CLIENT_AUTH]);
  });

  it("have constraints and key usages that are critical, byte for byte", () => {
    // BasicConstraints (2.5.29.19), critical, { CA:TRUE, pathLen 0 }; then KeyUsage (2.5.29.15) with bits 5 and 6.
    expect(parsed.ca.raw.includes(Buffer.from("0603551d130101ff040830060101ff020100", "hex"))).toBe(true);
    expect(parsed.ca.raw.includes(Buffer.from("0603551d0f0101ff040403020106", "hex"))).toBe(true);
    // The same with an empty constraint, and bit 0, digitalSignature.
    expect(parsed.writer.raw.includes(Buffer.from("0603551d130101ff04023000", "hex"))).toBe(true);
    expect(parsed.writer.raw.includes(Buffer.from("0603551d0f0101ff040403020780", "hex"))).toBe(true);
  });

  it("carry the role as a DER UTF8String, for clients alone", () => {
    const oid = Buffer.from("06072a8648ce560801", "hex");
    const role = (name: "writer" | "reader") =>
      Buffer.concat([oid, Buffer.from([0x04, 0x08, 0x0c, 0x06]), Buffer.from(name)]);
    expect(parsed.writer.raw.includes(role("writer"))).toBe(true);
    expect(parsed.reader.raw.includes(role("reader"))).toBe(true);
    expect(parsed.worker.raw.includes(oid)).toBe(false);
    expect(parsed.ca.raw.includes(oid)).toBe(false);
  });

  it("are made out to this host and the ones asked for, in lower case", () => {
    for (const host of ["localhost", "worker.internal"]) expect(parsed.worker.checkHost(host)).toBe(host);
    for (const address of ["127.0.0.1", "::1", "10.0.0.7"]) expect(parsed.worker.checkIP(address)).toBe(address);
    expect(parsed.worker.checkHost("elsewhere.internal")).toBeUndefined();
    expect(parsed.writer.subjectAltName).toBeUndefined();
  });

  it("live 90 days, the CA ten years, from five minutes ago", () => {
    expect(lifeMs(parsed.reader)).toBe(90 * DAY_MS + 300_000);
    expect(lifeMs(parsed.ca)).toBe(3650 * DAY_MS + 300_000);
    expect(Date.now() - parsed.reader.validFromDate.getTime()).toBeGreaterThanOrEqual(300_000);
  });

  it("have positive serial numbers of their own, of up to 128 random bits", () => {
    const serials = Object.values(parsed).map(({ serialNumber }) => serialNumber);
    expect(new Set(serials).size).toBe(4);
    for (const serial of serials) expect(serial).toMatch(/^[0-9A-F]{24,32}$/);
  });

  it("authenticate both sides of a TLS 1.3 connection", async () => {
    for (const name of ["writer", "reader"] as const) {
      expect(await handshake(files.ca.crt, files.worker, files[name])).toEqual({
        protocol: "TLSv1.3",
        client: `CN=${name}`,
        server: "CN=worker",
      });
    }
  });

  it("do not let a worker's certificate pass for a client's", async () => {
    await expect(handshake(files.ca.crt, files.worker, files.worker)).rejects.toThrow("INVALID_PURPOSE");
  });
});

describe("a directory that has certificates already", () => {
  it("is left as it was, and the message names the file", async () => {
    await using dir = await temporary();
    const taken = join(dir.path, "writer.key");
    await writeFile(taken, "precious");
    await expect(issueAll({ out: dir.path, bits: 2048 })).rejects.toThrow(`${taken}: already exists; --force`);
    expect(await readdir(dir.path)).toEqual(["writer.key"]);
    expect(await readFile(taken, "utf8")).toBe("precious");
  });

  it("gets new ones with force", async () => {
    await using dir = await temporary();
    await writeFile(join(dir.path, "ca.key"), "old", { mode: 0o644 });
    await issueAll({ out: dir.path, bits: 2048, force: true });
    expect(await readFile(join(dir.path, "ca.key"), "utf8")).toContain("BEGIN PRIVATE KEY");
    expect((await stat(join(dir.path, "ca.key"))).mode & 0o777).toBe(0o600);
    expect(await readdir(dir.path)).toHaveLength(9);
  });
});

describe("an option that is wrong", () => {
  it.each([
    [{ bits: 1024 }, "bits: 1024"],
    [{ days: 0 }, "--days: 0"],
    [{ days: 1.5 }, "--days: 1.5"],
    [{ days: 4000 }, "--days: 4000"],
    [{ hosts: ["10.0.0.256"] }, '--host: "10.0.0.256"'],
  ])("is named, and no file is made: %o", async (wrong, message) => {
    await using dir = await temporary();
    await expect(issueAll({ out: join(dir.path, "out"), bits: 2048, ...wrong })).rejects.toThrow(message);
    expect(await readdir(dir.path)).toEqual([]);
  });
});

describe("the script", () => {
  it("makes the certificates and prints a line for each", async () => {
    await using dir = await temporary();
    const hosts = ["--host", "a.example", "--host", "b.example"];
    const { code, stdout } = await run(dir.path, "--out", "made", "--bits", "2048", ...hosts);
    expect(code).toBe(0);
    for (const name of ["ca", "worker", "writer", "reader"]) {
      expect(stdout).toContain(join(dir.path, "made", `${name}.crt`));
    }
    expect(stdout).toContain("a.example b.example");
  });

  it.each([
    [[], 2, "--out: missing"],
    [["--out", "x", "--wrong"], 2, "--wrong"],
    [["--out", "x", "--days", "many", "--bits", "2048"], 2, "--days: NaN"],
    [["--out", "/dev/null/x"], 1, "/dev/null/x"],
  ])("exits with 2 for a wrong command line and 1 for a failure: %o", async (args, code, message) => {
    await using dir = await temporary();
    const failed = await run(dir.path, ...args);
    expect(failed.code).toBe(code);
    expect(failed.stderr).toContain(message);
    expect(failed.stderr).not.toContain("    at ");
    expect(await readdir(dir.path)).toEqual([]);
  });
});

interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function run(cwd: string, ...args: string[]): Promise<Ran> {
  return promisify(execFile)(process.execPath, [join(import.meta.dirname, "main.ts"), ...args], { cwd }).then(
    (output) => ({ code: 0, ...output }),
    (failed: Ran) => failed,
  );
}

interface Party {
  readonly crt: string;
  readonly key: string;
}

/** Connects over TLS 1.3 and tells whom each side took the other for; rejects when either refuses the other. */
async function handshake(ca: string, server: Party, client: Party) {
  const options = { ca, cert: server.crt, key: server.key, minVersion: "TLSv1.3", requestCert: true } as const;
  // Letting the stranger in and asking afterwards is what gives the reason for a refusal.
  const listener = tls.createServer({ ...options, rejectUnauthorized: false });
  const accepted = new Promise<tls.TLSSocket>((resolve) => listener.once("secureConnection", resolve));
  await once(listener.listen(0, "127.0.0.1"), "listening");
  const address = listener.address();
  const port = address && typeof address === "object" ? address.port : 0;
  const socket = tls.connect({ host: "127.0.0.1", port, ca, cert: client.crt, key: client.key });
  try {
    await once(socket, "secureConnect");
    const peer = await accepted;
    if (!peer.authorized) throw new Error(String(peer.authorizationError));
    const [of, by] = [peer.getPeerX509Certificate(), socket.getPeerX509Certificate()];
    return { protocol: socket.getProtocol(), client: of?.subject, server: by?.subject };
  } finally {
    socket.destroy();
    listener.close();
  }
}
