import { describe, expect, it } from "vitest";
import { toAltNames } from "./host.ts";

describe("a host to be made out to", () => {
  it.each([
    ["localhost", "dns", "localhost"],
    ["Worker-1.Example.COM", "dns", "worker-1.example.com"],
    ["jobs_worker_1", "dns", "jobs_worker_1"],
    ["10.0.0.1", "ip", "10.0.0.1"],
    ["0:0:0:0:0:0:0:1", "ip", "::1"],
    ["::ffff:10.0.0.1", "ip", "10.0.0.1"],
    ["::ffff:a00:1", "ip", "10.0.0.1"],
  ])("is a DNS name or an address, in its usual form: %s", (host, type, value) => {
    expect(toAltNames([host])).toEqual([{ type, value }]);
  });

  it.each([
    "",
    ".",
    "a..b",
    "a.",
    "-a",
    "*.a",
    "a b",
    "a:50051",
    "10.0.0.256",
    "1.2.3",
    "fe80::1%eth0",
    "a\0b",
    "é.com",
  ])("is nothing else: %j", (host) => {
    expect(() => toAltNames([host])).toThrow(`--host: ${JSON.stringify(host)} is neither`);
  });

  it("is refused with a label of 64, a name of 254 characters or a 101st name", () => {
    expect(() => toAltNames(["a".repeat(64)])).toThrow("neither");
    expect(() => toAltNames([`${"a.".repeat(126)}aa`])).toThrow("neither");
    expect(() => toAltNames(Array.from({ length: 101 }, (_, n) => `h${n}`))).toThrow("at most 100");
  });

  it("counts once however often and in whatever form it is named", () => {
    expect(toAltNames(["::1", "LOCALHOST", "localhost", "0::1"])).toHaveLength(2);
  });
});
