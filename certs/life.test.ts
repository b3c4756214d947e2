import { execFile, spawn } from "node:child_process";
import { createPrivateKey, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { appendFile, mkdir, mkdtempDisposable, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { beforeAll, describe, expect, it } from "vitest";
import { caKey, crlsIn, readCrlFile } from "../src/x509/crl.ts";
import { shell, withoutOpenssl } from "../src/x509/testing/openssl.ts";
import { crlOf, pemOf } from "../src/x509/testing/crl.ts";
import { serialKey } from "../src/x509/der.ts";
import { unless } from "../src/testing/root.ts";
import { noStrace } from "../src/testing/strace.ts";
import { openAuthority } from "./authority.ts";
import { readIndex } from "./ca-index.ts";
import { serialIn, writeCrl } from "./crl.ts";
import { caFiles } from "./files.ts";
import { issueAll } from "./issue.ts";
import { register } from "./list.ts";
import { renew } from "./renew.ts";
import { revoke } from "./revoke.ts";

const DAY_MS = 86_400_000;

let dir: string;
/** A CA's directory, of which each test has a copy: keys take long to make. */
let made: string;
beforeAll(async () => {
  const temporary = await mkdtempDisposable(join(tmpdir(), "jobs-life-"));
  dir = temporary.path;
  made = join(dir, "made");
  await issueAll({ out: made, bits: 2048 });
  return () => temporary.remove();
});

let copies = 0;
async function copy(): Promise<string> {
  const to = join(dir, `ca-${copies++}`);
  await promisify(execFile)("cp", ["-a", made, to]);
  return to;
}

async function certificateAt(...path: readonly string[]): Promise<X509Certificate> {
  return new X509Certificate(await readFile(join(...path)));
}

/** The serial numbers of a CA's list, by its own reading. */
async function listed(ca: string): Promise<ReadonlySet<string>> {
  const { lists } = await crlsIn(await readCrlFile(join(ca, "ca.crl")), "ca.crl", [await certificateAt(ca, "ca.crt")]);
  return lists[0]?.serials ?? expect.fail("no list");
}

const key = (serial: string): string => serialKey(Buffer.from(`00${serial}`, "hex"));

describe("a CA's index", () => {
  it("has what was signed, with serial number, subject, role and end", async () => {
    const ca = await copy();
    const { certificates, ca: own, faults } = await register(ca);
    expect(certificates.map(({ subject, role, state }) => [subject, role, state])).toEqual([
      ["CN=worker", "worker", "valid"],
      ["CN=writer", "writer", "valid"],
      ["CN=reader", "reader", "valid"],
    ]);
    const { serialNumber, validToDate } = await certificateAt(ca, "writer.crt");
    expect(certificates[1]).toMatchObject({ serial: serialNumber, until: validToDate.toISOString() });
    expect({ own: own.subject, faults }).toEqual({ own: "CN=jobs CA", faults: [] });
    expect((await stat(join(ca, "ca.index"))).mode & 0o777).toBe(0o600);
    const later = await register(ca, new Date(Date.now() + 91 * DAY_MS));
    expect(later.certificates.map(({ state }) => state)).toEqual(["expired", "expired", "expired"]);
  });

  it("need not be there: a directory without one is that of a CA that has signed nothing known", async () => {
    const ca = await copy();
    await rm(join(ca, "ca.index"));
    expect((await register(ca)).certificates).toEqual([]);
    const { before } = await renew({ file: join(ca, "reader.crt"), ca });
    expect(before).toMatch(/^[0-9A-F]+$/);
    await revoke({ certificate: join(ca, "writer.crt"), ca });
    expect((await register(ca)).certificates.map(({ subject, state }) => [subject, state])).toEqual([
      ["CN=reader", "valid"],
      ["CN=writer", "revoked"],
    ]);
  });

  it("loses nothing to signers at once, and its list has all that they revoked", async () => {
    const ca = await copy();
    const script = `
      import { renew } from ${JSON.stringify(pathToFileURL(join(import.meta.dirname, "renew.ts")))};
      import { revoke } from ${JSON.stringify(pathToFileURL(join(import.meta.dirname, "revoke.ts")))};
      const [ca, name] = process.argv.slice(1);
      const { certificate } = await renew({ file: ca + "/reader.crt", ca, out: ca + "/" + name + ".crt" });
      await revoke({ certificate: certificate.serial, ca });
    `;
    const run = (name: string) =>
      promisify(execFile)(process.execPath, ["--input-type=module", "-e", script, ca, name]);
    await Promise.all(["a", "b", "c", "d", "e"].map(run));
    const { certificates, faults, crl } = await register(ca);
    expect(certificates.filter(({ state }) => state === "revoked")).toHaveLength(5);
    expect({ faults, revoked: crl?.revoked }).toEqual({ faults: [], revoked: 5 });
    for (const name of ["a", "b", "c", "d", "e"])
      expect((await listed(ca)).has(key((await certificateAt(ca, `${name}.crt`)).serialNumber))).toBe(true);
  });

  it(
    "makes a list complete that was overtaken by another signer's while it was written",
    unless(noStrace),
    async () => {
      const ca = await copy();
      const script = `
      import { revoke } from ${JSON.stringify(pathToFileURL(join(import.meta.dirname, "revoke.ts")))};
      await revoke({ certificate: "0A", ca: process.argv[1], force: true });
    `;
      const calls = "rename,renameat,renameat2";
      const late = [
        "-f",
        "-e",
        `trace=${calls}`,
        "-e",
        `inject=${calls}:delay_enter=4000000:when=1`,
        "-o",
        "/dev/null",
      ];
      const words = [...late, process.execPath, "--input-type=module", "-e", script, ca];
      const slow = promisify(execFile)("strace", words);
      await expect
        .poll(() => readdir(ca), { timeout: 30_000 })
        .toContainEqual(expect.stringMatching(/^ca\.crl\..*\.tmp$/));
      await revoke({ certificate: "0B", ca, force: true });
      await slow;
      expect(await listed(ca)).toEqual(new Set(["0A", "0B"].map(key)));
    },
  );

  it("is right after signers that were killed, who never left a certificate that it does not know", async () => {
    const ca = await copy();
    const script = `
      import { renew } from ${JSON.stringify(pathToFileURL(join(import.meta.dirname, "renew.ts")))};
      const [ca, from] = process.argv.slice(1);
      for (let at = 0; at < 200; at++) {
        await renew({ file: ca + "/reader.crt", ca, out: ca + "/" + from + "-" + at + ".crt" });
        process.stdout.write(".");
      }
    `;
    for (let round = 0; round < 4; round++) {
      const child = spawn(process.execPath, ["--input-type=module", "-e", script, ca, String(round)]);
      let signed = 0;
      child.stdout.on("data", (dots: Buffer) => {
        signed += dots.length;
        if (signed > 3 + round) child.kill("SIGKILL");
      });
      await once(child, "close");
    }
    const { certificates, faults } = await register(ca);
    expect(faults).toEqual([]);
    const known = new Set(certificates.map(({ serial }) => serial));
    const files = (await readdir(ca)).filter((name) => /^\d+-\d+\.crt$/.test(name));
    expect(files.length).toBeGreaterThan(10);
    for (const name of files) expect(known).toContain((await certificateAt(ca, name)).serialNumber);
  });

  it("goes on after half a line, as a full disk leaves it, and tells of it", async () => {
    const ca = await copy();
    const own = { ca: caKey(await certificateAt(ca, "ca.crt")).slice(0, 16), revoked: "2026-01-01T00:00:00.000Z" };
    for (const wrong of [{ serial: "zz" }, { serial: "0a" }, { serial: "0A0" }, { serial: "0A", revoked: "then" }])
      await appendFile(join(ca, "ca.index"), `${JSON.stringify({ ...own, reason: "superseded", ...wrong })}\n`);
    await appendFile(join(ca, "ca.index"), '{"ca":"x","signed":"20');
    await renew({ file: join(ca, "reader.crt"), ca });
    const { certificates, faults } = await register(ca);
    expect(certificates).toHaveLength(4);
    const lines = [4, 5, 6, 7, 8].map(
      (line) => `${join(ca, "ca.index")}:${line}: is no line of an index, and was left out`,
    );
    expect(faults).toEqual(lines);
  });

  it("has no certificate that could not be written, and hands out none that it could not note", async () => {
    const ca = await copy();
    await mkdir(join(ca, "taken.crt"));
    const taken = renew({ file: join(ca, "reader.crt"), ca, out: join(ca, "taken.crt"), force: true });
    await expect(taken).rejects.toMatchObject({ code: "unwritable" });
    expect((await register(ca)).certificates).toHaveLength(3);
    await rm(join(ca, "ca.index"));
    await mkdir(join(ca, "ca.index"));
    const unnoted = renew({ file: join(ca, "reader.crt"), ca, out: join(ca, "unnoted.crt") });
    await expect(unnoted).rejects.toThrow(`${join(ca, "ca.index")}: is a directory`);
    expect(await readdir(ca)).not.toContain("unnoted.crt");
  });

  it("tells the CAs apart that a directory has had", async () => {
    const ca = await copy();
    await revoke({ certificate: join(ca, "reader.crt"), ca });
    await issueAll({ out: ca, bits: 2048, force: true });
    const { certificates } = await register(ca);
    expect(certificates.map(({ state }) => state)).toEqual(["valid", "valid", "valid"]);
    const files = await caFiles(ca);
    const index = await readIndex({ path: files.index, ca: caKey(await certificateAt(ca, "ca.crt")).slice(0, 16) });
    expect(index.entries.size).toBe(3);
    expect(await writeCrl(files, await openAuthority(files.crt, files.key))).toMatchObject({ revoked: 0 });
  });
});

describe("a certificate that is revoked", () => {
  it("is on the list by its file or serial number, once, with the first reason", async () => {
    const ca = await copy();
    const { serialNumber } = await certificateAt(ca, "writer.crt");
    const first = await revoke({ certificate: join(ca, "writer.crt"), ca, reason: "keyCompromise" });
    expect(first).toMatchObject({ already: false, certificate: { subject: "CN=writer" }, crl: { revoked: 1 } });
    const colons = serialNumber.toLowerCase().replaceAll(/..(?=.)/g, "$&:");
    const again = await revoke({ certificate: `0x00${colons}`, ca, reason: "superseded" });
    expect(again).toMatchObject({ already: true, certificate: { revoked: { reason: "keyCompromise" } } });
    expect(again.crl.number).toBeGreaterThan(first.crl.number);
    expect(await listed(ca)).toEqual(new Set([key(serialNumber)]));
  });

  it("stays on it where the index is lost, and until it has expired", async () => {
    const ca = await copy();
    const files = await caFiles(ca);
    const authority = await openAuthority(files.crt, files.key);
    await revoke({ certificate: join(ca, "writer.crt"), ca });
    const index = await readFile(files.index);
    await rm(files.index);
    expect(await writeCrl(files, authority)).toMatchObject({ revoked: 1 });
    await writeFile(files.index, index);
    const late = (days: number) => ({ days: 30, now: new Date(Date.now() + days * DAY_MS) });
    expect(await writeCrl(files, authority, late(89))).toMatchObject({ revoked: 1 });
    // It is on one list that was signed after its end.
    expect(await writeCrl(files, authority, late(91))).toMatchObject({ revoked: 1 });
    expect(await writeCrl(files, authority, late(92))).toMatchObject({ revoked: 0 });
  });

  it.each<[string, (ca: string) => Promise<string> | string, RegExp]>([
    ["the CA itself", (ca) => join(ca, "ca.crt"), /is the CA itself/],
    ["another CA's", async () => join(await another(), "reader.crt"), /is signed by CN=jobs CA, and not by this CA/],
    ["a serial number that nobody knows", () => "0A0B", /knows no such serial number.*--force/],
    ["neither a file nor a number", () => "writer.crt ", /neither a file nor a serial number/],
  ])("is none where it is %s", async (_, certificate, message) => {
    const ca = await copy();
    await expect(revoke({ certificate: await certificate(ca), ca })).rejects.toThrow(message);
    expect(await readdir(ca)).not.toContain("ca.crl");
  });

  it("may be one that the index does not know, by force", async () => {
    const ca = await copy();
    await revoke({ certificate: "0a0b", ca, force: true });
    expect(await listed(ca)).toEqual(new Set([key("0A0B")]));
  });

  it("has a serial number in whole bytes, without zeros in front", () => {
    expect(["0x0", "a", "0:0a", "00FF", "f".repeat(40)].map(serialIn)).toEqual([
      "00",
      "0A",
      "0A",
      "FF",
      "F".repeat(40),
    ]);
    for (const wrong of ["", "-1", "0x", "1 2", "f".repeat(81)]) expect(() => serialIn(wrong)).toThrow("neither");
  });

  let other: string | undefined;
  async function another(): Promise<string> {
    if (other === undefined) await issueAll({ out: (other = join(dir, "other")), bits: 2048 });
    return other;
  }

  it(
    "is refused by openssl, which reads the list, with reasons, without, and when it is empty",
    unless(withoutOpenssl),
    async () => {
      const ca = await copy();
      const files = await caFiles(ca);
      await writeCrl(files, await openAuthority(files.crt, files.key));
      const check = "openssl verify -crl_check -CAfile ca.crt -CRLfile ca.crl";
      await shell(`openssl crl -in ca.crl -CAfile ca.crt -noout 2>&1 | grep OK; ${check} writer.crt reader.crt`, ca);
      await revoke({ certificate: join(ca, "writer.crt"), ca, reason: "superseded" });
      await revoke({ certificate: join(ca, "worker.crt"), ca });
      await shell(`openssl crl -in ca.crl -CAfile ca.crt -noout 2>&1 | grep OK; ${check} reader.crt`, ca);
      await expect(shell(`${check} writer.crt`, ca)).rejects.toThrow("certificate revoked");
      await expect(shell(`${check} worker.crt`, ca)).rejects.toThrow("certificate revoked");
    },
  );
});

describe("a list", () => {
  it("holds as long as the one before it, 30 days at first, and its number grows", async () => {
    const ca = await copy();
    const files = await caFiles(ca);
    const authority = await openAuthority(files.crt, files.key);
    const days = ({ until }: { until: string }) => Math.round((Date.parse(until) - Date.now()) / DAY_MS);
    const first = await writeCrl(files, authority);
    const second = await writeCrl(files, authority, { days: 7 });
    const third = await writeCrl(files, authority);
    expect([first, second, third].map(days)).toEqual([30, 7, 7]);
    expect(second.number).toBeGreaterThan(first.number);
    expect(third.number).toBeGreaterThan(second.number);
    await expect(writeCrl(files, authority, { days: 0 })).rejects.toThrow("--days: 0");
  });

  it("by another tool is followed by one with its entries and a higher number", async () => {
    const ca = await copy();
    const files = await caFiles(ca);
    const theirs = { serials: ["0c0ffe"], number: 4711 };
    await writeFile(
      files.crl,
      pemOf(crlOf(await certificateAt(ca, "ca.crt"), createPrivateKey(await readFile(files.key)), theirs)),
    );
    const { crl } = await revoke({ certificate: join(ca, "reader.crt"), ca });
    expect(crl).toMatchObject({ number: 4712, revoked: 2 });
    expect(await listed(ca)).toContain(key("0C0FFE"));
  });

  it("that is damaged is not replaced, since nobody would know what was on it", async () => {
    const ca = await copy();
    await writeFile(join(ca, "ca.crl"), "hello");
    await expect(revoke({ certificate: join(ca, "reader.crt"), ca })).rejects.toThrow("move it away");
    const { faults } = await register(ca);
    expect(faults.join("\n")).toMatch(/is no list of revoked certificates[^]*lacks 1 of the revoked/);
  });
});
