import { createPrivateKey, X509Certificate } from "node:crypto";
import { beforeAll, expect, it } from "vitest";
import { authority, type Authority } from "../../src/server/testing/authority.ts";
import { crlsIn, type CrlFile } from "../../src/x509/crl.ts";
import { crlOf, type CrlOptions, pemOf } from "../../src/x509/testing/crl.ts";
import { listsChanged } from "./crl.ts";

let trusted: Authority;
beforeAll(async () => {
  trusted = await authority();
});

const thisUpdate = new Date("2026-01-01T00:00:00Z");
const nextUpdate = new Date("2040-01-01T00:00:00Z");

function listed(options: CrlOptions = {}): Promise<CrlFile> {
  const ca = new X509Certificate(trusted.ca.cert);
  const der = crlOf(ca, createPrivateKey(trusted.ca.key), { thisUpdate, nextUpdate, ...options });
  return crlsIn(pemOf(der), "ca.crl", [ca]);
}

it.each<[string, CrlOptions]>([
  ["one more certificate", { serials: ["01", "02"] }],
  ["another certificate", { serials: ["02"] }],
  ["another end", { serials: ["01"], nextUpdate: new Date("2041-01-01T00:00:00Z") }],
])("a list of the same number and second is another one with %s", async (_, options) => {
  for (const number of [undefined, 7]) {
    const before = await listed({ serials: ["01"], number });
    expect(listsChanged(before, await listed({ ...options, number }))).toBe(true);
    expect(listsChanged(before, await listed({ serials: ["01"], number }))).toBe(false);
  }
});
