import { beforeAll, describe, expect, test, vi } from "vitest";
import { problemsOf, readTls } from "./pem.ts";
import { authority, type Authority } from "./testing/authority.ts";
import { running } from "./testing/server.ts";

let trusted: Authority;
let other: Authority;
beforeAll(async () => {
  [trusted, other] = await Promise.all([authority(), authority("another CA")]);
});

const DAY_MS = 24 * 3600 * 1000;

describe("a server's own files are refused", () => {
  test.each<[string, string, object]>([
    ["bad-ca", "ca: is empty; a PEM file", { ca: "" }],
    [
      "bad-ca",
      "ca:1: the certificate is damaged",
      { ca: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----" },
    ],
    ["bad-certificate", "cert: holds nothing in PEM, no certificate", { cert: "hello" }],
    ["bad-key", "key: holds nothing in PEM, no private key", { key: "hello" }],
  ])("%s: %s", (code, message, wrong) => {
    const pem = { ca: trusted.ca.cert, ...trusted.server, ...wrong };
    expect(() => readTls(pem)).toThrow(expect.objectContaining({ code, message: expect.stringContaining(message) }));
  });

  test("when the key belongs to another certificate, which is named", () => {
    const pem = { ca: trusted.ca.cert, cert: trusted.server.cert, key: other.server.key };
    expect(() => readTls(pem)).toThrow(
      expect.objectContaining({
        code: "key-mismatch",
        message: expect.stringMatching(/^key: .*certificate of cert \(CN=worker\)/),
      }),
    );
  });
});

test("faults that clients will refuse are warned of", async () => {
  const warnings = async (pem: { cert: string; key: string }, ca = trusted.ca.cert) => {
    return problemsOf(readTls({ ca, ...pem }))
      .map(({ message }) => message)
      .filter((message) => !message.startsWith("the CA's"))
      .join("\n");
  };
  const server = { usages: ["serverAuth"] } as const;
  const far = { ...server, notAfter: new Date(Date.now() + 100 * DAY_MS) };
  expect(await warnings(await trusted.issue(far))).toBe("");
  expect(await warnings(await trusted.issue({ ...server, notAfter: new Date(Date.now() - 1000) }))).toMatch(
    /expired at 2/,
  );
  expect(await warnings(await trusted.issue({ ...far, notBefore: new Date(Date.now() + DAY_MS) }))).toMatch(
    /valid only from/,
  );
  expect(await warnings(await trusted.issue({ ...far, notAfter: new Date(Date.now() + DAY_MS) }))).toMatch(
    /expires at/,
  );
  expect(await warnings(await trusted.issue(far), other.ca.cert)).toMatch(
    /CN=test CA, whose certificate is neither given/,
  );
  expect(await warnings(await trusted.issue({ ...far, usages: ["clientAuth"] }))).toMatch(/is not for servers/);
});

test("a worker warns once a day of its certificates that end within 30 days, until it is closed", async () => {
  vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
  try {
    const in20Days = { usages: ["serverAuth"], notAfter: new Date(Date.now() + 20 * DAY_MS) } as const;
    const long = await authority("CA of long life", 100);
    const ending = await long.issue(in20Days);
    const server = await running({ ca: { cert: `${long.ca.cert}\n${trusted.ca.cert}`, key: "" }, server: ending });
    const told = () => server.logged.map(({ msg }) => msg.replace(/20\d\d-.*Z/, "DATE"));
    const once = [
      "the worker's certificate (CN=someone) expires at DATE",
      "the CA's certificate (CN=test CA) expires at DATE",
    ];
    await vi.waitFor(() => expect(told()).toEqual(once));
    vi.advanceTimersByTime(DAY_MS);
    await vi.waitFor(() => expect(told()).toEqual([...once, ...once]));
    await server.close();
    expect(vi.getTimerCount()).toBe(0);
  } finally {
    vi.useRealTimers();
  }
});
