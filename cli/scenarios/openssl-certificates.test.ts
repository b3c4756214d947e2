import { mkdtempDisposable, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { unless } from "../../src/testing/root.ts";
import { shell, withoutOpenssl } from "../../src/x509/testing/openssl.ts";
import { launch, type Ran, type Running } from "../testing/host.ts";

const DOCS = new URL("../../docs/certificates.md", import.meta.url);

describe("certificates that openssl alone has made, as docs/certificates.md says", unless(withoutOpenssl), () => {
  let dir: string;
  let daemon: Running;
  let server: string;

  beforeAll(async () => {
    const made = await mkdtempDisposable(join(tmpdir(), "jobs-openssl-"));
    dir = made.path;
    const blocks = (await readFile(DOCS, "utf8")).matchAll(/^```sh\n(.*?)^```$/gms);
    await shell([...blocks].map(([, script]) => script).join("\n"), dir);
    const tls = ["--ca", file("ca.crt"), "--cert", file("worker.crt"), "--key", file("worker.key")];
    daemon = launch("jobsd", ["--listen", "127.0.0.1:0", "--state", file("state"), ...tls]);
    await daemon.shows("\n");
    server = daemon.output.stdout.trim().replace("listening on ", "");
    return async () => {
      daemon.child.kill("SIGTERM");
      await daemon.ended;
      await made.remove();
    };
  }, 300_000);

  function file(name: string): string {
    return join(dir, name);
  }

  function jobs(role: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Ran> {
    const tls = { JOBS_CA: file("ca.crt"), JOBS_CERT: file(`${role}.crt`), JOBS_KEY: file(`${role}.key`) };
    return launch("jobsctl", args, { JOBS_SERVER: server, ...tls, ...env }).ended;
  }

  it("start a job, by its address and by its name", async () => {
    expect(await jobs("writer", ["run", "--", "echo", "hello"])).toEqual({ code: 0, stdout: "hello\n", stderr: "" });
    const named = { JOBS_SERVER: server.replace("127.0.0.1", "localhost") };
    expect(await jobs("writer", ["run", "--", "echo", "hello"], named)).toEqual({
      code: 0,
      stdout: "hello\n",
      stderr: "",
    });
    expect(daemon.output.stderr).not.toMatch(
      /"level":"warn"(?!.*a directory that holds keys and certificates alone).*certificate/,
    );
  });

  it("are what doctor says of them", async () => {
    const { stdout } = await jobs("writer", ["doctor", "-o", "json"]);
    const { findings }: { findings: { area: string; name: string; state: string }[] } = JSON.parse(stdout);
    const own = findings.filter(({ area }) => area === "client").map(({ name, state }) => `${name} ${state}`);
    expect(own).toEqual(["worker", "certificate", "role", "clock"].map((name) => `${name} FINDING_STATE_ENFORCED`));
  });

  it("have the role that the authority gave, whatever the request asks for", async () => {
    expect(await jobs("reader", ["list", "-q"])).toMatchObject({ code: 0 });
    const refused = await jobs("reader", ["start", "--", "true"]);
    expect(refused).toMatchObject({ stdout: "", stderr: expect.stringContaining("writer") });
    expect(refused.code).not.toBe(0);
  });

  it("are told by doctor and by jobsd --check when one of their chain ends within 30 days", async () => {
    await shell(
      `openssl x509 -req -sha256 -days 20 -in writer.csr -CA ca.crt -CAkey ca.key -copy_extensions copy -out soon.crt
        cp -p writer.key soon.key
        openssl x509 -req -sha256 -days 20 -in worker.csr -CA ca.crt -CAkey ca.key -copy_extensions copy -out w.crt`,
      dir,
    );
    const told = await jobs("soon", ["doctor", "-o", "json"]);
    expect(told.stdout).toMatch(/"name": "certificate",[^}]*"state": "FINDING_STATE_LIMITED",[^}]*it ends on 20/);
    const flags = ["--ca", file("ca.crt"), "--cert", file("w.crt"), "--key", file("worker.key")];
    const checked = await launch("jobsd", ["--check", ...flags]).ended;
    expect(checked.stdout).toContain("the worker's certificate (CN=worker) expires at 20");
  });
});
