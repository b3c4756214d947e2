import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { mkdir, rename, writeFile } from "node:fs/promises";
import { connect as connectTo, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { testDirectory } from "../../src/worker/testing/worker.ts";
import { type Host, launch, startHost } from "../testing/host.ts";

let host: Host;
beforeAll(async () => {
  host = await startHost();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

/** Says "up", then what it is at each byte that the test lets it go on, and exits with 7. */
async function counts(): Promise<{ readonly script: string; readonly open: (step: number) => Promise<void> }> {
  const gate = join(host.dir, `gate-${crypto.randomUUID()}`);
  const steps = [1, 2, 3].map((step) => `until [ -e ${gate}-${step} ]; do sleep 0.02; done; echo ${step}`);
  return { script: `echo up; ${steps.join("; ")}; exit 7`, open: (step) => writeFile(`${gate}-${step}`, "") };
}

interface Proxy extends AsyncDisposable {
  readonly server: string;
  crashed(): boolean;
}

/** Lets a client's bytes through to the daemon up to a number, then kills that and boots another one. */
async function crashAfter(bytes: number): Promise<Proxy> {
  let left = bytes;
  let booted: Promise<void> | undefined;
  const sockets = new Set<Socket>();
  const serve = async (client: Socket): Promise<void> => {
    sockets.add(client.on("error", () => {}).on("close", () => sockets.delete(client)));
    await booted;
    const [, port] = host.server.split(":");
    const daemon = connectTo(Number(port), "127.0.0.1").on("error", () => {});
    daemon.pipe(client, { end: false });
    // A loaded machine may take longer to boot a daemon than a first start waits for one.
    daemon.on("close", () => void Promise.resolve(booted).then(() => client.destroy()));
    client.on("close", () => daemon.destroy());
    client.on("data", (data: Buffer) => {
      const through = data.subarray(0, left);
      left -= through.length;
      if (through.length > 0) daemon.write(through);
      if (left > 0) return;
      left = Infinity;
      booted = host.crash();
    });
  };
  const proxy = createServer((client) => void serve(client)).listen(0, "127.0.0.1");
  await once(proxy, "listening");
  const address = proxy.address();
  return {
    server: `127.0.0.1:${typeof address === "object" ? address?.port : 0}`,
    crashed: () => booted !== undefined,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      proxy.close();
      await booted;
    },
  };
}

describe("through a daemon that is killed and comes back", () => {
  it("stream, run and wait go on, saying so once in each outage", async () => {
    const { script, open } = await counts();
    const done = await host.start("true");
    const running = host.launch(["run", "--label", "test=outage", "--", "sh", "-c", script]);
    await running.shows("up\n");
    const id = (await host.jobs(["ps", "-q", "--label", "test=outage"])).stdout.trim();
    const [streaming, waiting] = [host.launch(["stream", "-f", id]), host.launch(["wait", done, id])];
    await Promise.all([streaming.shows("up\n"), waiting.shows(done)]);
    for (const step of [1, 2]) {
      await host.crash();
      // All three are told of, also before there is any output.
      for (const each of [running, streaming, waiting]) await each.shows("connected again", "stderr", step);
      await open(step);
      await running.shows(`${step}\n`);
      await streaming.shows(`${step}\n`);
    }
    await open(3);
    for (const each of [running, streaming, waiting]) {
      const { stderr } = await each.ended;
      expect(stderr).toMatch(/^(jobsctl: connection lost .*\njobsctl: connected again.*\n){2}$/);
    }
    expect(await running.ended).toMatchObject({ code: 7, stdout: "up\n1\n2\n3\n" });
    expect(await streaming.ended).toMatchObject({ code: 0, stdout: "up\n1\n2\n3\n" });
    expect(await waiting.ended).toMatchObject({
      code: 7,
      stdout: `${done} exited with code 0\n${id} exited with code 7\n`,
    });
  });

  it("stats goes on, and stop waits for the job's end", async () => {
    const id = await host.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done");
    const sampling = host.launch(["stats", "-i", "100ms", id]);
    await sampling.shows("\n");
    const stopping = host.launch(["stop", "--grace", "3s", id]);
    while (!/^status: +stopping/m.test((await host.jobs(["status", id])).stdout));
    await host.crash();
    const stop = await stopping.ended;
    expect(stop).toMatchObject({ code: 0, stdout: `${id}\n` });
    expect(stop.stderr).toMatch(/connection lost .*\n.*connected again\n.*stopped by writer and had to be killed/);
    const stats = await sampling.ended;
    expect(stats.code).toBe(0);
    expect(stats.stderr).toMatch(/connection lost .*\n.*connected again\n.*stopped by writer/);
  });

  // To the daemon go about 1,480 bytes of ClientHello, 2,030 with the certificate, 60 of HTTP/2, 300 with the start.
  it.each([1, 1_490, 3_000, 3_520, 3_580, 3_700, 3_840, 3_900])(
    "run starts its job once when the daemon is killed %i bytes into the connection",
    async (bytes) => {
      await using proxy = await crashAfter(bytes);
      const label = `cut=${bytes}`;
      const script = "echo one; sleep 0.2; echo two; exit 3";
      const ran = await host.jobs(["run", "--label", label, "--", "sh", "-c", script], { JOBS_SERVER: proxy.server });
      expect(ran).toMatchObject({ code: 3, stdout: "one\ntwo\n" });
      expect(proxy.crashed()).toBe(true);
      expect((await host.jobs(["ps", "-q", "--label", label])).stdout.trim().split("\n")).toHaveLength(1);
    },
  );

  it("goes on after a shutdown, too, and after having been away for longer than the longest pause", async () => {
    const { script, open } = await counts();
    const id = await host.start("sh", "-c", script);
    const streaming = host.launch(["stream", "-f", id]);
    await streaming.shows("up\n");
    const boot = await host.end("SIGTERM");
    await streaming.shows("connection lost", "stderr");
    for (const step of [1, 2, 3]) await open(step);
    await new Promise((resolve) => setTimeout(resolve, 8_000));
    await boot();
    expect(await streaming.ended).toMatchObject({ code: 0, stdout: "up\n1\n2\n3\n" });
    expect(streaming.output.stderr).toMatch(
      /^jobsctl: connection lost .*\njobsctl: connected again, going on at offset 3\n$/,
    );
  });

  it("can be interrupted meanwhile", async () => {
    const [done, id] = [await host.start("true"), await host.start("sh", "-c", "echo up; exec sleep 60")];
    const running = host.launch(["run", "--", "sh", "-c", "echo up; exec sleep 60"]);
    const [streaming, waiting] = [host.launch(["stream", "-f", id]), host.launch(["wait", done, id])];
    await Promise.all([running.shows("up\n"), streaming.shows("up\n"), waiting.shows(done)]);
    const boot = await host.end("SIGKILL");
    for (const each of [running, streaming, waiting]) {
      await each.shows("connection lost", "stderr");
      each.child.kill("SIGINT");
    }
    expect(await streaming.ended).toMatchObject({ code: 130 });
    expect(await waiting.ended).toMatchObject({ code: null });
    // The job is run's own: it is stopped when the daemon is back, or left to itself on the third.
    await running.shows("interrupt again to kill it", "stderr");
    await boot();
    expect(await running.ended).toMatchObject({ code: 143, stderr: expect.stringContaining("stopped by writer") });
  });
});

it.each([
  ["stream", "-f", "x"],
  ["wait", "x"],
  ["stop", "x"],
  ["stats", "x"],
  ["run", "--", "true"],
])("a worker that is not there is no outage for %s", async (...args) => {
  const { code, stderr } = await host.jobs(args, { JOBS_SERVER: "127.0.0.1:1" });
  expect([1, 125]).toContain(code);
  expect(stderr).toMatch(/^jobsctl: no connection: /);
});

describe("what is no outage is told at once, in the worker's words:", () => {
  const files = testDirectory();
  const [archive, away] = [join(files.path, "archive"), join(files.path, "away")];
  let own: Host;
  let archived: string;
  beforeAll(async () => {
    await mkdir(archive);
    own = await startHost(["--archive", archive]);
    archived = await own.start("echo", "kept");
    await own.jobs(["wait", archived]);
    while (!/^log: +archived/m.test((await own.jobs(["query", archived])).stdout));
  });
  afterAll(async () => {
    await own[Symbol.asyncDispose]();
    files[Symbol.dispose]();
  });

  it("an archive that is away", async () => {
    await rename(archive, away);
    const streamed = await own.jobs(["stream", "--follow", archived]);
    await rename(away, archive);
    expect(streamed).toMatchObject({ code: 1, stdout: "" });
    expect(streamed.stderr).toMatch(/^jobsctl: the archive does not give .*\n$/);
    expect(await own.jobs(["stream", archived])).toMatchObject({ code: 0, stdout: "kept\n" });
  });

  it("an archive that the daemon is not told of", async () => {
    const boot = await own.end("SIGTERM");
    const without = launch("jobsd", [], {
      JOBSD_LISTEN: own.server,
      JOBSD_STATE: join(own.dir, "state"),
      ...own.certificates,
    });
    await without.shows("listening on");
    const streamed = await own.jobs(["stream", "--follow", archived]);
    without.child.kill("SIGTERM");
    await without.ended;
    await boot();
    expect(streamed).toMatchObject({ code: 1, stdout: "" });
    expect(streamed.stderr).toMatch(/^jobsctl: .* is in an archive, which this daemon is not told of \(--archive\)\n$/);
  });

  it("a job's record that is damaged", async () => {
    const boot = await own.end("SIGTERM");
    {
      using database = new DatabaseSync(join(own.dir, "state", "journal.db"));
      database.prepare("UPDATE jobs SET job = '{' || job WHERE id = ?").run(archived);
    }
    await boot();
    const lost = /its record in the journal is damaged \(row \d+: .*jobsd --recover looks for it in its directory/;
    expect(await own.jobs(["query", archived])).toMatchObject({ code: 0, stdout: expect.stringMatching(lost) });
    expect(await own.jobs(["stream", archived])).toMatchObject({ code: 0, stdout: "kept\n" });
    expect(await own.jobs(["list", "--quiet"])).toMatchObject({ code: 0, stdout: expect.stringContaining(archived) });
  });

  it("a journal that is damaged", async () => {
    const boot = await own.end("SIGTERM");
    const path = join(own.dir, "state", "journal.db");
    let page = 0;
    {
      using database = new DatabaseSync(path);
      page = Number(
        database.prepare("SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_jobs_1'").get()?.[
          "rootpage"
        ],
      );
    }
    const bytes = readFileSync(path);
    writeFileSync(path, bytes.fill(0xa5, (page - 1) * 4096, page * 4096));
    await boot();
    for (const [command, code] of [
      ["stream", 1],
      ["stop", 1],
      ["wait", 125],
    ] as const) {
      const ran = await own.jobs([command, archived]);
      expect(ran).toMatchObject({ code, stdout: "" });
      expect(ran.stderr).toMatch(/^jobsctl: the journal .* is damaged .*jobsd --recover.*\n$/);
    }
  });
});
