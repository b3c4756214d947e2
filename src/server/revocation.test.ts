import { createPrivateKey, X509Certificate } from "node:crypto";
import { mkdtempDisposable, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { StreamRequest } from "../../proto/generated/jobs/v1/worker.ts";
import { unless } from "../testing/root.ts";
import { crlsIn, type CrlFile } from "../x509/crl.ts";
import { serialOf } from "../x509/der.ts";
import { crlOf, type CrlOptions, pemOf } from "../x509/testing/crl.ts";
import { shell, withoutOpenssl } from "../x509/testing/openssl.ts";
import { readCrls } from "./pem.ts";
import { authority, type Authority, type Pair } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import { answer, clientOf, errorOf, factsOf, JOB, type Running, running, silence } from "./testing/server.ts";

let trusted: Authority;
let other: Authority;
let [lost, kept, foreign]: Pair[] = [];
beforeAll(async () => {
  [trusted, other] = await Promise.all([authority(), authority("another CA")]);
  [lost, kept, foreign] = await Promise.all([
    trusted.client("writer", { name: "lost" }),
    trusted.client("reader", { name: "kept" }),
    other.client("reader"),
  ]);
});

const pair = (one: Pair | undefined): Pair => one ?? expect.fail("not made yet");
const hexOf = ({ cert }: Pair): string =>
  Buffer.from(serialOf(new X509Certificate(cert).raw) ?? "", "latin1").toString("hex");

/** Signs a list by a CA, and reads it as one of its own. */
async function listed(revoked: readonly Pair[], options: CrlOptions = {}, by = trusted): Promise<CrlFile> {
  const ca = new X509Certificate(by.ca.cert);
  const der = crlOf(ca, createPrivateKey(by.ca.key), { ...options, serials: revoked.map(hexOf) });
  return crlsIn(pemOf(der), "ca.crl", [ca]);
}

const stream: Parameters<typeof running>[1] = { stream: (_, { signal }) => silence(signal) };

/** Opens a stream without output; tells the error that it ends with, and when. */
async function follow(server: Running, own: Pair) {
  const client = clientOf(server.port, trusted.ca, own);
  onTestFinished(() => client.close());
  const records = server.audit.length;
  const call = client.stream(StreamRequest.fromPartial({ jobId: JOB.id }));
  const ended = { error: undefined as Awaited<ReturnType<typeof errorOf>> | undefined, atMs: 0 };
  call.on("error", (error) => {
    ended.error = error as Awaited<ReturnType<typeof errorOf>>;
    ended.atMs = performance.now();
  });
  call.resume();
  await until(() => server.audit.length > records, "the stream is being handled");
  return ended;
}

function query(server: Running, own: Pair, client = clientOf(server.port, trusted.ca, own)) {
  onTestFinished(() => client.close());
  return answer((done) => client.query({ jobId: JOB.id }, done));
}

const tls = (ca = trusted.ca.cert) => ({ ca, ...trusted.server });

describe("a client whose certificate is revoked", () => {
  test("has its stream ended within a second, with the reason, and nobody else has", async () => {
    await using server = await running(trusted, stream, { crls: await listed([]) });
    const [ends, stays] = [await follow(server, pair(lost)), await follow(server, pair(kept))];
    const sinceMs = performance.now();
    server.renew({ tls: tls(), crls: await listed([pair(lost)]) })();
    await until(() => ends.error !== undefined, "the stream has ended");
    expect(ends.atMs - sinceMs).toBeLessThan(1000);
    expect(ends.error).toMatchObject({
      code: status.UNAUTHENTICATED,
      details: expect.stringMatching(/^the certificate of "CN=lost" was revoked by its CA, CN=test CA: /),
    });
    expect(factsOf(ends.error ?? expect.fail())).toMatchObject({ reason: "CERTIFICATE_REVOKED" });
    await until(() => server.audit.some(({ stage }) => stage === "end"), "the end is recorded");
    expect(server.audit).toContainEqual(
      expect.objectContaining({
        stage: "end",
        code: "UNAUTHENTICATED",
        principal: expect.objectContaining({ name: "lost" }),
      }),
    );
    expect(await query(server, pair(kept))).toMatchObject({ pid: 4711 });
    expect(stays.error).toBeUndefined();
  });

  test("is refused on the connection that it has, which then ends, and in the next handshake", async () => {
    await using server = await running(trusted, {}, { crls: await listed([]) });
    const client = clientOf(server.port, trusted.ca, pair(lost));
    expect(await query(server, pair(lost), client)).toMatchObject({ pid: 4711 });
    server.renew({ tls: tls(), crls: await listed([pair(lost)]) })();
    expect(await errorOf(query(server, pair(lost), client))).toMatchObject({ code: status.UNAUTHENTICATED });
    await until(() => server.figures().connections === 0, "the connection has ended");
    expect((await errorOf(query(server, pair(lost)))).code).toBe(status.UNAVAILABLE);
    const refused = server.audit.filter(({ event }) => event === "connection");
    expect(refused.length).toBeGreaterThanOrEqual(2);
    for (const record of refused)
      expect(record).toMatchObject({ reason: "CERTIFICATE_REVOKED", presented: { name: "lost" } });
  });

  test("is refused although the list has expired, and only warnings of that are wanted", async () => {
    const crls = await listed([pair(lost)], { nextUpdate: new Date(Date.now() - 1000) });
    await using server = await running(trusted, {}, { crls, faultyLists: "warn" });
    expect(await query(server, pair(kept))).toMatchObject({ pid: 4711 });
    expect((await errorOf(query(server, pair(lost)))).code).toBe(status.UNAVAILABLE);
    expect(server.audit).toContainEqual(expect.objectContaining({ reason: "CERTIFICATE_REVOKED" }));
    expect(server.logged).toContainEqual(
      expect.objectContaining({ msg: expect.stringMatching(/^the list .* expired/) }),
    );
  });

  test("is let in by a server that has no lists at all", async () => {
    await using server = await running(trusted);
    expect(await query(server, pair(lost))).toMatchObject({ pid: 4711 });
  });
});

describe("where nobody knows whether a certificate is revoked, its client is refused:", () => {
  const soon = () => new Date(Math.ceil(Date.now() / 1000) * 1000 + 2000);
  test.each<[string, () => Promise<CrlFile>, Pair["cert"], string]>([
    ["its CA's list has expired", () => listed([], { nextUpdate: new Date(Date.now() - 1000) }), "kept", "CRL_EXPIRED"],
    [
      "its CA's list is of tomorrow",
      () =>
        listed([], { thisUpdate: new Date(Date.now() + 80_000_000), nextUpdate: new Date(Date.now() + 90_000_000) }),
      "kept",
      "CRL_NOT_YET_VALID",
    ],
    ["there is no list of its CA", () => listed([]), "foreign", "CRL_MISSING"],
  ])("%s", async (_, crls, whose, reason) => {
    const own = pair(whose === "kept" ? kept : foreign);
    const both = { ...trusted, ca: { ...trusted.ca, cert: trusted.ca.cert + other.ca.cert } };
    await using server = await running(both, {}, { crls: await crls() });
    expect((await errorOf(query(server, own))).code).toBe(status.UNAVAILABLE);
    expect(server.audit).toMatchObject([{ event: "connection", decision: "denied", reason }]);
    await using lenient = await running(both, {}, { crls: await crls(), faultyLists: "warn" });
    expect(await query(lenient, own)).toMatchObject({ pid: 4711 });
  });

  test("its stream ends with the list, and it comes in again with the next one", async () => {
    const nextUpdate = soon();
    await using server = await running(trusted, stream, { crls: await listed([], { nextUpdate }) });
    const ends = await follow(server, pair(kept));
    await until(() => ends.error !== undefined, "the stream has ended");
    expect(Date.now()).toBeGreaterThanOrEqual(nextUpdate.getTime());
    expect(factsOf(ends.error ?? expect.fail())).toMatchObject({ reason: "CRL_EXPIRED" });
    server.renew({ tls: tls(), crls: await listed([], { number: 2 }) })();
    expect(await query(server, pair(kept))).toMatchObject({ pid: 4711 });
  });
});

test("an older list takes nobody off the one in force", async () => {
  await using server = await running(trusted, {}, { crls: await listed([pair(lost)], { number: 7 }) });
  const older = { tls: tls(), crls: await listed([], { number: 6 }) };
  expect(() => server.renew(older)).toThrow("the list of CN=test CA is number 6, and number 7 is in force");
  expect((await errorOf(query(server, pair(lost)))).code).toBe(status.UNAVAILABLE);
});

test("a file without a list in force takes nobody off it, while the list's CA is trusted", async () => {
  const [revoking, older] = [await listed([pair(lost)], { number: 7 }), await listed([], { number: 6 })];
  const others = await listed([], { number: 2 }, other);
  const joined = (...files: readonly CrlFile[]): CrlFile => ({
    lists: files.flatMap(({ lists }) => lists),
    strangers: [],
  });
  const both = trusted.ca.cert + other.ca.cert;
  const ca = { ...trusted.ca, cert: both };
  const crls = joined(revoking, others);
  await using server = await running({ ...trusted, ca }, {}, { crls, faultyLists: "warn" });
  for (const dropped of [others, { lists: [], strangers: [] }])
    expect(() => server.renew({ tls: tls(both), crls: dropped })).toThrow(
      "the list of CN=test CA, number 7, is in force and not in the file: put it in, or trust that CA no more",
    );
  expect(() => server.renew({ tls: tls(both), crls: joined(older, others) })).toThrow("number 7 is in force");
  expect((await errorOf(query(server, pair(lost)))).code).toBe(status.UNAVAILABLE);
  server.renew({ tls: tls(), crls: revoking })();
  expect((await errorOf(query(server, pair(lost)))).code).toBe(status.UNAVAILABLE);
  expect(await query(server, pair(kept))).toMatchObject({ pid: 4711 });
});

test("a CA on its own list is no obstacle: whoever would not trust it takes it out of the CAs", async () => {
  await using server = await running(trusted, {}, { crls: await listed([trusted.ca]) });
  expect(await query(server, pair(kept))).toMatchObject({ pid: 4711 });
});

test("a server tells when its lists end, and warns where its own certificate is on one", async () => {
  const nextUpdate = new Date("2040-01-01T00:00:00Z");
  const crls = await listed([trusted.server], { nextUpdate });
  await using server = await running(trusted, {}, { crls });
  expect(server.figures().certificates).toContainEqual({ use: "crl", subject: "CN=test CA", notAfter: nextUpdate });
  expect(server.logged).toContainEqual(
    expect.objectContaining({ msg: "the worker's own chain is revoked: CN=worker is on its CA's list" }),
  );
});

describe("a file of lists is refused", () => {
  test.each<[string, () => Promise<Buffer | string>, string]>([
    ["that is a stranger's", async () => pemOf(await strangers("another CA")), "holds no list of a CA"],
    [
      "that another CA of the name has signed",
      async () => pemOf(await strangers("test CA")),
      "signed by another CA of the",
    ],
    ["that is none", () => Promise.resolve(trusted.ca.cert), "holds no -----BEGIN X509 CRL-----"],
  ])("%s", async (_, contents, message) => {
    await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-crl-"));
    const path = join(dir.path, "ca.crl");
    await writeFile(path, await contents());
    const refused = readCrls(path, trusted.ca.cert);
    await expect(refused).rejects.toMatchObject({ code: "bad-crl", message: expect.stringContaining(message) });
    await expect(refused).rejects.toThrow(path);
  });

  async function strangers(name: string): Promise<Buffer> {
    const { ca } = await authority(name);
    return crlOf(new X509Certificate(ca.cert), createPrivateKey(ca.key));
  }
});

describe("of a chain over an intermediate CA", unless(withoutOpenssl), () => {
  const MAKE = `
  make() {
    name=$1 issuer=$2; openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $name.key
    openssl req -new -key $name.key -subj "/CN=$name" -out $name.csr
    openssl x509 -req -in $name.csr $3 -days 9 -extfile $name.ext -out $name.crt
  }
  printf 'basicConstraints=critical,CA:TRUE\\n' | tee root.ext >mid.ext
  printf '1.2.840.10070.8.1=ASN1:UTF8String:writer\\nsubjectAltName=DNS:localhost\\n' >leaf.ext
  make root - "-signkey root.key"
  make mid root "-CA root.crt -CAkey root.key -CAcreateserial"; make leaf mid "-CA mid.crt -CAkey mid.key -CAcreateserial"
  cat leaf.crt mid.crt >leaf.pem; cat root.crt mid.crt >both.crt
  printf '[ca]\\ndefault_ca=o\\n[o]\\ndatabase=$ENV::D\\ndefault_md=sha256\\ndefault_crl_days=9\\n' >ca.cnf
  list() { openssl ca -gencrl -config ca.cnf -cert $1.crt -keyfile $1.key -out $2; }
  revoke() { openssl ca -config ca.cnf -cert $1.crt -keyfile $1.key -revoke $2.crt; }
  for ca in root mid; do export D=$ca.txt; : >$D; list $ca $ca.crl; done
  D=root.txt; revoke root mid; list root root-without-mid.crl; D=mid.txt; revoke mid leaf; list mid mid-without-leaf.crl
  cat root.crl mid.crl >none.crl; cat root-without-mid.crl mid.crl >mid-revoked.crl; cat root.crl mid-without-leaf.crl >leaf-revoked.crl`;

  test.each([
    ["both are checked, and are right", "both.crt", "none.crl", undefined],
    ["the leaf is looked for on the intermediate CA's list", "both.crt", "leaf-revoked.crl", "CERTIFICATE_REVOKED"],
    [
      "the intermediate CA on the root's, although it is trusted itself",
      "both.crt",
      "mid-revoked.crl",
      "CERTIFICATE_REVOKED",
    ],
    ["a list of the intermediate CA is needed", "both.crt", "root.crl", "CRL_MISSING"],
    ["a list of an intermediate CA that is sent along alone counts for nothing", "root.crt", "none.crl", "CRL_MISSING"],
    [
      "the root's list tells of the intermediate CA that was sent along",
      "root.crt",
      "mid-revoked.crl",
      "CERTIFICATE_REVOKED",
    ],
  ])("%s", async (_, cas, lists, reason) => {
    await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-crl-"));
    await shell(MAKE, dir.path);
    const text = (name: string) => readFile(join(dir.path, name), "utf8");
    const ca = { cert: await text(cas), key: "" };
    const own = { cert: await text("leaf.pem"), key: await text("leaf.key") };
    const crls = await readCrls(join(dir.path, lists), ca.cert);
    await using server = await running({ ca, server: own }, {}, { crls });
    const call = query(server, own, clientOf(server.port, { ...ca, cert: await text("root.crt") }, own));
    if (reason === undefined) expect(await call).toMatchObject({ pid: 4711 });
    else {
      expect((await errorOf(call)).code).toBe(status.UNAVAILABLE);
      expect(server.audit).toMatchObject([{ event: "connection", reason }]);
    }
  });

  const HIDE = `
  for at in $(seq 18); do openssl x509 -req -in leaf.csr -signkey leaf.key -set_serial $at -days 9; done >junk.crt
  cp root.ext evil.ext; make evil - "-signkey evil.key"
  openssl x509 -req -in mid.csr -CA evil.crt -CAkey evil.key -CAcreateserial -days 9 -extfile mid.ext -out forged.crt
  cp leaf.ext lent.ext; make lent root "-CA root.crt -CAkey root.key -CAcreateserial"
  openssl x509 -req -in mid.csr -CA lent.crt -CAkey lent.key -CAcreateserial -days 9 -extfile mid.ext -out below-lent.crt
  cat leaf.crt junk.crt mid.crt >far.pem; cat leaf.crt forged.crt mid.crt >astray.pem
  cat leaf.crt below-lent.crt lent.crt mid.crt >lent.pem`;

  test.each([
    ["behind more certificates than are looked at", "root.crt", "far.pem", "CHAIN_INCOMPLETE"],
    ["behind one of its name and key that a stranger has signed", "both.crt", "astray.pem", "CERTIFICATE_REVOKED"],
    [
      "behind one of its name and key that a client of the root has signed",
      "both.crt",
      "lent.pem",
      "CERTIFICATE_REVOKED",
    ],
  ])(
    "a client that hides its revoked intermediate CA %s is refused, also where lists may be faulty",
    async (...row) => {
      const [, cas, sent, reason] = row;
      await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-crl-"));
      await shell(MAKE + HIDE, dir.path);
      const text = (name: string) => readFile(join(dir.path, name), "utf8");
      const ca = { cert: await text(cas), key: "" };
      const key = await text("leaf.key");
      const [own, client] = [
        { cert: await text("leaf.pem"), key },
        { cert: await text(sent), key },
      ];
      const crls = await readCrls(join(dir.path, "mid-revoked.crl"), ca.cert);
      for (const faultyLists of ["warn", "refuse"] as const) {
        await using server = await running({ ca, server: own }, {}, { crls, faultyLists });
        const call = query(server, own, clientOf(server.port, { ...ca, cert: await text("root.crt") }, client));
        expect((await errorOf(call)).code).toBe(status.UNAVAILABLE);
        expect(server.audit).toMatchObject([{ event: "connection", reason }]);
      }
    },
  );
});
