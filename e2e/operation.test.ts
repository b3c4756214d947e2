import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type Certificates, issueCertificates, issueOdd, swapped } from "./testing/certificates.ts";
import type { Examined } from "./testing/api.ts";
import { type Daemon, failDaemon, startDaemon } from "./testing/daemon.ts";

const DEADLINE = { timeout: 60_000, interval: 500 };

const made = new AsyncDisposableStack();
let certificates: Certificates;
beforeAll(async () => {
  certificates = made.use(await issueCertificates());
  await issueOdd(certificates);
});
afterAll(() => made.disposeAsync());

describe("the container's health check", () => {
  it("says that the daemon is well", { timeout: 300_000 }, async () => {
    await using daemon = await startDaemon({ certificates, healthCheck: true });
    expect(await daemon.jobs("reader", "list")).toMatchObject({ code: 0 });
  });
});

describe("a shutdown", () => {
  it("while clients stream ends well, within its time, and the clients are told", async () => {
    await using daemon = await startDaemon({ certificates, flags: ["--shutdown-timeout", "5s"] });
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
      "jobs: connection lost (the worker is shutting down; its jobs keep running, try again); connecting again\n";
    await vi.waitFor(() => {
      for (const client of clients) expect(client.stderr()).toBe(told);
    }, DEADLINE);
    for (const { child } of clients) child.kill("SIGINT");
    for (const { ended } of clients) expect(await ended).toMatchObject({ code: 130, stdout: "up\n" });
  });
});

describe("a daemon with a certificate that its clients refuse", () => {
  it.each([
    ["is of another CA", "stranger", "is signed by another CA of the same name, CN=jobs CA"],
    ["has expired", "expired", "expired at "],
  ])("that %s warns of it, and its clients say so", async (_, party, told) => {
    const files = { "worker.crt": `${party}.crt`, "worker.key": `${party}.key` };
    await using daemon = await startDaemon({ certificates: swapped(certificates, files) });
    await vi.waitFor(
      () => expect(daemon.log()).toContain(`"msg":"the worker's certificate (CN=${party}) ${told}`),
      DEADLINE,
    );
    const { code, stderr } = await daemon.jobs("reader", "list");
    expect({ code, stderr }).toEqual({ code: 1, stderr: expect.stringContaining(`(CN=${party}) ${told}`) });
  });
});

describe("a daemon does not start, and says why in a line,", () => {
  it.each([
    [
      "when its key is of another certificate",
      { "worker.key": "reader.key" },
      "/etc/jobs/worker.key: the private key does not belong",
    ],
    [
      "when its certificate is no certificate",
      { "worker.crt": "worker.key" },
      "/etc/jobs/worker.crt: holds PRIVATE KEY (line 1), no certificate",
    ],
    [
      "when its CA is no certificate",
      { "ca.crt": "reader.key" },
      "/etc/jobs/ca.crt: holds PRIVATE KEY (line 1), no certificate",
    ],
  ])("%s", async (_, files, message) => {
    const { code, stderr } = await failDaemon({ certificates: swapped(certificates, files) });
    expect({ code, lines: stderr.split("\n") }).toEqual({
      code: 1,
      lines: [expect.stringContaining(`jobsd: ${message}`), ""],
    });
  });

  it("when a file is not there", async () => {
    const { code, stderr } = await failDaemon({ certificates, flags: ["--cert", "/etc/jobs/nosuch.crt"] });
    expect({ code, stderr }).toEqual({ code: 1, stderr: "jobsd: /etc/jobs/nosuch.crt: no such file or directory\n" });
  });

  it("when its state directory is read-only", async () => {
    const { code, stderr } = await failDaemon({ certificates, readOnlyState: true });
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: expect.stringMatching(/^jobsd: the state directory cannot be used: .*EROFS.*\/var\/lib\/jobs.*\n$/),
    });
  });

  it("when a flag is wrong", async () => {
    const { code, stderr } = await failDaemon({ certificates, flags: ["--log-keep", "some"] });
    expect({ code, stderr }).toEqual({ code: 125, stderr: 'jobsd: --log-keep "some" is not one of newest, oldest\n' });
  });
});

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

describe("the doctor of a privileged container", () => {
  it("finds all that jobs are promised enforced, for the daemon and for one beside it, and changes nothing", async () => {
    await using daemon = await startDaemon({ certificates });
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
});

describe("a daemon in a group with other processes", () => {
  it("is told to have no controller, has none, and leaves a group that jobs can be put in", async () => {
    await using daemon = await startDaemon({ certificates });
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
});

describe("a container without privileges", () => {
  it("has a doctor that names what is missing, with the reason and the remedy", async () => {
    await using daemon = await startDaemon({ certificates, privileged: false });
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
    await using daemon = await startDaemon({ certificates, privileged: false });
    const host = /"host":"this host has no usable cgroup v2: no limits, .*EROFS/;
    await vi.waitFor(() => expect(daemon.log()).toMatch(host), DEADLINE);
    for (const [flag, value, field, controller] of [
      ["--memory", "64M", "resources.memory.limit", "memory"],
      ["--cpus", "0.5", "resources.cpu.quota", "cpu"],
      ["--pids", "10", "resources.pids.limit", "pids"],
    ] as const) {
      const { code, stdout, stderr } = await daemon.jobs("writer", "start", flag, value, "--", "true");
      expect({ code, stdout }).toEqual({ code: 125, stdout: "" });
      expect(stderr).toContain(`jobs: ${field}: `);
      expect(stderr).toContain(`this host enforces no limits; the ${controller} controller is missing`);
    }
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
      expect.stringContaining("this one has the host's /tmp"),
    ]);
  });
});
