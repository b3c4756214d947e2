import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { Examined } from "./testing/api.ts";
import { issueCertificates } from "./testing/certificates.ts";
import { createVolume, type Daemon, failDaemon, startDaemon } from "./testing/daemon.ts";

const DEADLINE = { timeout: 60_000, interval: 500 };

/** `jobsd --check` beside the daemon. */
const CHECK = ["node", "/opt/jobs/dist/jobsd.js", "--check", "--json"];
const CONTROLLERS = ["cpu", "memory", "pids", "io", "cpuset", "hugetlb", "rdma", "misc"];

/** Of an area, each name and its state. */
function states({ findings }: Examined, area: string): Record<string, string> {
  return Object.fromEntries(findings.flatMap((each) => (each.area === area ? [[each.name, each.state]] : [])));
}

function groups(daemon: Daemon): Promise<string> {
  return daemon.inside("sh", "-c", "find /sys/fs/cgroup -type d | sort; cat /sys/fs/cgroup/cgroup.subtree_control");
}

it("a container whose root is read-only is healthy, and runs jobs with limits, since it writes to its volume alone", async () => {
  await using certificates = await issueCertificates();
  await using volume = await createVolume();
  const options = { certificates, volume: volume.name };
  {
    await using first = await startDaemon(options);
    await first.inside("cp", "-r", "/etc/jobs", "/var/lib/jobs/certs");
  }
  await using daemon = await startDaemon({ ...options, readOnly: true, healthCheck: true });
  await expect(daemon.inside("touch", "/etc/written")).rejects.toThrow(/Read-only file system/);
  const id = await daemon.start(
    "--memory",
    "64M",
    "--private-tmp",
    "--",
    "sh",
    "-c",
    "echo up >/tmp/f; cat /tmp/f; exec sleep 1000",
  );
  await vi.waitFor(
    async () => expect(await daemon.jobs("reader", "stream", id)).toMatchObject({ stdout: "up\n" }),
    DEADLINE,
  );
  expect(await daemon.jobs("writer", "stop", id)).toMatchObject({ code: 0 });
  expect((await daemon.query(id)).job.state).toBe("STATE_ENDED");
  await vi.waitFor(async () => expect(await daemon.health()).toBe("healthy"), { timeout: 250_000, interval: 2_000 });
  expect(await daemon.terminate(20_000)).toBe(0);
});

describe("a privileged container", () => {
  const made = new AsyncDisposableStack();
  let daemon: Daemon;
  beforeAll(async () => {
    daemon = made.use(await startDaemon({ healthCheck: true, flags: ["--shutdown-timeout", "5s"] }));
  });
  afterAll(() => made.disposeAsync());

  it("is healthy by the image's own check, and answers", async () => {
    // Docker asks for the first time after half a minute, and an emulated machine may be too slow to answer in time.
    await vi.waitFor(async () => expect(await daemon.health()).toBe("healthy"), { timeout: 250_000, interval: 2_000 });
    expect(await daemon.jobs("reader", "list")).toMatchObject({ code: 0 });
  });

  it("has a doctor that finds all enforced, for the daemon and for one beside it, and changes nothing", async () => {
    const before = await groups(daemon);
    const { code, stdout } = await daemon.jobs("reader", "doctor", "--output", "json");
    const told: Examined = JSON.parse(stdout);
    const checked: Examined = JSON.parse(await daemon.inside(...CHECK));
    for (const examined of [told, checked]) {
      expect(examined.findings.filter(({ state }) => state === "FINDING_STATE_MISSING")).toEqual([]);
      expect(states(examined, "controller")).toMatchObject(
        Object.fromEntries(CONTROLLERS.map((name) => [name, "FINDING_STATE_ENFORCED"])),
      );
    }
    expect(code).toBe(0);
    expect(told.findings.map(({ area, name }) => `${area} ${name}`)).toEqual(
      expect.arrayContaining([
        "client certificate",
        "client clock",
        "namespace pid",
        "device rules bpf",
        "state space",
      ]),
    );
    expect(await groups(daemon)).toBe(before);
  });

  it("has a second daemon that is told to have no controller in a group with other processes, and has none", async () => {
    const crowd = "/sys/fs/cgroup/crowd";
    await daemon.inside("sh", "-c", `mkdir ${crowd}; sleep 1000 > /dev/null 2>&1 & echo $! > ${crowd}/cgroup.procs`);
    const checked = await daemon.inside("sh", "-c", `${CHECK.join(" ")} --cgroup ${crowd}; [ $? = 1 ]`);
    const { findings }: Examined = JSON.parse(checked);
    const controllers = findings.filter(
      ({ area, state }) => area === "controller" && state !== "FINDING_STATE_LIMITED",
    );
    expect(controllers.map(({ name }) => name)).toEqual(CONTROLLERS);
    for (const { reason } of controllers) expect(reason).toMatch(/other processes are in .*crowd.*EBUSY/);
    const second = `node /opt/jobs/dist/jobsd.js --state /tmp/second --listen 127.0.0.1:7444 --cgroup ${crowd}`;
    const log = "/tmp/second.log";
    const types = `until grep -q listening ${log}; do sleep 0.2; done; cat ${crowd}/cgroup.type ${crowd}/jobs-*/cgroup.type`;
    const health = "JOBSD_HEALTH_SOCKET=/tmp/second.sock";
    expect(await daemon.inside("sh", "-c", `${health} ${second} > ${log} 2>&1 & ${types}`)).toBe("domain\ndomain\n");
    expect(await daemon.inside("cat", log)).toContain("crowd/jobs-");
  });

  it("is shut down while clients stream, within its time, and the clients are told", async () => {
    const id = await daemon.start("--", "sh", "-c", "echo up; exec sleep 1000");
    const clients = [0, 1, 2].map(() => daemon.launch("reader", "stream", "--follow", id));
    await vi.waitFor(() => {
      for (const client of clients) expect(client.stdout()).toBe("up\n");
    }, DEADLINE);
    const askedAt = performance.now();
    expect(await daemon.terminate(60_000)).toBe(0);
    expect(performance.now() - askedAt).toBeLessThan(20_000);
    expect(daemon.log()).toContain('"msg":"closed"');
    const told =
      "jobsctl: connection lost (the worker is shutting down; its jobs keep running, try again); connecting again\n";
    await vi.waitFor(() => {
      for (const client of clients) expect(client.stderr()).toBe(told);
    }, DEADLINE);
    for (const { child } of clients) child.kill("SIGINT");
    for (const { ended } of clients) expect(await ended).toMatchObject({ code: 130, stdout: "up\n" });
  });
});

