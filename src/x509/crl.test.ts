import { execFileSync } from "node:child_process";
import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { mkdir, mkdtempDisposable, readFile, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { authority, type Authority } from "../server/testing/authority.ts";
import { cpuMs } from "../server/testing/server.ts";
import { unless } from "../testing/root.ts";
import { type Crl, type CrlFile, crlsIn, isNewer, readCrlFile } from "./crl.ts";
import { serialKey, serialOf } from "./der.ts";
import { crlOf, type CrlOptions, der, extension, generalized, pemOf, utc } from "./testing/crl.ts";
import { shell, withoutOpenssl } from "./testing/openssl.ts";

let trusted: Authority;
let namesake: Authority;
let other: Authority;
let ca: X509Certificate;
let key: KeyObject;
beforeAll(async () => {
  [trusted, namesake, other] = await Promise.all([authority(), authority(), authority("another CA")]);
  [ca, key] = [new X509Certificate(trusted.ca.cert), createPrivateKey(trusted.ca.key)];
});

function read(bytes: Buffer): Promise<CrlFile> {
  return crlsIn(bytes, "ca.crl", [ca]);
}

async function only(options: CrlOptions = {}): Promise<Crl> {
  const [list, ...more] = (await read(pemOf(crlOf(ca, key, options)))).lists;
  expect(more).toEqual([]);
  return list ?? expect.fail("no list");
}

const has = (list: Crl, hex: string): boolean => list.serials.has(serialKey(Buffer.from(hex, "hex")));

describe("a list of revoked certificates", () => {
  test("has the serial numbers of certificates as they stand in these", async () => {
    const { cert } = await trusted.client("writer");
    const serial = serialOf(new X509Certificate(cert).raw) ?? "";
    const list = await only({ serials: [Buffer.from(serial, "latin1").toString("hex")], number: 300 });
    expect(list).toMatchObject({ issuer: "CN=test CA", number: 300n });
    expect(list.serials).toEqual(new Set([serial]));
  });

  test("may be empty, and may have no number, in version 1", async () => {
    expect((await only()).serials.size).toBe(0);
    expect(await only({ number: undefined, serials: ["01"] })).not.toHaveProperty("number");
  });

  test.each([
    ["with needless zeros in front", "00000a", "0a", true],
    ["with a needless sign", "ffff81", "81", true],
    ["whose zero in front says that it is positive", "0081", "81", false],
    ["that is zero", "00", "00", true],
    ["that is negative", "81", "81", true],
    ["of 21 bytes", "01".repeat(21), "01".repeat(21), true],
    ["of one byte more", "0a00", "0a", false],
  ])("has a serial number %s", async (_, listed, asked, found) => {
    expect(has(await only({ serials: [listed] }), asked)).toBe(found);
  });

  test("may have several beside it in a file, of which the newest of each CA counts, by number before time", async () => {
    const [early, late] = [new Date(Date.now() - 7_200_000), new Date(Date.now() - 60_000)];
    const old = crlOf(ca, key, { number: 1, serials: ["01"], thisUpdate: late });
    const young = crlOf(ca, key, { number: 2, serials: ["02"], thisUpdate: early });
    const foreign = crlOf(new X509Certificate(other.ca.cert), createPrivateKey(other.ca.key));
    for (const file of [
      Buffer.concat([young, old, foreign].map(pemOf)),
      Buffer.concat([old, young, foreign]),
      Buffer.from(`some text\r\n${[old, foreign, young].map(pemOf).join("\n").replaceAll("\n", "\r\n")}`),
    ]) {
      const { lists, strangers } = await read(file);
      expect(lists.map(({ number }) => number)).toEqual([2n]);
      expect(strangers).toHaveLength(1);
    }
    const [one, two] = await Promise.all([only({ thisUpdate: early }), only({ thisUpdate: late })]);
    expect([isNewer(two, one), isNewer(one, two), isNewer(one, one)]).toEqual([true, false, false]);
  });

  test("has its times in UTCTime or GeneralizedTime, years from 50 on in the century before", async () => {
    const nextUpdate = new Date("2049-12-31T23:59:59Z");
    for (const time of [utc, generalized]) expect((await only({ time, nextUpdate })).nextUpdate).toEqual(nextUpdate);
    const far = new Date("2050-01-01T00:00:00Z");
    expect((await only({ time: generalized, nextUpdate: far })).nextUpdate).toEqual(far);
    expect((await only({ nextUpdate: far })).nextUpdate.getUTCFullYear()).toBe(1950);
  });

  test("is of a CA whatever the type, case and white space of the strings of its name", async () => {
    const text = (value: string) => der(0x30, Buffer.from("0603550403", "hex"), der(0x0c, Buffer.from(value)));
    const issuer = der(0x30, der(0x31, text(" TEST  ca")));
    expect((await only({ issuer })).issuer).toBe("CN=test CA");
  });
});

describe("a list is refused", () => {
  const FAR = "550404";
  const text = (value: string) => () => der(0x17, Buffer.from(value));
  test.each<[string, CrlOptions, RegExp]>([
    ["that is a delta", { extensions: [extension("551d1b", Buffer.of(2, 1, 1), true)] }, /is a delta/],
    ["about some certificates", { extensions: [extension("551d1c", der(0x30), true)] }, /a part of its CA's/],
    ["with an unknown critical extension", { extensions: [extension(FAR, Buffer.of(5, 0), true)] }, /critical/],
    [
      "with an unknown critical extension of an entry",
      { serials: ["01"], entryExtensions: [extension(FAR, Buffer.of(5, 0), true)] },
      /entry 1 a critical extension \(550404\)/,
    ],
    [
      "that is indirect",
      { serials: ["01"], entryExtensions: [extension("551d1d", der(0x30), true)] },
      /certificates of other CAs/,
    ],
    ["that does not end", { nextUpdate: null }, /nextUpdate|its parts/],
    ["with a time in another zone", { time: text("261130000000+0100") }, /its time cannot be read/],
    ["with a time without seconds", { time: text("2611300000Z") }, /its time cannot be read/],
    ["with a day that does not exist", { time: text("260230000000Z") }, /its time cannot be read/],
    ["with an entry without a serial number", { serials: [""] }, /entry 1 is not a serial number/],
    ["with two numbers", { extensions: [extension("551d14", Buffer.of(2, 1, 1))] }, /its number cannot be read/],
    [
      "with a number that is no number",
      { number: undefined, extensions: [extension("551d14", Buffer.of(5, 0))] },
      /its number cannot be read/,
    ],
  ])("%s", async (_, options, message) => {
    await expect(only(options)).rejects.toThrow(message);
    await expect(only(options)).rejects.toThrow(/^ca\.crl, list 1: /);
  });

  test("and not only that extension which is unknown and not critical", async () => {
    expect((await only({ extensions: [extension(FAR, Buffer.of(5, 0))] })).number).toBe(1n);
  });

  test("that another CA of the name has signed, or whose signed bytes have changed", async () => {
    const forged = crlOf(new X509Certificate(namesake.ca.cert), createPrivateKey(namesake.ca.key));
    await expect(read(pemOf(forged))).rejects.toThrow("damaged, or signed by another CA of the same name, CN=test CA");
    const changed = crlOf(ca, key, { serials: ["0102030405"] });
    changed[changed.indexOf(Buffer.from("0102030405", "hex"))] = 7;
    await expect(read(changed)).rejects.toThrow("damaged, or signed by another CA of the same name");
  });

  test("that is cut short anywhere, has bytes behind it, or is something else", async () => {
    const whole = crlOf(ca, key, { serials: ["0a", "0b"] });
    for (let size = 0; size < whole.length; size++)
      await expect(read(whole.subarray(0, size)), `${size} bytes`).rejects.toMatchObject({ name: "PemError" });
    await expect(read(Buffer.concat([whole, Buffer.of(0)]))).rejects.toThrow("is no list of revoked certificates");
    await expect(read(Buffer.from(trusted.ca.cert))).rejects.toThrow("holds no -----BEGIN X509 CRL-----");
    await expect(read(pemOf(whole).subarray(0, 300))).rejects.toThrow("and does not end");
    await expect(read(Buffer.from("hello"))).rejects.toThrow("is no list of revoked certificates in PEM or DER");
  });
});

describe("a file of lists", () => {
  test("is none where it is a directory, a FIFO, missing or larger than 16 MiB, and is not waited for", async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-crl-"));
    const at = (name: string) => join(dir.path, name);
    execFileSync("mkfifo", [at("fifo")]);
    await mkdir(at("directory"));
    await writeFile(at("large"), Buffer.alloc(16 * 1024 * 1024 + 1));
    await symlink("nowhere", at("link"));
    for (const name of ["fifo", "directory"]) await expect(readCrlFile(at(name))).rejects.toThrow("is not a file");
    await expect(readCrlFile(at("large"))).rejects.toThrow(`${at("large")}: is over 16 MiB`);
    for (const name of ["link", "none"]) await expect(readCrlFile(at(name))).rejects.toThrow("no such file");
    await expect(readCrlFile("/dev/zero")).rejects.toThrow("is not a file");
  });

  test("with 100,000 serial numbers holds the event loop for moments only, and is looked into at once", async () => {
    const serials = Array.from({ length: 100_000 }, (_, at) => (2 ** 40 + at).toString(16).padStart(32, "4"));
    const file = pemOf(crlOf(ca, key, { serials }));
    let [longestMs, sinceMs, on] = [0, cpuMs(), true];
    const beat = (): void => {
      longestMs = Math.max(longestMs, cpuMs() - sinceMs);
      sinceMs = cpuMs();
      if (on) setImmediate(beat);
    };
    setImmediate(beat);
    const { lists } = await read(file);
    on = false;
    expect(lists[0]?.serials.size).toBe(100_000);
    expect(longestMs).toBeLessThan(100);
    expect(has(lists[0] ?? expect.fail(), serials[77_777] ?? "")).toBe(true);
  });
});

describe("a list that openssl has made", unless(withoutOpenssl), () => {
  const MAKE = `
  printf '[ca]\\ndefault_ca=o\\n[o]\\ndatabase=index.txt\\nserial=serial\\ncrlnumber=number\\nnew_certs_dir=.\\ndefault_md=sha256\\npolicy=p\\n[p]\\ncommonName=supplied\\n[v2]\\nauthorityKeyIdentifier=keyid:always\\n' >ca.cnf
  echo 00C0FFEE >serial; echo 1000 >number; : >index.txt
  make() {
    mkdir $1; cd $1; cp ../ca.cnf ../serial ../number ../index.txt .
    eval "$2" -out ca.key; openssl req -x509 -key ca.key -subj "/O=lab/CN=$1" -days 9 -out ca.crt
    openssl req -new -key ca.key -subj /CN=ada -out ada.csr
    openssl ca -batch -notext -config ca.cnf -cert ca.crt -keyfile ca.key -days 9 -in ada.csr -out ada.crt
    openssl ca -config ca.cnf -cert ca.crt -keyfile ca.key -revoke ada.crt -crl_reason keyCompromise
    openssl ca -gencrl -config ca.cnf -cert ca.crt -keyfile ca.key -crldays 9 -crlexts v2 -out ca.crl
    openssl crl -in ca.crl -outform DER -out ca.der
    openssl ca -gencrl -config ca.cnf -cert ca.crt -keyfile ca.key -crldays 9 -out plain.crl
    cd ..
  }
  make rsa 'openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048'
  make silent 'openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048'
  cd silent; openssl req -x509 -key ca.key -subj /O=lab/CN=silent -days 9 -addext keyUsage=keyCertSign -out mute.crt; cd ..
  make ec 'openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-384'`;

  test("is refused where its CA's key usage has no cRLSign", async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-crl-"));
    await shell(MAKE, dir.path);
    const at = (name: string) => join(dir.path, "silent", name);
    const signer = new X509Certificate(await readFile(at("mute.crt")));
    await expect(crlsIn(await readCrlFile(at("ca.crl")), "ca.crl", [signer])).rejects.toThrow("has no cRLSign");
  });

  test("is read, of RSA and ECDSA, PEM and DER, with extensions and without", async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-crl-"));
    await shell(MAKE, dir.path);
    for (const kind of ["rsa", "ec"]) {
      const at = (name: string) => join(dir.path, kind, name);
      const signer = new X509Certificate(await readFile(at("ca.crt")));
      for (const name of ["ca.crl", "ca.der", "plain.crl"]) {
        const { lists } = await crlsIn(await readCrlFile(at(name)), name, [ca, signer]);
        expect(lists, `${kind} ${name}`).toMatchObject([{ issuer: `O=lab, CN=${kind}` }]);
        expect(has(lists[0] ?? expect.fail(), "00c0ffee")).toBe(true);
      }
    }
  });
});
