/* The main job, on real processes: certificates, daemon, a job, its output, a refusal, and nothing left behind. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { styleText } from "node:util";

const root = join(import.meta.dirname, "..");
const directory = mkdtempSync(join(tmpdir(), "jobs-demo-"));
const certs = join(directory, "certs");
let server = "";

function say(line: string): void {
  process.stdout.write(`\n${styleText("bold", line)}\n`);
}

/** Runs `jobsctl` as `role`, with its output shown; resolves to what it wrote to stdout. Throws on another exit code. */
async function jobsctl(role: string, args: readonly string[], expected = 0): Promise<string> {
  process.stdout.write(
    styleText(
      "dim",
      `$ jobsctl ${args.map((arg) => (/[\s;$]/.test(arg) ? `'${arg}'` : arg)).join(" ")}   # as ${role}\n`,
    ),
  );
  const env = {
    ...process.env,
    JOBS_SERVER: server,
    JOBS_CA: join(certs, "ca.crt"),
    JOBS_CERT: join(certs, `${role}.crt`),
    JOBS_KEY: join(certs, `${role}.key`),
  };
  const child = spawn(join(root, "bin/jobsctl"), args, { env, stdio: ["ignore", "pipe", "inherit"] });
  child.stdout.pipe(process.stdout, { end: false });
  const [output, [code]] = await Promise.all([text(child.stdout), once(child, "exit")]);
  if (code !== expected) throw new Error(`jobsctl ${args.join(" ")} exited with ${String(code)}, not ${expected}`);
  return output;
}

async function startDaemon(): Promise<{ stop(): Promise<void> }> {
  const args = ["--listen", "127.0.0.1:0", "--state", join(directory, "state"), "--log-level", "warn"];
  // This host may have a file of its own.
  args.push("--config", "/dev/null");
  for (const [flag, file] of [
    ["ca", "ca.crt"],
    ["cert", "worker.crt"],
    ["key", "worker.key"],
  ])
    args.push(`--${flag}`, join(certs, file ?? ""));
  const daemon = spawn(join(root, "bin/jobsd"), args, { stdio: ["ignore", "pipe", "inherit"] });
  const exited = once(daemon, "exit");
  const [line] = await Promise.race([once(daemon.stdout, "data"), exited]);
  const address = /^listening on (\S+)/.exec(String(line))?.[1];
  if (address === undefined) throw new Error(`the daemon did not start (${String(line)})`);
  server = address;
  process.stdout.write(`listening on ${address}\n`);
  return {
    async stop() {
      daemon.kill("SIGTERM");
      const [code] = await exited;
      if (code !== 0) throw new Error(`the daemon exited with ${String(code)}`);
    },
  };
}

function check(holds: boolean, claim: string): void {
  if (!holds) throw new Error(`this should hold, and does not: ${claim}`);
}

if (!/^\S+ \S+ \S+ \S+ \S+ .*- cgroup2 /m.test(readFileSync("/proc/self/mountinfo", "utf8")))
  say("This host has no cgroup v2, so there will be no limits; `mount -t cgroup2 none /sys/fs/cgroup` gives it one.");
try {
  say("1. A certificate authority, and certificates of a worker, a writer and a reader (RSA 4096)");
  await jobsctl("writer", ["certs", "init", "--out", certs]);

  say("2. The daemon");
  const daemon = await startDaemon();

  say("3. A job, its output as it comes, and its exit code");
  const script = 'for i in 1 2 3; do echo "step $i of 3"; sleep 0.3; done; echo "done, with a warning" >&2; exit 3';
  const output = await jobsctl("writer", ["run", "--", "sh", "-c", script], 3);
  check(output === "step 1 of 3\nstep 2 of 3\nstep 3 of 3\n", "stdout came whole, and stderr apart");

  say("4. A job in the background: its state and usage, and its output for a reader");
  const id = (
    await jobsctl("writer", ["start", "--label", "demo=yes", "--", "sh", "-c", "echo working; while :; do :; done"])
  ).trim();
  await jobsctl("writer", ["list"]);
  const status = await jobsctl("reader", ["query", id]);
  check(status.includes("running"), "the job runs");
  check((await jobsctl("reader", ["stream", id])) === "working\n", "a reader may stream");

  say("5. A reader may look, and may not start");
  await jobsctl("reader", ["start", "--", "true"], 125);

  say("6. Stop it, with all that it started");
  await jobsctl("writer", ["stop", id]);
  const pid = /"pid":\s*(\d+)/.exec(await jobsctl("reader", ["query", "--output", "json", id]))?.[1];
  check(pid !== undefined && !existsSync(`/proc/${pid}`), "its process is gone");

  say("7. Stop the daemon");
  await daemon.stop();
} finally {
  rmSync(directory, { recursive: true, force: true });
}
check(!existsSync(directory), "the temporary directory is gone");
say("All of it worked, and nothing is left behind.");
