import { X509Certificate } from "node:crypto";
import type { JsonName } from "@peculiar/x509";
import * as fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { identify, inspect } from "./identity.ts";
import { roleIn, roleOf, ROLES } from "./role.ts";
import { authority, derString, type Authority, type IssueOptions } from "../server/testing/authority.ts";

let trusted: Authority;
let writer: Uint8Array;
beforeAll(async () => {
  trusted = await authority();
  writer = new X509Certificate((await trusted.client("writer")).cert).raw;
});

async function identityOf(options: IssueOptions, nowMs?: number) {
  return identify(new X509Certificate((await trusted.issue(options)).cert).raw, nowMs);
}

test("a client's certificate tells its name, serial number, dates and role", async () => {
  const { cert } = await trusted.client("reader", { name: "ada" });
  const x509 = new X509Certificate(cert);
  expect(identify(x509.raw)).toEqual({
    ok: true,
    principal: {
      name: "ada",
      subject: "ada",
      role: "reader",
      serial: x509.serialNumber,
      fingerprint256: x509.fingerprint256.replaceAll(":", "").toLowerCase(),
      notBefore: x509.validFromDate,
      notAfter: x509.validToDate,
    },
  });
});

test("a subject is its common name alone, or else all of it, and never the text of another", async () => {
  const subjects: readonly (readonly [JsonName, string])[] = [
    [[{ CN: ["ada"] }], "ada"],
    [[{ O: ["Example"] }, { CN: ["ada"] }], "CN=ada,O=Example"],
    [[{ CN: ["ada"] }, { O: ["Example"] }], "O=Example,CN=ada"],
    [[{ CN: ["ada"], O: ["Example"] }], "CN=ada + O=Example"],
    [[{ CN: ["CN=ada,O=Example"] }], "CN=CN=ada\\,O=Example"],
    [[{ CN: ["ada + O=Example"] }], "CN=ada \\+ O=Example"],
    [[{ CN: ["ada\nO=Example"] }], "CN=ada\\0AO=Example"],
    [[{ CN: [" ada"] }], " ada"],
    [[{ CN: ["\ufeffada"] }], "\ufeffada"],
    [[{ CN: ["a/b,c"] }], "a/b,c"],
  ];
  for (const [subject, text] of subjects)
    expect(await identityOf({ subject, roles: [derString("reader")] })).toMatchObject({ principal: { subject: text } });
  expect(new Set(subjects.map(([, text]) => text)).size).toBe(subjects.length);
});

// openssl ecparam -name brainpoolP256r1; Node's toLegacyObject() ends the process by it, and any stranger can show one.
const BRAINPOOL = `-----BEGIN CERTIFICATE-----
MIIBfzCCASagAwIBAgIUQ9MIH7iP/xeqcEhpDtNy3BTS53MwCgYIKoZIzj0EAwIw
FTETMBEGA1UEAwwKb24gYSBjdXJ2ZTAeFw0yNjExMjkyMzUzMTBaFw0zNjExMjYy
MzUzMTBaMBUxEzARBgNVBAMMCm9uIGEgY3VydmUwWjAUBgcqhkjOPQIBBgkrJAMD
AggBAQcDQgAEEjawjmIBWqJigS2EQtqDPrjZxCDu7P2gL7ysr3yumw8TG4RtP63E
p2r2xT+P5rLwwGayG/DUxRVRYPWyvUubvaNTMFEwHQYDVR0OBBYEFEWYkQCDGQWv
P1o24aiDTxHVBVkIMB8GA1UdIwQYMBaAFEWYkQCDGQWvP1o24aiDTxHVBVkIMA8G
A1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgcBT896VWJ9PNRN+UE6By
wOqD9T32xls1ED7F+mgosMQCIDsPLcA6GRP+McUYcmIouXw+ve8jH4Ggqrdnf8rt
vGTu
-----END CERTIFICATE-----
`;

test("a certificate whose key is on a curve without a NIST name is looked at, and refused for what it lacks", () => {
  const x509 = new X509Certificate(BRAINPOOL);
  expect(inspect(x509)).toMatchObject({ name: "on a curve", serial: x509.serialNumber });
  expect(identify(x509.raw)).toMatchObject({ ok: false, reason: "ROLE_MISSING" });
});

test("the dates are checked at every call, although the rest is cached", () => {
  const { validFromDate, validToDate } = new X509Certificate(writer);
  expect(identify(writer)).toMatchObject({ ok: true });
  expect(identify(writer, validToDate.getTime())).toMatchObject({ ok: true });
  expect(identify(writer, validToDate.getTime() + 1)).toMatchObject({ ok: false, reason: "CERTIFICATE_EXPIRED" });
  const early = identify(writer, validFromDate.getTime() - 1);
  expect(early).toMatchObject({ ok: false, reason: "CERTIFICATE_NOT_YET_VALID", certificate: { name: "some writer" } });
});

