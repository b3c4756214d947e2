import type { Readable } from "node:stream";
import { type ServiceError, status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  ListRequest,
  PruneRequest,
  type PruneResponse,
  StartRequest,
  State,
  StatsRequest,
  StopRequest,
  StreamRequest,
  UpdateRequest,
  type WorkerServiceClient,
} from "../../proto/generated/jobs/v1/worker.ts";
import type { HealthClient } from "../../proto/generated/grpc/health/v1/health.ts";
import { ServerReflectionClient } from "../../proto/generated/grpc/reflection/v1/reflection.ts";
import { ServerReflectionClient as AlphaClient } from "../../proto/generated/grpc/reflection/v1alpha/reflection.ts";
import { run, type TestWorker, testWorker } from "../worker/testing/worker.ts";
import { type Role, ROLES } from "../x509/role.ts";
import type { Owners } from "./owners.ts";
import { METHODS } from "./roles.ts";
import { authority, type Authority, derString } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import {
  answer,
  channelOf,
  CLIENT_OPTIONS,
  clientOf,
  errorOf,
  healthClientOf,
  running,
  type Running,
} from "./testing/server.ts";

const made = new AsyncDisposableStack();
const servers = new Map<Owners, Running>();
const clients = new Map<Role, Clients>();
let trusted: Authority;
let worker: TestWorker;

interface Clients {
  readonly shared: Client;
  readonly private: Client;
}
interface Client {
  readonly jobs: WorkerServiceClient;
  readonly health: HealthClient;
  /** Asks for the names of the services. */
  readonly reflect: (Client: typeof ServerReflectionClient | typeof AlphaClient) => Promise<unknown>;
}

/** Makes clients of both servers. They stand for the same subject, whatever the role. */
async function clientsOf(role: Role, options: { name?: string; subject?: string } = { name: "ada" }): Promise<Clients> {
  const pair = await trusted.issue({ ...options, roles: [derString(role)] });
  const at = (owners: Owners): Client => {
    const { port } = servers.get(owners) ?? expect.fail();
    return {
      jobs: made.use(clientOf(port, trusted.ca, pair)),
      health: made.use(healthClientOf(port, trusted.ca, pair)),
      async reflect(Client) {
        using client = new DisposableStack();
        const grpc = new Client(`127.0.0.1:${port}`, channelOf(trusted.ca, pair), CLIENT_OPTIONS);
        client.defer(() => grpc.close());
        const stream = grpc.serverReflectionInfo();
        stream.write({ host: "", messageRequest: { $case: "listServices", value: "" } });
        return await first(stream);
      },
    };
  };
  return { shared: at("shared"), private: at("private") };
}

beforeAll(async () => {
  [trusted, worker] = await Promise.all([authority(), testWorker()]);
  made.use(worker);
  for (const owners of ["shared", "private"] as const)
    servers.set(owners, made.use(await running(trusted, worker, { owners })));
  for (const role of ROLES) clients.set(role, await clientsOf(role));
});
afterAll(() => made.disposeAsync());

/** Resolves to the first message of a stream, and ends that. */
function first(stream: Readable & { cancel(): void }): Promise<unknown> {
  return new Promise((resolve, reject) => {
    stream.on("error", reject);
    stream.once("data", (message: unknown) => {
      resolve(message);
      stream.cancel();
    });
  });
}

/** Resolves to the ids of the jobs with these labels, which are removed. */
async function pruned(jobs: WorkerServiceClient, labels: Map<string, string>): Promise<string[]> {
  const messages = (await jobs.prune(PruneRequest.fromPartial({ labels })).toArray()) as PruneResponse[];
  return messages.flatMap(({ jobIds }) => jobIds);
}

const EVERYBODY = ["reader", "writer", "admin"];
const CHANGERS = ["writer", "admin"];
const JOBS = "/jobs.v1.WorkerService/";
const HEALTH = "/grpc.health.v1.Health/";

interface Row {
  readonly roles: readonly string[];
  /** What the job runs that the call is about; absent where a call is about no job. */
  readonly command?: readonly [string, ...string[]];
  /** The status where the job can be seen: of an update that names nothing, INVALID_ARGUMENT. */
  readonly reached?: status;
  readonly call: (client: Client, jobId: string) => Promise<unknown>;
}

