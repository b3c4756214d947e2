import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { listenForScrapes, type MetricsAddress, type MetricsListener } from "./listener.ts";

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "jobs-metrics-"));
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const LOOPBACK: MetricsAddress = { kind: "tcp", host: "127.0.0.1", port: 0 };

interface Given {
  readonly scrape?: () => Promise<string>;
  readonly remote?: boolean;
  readonly failed?: (error: unknown) => void;
}

async function listening(
  address: MetricsAddress,
  { scrape = () => Promise.resolve("up 1\n"), remote = false, failed }: Given = {},
): Promise<MetricsListener & AsyncDisposable> {
  const listener = await listenForScrapes({ address, remote, scrape, failed: failed ?? (() => {}) });
  return { ...listener, [Symbol.asyncDispose]: () => listener.close() };
}

interface Answer {
  readonly status: number | undefined;
  readonly body: string;
}

function get(address: string, { path = "/metrics", method = "GET", body = "" } = {}): Promise<Answer> {
  const [, socketPath] = /^unix:(.*)$/.exec(address) ?? [];
  const [, host, port] = /^\[?(.*?)\]?:(\d+)$/.exec(address) ?? [];
  return new Promise((resolve, reject) => {
    const asked = request(socketPath === undefined ? { host, port, path, method } : { socketPath, path, method });
    asked.on("error", reject);
    asked.on("response", (response) => {
      text(response).then((read) => resolve({ status: response.statusCode, body: read }), reject);
    });
    asked.end(body);
  });
}

async function dialled(address: string): Promise<Socket> {
  const socket = connect({ host: "127.0.0.1", port: Number(address.split(":").at(-1)) });
  socket.on("error", () => {});
  await once(socket, "connect");
  return socket;
}

describe("metrics", () => {
  it("are had by GET /metrics, and by nothing else", async () => {
    await using listener = await listening(LOOPBACK);
    const { address } = listener;
    expect(await get(address)).toEqual({ status: 200, body: "up 1\n" });
    expect(await get(address, { path: "/metrics?format=text" })).toMatchObject({ status: 200 });
    expect(await get(address, { method: "HEAD" })).toEqual({ status: 200, body: "" });
    expect(await get(address, { path: "/" })).toMatchObject({ status: 404 });
    expect(await get(address, { path: "/metrics/../etc" })).toMatchObject({ status: 404 });
    expect(await get(address, { method: "POST", body: "x".repeat(1e6) })).toMatchObject({ status: 405 });
  });

  it("are had on IPv6, too", async () => {
    await using listener = await listening({ kind: "tcp", host: "::1", port: 0 });
    expect(listener.address).toMatch(/^\[::1\]:\d+$/);
    expect(await get(listener.address)).toMatchObject({ status: 200 });
  });

  it("are had at the same time by many, who share one answer", async () => {
    let scrapes = 0;
    const gate = Promise.withResolvers<string>();
    const scrape = (): Promise<string> => {
      scrapes++;
      return gate.promise;
    };
    await using listener = await listening(LOOPBACK, { scrape });
    const all = Array.from({ length: 5 }, () => get(listener.address));
    await expect.poll(() => scrapes).toBe(1);
    gate.resolve("up 1\n");
    expect(new Set((await Promise.all(all)).map(({ body }) => body))).toEqual(new Set(["up 1\n"]));
  });

  it("that cannot be had are answered with 500, and are had again once they can be", async () => {
    const failures: unknown[] = [];
    let broken = true;
    const scrape = (): Promise<string> =>
      broken ? Promise.reject(new Error("the disk is gone")) : Promise.resolve("up 1\n");
    await using listener = await listening(LOOPBACK, { scrape, failed: (error) => failures.push(error) });
    expect(await get(listener.address)).toMatchObject({ status: 500, body: expect.not.stringContaining("disk") });
    broken = false;
    expect(await get(listener.address)).toMatchObject({ status: 200 });
    expect(failures).toHaveLength(1);
  });
});

describe("an address that other hosts reach", () => {
  it.each(["0.0.0.0", "::"])("is refused, as %s, unless that is said", async (host) => {
    const address = { kind: "tcp", host, port: 0 } as const;
    await expect(listening(address)).rejects.toMatchObject({
      name: "MetricsError",
      code: "not-loopback",
      message: expect.stringContaining("give 127.0.0.1:0 or unix:PATH, or add --metrics-remote"),
    });
    await using listener = await listening(address, { remote: true });
    expect(await get(`127.0.0.1:${listener.address.split(":").at(-1)}`)).toMatchObject({ status: 200 });
  });
});

