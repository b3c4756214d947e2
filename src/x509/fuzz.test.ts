import "reflect-metadata";
import { X509Certificate } from "node:crypto";
import * as fc from "fast-check";
import { beforeAll, expect, test } from "vitest";
import { describe as describeCertificate } from "../../certs/inspect.ts";
import { CertError } from "../../certs/error.ts";
import { generateKey } from "../../certs/key.ts";
import { createRequest, parseRequest } from "../../certs/request.ts";
import { identify, inspect } from "./identity.ts";
import { authority, type Authority, type Pair } from "../server/testing/authority.ts";
import { faultsOf, pathOf, tell } from "./chain.ts";
import { certificatesIn, PemError, pemBlocks, privateKeyIn, requestIn } from "./pem.ts";

/** The long form: FUZZ_SECONDS=300 npm run test:unit -- src/x509/fuzz.test.ts */
const SECONDS = Number(process.env["FUZZ_SECONDS"] ?? 1);
const BOUNDS = { interruptAfterTimeLimit: SECONDS * 1000, numRuns: SECONDS * 100_000 };
const TIMEOUT_MS = SECONDS * 1000 + 60_000;

let trusted: Authority;
let client: Pair;
let der: Buffer;
beforeAll(async () => {
  trusted = await authority();
  client = await trusted.client("writer");
  der = new X509Certificate(client.cert).raw;
});

/** Bytes that are nearly these: some changed, some put in, cut short or doubled. */
function nearly(bytes: Uint8Array): fc.Arbitrary<Buffer> {
  const change = fc.tuple(fc.nat(bytes.length - 1), fc.integer({ min: 0, max: 255 }), fc.nat(20));
  return fc.tuple(fc.array(change, { minLength: 1, maxLength: 6 }), fc.nat(bytes.length * 4)).map(([changes, cut]) => {
    let changed = Buffer.from(bytes);
    for (const [at, value, how] of changes) {
      if (how === 0) changed = Buffer.concat([changed.subarray(0, at), changed.subarray(at >> 1)]);
      else if (how === 1) changed = Buffer.concat([changed.subarray(0, at), Buffer.of(value), changed.subarray(at)]);
      else if (at < changed.length) changed[at] = value;
    }
    return cut < changed.length ? changed.subarray(0, cut) : changed;
  });
}

/** Runs `parse`, which may throw one kind of error and no other. */
function only(kind: typeof PemError | typeof CertError, parse: () => unknown): void {
  try {
    parse();
  } catch (error) {
    if (!(error instanceof kind)) throw error;
  }
}

test(
  "a damaged certificate makes nothing throw that looks at it, and is never taken for another role",
  { timeout: TIMEOUT_MS },
  () => {
    const ca = new X509Certificate(trusted.ca.cert);
    fc.assert(
      fc.property(nearly(der), (bytes) => {
        const identity = identify(bytes);
        if (identity.ok) expect(Buffer.from(bytes).includes("writer")).toBe(true);
        only(PemError, () => certificatesIn(bytes, "x"));
        let x509: X509Certificate;
        try {
          x509 = new X509Certificate(bytes);
        } catch {
          return;
        }
        inspect(x509);
        for (const trust of [[ca], [x509], []]) {
          for (const fault of faultsOf(pathOf(x509, [ca, x509], trust), "client")) tell(fault, "it");
        }
        only(CertError, () => describeCertificate(x509, "x"));
      }),
      BOUNDS,
    );
  },
);

test("a damaged file of certificates or keys is refused as that, within a second", { timeout: TIMEOUT_MS }, () => {
  const key = Buffer.from(client.key);
  const pem = Buffer.from(`${client.cert}\n${trusted.ca.cert}\n`);
  const damaged = fc.oneof(
    nearly(pem),
    nearly(key),
    nearly(Buffer.concat([pem, key])),
    fc.uint8Array({ maxLength: 64 }),
  );
  fc.assert(
    fc.property(damaged, (bytes) => {
      const startedMs = performance.now();
      for (const parse of [pemBlocks, certificatesIn, privateKeyIn, requestIn]) only(PemError, () => parse(bytes, "x"));
      expect(performance.now() - startedMs).toBeLessThan(1000);
    }),
    BOUNDS,
  );
});

test(
  "a damaged request is refused as that, or is one that its own key has signed",
  { timeout: TIMEOUT_MS },
  async () => {
    const pem = await createRequest("ada", await generateKey(2048), ["a.example"]);
    const request = requestIn(pem, "ada.csr");
    await fc.assert(
      fc.asyncProperty(nearly(request), async (bytes) => {
        const parsed = await parseRequest(bytes, "x").catch((error: unknown) => {
          if (!(error instanceof CertError)) throw error;
        });
        if (parsed) expect(parsed).toMatchObject({ commonName: "ada" });
      }),
      BOUNDS,
    );
  },
);
