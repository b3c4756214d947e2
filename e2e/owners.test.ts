import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { cpuShare } from "./testing/measure.ts";
import { issueCertificates, issueParty } from "./testing/certificates.ts";
import { type Daemon, startDaemon } from "./testing/daemon.ts";
import type { Query } from "./testing/api.ts";

const MIB = 1024 * 1024;
const QUOTA = "/quota";
/** Starts another daemon where one has ended, in the same container, with the quota that the file then has. */
const AGAIN = `while :; do
  export JOBSD_QUOTA="$(cat ${QUOTA} 2>/dev/null || echo "sum-memory=96M,sum-cpus=0.4,sum-pids=20")"
  node -- /opt/jobs/dist/jobsd.js "$@"
done`;
/** Has as many MiB of memory as its argument says, and waits. */
const HOLDS = `#!/usr/bin/perl
my $held = "x" x ($ARGV[0] * ${MIB});
print "holds\n"; close STDOUT; sleep 1000;
`;

/** Makes 15 processes, or as many as it may, and waits. */
const FORKS = `#!/usr/bin/perl
for (1 .. 15) { defined(my $child = fork) or next; $child or sleep 1000 }
sleep 1000;
`;
/** Kills the daemon that runs. */
const KILL = `for each in /proc/[0-9]*; do
  case "$(tr '\\0' ' ' <$each/cmdline)" in "node -- /opt/jobs/dist/jobsd.js"*) kill -9 \${each#/proc/} ;; esac
done`;

const made = new AsyncDisposableStack();
let daemon: Daemon;
beforeAll(async () => {
  const certificates = made.use(await issueCertificates());
  await Promise.all([
    issueParty(certificates, "ada", "writer"),
    issueParty(certificates, "bob", "writer"),
    issueParty(certificates, "boss", "admin"),
  ]);
  const entrypoint = ["tini", "--", "sh", "-c", AGAIN, "jobsd"];
  daemon = made.use(await startDaemon({ certificates, entrypoint, flags: ["--owners", "private"] }));
  await daemon.put("/programs/holds", HOLDS, 0o755);
  await daemon.put("/programs/forks", FORKS, 0o755);
});
afterAll(() => made.disposeAsync());

async function start(owner: string, ...args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await daemon.jobs(owner, "start", ...args);
  if (code !== 0) throw new Error(stderr);
  return stdout.trim();
}
async function query(id: string): Promise<Query> {
  const { stdout, stderr } = await daemon.jobs("boss", "query", "--output", "json", id);
  if (stdout === "") throw new Error(`${stderr}\n${daemon.log()}`);
  return JSON.parse(stdout);
}
const end = (...ids: readonly string[]): Promise<unknown> => daemon.jobs("boss", "stop", "--grace", "0", ...ids);
/** A file of an owner's group. */
const ofOwner = async (owner: string, file: string): Promise<string> =>
  (await daemon.inside("sh", "-c", `cat /sys/fs/cgroup/jobs-*/@${owner}/${file}`)).trim();
const holding = async (owner: string, mib: number): Promise<string> => {
  const id = await start(owner, "--", "/programs/holds", String(mib));
  await vi.waitUntil(async () => (await daemon.jobs("boss", "stream", id)).stdout === "holds\n", { timeout: 60_000 });
  return id;
};

describe("where jobs are private", () => {
  it("a client sees its own jobs, an admin all, and another owner's job is as none", async () => {
    const id = await start("ada", "--", "sleep", "1000");
    expect(await daemon.jobs("bob", "list", "-q")).toMatchObject({ code: 0, stdout: "" });
    for (const words of [["query"], ["stop"], ["wait"], ["stream"], ["stats"], ["update", "--pids", "5"]]) {
      const { stderr } = await daemon.jobs("bob", ...words, id);
      expect(stderr).toBe(`jobsctl: there is no job "${id}"\n`);
    }
    for (const party of ["ada", "boss"])
      expect(await daemon.jobs(party, "list", "-q")).toMatchObject({ stdout: `${id}\n` });
    await end(id);
  });
});

