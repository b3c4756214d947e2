import { randomUUID } from "node:crypto";
import { GenericContainer, getContainerRuntimeClient, Wait } from "testcontainers";
import type { AuditRecord, Query } from "./api.ts";
import { type Certificates, issueCertificates } from "./certificates.ts";
import { launch, type Ran, type Running } from "./cli.ts";
import { openShell } from "./shell.ts";

const PORT = 7443;
const STATE = "/var/lib/jobs";
/** The engine may be an emulated machine, where a container takes ten seconds. */
const START_MS = 200_000;
/** Longer than any step takes there: one that hangs fails an assertion, and not only by the test's own limit. */
const STEP_MS = 90_000;
const FOLLOW_MS = 300_000;

export interface DaemonOptions {
  /** Flags of jobsd, besides those that the image has. */
  readonly flags?: readonly string[];
  /** Instead of the image's. */
  readonly entrypoint?: readonly string[];
  /** Without privileges the container has no cgroup that it may write. */
  readonly privileged?: boolean;
  /** The name of a volume for the state directory. */
  readonly volume?: string;
  /** Nothing but the volume can be written to, as with docker run --read-only. It has the certificates, in certs/. */
  readonly readOnly?: boolean;
  /** The image's health check is made. */
  readonly healthCheck?: boolean;
  /** Of its own when absent. Stay the caller's. */
  readonly certificates?: Certificates;
}

/** The daemon in a container, and the CLI that talks to it. Disposing ends both and leaves nothing. */
export interface Daemon extends AsyncDisposable {
  readonly server: string;
  readonly certificates: Certificates;
  /** Runs `jobsctl` with the certificate of a party. */
  jobs(party: string, ...args: readonly string[]): Promise<Ran>;
  launch(party: string, ...args: readonly string[]): Running;
  /** `jobsctl start` as the writer: flags, "--", the command. Returns the job's id; throws what `jobsctl` said. */
  start(...args: readonly string[]): Promise<string>;
  query(id: string): Promise<Query>;
  /** Runs a command as root in the container and returns its stdout; throws when it fails. */
  inside(...command: readonly string[]): Promise<string>;
  /** Writes a file, readable by all, into the container. */
  put(path: string, content: string | Buffer, mode?: number): Promise<void>;
  /** A FIFO that jobs wait at with `read go < PATH`, and what opens it for all of them. */
  gate(): Promise<{ readonly path: string; open(): Promise<void> }>;
  audit(): Promise<AuditRecord[]>;
  /** What the daemon wrote on stdout and stderr, as far as it has come here. */
  log(): string;
  /** What the health check has found so far, as "starting" or "healthy". */
  health(): Promise<string | undefined>;
  /** SIGTERM, as `docker stop`. Resolves to the container's exit code; SIGKILL, which is 137, after `limitMs`. */
  terminate(limitMs: number): Promise<number>;
}

/** Resolves when the daemon listens. */
export async function startDaemon(options: DaemonOptions = {}): Promise<Daemon> {
  await using made = new AsyncDisposableStack();
  const runtime = await getContainerRuntimeClient();
  const certificates = options.certificates ?? made.use(await issueCertificates([runtime.info.containerRuntime.host]));
  const { box, log, closed } = containerOf(certificates, options, made);
  const ready = Wait.forLogMessage("listening on").withStartupTimeout(START_MS);
  const container = await box.withExposedPorts(PORT).withWaitStrategy(ready).start();
  const shell = made.use(openShell(container.getId()));
  const server = `${container.getHost()}:${container.getMappedPort(PORT)}`;
  const start = starter(server, certificates, made);
  const { container: containers } = runtime;
  const lifetime = made.move();
  const jobs: Daemon["jobs"] = (party, ...args) => start(party, args, STEP_MS).ended;
  const inside: Daemon["inside"] = (...command) => shell.run(command);
  return {
    server,
    certificates,
    jobs,
    launch: (party, ...args) => start(party, args, FOLLOW_MS),
    async start(...args) {
      const { code, stdout, stderr } = await jobs("writer", "start", ...args);
      if (code !== 0) throw new Error(`jobsctl start ${args.join(" ")}: ${stderr}`);
      return stdout.trim();
    },
    async query(id) {
      const { code, stdout, stderr } = await jobs("reader", "query", "--output", "json", id);
      if (code !== 0) throw new Error(`jobsctl query ${id}: ${stderr}`);
      return JSON.parse(stdout);
    },
    inside,
    put: (path, content, mode = 0o644) => shell.write(path, content, mode),
    async gate() {
      const path = `/gate-${randomUUID()}`;
      await inside("mkfifo", "-m", "644", path);
      return {
        path,
        async open() {
          await inside("sh", "-c", `echo > ${path}`);
        },
      };
    },
    async audit() {
      const lines = (await inside("cat", `${STATE}/audit.jsonl`)).split("\n").filter(Boolean);
      return lines.map((line): AuditRecord => JSON.parse(line));
    },
    log,
    async health() {
      return (await containers.inspect(containers.getById(container.getId()))).State.Health?.Status;
    },
    async terminate(limitMs) {
      const ending = containers.getById(container.getId());
      await containers.stop(ending, { timeout: limitMs });
      await closed;
      return (await containers.inspect(ending)).State.ExitCode;
    },
    [Symbol.asyncDispose]: () => lifetime.disposeAsync(),
  };
}