describe("a certificate is refused", () => {
  const manyUnits = [{ CN: ["ada"] }, ...Array.from({ length: 30 }, () => ({ OU: ["x".repeat(60)] }))];
  const utf8 = derString("writer");
  test.each<[string, IssueOptions, string]>([
    ["without a role", { roles: [] }, "ROLE_MISSING"],
    ["with two roles", { roles: [derString("reader"), derString("writer")] }, "ROLE_REPEATED"],
    ["with the same role twice", { roles: [utf8, utf8] }, "ROLE_REPEATED"],
    ["with an unknown role", { roles: [derString("owner")] }, "ROLE_UNKNOWN"],
    ["with a role in capitals", { roles: [derString("Writer")] }, "ROLE_UNKNOWN"],
    ["with a role and a space", { roles: [derString("writer ")] }, "ROLE_UNKNOWN"],
    ["with a role and a NUL", { roles: [derString("writer\0")] }, "ROLE_UNKNOWN"],
    ["with an empty role", { roles: [derString("")] }, "ROLE_UNKNOWN"],
    ["with a role that is no UTF-8", { roles: [Uint8Array.of(0x0c, 2, 0xc3, 0x28)] }, "ROLE_UNKNOWN"],
    ["with a PrintableString", { roles: [derString("writer", 0x13)] }, "ROLE_MALFORMED"],
    ["with bytes after the role", { roles: [Uint8Array.of(...utf8, 0)] }, "ROLE_MALFORMED"],
    ["with a value after the role", { roles: [Uint8Array.of(...utf8, 5, 0)] }, "ROLE_MALFORMED"],
    ["with a role of indefinite length", { roles: [Uint8Array.of(0x0c, 0x80, ...utf8, 0, 0)] }, "ROLE_MALFORMED"],
    ["with a long form of its length", { roles: [Uint8Array.of(0x0c, 0x81, ...utf8.subarray(1))] }, "ROLE_MALFORMED"],
    ["with a role cut short", { roles: [utf8.subarray(0, 7)] }, "ROLE_MALFORMED"],
    ["with no value in its role", { roles: [new Uint8Array()] }, "ROLE_MALFORMED"],
    ["for servers", { roles: [utf8], usages: ["serverAuth"] }, "CERTIFICATE_PURPOSE"],

    ["with a subject of any length", { roles: [utf8], subject: manyUnits }, "CERTIFICATE_NAME"],
    ["with no name", { roles: [utf8], name: "" }, "CERTIFICATE_NAME"],
    ["with a name of any length", { roles: [utf8], name: "x".repeat(257) }, "CERTIFICATE_NAME"],
    ["with two names", { roles: [utf8], name: "a,CN=b" }, "CERTIFICATE_NAME"],
  ])("%s", async (_, options, reason) => {
    expect(await identityOf(options)).toMatchObject({ ok: false, reason });
  });

  test("that cannot be parsed", () => {
    expect(identify(Buffer.from("no certificate"))).toMatchObject({ ok: false, reason: "CERTIFICATE_MALFORMED" });
    expect(identify(new Uint8Array())).toMatchObject({ ok: false, reason: "CERTIFICATE_MALFORMED" });
  });
});

describe("whatever the bytes", () => {
  const exact = ROLES.map((role) => derString(role)).map((der) => Buffer.from(der).toString("hex"));

  test("only the exact encodings are roles", () => {
    const nearly = fc
      .tuple(
        fc.constantFrom(...exact),
        fc.array(fc.tuple(fc.nat(8), fc.integer({ min: 0, max: 255 })), { maxLength: 2 }),
      )
      .map(([hex, changes]) => {
        const bytes = Uint8Array.from([...Buffer.from(hex, "hex"), ...(changes.length > 1 ? [0] : [])]);
        for (const [at, value] of changes) bytes[at] = value;
        return bytes;
      });
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 12 }), nearly), (bytes) => {
        expect(roleIn(bytes).ok).toBe(exact.includes(Buffer.from(bytes).toString("hex")));
      }),
      { numRuns: 5000 },
    );
  });

  test("no certificate, real, damaged or invented, makes the parser throw or turns another role into writer", () => {
    const role = Buffer.from(writer).indexOf(derString("writer"));
    const change = fc.tuple(fc.nat(writer.length - 1), fc.integer({ min: 0, max: 255 }));
    const damaged = fc
      .tuple(fc.array(change, { minLength: 1, maxLength: 8 }), fc.nat(writer.length))
      .map(([changes, cut]) => {
        const bytes = Uint8Array.from(writer);
        for (const [at, value] of changes) bytes[at] = value;
        return bytes.subarray(0, cut % 3 === 0 ? cut : undefined);
      });
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 64 }), damaged), (bytes) => {
        identify(bytes);
        const verdict = roleOf(bytes);
        const intact = Buffer.from(bytes.subarray(role, role + 8)).equals(derString("writer"));
        if (!intact) expect(verdict).not.toEqual({ ok: true, role: "writer" });
      }),
      { numRuns: 1000 },
    );
  });
});
