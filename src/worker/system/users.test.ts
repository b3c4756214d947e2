import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { isRoot } from "../../testing/root.ts";
import { finished, jobUid, modes, refused, run, sh, testDirectory, testWorker } from "../testing/worker.ts";
import { checkRules, chooseCredentials, credentialsOf } from "./users.ts";

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

type Choice = readonly [asked: JobSpecUser, worker: Rules];
type JobSpecUser = Parameters<typeof chooseCredentials>[0];
type Rules = Parameters<typeof chooseCredentials>[1];

/** Lines to be found in /etc/passwd and /etc/group, in front of those of this host. */
function accounts({ passwd = "", group = "" }: { readonly passwd?: string; readonly group?: string }): string[] {
  return [`${passwd}\n${readFileSync("/etc/passwd", "utf8")}`, `${group}\n${readFileSync("/etc/group", "utf8")}`];
}

/** What is chosen where those are the accounts, or the refusal. */
function choices([passwd = "", group = ""]: readonly string[], ...asked: readonly Choice[]): unknown[] {
  using directory = testDirectory();
  for (const [name, text] of [["passwd", passwd] as const, ["group", group] as const])
    writeFileSync(join(directory.path, name), text);
  const program = `
    import { chooseCredentials } from ${JSON.stringify(`${import.meta.dirname}/users.ts`)};
    const choose = ([asked, worker]) => {
      try { return chooseCredentials(asked, worker, () => 54321); }
      catch ({ code, field, message }) { return { code, field, message }; }
    };
    console.log(JSON.stringify(${JSON.stringify(asked)}.map(choose)));`;
  const script = `mount --bind ${directory.path}/passwd /etc/passwd && mount --bind ${directory.path}/group /etc/group &&
    exec "$0" --input-type=module --eval "$1"`;
  return JSON.parse(execFileSync("unshare", ["--mount", "sh", "-c", script, process.execPath, program]).toString());
}

/** The worker with the flag as well. */
function allowing(worker: Rules, flag: string): Rules {
  const [name, value = ""] = flag.split(" ");
  if (name === "--allow-root") return { ...worker, allowRoot: true };
  const field = name === "--allow-user" ? "allowUsers" : "allowGroups";
  return { ...worker, [field]: [...(worker[field] ?? []), value] };
}

