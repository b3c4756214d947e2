import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { getContainerRuntimeClient } from "testcontainers";
import { seconds } from "./testing/api.ts";
import { issueCertificates } from "./testing/certificates.ts";
import { type Daemon, startDaemon } from "./testing/daemon.ts";

const HOUR_S = 3600;
const DAY_MS = 24 * HOUR_S * 1000;
const LIMIT_S = 6;
const GRACE_S = 3;
/** Far more than a loaded machine takes, far less than an hour. */
const SOON_S = 600;

const { info, container } = await getContainerRuntimeClient();
/** A clock is set for real: that of the machine that was booted for the suites, and no other one. */
const labels: readonly string[] = (await container.dockerode.info()).Labels ?? [];
const isOwn = labels.some((label) => label.startsWith("jobs.e2e.machine="));
const reason = isOwn ? "" : " [skipped: this Docker's host is not ours to set the clock of]";

describe.skipIf(!isOwn)(`a clock that jumps while jobs run changes no result${reason}`, () => {
  const made = new AsyncDisposableStack();
  let daemon: Daemon;
  beforeAll(async () => {
    // Valid an hour ago, too.
    const certificates = made.use(await issueCertificates([info.containerRuntime.host], new Date(Date.now() - DAY_MS)));
    daemon = made.use(await startDaemon({ certificates }));
  });
  afterAll(() => made.disposeAsync());

  async function shift(hours: number): Promise<void> {
    const now = Number(await daemon.inside("date", "+%s"));
    await daemon.inside("date", "-s", `@${now + hours * HOUR_S}`);
  }

  it.each([
    ["one hour on", 1],
    ["one hour back", -1],
  ])("%s, and then to where it was", async (_name, hours) => {
    const stubborn = ["--", "sh", "-c", `trap "" TERM; echo ready; while :; do sleep 1; done`];
    const limited = await daemon.start("--time-limit", `${LIMIT_S}s`, "--", "sleep", "1000");
    const stopped = await daemon.start(...stubborn);
    const exits = await daemon.start("--", "sh", "-c", `echo before; sleep ${LIMIT_S}; echo after; exit 3`);
    const following = daemon.launch("reader", "stream", "--follow", exits);
    const stopping = daemon.launch("writer", "stop", "--grace", `${GRACE_S}s`, stopped);
    await shift(hours);
    const elapsed = seconds((await daemon.query(exits)).job.usage.elapsed);
    const later = await daemon.start("--", "true");
    await Promise.all([limited, stopped, exits, later].map((id) => daemon.jobs("reader", "wait", id)));
    await shift(-hours);
    const ended = await Promise.all([limited, stopped, exits, later].map((id) => daemon.query(id)));

    expect(elapsed).toBeGreaterThan(0);
    expect(elapsed).toBeLessThan(SOON_S);
    expect(ended.map(({ job }) => job.ended)).toMatchObject([
      { timedOut: {}, signal: 15 },
      { stopped: { escalated: true }, signal: 9 },
      { exited: { code: 3 } },
      { exited: { code: 0 } },
    ]);
    const took = ended.map(({ job }) => seconds(job.usage.elapsed));
    expect(took[0]).toBeGreaterThanOrEqual(LIMIT_S);
    expect(took[1]).toBeGreaterThanOrEqual(GRACE_S);
    expect(took[2]).toBeGreaterThanOrEqual(LIMIT_S);
    expect(Math.max(...took)).toBeLessThan(SOON_S);
    expect(await following.ended).toMatchObject({ code: 0, stdout: "before\nafter\n" });
    expect((await stopping.ended).code).toBe(0);
    const { stdout } = await daemon.jobs("reader", "list", "-q");
    expect(stdout.trim().split("\n").slice(0, 4)).toEqual([later, exits, stopped, limited]);
    expect([limited, stopped, exits, later].toSorted()).toEqual([limited, stopped, exits, later]);
  });
});
