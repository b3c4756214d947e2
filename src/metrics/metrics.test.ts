import { tmpdir } from "node:os";
import { expect, it } from "vitest";
import { openMetrics, type Sources } from "./metrics.ts";

const DAY_MS = 24 * 3600 * 1000;

function sources(certificates: readonly { readonly subject: string; readonly notAfter: Date }[] = []): Sources {
  return {
    stateDir: tmpdir(),
    server: {
      figures: () => ({ connections: 0, certificates: certificates.map((each) => ({ use: "ca" as const, ...each })) }),
    },
    worker: {
      figures: () => ({
        jobs: { starting: 0, running: 0, stopping: 0 },
        endedJobs: undefined,
        maxJobs: 1,
        waitingStarts: 0,
        waitingWrites: 0,
        waitingLogs: 0,
        waitingArchive: 0,
      }),
    },
  };
}

it("a label has a hundred values at most, and no text of a stranger's: the rest is counted as other", async () => {
  using metrics = openMetrics("1");
  for (let i = 0; i < 300; i++) metrics.server.refusedConnection(`REASON_${i}`);
  metrics.server.refused('x"} 1\njobsd_jobs{state="');
  metrics.server.closed("/no.such.Service/Method", "OK");
  const scraped = await metrics.scrape(sources());
  const refused = [...scraped.matchAll(/^jobsd_connections_refused_total\{reason="(\w+)"\} (\d+)$/gm)];
  expect(refused).toHaveLength(101);
  expect(refused.find(([, reason]) => reason === "other")?.[2]).toBe("200");
  expect(scraped).toMatch(/^jobsd_calls_refused_total\{reason="other"\} 1$/m);
  expect(scraped).not.toContain('state=\\"');
});

it("of two CAs of one name the first to expire is told of, and one that is gone is not", async () => {
  using metrics = openMetrics("1");
  const subject = 'CN=a "CA"\\';
  const [soon, late] = [new Date(10 * DAY_MS), new Date(20 * DAY_MS)];
  const both = sources([
    { subject, notAfter: soon },
    { subject, notAfter: late },
  ]);
  const line = (seconds: number): string =>
    `jobsd_certificate_not_after_timestamp_seconds{use="ca",subject="CN=a \\"CA\\"\\\\"} ${seconds}\n`;
  expect(await metrics.scrape(both)).toContain(line(soon.getTime() / 1000));
  expect(await metrics.scrape(sources([{ subject, notAfter: late }]))).toContain(line(late.getTime() / 1000));
  expect(await metrics.scrape(sources())).not.toContain("CN=a");
});
