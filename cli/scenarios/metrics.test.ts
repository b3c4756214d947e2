import { readFileSync, renameSync } from "node:fs";
import { request } from "node:http";
import { connect } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Host, launch, startHost } from "../testing/host.ts";

const WATCH = fileURLToPath(new URL("../../docs/watch", import.meta.url));
const PAGE = fileURLToPath(new URL("../../docs/metrics.md", import.meta.url));

let host: Host;
let socket: string;
beforeAll(async () => {
  socket = `/tmp/jobs-metrics-${process.pid}.sock`;
  host = await startHost(["--metrics", `unix:${socket}`, "--log-limit", "1M", "--max-jobs", "50"]);
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

/** Returns what a scrape answers. */
function scrape(socketPath = socket): Promise<string> {
  return new Promise((resolve, reject) => {
    request({ socketPath, path: "/metrics" }, (response) => void text(response).then(resolve, reject))
      .on("error", reject)
      .end();
  });
}

/** Returns the series of a scrape: `name{label="value"}` and its value. */
async function series(): Promise<ReadonlyMap<string, number>> {
  const lines = (await scrape()).split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return new Map(
    lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]),
  );
}

/** Waits until a series has a value: what a job leaves behind is counted a moment after its end is told. */
function become(name: string, value: unknown): Promise<void> {
  return expect.poll(async () => (await series()).get(name), { timeout: 30_000 }).toEqual(value);
}

const total = (found: ReadonlyMap<string, number>, prefix: string): number =>
  [...found].reduce((sum, [name, value]) => sum + (name.startsWith(prefix) ? value : 0), 0);

