import { describe, expect, test } from "vitest";
import { isRoot, needsRoot } from "../testing/root.ts";
import type { Renewable } from "./model/options.ts";
import { finished, refused, sh, testWorker, until } from "./testing/worker.ts";

const MIB = 2 ** 20;
const SPEC = { command: "/bin/true", owner: "ada" };

describe("a worker that is told of other options", () => {
  test("starts and ends jobs by them from then on, and by their defaults where they are absent", async () => {
    await using worker = await testWorker();
    const running = await worker.start(sh("sleep 60"));
    worker.renew({ maxJobs: 1, logLimitBytes: 2 * MIB, logKeep: "oldest" })();
    expect(await refused(() => worker.start(SPEC))).toMatchObject({ code: "exhausted" });
    worker.renew({ logLimitBytes: 2 * MIB, logKeep: "oldest" })();
    const { job } = await worker.start(SPEC);
    expect(job.logPolicy).toMatchObject({ limitBytes: 2 * MIB, keep: "oldest" });
    expect(await refused(() => worker.start({ ...SPEC, log: { limitBytes: 3 * MIB } }))).toMatchObject({
      code: "invalid",
    });
    worker.renew({})();
    expect((await worker.start({ ...SPEC, log: { limitBytes: 3 * MIB } })).job.logPolicy).toMatchObject({
      limitBytes: 3 * MIB,
      keep: "newest",
    });
    expect(worker.query(running.job.id)).toMatchObject({ state: "running" });
  });

  test("compresses and prunes the logs that there are", async () => {
    await using worker = await testWorker();
    const ids: string[] = [];
    for (let i = 0; i < 3; i++) ids.push((await finished(worker, sh("seq 20000"))).id);
    const kinds = () => ids.map((id) => worker.query(id).log?.kind);
    expect(kinds()).toEqual(["kept", "kept", "kept"]);
    worker.renew({ logCompress: "zstd" })();
    await until("all are compressed", () => kinds().every((kind) => kind === "compressed"));
    worker.renew({ logPrune: { count: 1 } })();
    await until("two are pruned", () => kinds().filter((kind) => kind === "pruned").length === 2);
    expect(kinds()).toEqual(["pruned", "pruned", "compressed"]);
    worker.renew({ logPrune: { free: { kind: "percent", amount: 99.9 }, freeEveryMs: 50 } })();
    await until("the last is pruned", () => kinds().every((kind) => kind === "pruned"));
    worker.renew({})();
    const { id } = await finished(worker, sh("echo hello"));
    expect(worker.query(id).log?.kind).toBe("kept");
  });

  test.each<[string, Renewable]>([
    ["log limit", { maxJobs: 1, logLimitBytes: 1 }],
    ["allow user", { maxJobs: 1, allowUsers: ["no such user"] }],
    ["allow user", { maxJobs: 1, allowUsers: ["root"] }],
    ["allow group", { maxJobs: 1, allowGroups: ["no such group"] }],
    ...(isRoot
      ? []
      : ([["allow-user-namespaces", { maxJobs: 1, allowUserNamespaces: true }]] satisfies [string, Renewable][])),
  ])("takes none where one is wrong: %s", async (field, options) => {
    await using worker = await testWorker();
    expect(() => worker.renew(options)).toThrow(expect.objectContaining({ code: "invalid", field }));
    await worker.start(sh("sleep 60"));
    await worker.start(SPEC);
  });

  test("takes none before it is told to", async () => {
    await using worker = await testWorker({ maxJobs: 1 });
    const take = worker.renew({});
    await worker.start(sh("sleep 60"));
    expect(await refused(() => worker.start(SPEC))).toMatchObject({ code: "exhausted" });
    take();
    await worker.start(SPEC);
  });

  test("lets starts name other users", needsRoot, async () => {
    await using worker = await testWorker();
    const spec = { ...SPEC, user: "3000" };
    expect(await refused(() => worker.start(spec))).toMatchObject({ code: "forbidden" });
    worker.renew({ allowUsers: ["3000-3001"], allowGroups: ["3000"] })();
    expect((await worker.start(spec)).job).toMatchObject({ user: "3000" });
    worker.renew({})();
    expect(await refused(() => worker.start(spec))).toMatchObject({ code: "forbidden" });
  });
});
