import { randomBytes, randomInt } from "node:crypto";
import { once } from "node:events";
import { existsSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { CreateMultipartUploadCommand, ListMultipartUploadsCommand, S3Client } from "@aws-sdk/client-s3";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { unless } from "../../testing/root.ts";
import { refused, testDirectory } from "../testing/worker.ts";
import { openS3, PART_BYTES } from "./s3.ts";
import type { Store } from "./store.ts";
import { type Proxy, startProxy } from "./testing/proxy.ts";
import { BUCKET, credentials, type S3Server, servers } from "./testing/s3.ts";

const { signal } = new AbortController();
/** A Go program has to be built once. */
const BUILD_MS = 15 * 60_000;
const BIG = 2 * PART_BYTES + 3;
/** The silence that is too long: to a server that works no machine is ever so slow, and one that is held up is given up soon. */
const [PATIENT_MS, IMPATIENT_MS] = [20_000, 1500];

interface Setup {
  readonly size?: number;
  readonly secret?: string;
  readonly silenceMs?: number;
}

/** A store on `server`, with a proxy before it, and a file to be put there. */
async function setup(server: S3Server, { size = 1000, secret, silenceMs = PATIENT_MS }: Setup) {
  credentials(secret);
  const stack = new AsyncDisposableStack();
  const files = stack.use(testDirectory());
  const proxy = stack.use(await startProxy(server.port));
  const prefix = `p/${crypto.randomUUID()}`;
  const place = {
    kind: "s3",
    bucket: BUCKET,
    prefix,
    endpoint: `http://127.0.0.1:${proxy.port}`,
    silenceMs,
  } as const;
  const store = stack.use(await openS3(place));
  const bytes = randomBytes(size);
  const path = join(files.path, "output");
  writeFileSync(path, bytes);
  const key = "w/job/output";
  return {
    store,
    proxy,
    bytes,
    path,
    prefix,
    key,
    object: server.object(`${prefix}/${key}`),
    put: () => store.put(key, path, signal),
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

async function readBack(store: Store, key: string): Promise<Buffer> {
  await using stored = await store.open(key, signal);
  const buffer = Buffer.alloc(stored.size);
  expect(await stored.read(buffer, 0)).toBe(stored.size);
  return buffer;
}

/** Does something once, between an upload and the request that asks what has come of it. */
function beforeCheck(proxy: Proxy, act: () => void): void {
  proxy.onRequest = (line) => {
    if (!line.startsWith("HEAD")) return;
    proxy.onRequest = () => {};
    act();
  };
}

describe.each(servers)("an archive on $name", ({ name, checksums, start }) => {
  if (!start) {
    test("keeps logs", unless(`${name} is built with Go, which is not here`), () => {});
    return;
  }
  let server: S3Server;
  beforeAll(async () => {
    server = await start();
  }, BUILD_MS);
  afterAll(() => server[Symbol.asyncDispose]());

  test.each([0, 1, 100_000, PART_BYTES, PART_BYTES + 1, BIG])(
    "gives a file of %i bytes back as it was, whole and from any offset",
    async (size) => {
      await using a = await setup(server, { size });
      await a.put();
      expect((await readBack(a.store, a.key)).equals(a.bytes)).toBe(true);
      await using stored = await a.store.open(a.key, signal);
      for (let i = 0; i < 10; i++) {
        const [offset, length] = [randomInt(size + 1), randomInt(1, 100_000)];
        const buffer = Buffer.alloc(length);
        const count = await stored.read(buffer, offset);
        expect(buffer.subarray(0, count).equals(a.bytes.subarray(offset, offset + length))).toBe(true);
      }
      const sent = a.proxy.requests.filter((line) => line.startsWith("PUT")).length;
      expect(sent).toBe(Math.max(1, Math.ceil(size / PART_BYTES)));
    },
  );

  if (checksums)
    test("is asked for the checksum that it made, and for nothing to be read back", async () => {
      for (const size of [1000, BIG]) {
        await using a = await setup(server, { size });
        await a.put();
        expect(a.proxy.requests.filter((line) => line.startsWith("HEAD"))).toHaveLength(1);
        expect(a.proxy.requests.filter((line) => line.startsWith("GET") && !line.includes("uploads"))).toEqual([]);
      }
    });

  test.each([1000, BIG])("of %i bytes does not pass for stored when it is removed, or cut short", async (size) => {
    await using a = await setup(server, { size });
    beforeCheck(a.proxy, () => rmSync(a.object));
    await expect(a.put()).rejects.toThrow(/404/);
    beforeCheck(a.proxy, () => truncateSync(a.object, size - 1));
    await expect(a.put()).rejects.toThrow(`${size - 1} bytes of ${size} are stored`);
    await a.put();
    expect(readFileSync(a.object).equals(a.bytes)).toBe(true);
  });

  if (!checksums)
    test.each([1000, BIG])("of %i bytes does not pass for stored with one bit changed", async (size) => {
      await using a = await setup(server, { size });
      beforeCheck(a.proxy, () => {
        const bytes = readFileSync(a.object);
        bytes[size - 1] = (bytes[size - 1] ?? 0) ^ 1;
        writeFileSync(a.object, bytes);
      });
      await expect(a.put()).rejects.toThrow("what is stored is not what was sent");
      await a.put();
      expect(readFileSync(a.object).equals(a.bytes)).toBe(true);
    });

  test("does not pass for stored when it was changed on its way", async () => {
    await using a = await setup(server, {});
    a.proxy.change = (bytes) => {
      const at = bytes.indexOf(a.bytes.subarray(-16));
      if (at >= 0) bytes[at] = (bytes[at] ?? 0) ^ 1;
      return bytes;
    };
    await expect(a.put()).rejects.toThrow(/\(4\d\d\)|not what was sent/);
    a.proxy.change = (bytes) => bytes;
    await a.put();
    expect(readFileSync(a.object).equals(a.bytes)).toBe(true);
  });

  test("says what the server said: 403 for a wrong secret, 404 for what is not there", async () => {
    await using a = await setup(server, { secret: "wrong" });
    await expect(a.put()).rejects.toThrow(/SignatureDoesNotMatch: .+ \(403\)/);
    expect(existsSync(a.object)).toBe(false);
    expect(await refused(() => a.store.open(a.key, signal))).toMatchObject({
      code: "unavailable",
      message: expect.stringMatching(/^the archive does not give w\/job\/output: .*\(403\)$/),
    });
    await using b = await setup(server, {});
    expect(await refused(() => b.store.open(b.key, signal))).toMatchObject({
      code: "unavailable",
      message: expect.stringMatching(/\(404\)$/),
    });
  });

  test("tells what is there from what is not, and who may not know says so", async () => {
    await using a = await setup(server, {});
    expect(await a.store.has(a.key, signal)).toBe(false);
    await a.put();
    expect(await a.store.has(a.key, signal)).toBe(true);
    await using b = await setup(server, { secret: "wrong" });
    await expect(b.store.has(b.key, signal)).rejects.toThrow(/SignatureDoesNotMatch: .+ \(403\)/);
  });

  test.each(["refuse", "cut", "stall"] as const)("fails in time when connections are met with: %s", async (weather) => {
    await using a = await setup(server, { size: BIG, silenceMs: IMPATIENT_MS });
    await a.proxy.set(weather, 100_000);
    await expect(a.put()).rejects.toThrow(/ECONNREFUSED|ECONNRESET|EPIPE|hang up|timed out|inactivity/);
    await a.proxy.set("fair");
    await a.put();
    await using stored = await a.store.open(a.key, signal);
    const buffer = Buffer.alloc(PART_BYTES);
    expect(await stored.read(buffer, 1)).toBe(PART_BYTES);
    await a.proxy.set(weather);
    expect(await refused(() => stored.read(buffer, 1))).toMatchObject({ code: "unavailable" });
    await a.proxy.set("fair");
    expect(await stored.read(buffer, 2)).toBe(PART_BYTES);
    expect(buffer.equals(a.bytes.subarray(2, 2 + PART_BYTES))).toBe(true);
  });

  test("ends a read whose bytes stop coming", async () => {
    await using a = await setup(server, { size: PART_BYTES, silenceMs: IMPATIENT_MS });
    await a.put();
    await using stored = await a.store.open(a.key, signal);
    a.proxy.onRequest = () => a.proxy.set("hole", 100_000);
    expect(await refused(() => stored.read(Buffer.alloc(PART_BYTES), 0))).toMatchObject({ code: "unavailable" });
  });

  test("takes its time when answers do", async () => {
    await using a = await setup(server, {});
    await a.proxy.set("trickle");
    await a.put();
    expect((await readBack(a.store, a.key)).equals(a.bytes)).toBe(true);
  });

  test("ends an upload, and a read, when it is told to", async () => {
    await using a = await setup(server, { size: BIG });
    await a.put();
    const ending = new AbortController();
    await using stored = await a.store.open(a.key, ending.signal);
    a.proxy.onRequest = (line) => {
      if (/partNumber=2|GET/.test(line)) ending.abort();
      return a.proxy.set(ending.signal.aborted ? "stall" : "fair");
    };
    await expect(a.store.put(a.key, a.path, ending.signal)).rejects.toThrow(/abort/i);
    await expect(stored.read(Buffer.alloc(10), 0)).rejects.toThrow(/abort/i);
  });

  if (checksums)
    test("keeps no parts of uploads that failed, nor of a daemon that was killed", async () => {
      await using a = await setup(server, { size: BIG });
      const client = new S3Client({
        endpoint: `http://127.0.0.1:${server.port}`,
        region: "us-east-1",
        forcePathStyle: true,
      });
      const Key = `${a.prefix}/${a.key}`;
      const uploads = async () =>
        (await client.send(new ListMultipartUploadsCommand({ Bucket: BUCKET, Prefix: Key }))).Uploads ?? [];
      a.proxy.onRequest = (line) => (line.includes("partNumber=2") ? a.proxy.set("cut", 100_000) : a.proxy.set("fair"));
      await expect(a.put()).rejects.toThrow(/ECONNRESET|EPIPE|hang up/);
      expect(await uploads()).toEqual([]);
      a.proxy.onRequest = () => {};
      await a.proxy.set("fair");
      for (const key of [Key, `${Key}.other`])
        await client.send(new CreateMultipartUploadCommand({ Bucket: BUCKET, Key: key }));
      expect(await uploads()).toHaveLength(2);
      await a.put();
      expect((await uploads()).map(({ Key: key }) => key)).toEqual([`${Key}.other`]);
      client.destroy();
    });
});

test.each([
  ["AccessDenied", false],
  ["ExpiredToken", undefined],
  ["InvalidAccessKeyId", undefined],
])("a server that answers 403 and %s: what is there, is %s", async (code, wanted) => {
  credentials();
  const server = createServer((_request, response) => {
    response.writeHead(403, { "content-type": "application/xml" });
    response.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>no</Message></Error>`);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  using store = await openS3({ kind: "s3", bucket: BUCKET, prefix: "", endpoint });
  const told = store.has("w/job/output", signal);
  await (wanted === undefined ? expect(told).rejects.toThrow(`${code}: no (403)`) : expect(told).resolves.toBe(wanted));
  server.close();
});

test("without a region and without an endpoint no archive is opened", async () => {
  delete process.env["AWS_REGION"];
  process.env["AWS_CONFIG_FILE"] = "/dev/null";
  expect(await refused(() => openS3({ kind: "s3", bucket: BUCKET, prefix: "" }))).toMatchObject({ code: "invalid" });
});