const SLEEPS = ["sleep", "1000"] as const;
/** Every method, with who may call it. A new one has to get its row here. */
const ROWS: Readonly<Record<string, Row>> = {
  [`${JOBS}Start`]: {
    roles: CHANGERS,
    call: ({ jobs }) => answer((done) => jobs.start(StartRequest.fromPartial({ command: "true" }), done)),
  },
  [`${JOBS}Stop`]: {
    roles: CHANGERS,
    command: SLEEPS,
    call: ({ jobs }, jobId) => answer((done) => jobs.stop(StopRequest.fromPartial({ jobId, signal: 9 }), done)),
  },
  [`${JOBS}Update`]: {
    roles: CHANGERS,
    command: SLEEPS,
    reached: status.INVALID_ARGUMENT,
    call: ({ jobs }, jobId) => answer((done) => jobs.update(UpdateRequest.fromPartial({ jobId }), done)),
  },
  [`${JOBS}Remove`]: {
    roles: CHANGERS,
    command: SLEEPS,
    reached: status.FAILED_PRECONDITION,
    call: ({ jobs }, jobId) => answer((done) => jobs.remove({ jobId, archived: false }, done)),
  },
  [`${JOBS}Prune`]: {
    roles: CHANGERS,
    call: ({ jobs }) => pruned(jobs, new Map([["none", "has it"]])),
  },
  [`${JOBS}Query`]: {
    roles: EVERYBODY,
    command: SLEEPS,
    call: ({ jobs }, jobId) => answer((done) => jobs.query({ jobId }, done)),
  },
  [`${JOBS}Stream`]: {
    roles: EVERYBODY,
    command: SLEEPS,
    call: ({ jobs }, jobId) => first(jobs.stream(StreamRequest.fromPartial({ jobId }))),
  },
  [`${JOBS}Wait`]: {
    roles: EVERYBODY,
    command: ["true"],
    call: ({ jobs }, jobId) => answer((done) => jobs.wait({ jobId }, done)),
  },
  [`${JOBS}Stats`]: {
    roles: EVERYBODY,
    command: SLEEPS,
    call: ({ jobs }, jobId) => first(jobs.stats(StatsRequest.fromPartial({ jobId }))),
  },
  [`${JOBS}List`]: {
    roles: EVERYBODY,
    call: ({ jobs }) => answer((done) => jobs.list(ListRequest.fromPartial({}), done)),
  },
  [`${JOBS}Examine`]: { roles: EVERYBODY, call: ({ jobs }) => answer((done) => jobs.examine({}, done)) },
  [`${HEALTH}Check`]: {
    roles: EVERYBODY,
    call: ({ health }) => answer((done) => health.check({ service: "" }, done)),
  },
  [`${HEALTH}Watch`]: {
    roles: EVERYBODY,
    call: ({ health }) => first(health.watch({ service: "" })),
  },
  [`${HEALTH}List`]: { roles: EVERYBODY, call: ({ health }) => answer((done) => health.list({}, done)) },
  "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": {
    roles: EVERYBODY,
    call: ({ reflect }) => reflect(ServerReflectionClient),
  },
  "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {
    roles: EVERYBODY,
    call: ({ reflect }) => reflect(AlphaClient),
  },
};

test("the table of these tests has every method that is served", () => {
  expect(Object.keys(ROWS).toSorted()).toEqual([...METHODS].toSorted());
});

async function outcome(call: Promise<unknown>): Promise<Pick<ServiceError, "code" | "details" | "metadata">> {
  try {
    await call;
    return { code: status.OK, details: "", metadata: new Map() as never };
  } catch {
    return errorOf(call);
  }
}

/** What a client is told, with the id that it named replaced. */
function told({ code, details, metadata }: Awaited<ReturnType<typeof outcome>>, id: string): unknown {
  const packed = metadata.get("grpc-status-details-bin").map((each) => Buffer.from(each).toString("latin1"));
  return { code, details: details.replaceAll(id, "ID"), packed: packed.map((text) => text.replaceAll(id, "ID")) };
}

describe.each(Object.keys(ROWS).flatMap((path) => EVERYBODY.map((role) => [path, role] as const)))(
  "%s of a %s",
  (path, role) => {
    const { roles, command, reached = status.OK, call } = ROWS[path] ?? expect.fail();
    const asked = clients;

    test.each(
      (["shared", "private"] as const).flatMap((owners) => ["ada", "bob"].map((owner) => [owners, owner] as const)),
    )("where jobs are %s, on a job of %s, as ada", async (owners, owner) => {
      const client = (asked.get(role as Role) ?? expect.fail())[owners];
      const [program, ...args] = command ?? ["true"];
      const { job } = await worker.start({ ...run(program, ...args), owner });
      const found = await outcome(call(client, job.id));
      const hidden = command !== undefined && owners === "private" && owner !== "ada" && role !== "admin";
      const code = !roles.includes(role) ? status.PERMISSION_DENIED : hidden ? status.NOT_FOUND : reached;
      expect(found.code).toBe(code);
      if (code === status.NOT_FOUND) {
        const none = `${job.id.slice(0, -1)}${job.id.endsWith("0") ? "1" : "0"}`;
        expect(told(found, job.id)).toEqual(told(await outcome(call(client, none)), none));
      }
      const untouched = code === status.NOT_FOUND || code === status.PERMISSION_DENIED;
      if (untouched && program === "sleep") expect(worker.query(job.id).state).toBe("running");
      await worker.stop(job.id, { signal: 9, graceMs: 0, by: "the test" });
    });
  },
);