describe("a socket of metrics", () => {
  it("is for the daemon's user and group, and is gone with the listener", async () => {
    const path = join(dir, "metrics.sock");
    {
      await using listener = await listening({ kind: "unix", path });
      expect(listener.address).toBe(`unix:${path}`);
      expect(statSync(path).mode & 0o777).toBe(0o660);
      expect(await get(listener.address)).toMatchObject({ status: 200 });
    }
    expect(existsSync(path)).toBe(false);
  });

  it("takes the place of one that a killed daemon has left, and of nothing else", async () => {
    const path = join(dir, "stale.sock");
    const left = `require("node:net").createServer().listen(process.argv[1], () => process.kill(process.pid, "SIGKILL"))`;
    await once(spawn(process.execPath, ["-e", left, path]), "close");
    expect(existsSync(path)).toBe(true);
    await using listener = await listening({ kind: "unix", path });
    expect(await get(listener.address)).toMatchObject({ status: 200 });
    await expect(listening({ kind: "unix", path })).rejects.toThrow("another process listens on it");
    expect(await get(listener.address)).toMatchObject({ status: 200 });

    const file = join(dir, "file");
    writeFileSync(file, "kept");
    await expect(listening({ kind: "unix", path: file })).rejects.toThrow(/is no socket, and was left/);
    expect(execFileSync("cat", [file]).toString()).toBe("kept");
  });
});

describe("a hostile scraper", () => {
  it("that says nothing, or a letter at a time, loses its connection", async () => {
    await using listener = await listening(LOOPBACK);
    const slow = await dialled(listener.address);
    const closed = once(slow, "close");
    const timer = setInterval(() => slow.write("G"), 100);
    slow.resume();
    await closed;
    clearInterval(timer);
    expect(await get(listener.address)).toMatchObject({ status: 200 });
  });

  it("that has many connections and asks nothing keeps nobody out: the oldest of them end", async () => {
    await using listener = await listening(LOOPBACK);
    const crowd: Socket[] = [];
    for (let i = 0; i < 40; i++) crowd.push((await dialled(listener.address)).resume());
    expect(await get(listener.address)).toMatchObject({ status: 200 });
    await expect.poll(() => crowd.map(({ closed }) => closed)).toEqual(crowd.map((_, i) => i < 25));
    for (const each of crowd) each.destroy();
  });

  it("that has many connections ends none whose request is not answered yet", async () => {
    const gate = Promise.withResolvers<string>();
    let scrapes = 0;
    const scrape = (): Promise<string> => {
      scrapes++;
      return gate.promise;
    };
    await using listener = await listening(LOOPBACK, { scrape });
    const answer = get(listener.address);
    await expect.poll(() => scrapes).toBe(1);
    const crowd: Socket[] = [];
    for (let i = 0; i < 40; i++) crowd.push((await dialled(listener.address)).resume());
    await expect.poll(() => crowd.filter(({ closed }) => closed).length).toBe(25);
    gate.resolve("up 1\n");
    expect(await answer).toMatchObject({ status: 200 });
    for (const each of crowd) each.destroy();
  });

  it.each([
    ["garbage", "\x16\x03\x01\x00\xff".repeat(100)],
    ["endless headers", `GET /metrics HTTP/1.1\r\nHost: x\r\nX: ${"y".repeat(1e6)}`],
    ["two lengths", "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"],
  ])("that sends %s is refused", async (_, bytes) => {
    await using listener = await listening(LOOPBACK);
    const socket = await dialled(listener.address);
    const answer = text(socket);
    socket.write(bytes, "latin1");
    expect(await answer.catch(() => "HTTP/1.1 400")).toMatch(/^(HTTP\/1\.1 4\d\d|$)/);
    expect(await get(listener.address)).toMatchObject({ status: 200 });
  });

  it("that sends a request before the one before it was answered loses its connection, and holds up nobody", async () => {
    let scrapes = 0;
    const scrape = (): Promise<string> => {
      scrapes++;
      return Promise.resolve("x".repeat(10_000));
    };
    await using listener = await listening(LOOPBACK, { scrape });
    const impatient = await dialled(listener.address);
    const closed = new Promise((resolve) => impatient.once("close", resolve));
    impatient.resume();
    impatient.write("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20_000));
    await closed;
    expect(scrapes).toBeLessThanOrEqual(1);
    expect(await get(listener.address)).toMatchObject({ status: 200 });
  });

  it("that asks again once it has its answer keeps its connection", async () => {
    await using listener = await listening(LOOPBACK);
    const patient = await dialled(listener.address);
    for (let i = 0; i < 3; i++) {
      const answered = once(patient, "data");
      patient.write("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
      expect(String(await answered)).toMatch(/^HTTP\/1\.1 200 /);
      await new Promise((next) => setImmediate(next));
    }
    patient.destroy();
  });

  it("that does not read its answer keeps no listener from closing", async () => {
    const listener = await listening(LOOPBACK, { scrape: () => Promise.resolve("x".repeat(50e6)) });
    const socket = await dialled(listener.address);
    socket.pause();
    socket.write("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    await listener.close();
    socket.destroy();
  });
});