/** Runs the client as a party, for so long at most. What still runs when `made` is disposed of is killed. */
function starter(
  server: string,
  { file }: Certificates,
  made: AsyncDisposableStack,
): (party: string, args: readonly string[], limitMs: number) => Running {
  const launched = new Set<Running>();
  made.defer(async () => {
    for (const { child } of launched) child.kill("SIGKILL");
    await Promise.all([...launched].map(({ ended }) => ended));
  });
  return (party, args, limitMs) => {
    const running = launch(
      { JOBS_SERVER: server, JOBS_CA: file("ca.crt"), JOBS_CERT: file(`${party}.crt`), JOBS_KEY: file(`${party}.key`) },
      args,
      limitMs,
    );
    launched.add(running);
    void running.ended.finally(() => launched.delete(running));
    return running;
  };
}

/** A daemon that does not come up: its exit code and all that it said. */
export async function failDaemon(options: DaemonOptions & { readonly readOnlyState?: boolean }): Promise<Ran> {
  await using made = new AsyncDisposableStack();
  const certificates = options.certificates ?? made.use(await issueCertificates());
  const { box, log, closed } = containerOf(certificates, options, made);
  if (options.readOnlyState) box.withTmpFs({ [STATE]: "ro" });
  const container = await box
    .withWaitStrategy(Wait.forLogMessage(/^jobsd: /))
    .withStartupTimeout(START_MS)
    .start();
  const { container: containers } = await getContainerRuntimeClient();
  const { StatusCode: code }: { StatusCode: number } = await containers.getById(container.getId()).wait();
  await closed;
  return { code, stdout: "", stderr: log() };
}

/** A volume by a name of its own. Disposing removes it; the containers that use it must be gone by then. */
export async function createVolume(): Promise<{ readonly name: string } & AsyncDisposable> {
  const { dockerode } = (await getContainerRuntimeClient()).container;
  const { name } = await dockerode.createVolume({
    Name: `jobs-e2e-${randomUUID()}`,
    Labels: { "jobs.e2e.image": image() },
  });
  return { name, [Symbol.asyncDispose]: () => dockerode.getVolume(name).remove() };
}

/** testcontainers has no option for it. */
class ReadOnlyContainer extends GenericContainer {
  constructor(image: string) {
    super(image);
    this.hostConfig.ReadonlyRootfs = true;
  }
}

/** A container with a daemon's certificates, not started yet. `made` removes it, also when it failed half-way. */
function containerOf(
  { file }: Certificates,
  { flags = [], entrypoint, privileged = true, volume, readOnly = false, healthCheck }: DaemonOptions,
  made: AsyncDisposableStack,
): { readonly box: GenericContainer; readonly log: () => string; readonly closed: Promise<void> } {
  const label = { "jobs.e2e": randomUUID() };
  const { promise: closed, resolve: close } = Promise.withResolvers<void>();
  let said = "";
  const certs = `${STATE}/certs`;
  const tls = ["--ca", `${certs}/ca.crt`, "--cert", `${certs}/worker.crt`, "--key", `${certs}/worker.key`];
  const copied = [
    { source: file("ca.crt"), target: "/etc/jobs/ca.crt" },
    { source: file("worker.crt"), target: "/etc/jobs/worker.crt" },
    { source: file("worker.key"), target: "/etc/jobs/worker.key", mode: 0o600 },
  ];
  const box = new (readOnly ? ReadOnlyContainer : GenericContainer)(image())
    .withCommand([...(readOnly ? tls : []), ...flags])
    .withLabels(label)
    .withLogConsumer((stream) => stream.on("data", (text: string) => (said += text)).once("end", close))
    // Docker copies nothing into a root that is read-only.
    .withCopyFilesToContainer(readOnly ? [] : copied);
  // The image's check, twice a minute for each container, would be a good part of what an emulated machine does.
  if (!healthCheck) box.withHealthCheck({ test: ["CMD", "true"], interval: 3_600_000 });
  if (entrypoint) box.withEntrypoint([...entrypoint]);
  if (privileged) box.withPrivilegedMode();
  if (volume !== undefined) box.withBindMounts([{ source: volume, target: STATE }]);
  // By label, because testcontainers forgets a container whose start failed.
  made.defer(() => removeLabelled(label));
  return { box, log: () => said, closed };
}

async function removeLabelled(label: Readonly<Record<string, string>>): Promise<void> {
  const { dockerode } = (await getContainerRuntimeClient()).container;
  const filters = { label: Object.entries(label).map(([key, value]) => `${key}=${value}`) };
  for (const { Id } of await dockerode.listContainers({ all: true, filters })) {
    await dockerode.getContainer(Id).remove({ force: true, v: true });
  }
}

function image(): string {
  const name = process.env["JOBS_E2E_IMAGE"];
  if (!name) throw new Error("JOBS_E2E_IMAGE does not name the daemon's image: npm run e2e builds one and sets it");
  return name;
}