describe("where jobs are private", () => {
  const own = (role: Role): Client => (clients.get(role) ?? expect.fail()).private;
  const ids = async ({ jobs }: Client, filter: Parameters<typeof ListRequest.fromPartial>[0] = {}) => {
    const found: string[] = [];
    for (let pageToken = ""; ;) {
      const page = await answer<{ jobs: { id: string }[]; nextPageToken: string }>((done) =>
        jobs.list(ListRequest.fromPartial({ limit: 2, ...filter, pageToken }), done),
      );
      found.push(...page.jobs.map(({ id }) => id));
      pageToken = page.nextPageToken;
      if (pageToken === "") return found;
      // A place in the journal would count the jobs of all owners.
      expect(pageToken).toMatch(/^[\w-]{22}$/);
    }
  };

  test("every page of a list, by any filter, has the client's own jobs, and an admin's has all", async () => {
    const labels = new Map([["list", "yes"]]);
    const started = [];
    for (const owner of ["ada", "bob", "bob", "bob", "ada", "bob", "ada", "bob"])
      started.push((await worker.start({ ...run("sleep", "1000"), owner, labels })).job);
    const all = started.map(({ id }) => id).toReversed();
    const ours = started.flatMap(({ id, owner }) => (owner === "ada" ? [id] : [])).toReversed();
    for (const role of ["reader", "writer"] as const)
      for (const states of [[], [State.STATE_RUNNING]]) expect(await ids(own(role), { labels, states })).toEqual(ours);
    expect(await ids(own("admin"), { labels })).toEqual(all);
    expect((await ids(own("reader"))).slice(0, ours.length)).toEqual(ours);
    for (const id of all) await worker.stop(id, { signal: 9, graceMs: 0, by: "the test" });
    expect(await ids(own("reader"), { states: [State.STATE_ENDED], labels })).toEqual(ours);
  });

  test("a pruning takes the client's own jobs, and an admin's takes all", async () => {
    const labels = new Map([["prune", "yes"]]);
    const started = [];
    for (const owner of ["ada", "bob", "ada"])
      started.push((await worker.start({ ...run("true"), owner, labels })).job);
    for (const { id } of started) await worker.wait(id);
    const [first, bobs, last] = started.map(({ id }) => id);
    expect(await pruned(own("writer").jobs, labels)).toEqual([last, first]);
    expect(await pruned(own("admin").jobs, labels)).toEqual([bobs]);
  });

  test("a start is its client's own, and a request id is one owner's: it neither meets another's nor tells of it", async () => {
    const request = StartRequest.fromPartial({ command: "true", requestId: "r" });
    const start = ({ jobs }: Client) =>
      answer<{ jobId: string; alreadyStarted: boolean }>((done) => jobs.start(request, done));
    const bobs = await worker.start({ ...run("true"), owner: "bob", requestId: "r" });
    const first = await start(own("writer"));
    expect(first).toMatchObject({ alreadyStarted: false });
    expect(first.jobId).not.toBe(bobs.job.id);
    expect(worker.query(first.jobId).owner).toBe("ada");
    // The admin has the same subject, and is the same owner.
    expect(await start(own("admin"))).toMatchObject({ jobId: first.jobId, alreadyStarted: true });
  });

  test("subjects that have only their common name in common are different owners", async () => {
    const [{ private: other }, { private: same }] = await Promise.all([
      clientsOf("writer", { subject: "O=Example, CN=ada" }),
      clientsOf("reader", { subject: "O=Example, CN=ada" }),
    ]);
    const request = StartRequest.fromPartial({ command: "true" });
    const { jobId } = await answer<{ jobId: string }>((done) => other.jobs.start(request, done));
    expect(worker.query(jobId).owner).toBe("CN=ada,O=Example");
    expect((await outcome(answer((done) => same.jobs.query({ jobId }, done)))).code).toBe(status.OK);
    expect((await outcome(answer((done) => own("writer").jobs.query({ jobId }, done)))).code).toBe(status.NOT_FOUND);
  });

  test("the audit log has the role, and that the call was denied, of which the client was told NOT_FOUND", async () => {
    const { job } = await worker.start({ ...run("sleep", "1000"), owner: "carol" });
    const { audit } = servers.get("private") ?? expect.fail();
    const { private: dan } = await clientsOf("writer", { name: "dan" });
    const { private: boss } = await clientsOf("admin", { name: "boss" });
    for (const { jobs } of [dan, boss]) {
      await outcome(answer((done) => jobs.query({ jobId: job.id }, done)));
      await outcome(answer((done) => jobs.stop(StopRequest.fromPartial({ jobId: job.id, signal: 9 }), done)));
    }
    const records = () => audit.filter(({ jobId, stage }) => jobId === job.id && stage !== "begin");
    await until(() => records().length === 4, "all four are recorded");
    const denied = { decision: "denied", reason: "OTHER_OWNER", code: "NOT_FOUND", principal: { role: "writer" } };
    const allowed = { decision: "allowed", code: "OK", principal: { name: "boss", role: "admin" } };
    expect(records()).toMatchObject([denied, { ...denied, stage: "end" }, allowed, { ...allowed, stage: "end" }]);
    expect(worker.query(job.id).ended?.how).toMatchObject({ kind: "stopped", by: "boss" });
  });
});
