import { chmod, chown, mkdir, readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { needsRoot } from "../../src/testing/root.ts";
import { type Host, launch, type Ran, startHost } from "../testing/host.ts";

const PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

let host: Host;
let files = 0;
beforeAll(async () => {
  host = await startHost();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

describe("jobsctl in a traced shell", () => {
  const show = ["--", "sh", "-c", 'echo "${TRACEPARENT-none}"'];

  it("hands its TRACEPARENT on to the job, and to the worker's audit log", async () => {
    expect(await host.jobs(["run", ...show], { TRACEPARENT: PARENT })).toMatchObject({
      code: 0,
      stdout: `${PARENT}\n`,
    });
    const records = (await readFile(join(host.dir, "state", "audit.jsonl"), "utf8")).split("\n").filter(Boolean);
    const traced = records.map((line) => JSON.parse(line)).filter(({ traceparent }) => traceparent === PARENT);
    expect(new Set(traced.map(({ method }) => method))).toContain("/jobs.v1.WorkerService/Start");
  });

  it("leaves the job what --env gives it", async () => {
    const own = await host.jobs(["run", "--env", "TRACEPARENT=own", ...show], { TRACEPARENT: PARENT });
    expect(own).toMatchObject({ code: 0, stdout: "own\n" });
  });

  it.each(["", "nonsense", PARENT.toUpperCase(), "00-\u00e9"])(
    "runs the job without, when TRACEPARENT is %j",
    async (text) => {
      expect(await host.jobs(["run", ...show], { TRACEPARENT: text })).toEqual({
        code: 0,
        stdout: "none\n",
        stderr: "",
      });
    },
  );
});

describe("a daemon with an SDK of OpenTelemetry", () => {
  it("tells of calls and of jobs from their start to their end", async () => {
    const modules = createRequire(import.meta.url);
    const [spans, sdk] = [join(host.dir, "spans"), join(host.dir, "sdk.cjs")];
    await writeFile(
      sdk,
      `const { trace } = require(${JSON.stringify(modules.resolve("@opentelemetry/api"))});
       const { BasicTracerProvider, SimpleSpanProcessor } = require(${JSON.stringify(modules.resolve("@opentelemetry/sdk-trace-base"))});
       const { appendFileSync } = require("node:fs");
       const exporter = {
         export(spans, done) {
           for (const { name, attributes, spanContext } of spans) appendFileSync(${JSON.stringify(spans)}, JSON.stringify({ name, attributes }) + "\\n");
           done({ code: 0 });
         },
         shutdown: () => Promise.resolve(),
       };
       trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }));`,
    );
    await using traced = await startHost(["--tracing", sdk]);
    const { stdout } = await traced.jobs(["run", "--", "sh", "-c", 'echo "$TRACEPARENT"; exit 3'], {
      TRACEPARENT: PARENT,
    });
    expect(stdout).toMatch(/^00-4bf92f3577b34da6a3ce929d0e0e4736-(?!00f067aa0ba902b7)[0-9a-f]{16}-01\n$/);
    const told = async (): Promise<string> => readFile(spans, "utf8").catch(() => "");
    await expect.poll(told, { timeout: 30_000 }).toContain('"jobs.end":"exited","process.exit.code":3');
    await expect.poll(told, { timeout: 30_000 }).toContain('"rpc.method":"Stream"');
  });

  it.each([
    ["is not there", undefined, /^jobsd: --tracing .*\/sdk-1\.cjs: .*no such file/],
    ["throws", "throw new Error('no exporter')", /^jobsd: --tracing .*\/sdk-2\.cjs: no exporter$/m],
    [
      "may be written by others",
      "open",
      /^jobsd: --tracing .*\/sdk-3\.cjs: others can write this file \(mode 0666\): chmod go-w$/m,
    ],
    ["sets up nothing", "", /^jobsd: --tracing .*\/sdk-4\.cjs sets up no SDK: it has to register a provider/],
  ])("does not start when the file that sets it up %s", async (_, contents, message) => {
    const file = join(host.dir, `sdk-${++files}.cjs`);
    if (contents !== undefined) await writeFile(file, contents);
    if (contents === "open") await chmod(file, 0o666);
    const flags = ["--listen", "127.0.0.1:0", "--state", join(host.dir, "other"), "--tracing", file];
    const ran = await launch("jobsd", flags, host.certificates).ended;
    expect(ran).toEqual({ code: 1, stdout: "", stderr: expect.stringMatching(message) });
  });

  it(
    "does not start when the file that sets it up is another user's, or lies where another user may replace it",
    needsRoot,
    async () => {
      const directory = join(host.dir, "theirs");
      await mkdir(directory);
      const file = join(directory, "sdk.cjs");
      await writeFile(file, "");
      const run = (): Promise<Ran> =>
        launch(
          "jobsd",
          ["--listen", "127.0.0.1:0", "--state", join(host.dir, "other"), "--tracing", file],
          host.certificates,
        ).ended;
      await chown(file, 65534, 65534);
      expect((await run()).stderr).toMatch(/sdk\.cjs belongs to nobody/);
      await chown(file, 0, 0);
      await chown(directory, 65534, 65534);
      expect((await run()).stderr).toMatch(/theirs belongs to nobody/);
    },
  );
});