describe("a daemon's metrics", () => {
  it("begin with 0 for all that can be named before it happens", async () => {
    const found = await series();
    for (const how of ["exited", "signalled", "stopped", "timed-out", "out-of-memory", "lost"])
      expect(found.get(`jobsd_job_ends_total{how="${how}"}`)).toBe(0);
    expect(found.get("jobsd_start_duration_seconds_count")).toBe(0);
    expect(found.get("jobsd_jobs_limit")).toBe(50);
    expect(found.get('jobsd_jobs{state="running"}')).toBe(0);
  });

  it("count starts, with how long they took, and each job's end", async () => {
    const id = await host.start("sleep", "600");
    await become('jobsd_jobs{state="running"}', 1);
    await host.jobs(["stop", "--grace", "0", id]);
    await host.jobs(["run", "--", "sh", "-c", "exit 3"]);
    await host.jobs(["run", "--", "sh", "-c", "kill -KILL $$"]);
    await host.jobs(["run", "--time-limit", "50ms", "--", "sleep", "600"]);
    for (const _ of [1, 2]) await host.jobs(["start", "--request-id", "once", "--", "true"]);
    await host.jobs(["start", "--", "/no/such/program"]);
    await become('jobsd_job_ends_total{how="exited"}', 2);
    await become("jobsd_ended_jobs", 5);
    const found = await series();
    const ends = (how: string): number | undefined => found.get(`jobsd_job_ends_total{how="${how}"}`);
    expect([ends("stopped"), ends("signalled"), ends("timed-out"), ends("lost")]).toEqual([1, 1, 1, 0]);
    const starts = (result: string): number | undefined => found.get(`jobsd_starts_total{result="${result}"}`);
    expect([starts("started"), starts("repeated"), starts("invalid")]).toEqual([5, 1, 1]);
    expect(found.get("jobsd_start_duration_seconds_count")).toBe(5);
    expect(found.get('jobsd_start_duration_seconds_bucket{le="10"}')).toBe(5);
    expect(found.get("jobsd_start_duration_seconds_sum")).toBeGreaterThan(0.0002);
    expect(found.get('jobsd_jobs{state="running"}')).toBe(0);
  });

  it("count calls, those that are open, and those that were refused, by reason", async () => {
    const following = host.launch(["run", "--", "sh", "-c", "echo up; exec sleep 600"]);
    await following.shows("up\n");
    await become('jobsd_open_calls{service="jobs.v1.WorkerService",method="Stream"}', 1);
    expect((await series()).get("jobsd_connections")).toBe(1);
    following.child.kill("SIGINT");
    await following.ended;
    await become('jobsd_open_calls{service="jobs.v1.WorkerService",method="Stream"}', 0);

    const denied = await host.jobs(["start", "--", "true"], host.as("reader"));
    expect(denied.code).not.toBe(0);
    await become('jobsd_calls_refused_total{reason="ROLE_NOT_ALLOWED"}', 1);
    const method = 'service="jobs.v1.WorkerService",method="Start"';
    expect((await series()).get(`jobsd_calls_total{${method},code="PERMISSION_DENIED"}`)).toBe(1);
    expect((await series()).get(`jobsd_open_calls{${method}}`)).toBe(0);
  });

  it("count connections that were refused", async () => {
    const before = total(await series(), "jobsd_connections_refused_total");
    const [, address = "", port = ""] = /^(.*):(\d+)$/.exec(host.server) ?? [];
    const stranger = connect(Number(port), address);
    stranger.on("error", () => {});
    stranger.end("GET / HTTP/1.1\r\n\r\n");
    stranger.resume();
    await expect.poll(async () => total(await series(), "jobsd_connections_refused_total")).toBe(before + 1);
  });

  it("count the bytes and the gaps that clients were sent, and what jobs wrote", async () => {
    const before = await series();
    const id = await host.start("head", "-c", "3000000", "/dev/zero");
    await host.jobs(["wait", id]);
    const { stdout } = await host.jobs(["stream", "--offset", "0", id]);
    const grown = async (name: string): Promise<number> => ((await series()).get(name) ?? 0) - (before.get(name) ?? 0);
    expect(await grown("jobsd_stream_bytes_total")).toBe(stdout.length);
    expect(await grown("jobsd_stream_gaps_total")).toBe(1);
    expect(await grown("jobsd_stream_gap_bytes_total")).toBe(3_000_000 - stdout.length);
    await expect.poll(() => grown("jobsd_job_output_bytes_total")).toBe(3_000_000);
    expect(await grown("jobsd_job_output_dropped_bytes_total")).toBe(3_000_000 - stdout.length);
  });

  it("tell of the daemon, its disk and its certificates", async () => {
    const found = await series();
    expect([...found.keys()].find((name) => name.startsWith("jobsd_build_info"))).toMatch(
      /\{version="\d+\.\d+\.\d+[^"]*",node="26\./,
    );
    const soon = Date.now() / 1000;
    const expiry = [...found].filter(([name]) => name.startsWith("jobsd_certificate_not_after"));
    expect(expiry.map(([name]) => /use="(\w+)"/.exec(name)?.[1])).toEqual(["ca", "worker"]);
    for (const [, at] of expiry) expect(at).toBeGreaterThan(soon + 80 * 24 * 3600);
    expect(found.get("jobsd_state_disk_free_bytes")).toBeLessThanOrEqual(found.get("jobsd_state_disk_size_bytes") ?? 0);
    expect(found.get("jobsd_journal_size_bytes")).toBeGreaterThan(4096);
    expect(found.get("process_start_time_seconds")).toBeGreaterThan(soon - 600);
    expect(found.get("process_resident_memory_bytes")).toBeGreaterThan(10e6);
    expect(found.get("process_open_fds")).toBeGreaterThan(5);
  });

  it("have no label that a client chooses", async () => {
    const id = await host.start("sh", "-c", "echo told");
    await host.jobs(["run", "--label", "team=blue", "--", "true"]);
    const scraped = await scrape();
    for (const told of [id, "blue", "echo", "writer"]) expect(scraped).not.toContain(told);
  });

  it("are each in the table of the page about them, with the type and the labels, and nothing else is", async () => {
    const scraped = await scrape();
    const labels = (name: string): string => {
      const found = scraped.matchAll(new RegExp(`^${name}(?:_bucket|_sum|_count)?\\{(.*)\\} `, "gm"));
      const names = [...found].flatMap(([, all = ""]) => [...all.matchAll(/(\w+)="/g)].map(([, label]) => label));
      return [...new Set(names)].filter((label) => label !== "le").join(", ");
    };
    const real = [...scraped.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(
      ([, name = "", type]) => `${name} ${type} ${labels(name)}`,
    );
    const rows = readFileSync(PAGE, "utf8").matchAll(/^\| `(\w+)` +\| (\w+) +\| (.*?) *\|/gm);
    const told = [...rows].map(([, name, type, names]) => `${name} ${type} ${names}`);
    expect(told.toSorted()).toEqual(real.toSorted());
  });
});

it.each(["alerts.yaml", "alerts.test.yaml", "dashboard.json"])(
  "docs/watch/%s names metrics and labels that a daemon has, and no others",
  async (name) => {
    const scraped = await scrape();
    const contents = readFileSync(join(WATCH, name), "utf8").replaceAll('\\"', '"');
    const real = new Map(
      [...scraped.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, metric = "", type]) => [metric, type === "histogram"]),
    );
    const used = contents.matchAll(/\b((?:jobsd|process)_\w+)(?:\{([^}]*)\})?/g);
    const strays = [...used].flatMap(([, metric = "", selector = ""]) => {
      const base = metric.replace(/_(bucket|sum|count)$/, "");
      if (!real.has(metric) && !real.get(base)) return [metric];
      const labels = [...selector.matchAll(/(\w+)(?==~?")/g)].map(([label]) => label);
      // Prometheus adds instance and job to each series of a target; le is a histogram's own.
      const known = (label: string): boolean => ["instance", "job", "le"].includes(label);
      return labels.flatMap((label) =>
        known(label) || new RegExp(`^${metric}\\{.*\\b${label}="`, "m").test(scraped) ? [] : [`${metric}{${label}}`],
      );
    });
    expect(strays).toEqual([]);
  },
);

describe("jobsd --metrics", () => {
  const refused = async (address: string): Promise<{ code: number | null; stderr: string }> => {
    const flags = ["--listen", "127.0.0.1:0", "--state", join(host.dir, "other"), "--metrics", address];
    const { code, stderr } = await launch("jobsd", flags, host.certificates).ended;
    return { code, stderr };
  };

  it.each([
    ["9464", 125, /^jobsd: --metrics: "9464" is not an address; give HOST:PORT/],
    ["unix:", 125, /^jobsd: --metrics unix: names no socket/],
    [`unix:/tmp/${"x".repeat(120)}`, 125, /the path of a socket has at most 107 bytes/],
    [
      "0.0.0.0:9464",
      1,
      /not an address of this host alone.*give 127\.0\.0\.1:9464 or unix:PATH, or add --metrics-remote/,
    ],
    ["unix:/no/such/directory/metrics", 1, /--metrics: cannot listen on unix:\/no\/such\/directory\/metrics: .*/],
  ])("%s is refused, and no daemon starts", async (address, code, message) => {
    expect(await refused(address)).toEqual({ code, stderr: expect.stringMatching(message) });
  });

  it("that is missing is told of where --metrics-remote is given", async () => {
    const flags = ["--listen", "127.0.0.1:0", "--state", join(host.dir, "other"), "--metrics-remote"];
    const { code, stderr } = await launch("jobsd", flags, host.certificates).ended;
    expect({ code, stderr }).toEqual({
      code: 125,
      stderr: "jobsd: --metrics-remote is for --metrics HOST:PORT only\n",
    });
  });

  it("tells what can be had when the state directory cannot be", async () => {
    const [state, away] = [join(host.dir, "state"), join(host.dir, "away")];
    renameSync(state, away);
    const scraped = await scrape().finally(() => renameSync(away, state));
    expect(scraped).toMatch(/^jobsd_state_disk_free_bytes Nan$/im);
    expect(scraped).toMatch(/^jobsd_jobs_limit 50$/m);
    expect((await series()).get("jobsd_state_disk_free_bytes")).toBeGreaterThan(0);
  });

  it("that is taken already is refused in a line that says so, and leaves the other one as it was", async () => {
    expect(await refused(`unix:${socket}`)).toEqual({
      code: 1,
      stderr: expect.stringMatching(/another process listens on it/),
    });
    expect(await scrape()).toContain("jobsd_build_info");
  });

  it("gives no job a descriptor of its socket, and takes the socket away when the daemon ends", async () => {
    const id = await host.start("sh", "-c", "ls -l /proc/self/fd; sleep 600");
    const again = await host.end("SIGTERM");
    await expect(scrape()).rejects.toMatchObject({ code: "ENOENT" });
    await again();
    expect((await host.jobs(["stream", id])).stdout).not.toContain("socket:");
    await become('jobsd_jobs{state="running"}', 1);
    await host.jobs(["stop", "--grace", "0", id]);
    await become('jobsd_job_ends_total{how="stopped"}', 1);
  });
});
