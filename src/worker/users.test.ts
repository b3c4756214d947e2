import { execFileSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { modes, finished, jobUid, refused, root, run, sh, testWorker } from "./testing.ts";
import { chooseCredentials, credentialsOf } from "./users.ts";

function id(...args: string[]): string {
  return execFileSync("id", args).toString().trim();
}

describe("an account", () => {
  test("is found by name and by number, with its groups and its home", () => {
    const nobody = credentialsOf("nobody");
    expect(nobody).toEqual({
      user: "nobody",
      group: id("-gn", "nobody"),
      uid: Number(id("-u", "nobody")),
      gid: Number(id("-g", "nobody")),
      groups: id("-G", "nobody").split(" ").map(Number),
      home: "/nonexistent",
    });
    expect(credentialsOf(String(nobody.uid))).toEqual(nobody);
  });

  test("of root is root's", () => {
    expect(credentialsOf("root")).toMatchObject({ uid: 0, gid: 0, home: "/root" });
  });

  test("need not exist for a number", () => {
    expect(credentialsOf("123456")).toEqual({
      user: "123456",
      group: "123456",
      uid: 123456,
      gid: 123456,
      groups: [123456],
      home: "/",
    });
  });

  test("takes another group by name or number, and then no others", () => {
    expect(credentialsOf("nobody", "daemon")).toMatchObject({ group: "daemon", gid: 1, groups: [1] });
    expect(credentialsOf("nobody", "1")).toMatchObject({ group: "daemon", gid: 1, groups: [1] });
    expect(credentialsOf("nobody", "54321")).toMatchObject({ group: "54321", gid: 54321, groups: [54321] });
  });

  test.each(["no-such-user", "", "-1", "4294967295", "1e3", "0x0", " 0", "nobody\0", "../root"])(
    "%j is none",
    async (name) => {
      expect(await refused(() => credentialsOf(name))).toMatchObject({ code: "invalid", field: "user" });
      expect(await refused(() => credentialsOf("nobody", name))).toMatchObject({ code: "invalid", field: "group" });
    },
  );
});

describe("who a start runs as", () => {
  const self = String(process.getuid?.());

  if (root) {
    test("is nobody when none is named, or the worker's default", () => {
      expect(chooseCredentials({}, {})).toMatchObject({ user: "nobody", change: true });
      expect(chooseCredentials({}, { user: "daemon" })).toMatchObject({ user: "daemon", change: true });
      expect(chooseCredentials({ user: "nobody" }, { user: "daemon" })).toMatchObject({ user: "nobody" });
    });

    test.each([
      [{ user: "root" }, {}],
      [{ user: "0" }, {}],
      [{ user: "00" }, {}],
      [{ user: "nobody", group: "root" }, {}],
      [{ user: "nobody", group: "0" }, {}],
      [{}, { user: "root" }],
    ])("is not root unless that is allowed: %o of a worker %o", async (asked, worker) => {
      const error = await refused(() => chooseCredentials(asked, worker));
      expect(error).toMatchObject({ code: "forbidden", field: "user" });
      expect(error.message).toContain("--allow-root");
      expect(chooseCredentials(asked, { ...worker, allowRoot: true })).toMatchObject({ change: true });
    });
  }

  test("is the worker itself when that is not root, whatever group it has; and nobody else", () => {
    const program = `
      import { chooseCredentials } from ${JSON.stringify(`${import.meta.dirname}/users.ts`)};
      const choose = (asked) => { try { const { uid, gid, change } = chooseCredentials(asked, {}); return { uid, gid, change }; } catch (e) { return e.code; } };
      console.log(JSON.stringify([{}, { user: String(process.getuid()) }, { user: "root" }, { user: "daemon" }, { group: "root" }].map(choose)));`;
    // As root: a user without an account, under a group that is not its own.
    const ids = root ? { uid: 54321, gid: 12345 } : {};
    const uid = ids.uid ?? Number(self);
    const gid = ids.gid ?? process.getgid?.();
    const answer: unknown = JSON.parse(
      execFileSync(process.execPath, ["--input-type=module", "-e", program], ids).toString(),
    );
    const itself = { uid, gid, change: false };
    expect(answer).toEqual([itself, itself, "forbidden", "forbidden", gid === 0 ? itself : "forbidden"]);
  });
});

describe.each(modes)("a job %s", (_mode, options) => {
  test("runs as nobody by default where the worker is root, else as the worker", async () => {
    await using worker = await testWorker(options);
    const job = await finished(worker, run("id", "-u"));
    expect(job.text).toBe(`${jobUid}\n`);
    expect(job.user).toBe(credentialsOf(String(jobUid)).user);
  });

  if (root) {
    test("runs as the user and the groups that the start names, real, effective and saved", async () => {
      await using worker = await testWorker(options);
      const spec = sh("id -u; id -g; id -G; grep -E '^[UG]id' /proc/self/status; echo $USER $LOGNAME $HOME");
      const job = await finished(worker, { ...spec, user: "daemon", group: "bin" });
      expect(job.text).toBe("1\n2\n2\nUid:\t1\t1\t1\t1\nGid:\t2\t2\t2\t2\ndaemon daemon /usr/sbin\n");
      expect(job).toMatchObject({ user: "daemon", group: "bin" });
    });

    test("is root only where that is allowed, and then has no capability all the same", async () => {
      await using strict = await testWorker(options);
      expect(await refused(() => strict.start({ ...run("id"), user: "root" }))).toMatchObject({ code: "forbidden" });
      expect(strict.traces()).toEqual([]);
      await using lenient = await testWorker({ ...options, allowRoot: true });
      const job = await finished(lenient, {
        ...sh("id -u; grep -E 'Cap(Eff|Prm|Bnd|Amb)|NoNewPrivs' /proc/self/status"),
        user: "root",
      });
      expect(job.text).toBe(
        ["0", "CapPrm:\t0", "CapEff:\t0", "CapBnd:\t0", "CapAmb:\t0", "NoNewPrivs:\t1", ""]
          .join("\n")
          .replaceAll(/(Cap...:\t)0/g, `$1${"0".repeat(16)}`),
      );
    });
  } else {
    test("cannot be anybody else's", async () => {
      await using worker = await testWorker(options);
      expect(await refused(() => worker.start({ ...run("id"), user: "root" }))).toMatchObject({ code: "forbidden" });
      expect(worker.traces()).toEqual([]);
    });
  }
});