describe("the jobs of an owner", () => {
  it("have together no more memory than their sum: one of them ends, told as that, and other owners' jobs go on", async () => {
    const other = await holding("bob", 64);
    const first = await holding("ada", 64);
    expect(await ofOwner("ada", "memory.max")).toBe(String(96 * MIB));
    const second = await start("ada", "--", "/programs/holds", "64");
    const both = () => Promise.all([query(first), query(second)]);
    await vi.waitUntil(async () => (await both()).some(({ exited }) => exited), { timeout: 60_000 });
    const killed = (await both()).filter(({ exited }) => exited);
    expect(killed).toHaveLength(1);
    expect(killed[0]?.job.ended).toMatchObject({ outOfMemory: { wholeJob: true, ofOwner: true } });
    expect((await daemon.jobs("ada", "wait", killed[0]?.job.id ?? "")).stdout).toContain(
      "the whole job, 1 process, since all jobs of its owner had the memory that they may have",
    );
    expect((await query(other)).exited).toBe(false);
    await end(first, second, other);
  });

  it("are told apart from a job that reaches its own limit", async () => {
    const ran = await daemon.jobs("ada", "run", "--memory", "16M", "--", "/programs/holds", "64");
    expect(ran).toMatchObject({ code: 137, stderr: expect.stringMatching(/the whole job, 1 process\n$/) });
  });

  it("may not ask for more than the sum, at the start and later", async () => {
    const refused = await daemon.jobs("ada", "start", "--memory", "97M", "--", "true");
    expect(refused.stderr).toContain(`${97 * MIB} is too much: ${96 * MIB} is the most for a job of "ada"`);
    const id = await start("ada", "--memory", "32M", "--", "sleep", "1000");
    const { stderr } = await daemon.jobs("ada", "update", "--pids", "21", id);
    expect(stderr).toContain('21 is too much: 20 is the most for a job of "ada"');
    await end(id);
  });

  it("have together no more processes and CPUs than their sums", async () => {
    const forks = ["--", "/programs/forks"];
    const spins = ["--", "sh", "-c", "while :; do :; done"];
    const many = [await start("ada", ...forks), await start("ada", ...forks)];
    await vi.waitUntil(async () => (await ofOwner("ada", "pids.current")) === "20", { timeout: 60_000 });
    const [first, second] = await Promise.all(many.map(query));
    expect(Number(first?.job.usage.processes) + Number(second?.job.usage.processes)).toBe(20);
    await end(...many);
    const busy = [await start("ada", ...spins), await start("ada", ...spins)];
    const shares = await Promise.all(busy.map((id) => cpuShare({ ...daemon, query }, id)));
    const sum = shares.reduce((all, share) => all + share, 0);
    await end(...busy);
    expect(sum).toBeGreaterThan(0.3);
    expect(sum).toBeLessThan(0.48);
  });
});

describe("a daemon that is started again with other quotas", () => {
  it("finds its jobs in their owners' groups, gives these the new sums, and removes those that are empty", async () => {
    const id = await holding("ada", 48);
    const bobs = await start("bob", "--", "true");
    await daemon.jobs("boss", "wait", bobs);
    const other = async (quota: string): Promise<void> => {
      await daemon.put(QUOTA, quota);
      const times = (): number => daemon.log().split("listening on").length;
      const before = times();
      await daemon.inside("sh", "-c", KILL);
      await vi.waitUntil(() => times() > before, { timeout: 90_000 });
    };
    await other("sum-memory=80M;ada:jobs=1");
    expect((await query(id)).job).toMatchObject({ state: "STATE_RUNNING" });
    expect(await ofOwner("ada", "memory.max")).toBe(String(80 * MIB));
    expect(await ofOwner("ada", "pids.max")).toBe("max");
    expect(await ofOwner("ada", "cpu.max")).toBe("max 100000");
    expect((await daemon.inside("sh", "-c", "ls -d /sys/fs/cgroup/jobs-*/@*")).trim()).toMatch(/@ada$/);
    expect((await daemon.jobs("ada", "start", "--", "true")).stderr).toContain("1 is the most (jobsd --quota, jobs)");
    // Less than the job has: it goes on with the old sum.
    await other("sum-memory=24M");
    expect((await query(id)).job).toMatchObject({ state: "STATE_RUNNING" });
    expect(await ofOwner("ada", "memory.max")).toBe(String(80 * MIB));
    expect((await daemon.jobs("ada", "start", "--", "true")).stderr).toContain("have more memory than the quota");
    await end(id);
    const next = await start("ada", "--", "sleep", "1000");
    expect(await ofOwner("ada", "memory.max")).toBe(String(24 * MIB));
    await end(next);
  });
});