describe("a container without privileges", () => {
  const made = new AsyncDisposableStack();
  let daemon: Daemon;
  beforeAll(async () => {
    daemon = made.use(await startDaemon({ privileged: false }));
  });
  afterAll(() => made.disposeAsync());

  it("has a doctor that names what is missing, with the reason and the remedy", async () => {
    const { code, stdout } = await daemon.jobs("reader", "doctor", "--output", "json");
    const checked = await daemon.inside("sh", "-c", `${CHECK.join(" ")} && exit 99; [ $? = 1 ]`);
    const [told, beside]: Examined[] = [JSON.parse(stdout), JSON.parse(checked)];
    expect(code).toBe(1);
    for (const examined of [told, beside]) {
      const missing = examined?.findings.filter(({ state }) => state === "FINDING_STATE_MISSING") ?? [];
      expect(missing.map(({ name }) => name)).toEqual(
        expect.arrayContaining(["v2", ...CONTROLLERS, "pid", "mount", "network", "bpf"]),
      );
      for (const finding of missing) {
        expect(finding).toMatchObject({ reason: expect.stringMatching(/./), remedy: expect.stringMatching(/./) });
      }
      expect(missing.find(({ name }) => name === "memory")).toMatchObject({
        meaning: "refused: --memory, --memory-reservation, --memory-swap",
        reason: "/sys/fs/cgroup is mounted read-only (EROFS)",
        remedy: "docker run --privileged --cgroupns=private",
      });
    }
    const text = Buffer.from((await daemon.jobs("reader", "doctor")).stdout, "latin1").toString();
    expect(text).toMatch(
      /^ +✗ misc .*\n +\/sys\/fs\/cgroup is mounted read-only \(EROFS\)\n +→ docker run --privileged/m,
    );
  });

  it("has a daemon that says what it cannot enforce, refuses limits by name, and runs jobs without", async () => {
    const host = /"host":"this host has no usable cgroup v2: no limits, .*EROFS/;
    await vi.waitFor(() => expect(daemon.log()).toMatch(host), DEADLINE);
    for (const [flag, value, field, controller] of [
      ["--memory", "64M", "resources.memory.limit", "memory"],
      ["--cpus", "0.5", "resources.cpu.quota", "cpu"],
      ["--pids", "10", "resources.pids.limit", "pids"],
    ] as const) {
      const { code, stdout, stderr } = await daemon.jobs("writer", "start", flag, value, "--", "true");
      expect({ code, stdout }).toEqual({ code: 125, stdout: "" });
      expect(stderr).toContain(`jobsctl: ${field}: `);
      expect(stderr).toContain(`this host enforces no limits; the ${controller} controller is missing`);
    }
    expect(await daemon.jobs("writer", "start", "--device", "/dev/null", "--", "true")).toMatchObject({
      code: 125,
      stdout: "",
      stderr: expect.stringContaining("resources.devices: "),
    });
    expect(await daemon.jobs("reader", "list", "-q")).toMatchObject({ code: 0, stdout: "" });
    const ran = await daemon.jobs(
      "writer",
      "run",
      "--label",
      "test=free",
      "--",
      "sh",
      "-c",
      "setsid sleep 65432 & exit 5",
    );
    expect(ran.code).toBe(5);
    expect(await daemon.inside("sh", "-c", "cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' ' '")).not.toContain(
      "65432 ",
    );
    const id = (await daemon.jobs("reader", "list", "-q", "--label", "test=free")).stdout.trim();
    const { job } = await daemon.query(id);
    expect(job).toMatchObject({ ended: { exitCode: 5, killed: 1 }, usage: { fromCgroup: false } });
    expect(job.warnings).toEqual([
      expect.stringContaining("no usable cgroup v2"),
      expect.stringContaining("jobs share the host's: pid (EPERM)"),
      expect.stringContaining("this job has the host's /tmp"),
    ]);
  });
});

describe("a state directory that is read-only", () => {
  it("is told in a line, and no daemon starts", async () => {
    const { code, stderr } = await failDaemon({ readOnlyState: true });
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: expect.stringMatching(/^jobsd: the state directory cannot be used: .*EROFS.*\/var\/lib\/jobs.*\n$/),
    });
  });
});
