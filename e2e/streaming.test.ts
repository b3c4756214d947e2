import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { StreamMessage } from "./testing/api.ts";
import { type Ran, type Running, sha256 } from "./testing/cli.ts";
import { type Daemon, startDaemon } from "./testing/daemon.ts";

const PART = 100_000;
/** Handshakes at once: an emulated processor is no match for fifty. */
const BATCH = 6;
const DEADLINE = { timeout: 60_000, interval: 500 };

const made = new AsyncDisposableStack();
let daemon: Daemon;
beforeAll(async () => {
  daemon = made.use(await startDaemon());
});
afterAll(() => made.disposeAsync());

function follow(id: string, ...flags: readonly string[]): Running {
  return daemon.launch("reader", "stream", "--follow", ...flags, id);
}

/** Launches clients, a few at a time, and resolves once `arrived` accepts all of them. */
async function gather(
  count: number,
  client: (number: number) => Running,
  arrived: (clients: readonly Running[]) => void | Promise<void>,
): Promise<Running[]> {
  const clients: Running[] = [];
  while (clients.length < count) {
    const batch = Math.min(BATCH, count - clients.length);
    clients.push(...Array.from({ length: batch }, (_, at) => client(clients.length + at)));
    await vi.waitFor(() => arrived(clients), DEADLINE);
  }
  return clients;
}

/** How many streams of a job have been asked for, by the worker's audit log. */
async function joined(id: string): Promise<number> {
  const records = await daemon.audit();
  return records.filter(({ method, stage, jobId }) => method?.endsWith("/Stream") && stage === "begin" && jobId === id)
    .length;
}

/** Descriptors that the daemon, the first child of the container's init, has open. */
async function descriptors(): Promise<number> {
  const script = "read -r daemon others < /proc/1/task/1/children; ls /proc/$daemon/fd | wc -l";
  return Number(await daemon.inside("sh", "-c", script));
}

/** A figure, once it stays the same. */
async function stable(figure: () => Promise<number>): Promise<number> {
  let [last, now] = [Number.NaN, await figure()];
  await vi.waitFor(async () => {
    [last, now] = [now, await figure()];
    expect(now).toBe(last);
  }, DEADLINE);
  return now;
}

function messages({ stdout }: Ran): StreamMessage[] {
  return stdout
    .trim()
    .split("\n")
    .map((line): StreamMessage => JSON.parse(line));
}

describe("fifty clients of one job", () => {
  it("that join before, during and after get the same bytes, and one end", { timeout: 300_000 }, async () => {
    const bytes = randomBytes(3 * PART);
    await daemon.put("/three-parts", bytes);
    const [first, second] = [await daemon.gate(), await daemon.gate()];
    const part = (number: number): string => `tail -c +${number * PART + 1} /three-parts | head -c ${PART}`;
    const script = `read go < ${first.path}; ${part(0)}; ${part(1)}; read go < ${second.path}; ${part(2)}`;
    const id = await daemon.start("--", "sh", "-c", script);

    // Every fifth as messages, because only those show how many ends there are.
    const client = (number: number): Running => follow(id, ...(number % 5 === 0 ? ["--output", "json"] : []));
    const before = await gather(17, client, async ({ length }) => expect(await joined(id)).toBe(length));
    await first.open();
    const during = await gather(17, client, async ({ length }) => {
      for (const earlier of before) expect(earlier.received()).toBeGreaterThanOrEqual(2 * PART);
      expect(await joined(id)).toBe(17 + length);
    });
    await second.open();
    expect((await daemon.jobs("reader", "wait", id)).code).toBe(0);
    const after = await gather(16, client, (clients) => {
      for (const { child } of clients) expect(child.exitCode).toBe(0);
    });

    const ran = await Promise.all([...before, ...during, ...after].map(({ ended }) => ended));
    expect(ran).toHaveLength(50);
    for (const one of ran) {
      expect(one).toMatchObject({ code: 0, stderr: "" });
      if (!one.stdout.startsWith("{")) {
        expect(sha256(one.stdout)).toBe(sha256(bytes));
        continue;
      }
      const told = messages(one);
      expect(sha256(Buffer.concat(told.map(({ output }) => Buffer.from(output, "base64"))))).toBe(sha256(bytes));
      expect(told.filter(({ end }) => end).length).toBe(1);
      expect(told.at(-1)).toMatchObject({ end: { id, state: "STATE_ENDED" }, offset: String(bytes.length) });
    }
  });
});

