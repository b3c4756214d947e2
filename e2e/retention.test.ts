import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { sha256 } from "./testing/cli.ts";
import { type Daemon, startDaemon } from "./testing/daemon.ts";

const DEADLINE = { timeout: 60_000, interval: 500 };
const ARCHIVE = "/mnt";

async function placed(daemon: Daemon, id: string, place: string): Promise<void> {
  await vi.waitFor(async () => expect((await daemon.query(id)).job.log?.place).toBe(place), DEADLINE);
}

describe("a log that was compressed and archived", () => {
  const made = new AsyncDisposableStack();
  let daemon: Daemon;
  beforeAll(async () => {
    daemon = made.use(await startDaemon({ flags: ["--log-compress", "zstd", "--archive", ARCHIVE, "--name", "w"] }));
  });
  afterAll(() => made.disposeAsync());

  it("reads as before, from any offset, and takes no room on the worker's disk", async () => {
    const bytes = Buffer.concat([randomBytes(300_000), Buffer.alloc(200_000)]);
    await daemon.put("/bytes", bytes);
    const id = await daemon.start("--", "cat", "/bytes");
    const followed = await daemon.jobs("reader", "stream", "--follow", id);
    expect(sha256(followed.stdout)).toBe(sha256(bytes));
    await placed(daemon, id, "LOG_PLACE_ARCHIVED");

    expect(await daemon.inside("ls", `/var/lib/jobs/jobs/${id}`)).not.toMatch(/output|index/);
    expect((await daemon.inside("ls", `${ARCHIVE}/w/${id}`)).split("\n").filter(Boolean)).toEqual([
      "index.zst",
      "job",
      "output.zst",
    ]);
    for (const offset of [0, 1, 299_999, 450_000]) {
      const { code, stdout } = await daemon.jobs("reader", "stream", "--offset", String(offset), id);
      expect({ code, sha256: sha256(stdout) }).toEqual({ code: 0, sha256: sha256(bytes.subarray(offset)) });
    }
  });

  it("is told of by its job, unless its start asked for another", async () => {
    const id = await daemon.start("--", "echo", "goes");
    const kept = await daemon.start("--log-archive", "no", "--log-compress", "off", "--", "echo", "stays");
    await placed(daemon, id, "LOG_PLACE_ARCHIVED");
    await placed(daemon, kept, "LOG_PLACE_KEPT");
    expect((await daemon.jobs("reader", "query", id)).stdout).toMatch(/^log: +archived 2/m);
    expect((await daemon.jobs("reader", "query", kept)).stdout).toMatch(
      /^log policy: .*not compressed, not archived$/m,
    );
    expect((await daemon.jobs("reader", "stream", kept)).stdout).toBe("stays\n");
  });
});

describe("logs beyond what the daemon is to keep", () => {
  const made = new AsyncDisposableStack();
  let daemon: Daemon;
  beforeAll(async () => {
    daemon = made.use(await startDaemon({ flags: ["--log-prune-count", "2"] }));
  });
  afterAll(() => made.disposeAsync());

  it("are pruned, the oldest first, and readers are told what went, when and why", async () => {
    const ids: string[] = [];
    for (const word of ["one", "two", "three"]) {
      const id = await daemon.start("--", "echo", word);
      await daemon.jobs("reader", "wait", id);
      ids.push(id);
    }
    const [first = "", second = "", third = ""] = ids;
    await placed(daemon, first, "LOG_PLACE_PRUNED");
    const { code, stderr } = await daemon.jobs("reader", "stream", first);
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/was pruned at \d{4}-.*more logs than this worker keeps/);
    expect((await daemon.jobs("reader", "stream", second)).stdout).toBe("two\n");
    expect((await daemon.jobs("reader", "stream", third)).stdout).toBe("three\n");
    expect((await daemon.jobs("reader", "list", "-q")).stdout.trim().split("\n")).toEqual([third, second, first]);
  });

  it("cannot be asked for by a start", async () => {
    const { code, stderr } = await daemon.jobs("writer", "start", "--log-limit", "1G", "--", "true");
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/log\.limit.*268435456 is the most/);
  });
});
