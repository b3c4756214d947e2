import { existsSync, mkdirSync, readFileSync, rmdirSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import type { Setting } from "../limits/setting.ts";
import { groupsIn, modes, refused, rmGroup } from "../testing/worker.ts";
import { AHEAD, openGroupsAhead } from "./groups-ahead.ts";
import { type Hierarchy, openHierarchy } from "./hierarchy.ts";
import { isOwnerGroup, openOwnerGroups, ownerGroupName, ownerGroupsIn } from "./owner-groups.ts";

/** A limit that every host with cgroup v2 has. */
const DEPTH: Setting = { file: "cgroup.max.depth", value: "7", controller: "pids", field: "quota" };

test("the name of an owner's group is a file's name, of no other owner and of no job", () => {
  const owners = [
    "ada",
    "Ada",
    "a/b",
    "..",
    "a\nb",
    "@ada",
    "%61da",
    "CN=ada,O=Example",
    "ö",
    "o\u0308",
    "\ud800",
    "\udc00",
  ];
  const long = ["x".repeat(300), `${"x".repeat(299)}y`, "ä".repeat(90)];
  const names = [...owners, ...long].map(ownerGroupName);
  expect(new Set(names).size).toBe(owners.length + long.length);
  for (const name of names) {
    expect(name).toMatch(/^@[\w%!~*'().@-]+$/);
    expect(Buffer.byteLength(name)).toBeLessThan(256);
    expect(isOwnerGroup(name)).toBe(true);
  }
  expect(ownerGroupName("ada")).toBe("@ada");
  for (const id of ["01m85bxjqw7ggzm1drbxxphnk6", "worker.01m85bxjqw7ggzm1drbxxphnk6", "daemon"])
    expect(isOwnerGroup(`/sys/fs/cgroup/jobs-1/${id}`)).toBe(false);
});

describe.each(modes.filter(([mode]) => mode === "with cgroup v2"))("%s the group of an owner", () => {
  function hierarchyHere(): Extract<Hierarchy, { kind: "cgroup2" }> {
    const hierarchy = openHierarchy(`jobs-test-${crypto.randomUUID().slice(0, 8)}`);
    if (hierarchy.kind === "none") throw new Error(hierarchy.reason);
    onTestFinished(() => {
      for (const path of ownerGroupsIn([hierarchy.path])) {
        for (const name of groupsIn(path)) rmGroup(join(path, name));
        rmGroup(path);
      }
      rmGroup(hierarchy.path);
    });
    return hierarchy;
  }

  test("is made with its limits for the first job, and goes with the last one once another owner's is made", () => {
    const hierarchy = hierarchyHere();
    using groups = openOwnerGroups(hierarchy, () => {});
    const ada = groups.enter("ada", [DEPTH]);
    const path = join(hierarchy.path, "@ada");
    expect(ada).toMatchObject({ kind: "cgroup2", path, controllers: hierarchy.controllers });
    expect(readFileSync(join(path, "cgroup.max.depth"), "utf8")).toBe("7\n");
    expect(groups.enter("ada", [DEPTH])).toBe(ada);
    for (const id of ["1", "2"]) {
      mkdirSync(join(path, id));
      groups.hold(join(path, id));
    }
    groups.enter("bob", [DEPTH]);
    for (const id of ["1", "2"]) {
      expect(existsSync(path)).toBe(true);
      rmdirSync(join(path, id));
      groups.free(join(path, id));
    }
    expect(existsSync(path)).toBe(false);
    expect(groupsIn(hierarchy.path)).toEqual(["@bob"]);
    expect(groups.enter("bob", [{ ...DEPTH, value: "5" }])).toMatchObject({ path: join(hierarchy.path, "@bob") });
    expect(readFileSync(join(hierarchy.path, "@bob", "cgroup.max.depth"), "utf8")).toBe("5\n");
    groups.leave(join(hierarchy.path, "@bob"));
    expect(groupsIn(hierarchy.path)).toEqual([]);
  });

  test("is removed when the worker closes, unless jobs are in it", () => {
    const hierarchy = hierarchyHere();
    {
      using groups = openOwnerGroups(hierarchy, () => {});
      for (const owner of ["ada", "bob"]) groups.enter(owner, [DEPTH]);
      mkdirSync(join(hierarchy.path, "@ada", "1"));
      groups.hold(join(hierarchy.path, "@ada", "1"));
    }
    expect(groupsIn(hierarchy.path)).toEqual(["@ada"]);
  });

  test("is found by the next daemon, gets its limits, and loses those that the quota has no more", () => {
    const hierarchy = hierarchyHere();
    const path = join(hierarchy.path, "@ada");
    openOwnerGroups(hierarchy, () => {}).enter("ada", [DEPTH]);
    expect(ownerGroupsIn([hierarchy.path])).toEqual([path]);
    using groups = openOwnerGroups(hierarchy, () => {});
    groups.adopt(path, [{ ...DEPTH, value: "9" }]);
    expect(readFileSync(join(path, "cgroup.max.depth"), "utf8")).toBe("9\n");
    expect(groups.enter("ada", [{ ...DEPTH, value: "3" }])).toMatchObject({ path });
    expect(readFileSync(join(path, "cgroup.max.depth"), "utf8")).toBe("3\n");
  });

  test("with a limit that the kernel refuses is no group, and the start is refused", async () => {
    const hierarchy = hierarchyHere();
    using groups = openOwnerGroups(hierarchy, () => {});
    const error = await refused(() => groups.enter("ada", [{ ...DEPTH, value: "many" }]));
    expect(error).toMatchObject({ code: "unsupported", field: "quota", facts: { errno: "EINVAL" } });
    expect(groupsIn(hierarchy.path)).toEqual([]);
  });

  test("has groups made ahead in it while its owner starts jobs one after another, and ids keep their order", () => {
    const hierarchy = hierarchyHere();
    using groups = openOwnerGroups(hierarchy, () => {});
    using ahead = openGroupsAhead(undefined, hierarchy, (path) => groups.leave(path));
    const ids: string[] = [];
    const path = (owner: string): string => join(hierarchy.path, ownerGroupName(owner));
    const start = (owner: string): void => {
      const id = ahead.take(groups.enter(owner, [DEPTH]));
      groups.hold(join(path(owner), id));
      ids.push(id);
      ahead.refill();
    };
    const end = (owner: string, id = ""): void => {
      rmdirSync(join(path(owner), id));
      groups.free(join(path(owner), id));
    };
    ahead.refill();
    expect(groupsIn(hierarchy.path)).toHaveLength(AHEAD);
    start("ada");
    expect(groupsIn(hierarchy.path)).toEqual(["@ada"]);
    expect(groupsIn(path("ada"))).toEqual(ids);
    start("ada");
    expect(groupsIn(path("ada"))).toHaveLength(2 + AHEAD);
    start("ada");
    start("bob");
    expect(groupsIn(path("ada"))).toEqual(ids.slice(0, 3));
    for (const id of ids.slice(0, 3)) end("ada", id);
    expect(groupsIn(hierarchy.path)).toEqual(["@bob"]);
    start("ada");
    end("bob", ids[3]);
    expect(groupsIn(hierarchy.path).map((name) => basename(name))).toEqual(["@ada"]);
    expect(ids.toSorted()).toEqual(ids);
    end("ada", ids[4]);
  });
});