describe("a client that is paused", () => {
  it("delays neither the job nor another client, and gets every byte when it goes on", async () => {
    const size = 24 * 1024 * 1024;
    const gate = await daemon.gate();
    const id = await daemon.start("--", "sh", "-c", `echo up; read go < ${gate.path}; head -c ${size} /dev/zero`);
    const [paused, other] = [follow(id), follow(id)];
    await vi.waitFor(() => {
      for (const client of [paused, other]) expect(client.stdout()).toBe("up\n");
    }, DEADLINE);
    paused.child.kill("SIGSTOP");
    await gate.open();
    expect((await daemon.jobs("reader", "wait", id)).code).toBe(0);
    const { code, stdout } = await other.ended;
    expect({ code, length: stdout.length }).toEqual({ code: 0, length: size + 3 });
    expect(paused.received()).toBeLessThan(size);
    paused.child.kill("SIGCONT");
    const late = await paused.ended;
    expect(late).toMatchObject({ code: 0, stderr: "" });
    expect(sha256(late.stdout)).toBe(sha256(stdout));
  });
});

describe("clients that vanish", () => {
  it("leave nothing open in the daemon", async () => {
    const id = await daemon.start("--", "sh", "-c", "echo up; exec sleep 1000");
    const comeAndVanish = async (count: number): Promise<number> => {
      const clients = await gather(
        count,
        () => follow(id),
        (arriving) => {
          for (const client of arriving) expect(client.stdout()).toBe("up\n");
        },
      );
      const open = await descriptors();
      for (const { child } of clients) child.kill("SIGKILL");
      await Promise.all(clients.map(({ ended }) => ended));
      return open;
    };
    // The first client opens what stays open for good, such as an inotify instance.
    await comeAndVanish(1);
    const quiet = await stable(descriptors);
    expect(await comeAndVanish(10)).toBeGreaterThanOrEqual(quiet + 10);
    await expect.poll(descriptors, DEADLINE).toBe(quiet);
    await daemon.jobs("writer", "stop", "--grace", "0", id);
  });
});

describe("a stream", () => {
  it("goes on at any offset, and where a client was cut off, with no byte lost or repeated", async () => {
    const bytes = randomBytes(500_000);
    await daemon.put("/resumed", bytes);
    const gate = await daemon.gate();
    const script = `head -c 100000 /resumed; read go < ${gate.path}; tail -c +100001 /resumed`;
    const id = await daemon.start("--", "sh", "-c", script);
    const cut = follow(id);
    await vi.waitFor(() => expect(cut.received()).toBe(100_000), DEADLINE);
    cut.child.kill("SIGKILL");
    await gate.open();
    const offset = (await cut.ended).stdout.length;
    const rest = await follow(id, "--offset", String(offset)).ended;
    expect(sha256(`${cut.stdout()}${rest.stdout}`)).toBe(sha256(bytes));
    for (const at of [0, 1, 65_535, 99_999, 100_001, 499_999, 500_000]) {
      const { code, stdout } = await daemon.jobs("reader", "stream", "--offset", String(at), id);
      expect({ at, code, sum: sha256(stdout) }).toEqual({ at, code: 0, sum: sha256(bytes.subarray(at)) });
    }
  });

  it("carries every byte there is", async () => {
    const every = Buffer.from(Array.from({ length: 65_536 }, (_, at) => (at & 1 ? at & 0xff : at >> 8)));
    await daemon.put("/every-byte", every);
    const ran = await daemon.jobs("writer", "run", "--", "cat", "/every-byte");
    expect({ ...ran, stdout: sha256(ran.stdout) }).toEqual({ code: 0, stdout: sha256(every), stderr: "" });
  });

  it("keeps stdout and stderr apart, and each in order", async () => {
    const script = "for i in $(seq 1 200); do echo out $i; echo err $i >&2; done; printf tail; printf end >&2";
    const lines = (name: string): string => Array.from({ length: 200 }, (_, at) => `${name} ${at + 1}\n`).join("");
    const [stdout, stderr] = [`${lines("out")}tail`, `${lines("err")}end`];
    const id = await daemon.start("--", "sh", "-c", script);
    expect(await follow(id).ended).toEqual({ code: 0, stdout, stderr });
    const only = (source: string): Promise<Ran> => daemon.jobs("reader", "stream", "--source", source, id);
    expect(await only("stdout")).toEqual({ code: 0, stdout, stderr: "" });
    expect(await only("stderr")).toEqual({ code: 0, stdout: "", stderr });
  });
});