describe("who a start runs as", () => {
  const self = String(process.getuid?.());

  if (isRoot) {
    test("is a uid of its own when none is named, or the worker's user, who may be named", () => {
      const own = { uid: 54321, gid: 54321, groups: [54321] };
      expect(chooseCredentials({}, {}, () => 54321)).toMatchObject({ ...own, user: "54321", alone: true });
      const daemon = chooseCredentials({}, { user: "daemon" }, () => 54321);
      expect(daemon).toMatchObject({ user: "daemon", change: true });
      expect(daemon).not.toHaveProperty("alone");
      expect(chooseCredentials({ user: "daemon" }, { user: "1" })).toEqual(daemon);
    });

    test.each([
      ["user", "--allow-user postgres", { user: "postgres" }, { user: "nobody", allowGroups: ["postgres"] }],
      ["user", "--allow-user bin", { user: "bin" }, {}],
      ["user", "--allow-user bin", { user: "2" }, { allowUsers: ["daemon", "3-65534", "0-1"] }],
      ["user", "--allow-user 54321", { user: "54321" }, { allowUsers: ["54320", "054"], allowRoot: true }],
      ["group", "--allow-group shadow", { group: "shadow" }, {}],
      ["group", "--allow-group shadow", { group: "shadow" }, { user: "nobody", allowUsers: ["1-65534"] }],
      [
        "group",
        "--allow-group disk",
        { user: "nobody", group: "6" },
        { user: "nobody", allowGroups: ["7-100", "shadow"] },
      ],
      ["user", "--allow-root", { user: "root" }, { allowUsers: ["0-100"] }],
      ["user", "--allow-root", { user: "0" }, {}],
      ["user", "--allow-root", { user: "00" }, {}],
      ["user", "--allow-root", {}, { user: "root" }],
      ["group", "--allow-root", { user: "nobody", group: "root" }, { user: "nobody", allowGroups: ["0-100"] }],
      ["group", "--allow-root", { group: "0" }, {}],
    ])(
      "is refused by its %s, with %s as what would allow it: %o of a worker %o",
      async (field, flag, asked, worker) => {
        const files = accounts({ passwd: "postgres:x:54322:54322::/:/bin/sh" });
        const [refusal, allowed] = choices(files, [asked, worker], [asked, allowing(worker, flag)]);
        expect(refusal).toMatchObject({
          code: "forbidden",
          field,
          message: expect.stringContaining(`(jobsd ${flag})`),
        });
        expect(allowed).toMatchObject({ change: true });
      },
    );

    test("is refused where the user has root's group, in whatever place, unless that is allowed", () => {
      const supplementary = accounts({ group: "root:x:0:nobody" });
      const primary = accounts({ passwd: "ada:x:54322:0::/:/bin/sh" });
      for (const [files, user] of [
        [supplementary, "nobody"],
        [primary, "ada"],
      ] as const) {
        const [byDefault, named, allowed, other] = choices(
          files,
          [{}, { user }],
          [{ user }, { allowUsers: [user] }],
          [{ user }, { allowUsers: [user], allowRoot: true }],
          [
            { user, group: "daemon" },
            { allowUsers: [user], allowGroups: ["daemon"] },
          ],
        );
        for (const refusal of [byDefault, named])
          expect(refusal).toMatchObject({
            code: "forbidden",
            field: "user",
            message: expect.stringContaining("--allow-root"),
          });
        expect(allowed).toMatchObject({ groups: expect.arrayContaining([0]) });
        expect(other).toMatchObject({ gid: 1, groups: [1] });
      }
    });

    test("has its own groups, the primary and the others, and may name one of them", () => {
      const files = accounts({ passwd: "ada:x:54322:54323::/:/bin/sh", group: "crew:x:54324:bea,ada" });
      const worker = { allowUsers: ["ada"] };
      const asked = (group?: string) => [{ user: "ada", ...(group !== undefined && { group }) }, worker] as const;
      expect(choices(files, asked(), asked("crew"), asked("54323"))).toMatchObject([
        { groups: [54323, 54324] },
        { group: "crew", groups: [54324] },
        { groups: [54323] },
      ]);
    });

    test("is a number without an account, unless the group of that number is somebody else's and not allowed", () => {
      const files = accounts({ group: "crew:x:54324:" });
      const worker = { allowUsers: ["54320-54329"] };
      const [borrowed, allowed, own, workers] = choices(
        files,
        [{ user: "54324" }, worker],
        [{ user: "54324" }, { ...worker, allowGroups: ["crew"] }],
        [{ user: "54325" }, worker],
        [{ user: "54324" }, { user: "54324" }],
      );
      expect(borrowed).toMatchObject({
        code: "forbidden",
        field: "group",
        message: expect.stringContaining("(jobsd --allow-group crew)"),
      });
      expect([allowed, workers]).toMatchObject([{ gid: 54324 }, { gid: 54324 }]);
      expect(own).toMatchObject({ gid: 54325 });
    });

    test("is the account of a number that begins with zeros", () => {
      const files = accounts({ passwd: "ada:x:54322:54323::/:/bin/sh", group: "crew:x:54324:ada" });
      const ada = { user: "ada", uid: 54322, gid: 54323, groups: [54323, 54324] };
      expect(choices(files, [{ user: "054322" }, { allowUsers: ["54322"] }])).toMatchObject([ada]);
    });

    test("is of one account where others have its number, when its name is what is allowed", () => {
      const files = accounts({ passwd: "ada:x:54322:54322::/:/bin/sh\neve:x:54322:54322::/:/bin/sh" });
      const eve = { user: "eve" };
      const [byName, byNumber] = choices(files, [eve, { allowUsers: ["ada"] }], [eve, { allowUsers: ["54322"] }]);
      expect(byName).toMatchObject({ code: "forbidden" });
      expect(byNumber).toMatchObject({ user: "eve" });
    });

    test.each([
      ["a user that is not there", { allowUsers: ["no-such-user"] }, /no user "no-such-user"/],
      ["a group that is not there", { allowGroups: ["no-such-group"] }, /no group "no-such-group"/],
      ["a range that ends before it begins", { allowUsers: ["20-10"] }, /"20-10" is no range/],
      ["a number that is none of a user", { allowUsers: ["4294967295"] }, /"4294967295" is no range/],
      ["root, which has a flag of its own", { allowUsers: ["root"] }, /--allow-root/],
      ["root's group by its number", { allowGroups: ["0"] }, /--allow-root/],
      ["a default user that is not there", { user: "no-such-user" }, /no user "no-such-user"/],
      ["root as its default user", { user: "root" }, /no job as root \(jobsd --allow-root\)/],
    ])("is not to be had of a worker with %s, which does not open", async (_what, options, message) => {
      expect((await refused(() => checkRules(options))).message).toMatch(message);
    });
  }

  test("is the worker itself when that is not root, whatever group it has; and nobody else", () => {
    const program = `
      import { chooseCredentials } from ${JSON.stringify(`${import.meta.dirname}/users.ts`)};
      const choose = (asked) => { try { const { uid, gid, change } = chooseCredentials(asked, {}); return { uid, gid, change }; } catch (e) { return e.code; } };
      console.log(JSON.stringify([{}, { user: String(process.getuid()) }, { user: "root" }, { user: "daemon" }, { group: "root" }].map(choose)));`;
    // As root: a user without an account, under a group that is not its own.
    const ids = isRoot ? { uid: 54321, gid: 12345 } : {};
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
  test("runs as the worker's user, or as the worker where that is not root", async () => {
    await using worker = await testWorker(options);
    const job = await finished(worker, run("id", "-u"));
    expect(job.text).toBe(`${jobUid}\n`);
    expect(job.user).toBe(credentialsOf(String(jobUid)).user);
  });

  if (isRoot) {
    test("runs as the user and the groups that the start names, real, effective and saved", async () => {
      await using worker = await testWorker({ ...options, allowUsers: ["daemon"], allowGroups: ["bin"] });
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
