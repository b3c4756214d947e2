import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { PARTS, type Part } from "../worker/model/isolation.ts";
import { isRoot, needsRoot, unless } from "../testing/root.ts";
import {
  CREDENTIALS,
  FULL,
  OWN,
  ROOTLESS,
  UNPRIVILEGED,
  compile,
  rig,
  unprivilegedRig,
  variants,
  without,
  type Rig,
  type Spec,
} from "./testing/rig.ts";
import { marked } from "../testing/processes.ts";

const NAMESPACES = ["pid", "mnt", "ipc", "uts", "cgroup", "net"] as const;
const isolated = variants.filter(({ mode }) => mode === "isolated");
/** Where the host has no cgroup v2, jobs have no group to see, nor one to mount anew. */
const needsCgroups = unless(FULL.wanted.has("cgroup") ? undefined : "this host has no cgroup v2");

const WAITS = 'read x < "$CUE"';

/** A prelude: what the spawner's host is, with mounts that are shared, as systemd's are. */
const OWN_HOST = 'if [ -z "$INNER" ]; then INNER=1 exec unshare --mount --propagation shared sh "$0" "$@"; fi';

/** Runs a command where the spawner is. */
function onHost(it: Rig, ...command: readonly string[]): void {
  execFileSync("nsenter", ["--target", String(it.pid()), "--mount", ...command]);
}

async function outputOf(it: Rig, spec: Spec): Promise<string> {
  const { job, exit } = await it.run(spec);
  expect(exit).toMatchObject({ code: 0 });
  return job.output();
}

async function namespaces(it: Rig, spec: Spec = {}): Promise<Map<string, string>> {
  const script = `for name in ${NAMESPACES.join(" ")}; do echo $name $(readlink /proc/self/ns/$name); done`;
  const lines = (await outputOf(it, { script, ...spec })).trimEnd().split("\n");
  return new Map(lines.map((line) => [line.split(" ")[0] ?? "", line.split(" ")[1] ?? ""]));
}

/** Those that are not this process's. */
async function own(it: Rig, spec?: Spec): Promise<string[]> {
  const of = await namespaces(it, spec);
  return NAMESPACES.filter((name) => of.get(name) !== readlinkSync(`/proc/self/ns/${name}`));
}

describe.each(isolated)("$build", (variant) => {
  test("a job has namespaces of its own, each unlike another job's, and the host's network", async () => {
    await using it = await rig(variant);
    const expected = NAMESPACES.filter((name) => name !== "net" && (name !== "cgroup" || FULL.wanted.has("cgroup")));
    expect(await own(it)).toEqual(expected);
    const [first, second] = [await it.start({ script: WAITS }), await it.start({ script: WAITS })];
    for (const name of expected)
      expect(readlinkSync(`/proc/${first.pid}/ns/${name}`)).not.toBe(readlinkSync(`/proc/${second.pid}/ns/${name}`));
    expect(it.spawner.lacking).toEqual(new Map());
  });

  test.each(PARTS.filter((part) => FULL.wanted.has(part)))(
    "%s can be switched off, and the rest holds",
    async (part) => {
      await using it = await rig(variant, {
        isolation: { wanted: without(part, ...(part === "mount" ? (["pid", "cgroup"] as const) : [])) },
      });
      const off: Partial<Record<Part, readonly string[]>> = {
        user: NAMESPACES, // without root it is the way to all of them
        pid: ["pid"],
        mount: ["mnt", "pid", "cgroup"],
        ipc: ["ipc"],
        uts: ["uts"],
        cgroup: ["cgroup"],
      };
      const expected = NAMESPACES.filter(
        (name) => name !== "net" && (name !== "cgroup" || FULL.wanted.has("cgroup")) && !off[part]?.includes(name),
      );
      expect(await own(it)).toEqual(expected);
      const status = await outputOf(it, { script: "cat /proc/self/status", ...OWN });
      expect(/NoNewPrivs:\t(\d)/.exec(status)?.[1]).toBe(part === "no-new-privileges" ? "0" : "1");
      expect(/CapEff:\t0+\n/.test(status)).toBe(part !== "no-capabilities" || !isRoot);
    },
  );

  test("a job sees its own processes only, and is told of by the host's number", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: 'echo $$ $(ls /proc | grep -c "^[0-9]"); read x < "$CUE"' });
    await job.wrote("\n");
    const [pid, seen] = job.output().split(" ").map(Number);
    expect(pid).toBe(2);
    expect(seen).toBeLessThan(7);
    expect(readFileSync(`/proc/${job.pid}/environ`, "latin1")).toContain(it.directory);
    it.cue();
    expect(await job.ended()).toMatchObject({ code: 0, pid: job.pid });
  });

  test("a job cannot signal what is not its own", async () => {
    await using it = await rig(variant);
    const other = await it.start({ script: 'read x < "$CUE"; exit 7' });
    const script = `kill -KILL ${other.pid} ${other.supervisor} ${process.pid}; kill -KILL -1; echo survived`;
    const { exit } = await it.run({ script, ...OWN });
    expect(exit).toMatchObject({ code: 0 });
    it.cue();
    expect(await other.ended()).toMatchObject({ code: 7 });
  });

  test("whatever of a job outlives its main process ends with it: daemons, sessions, stopped ones", async () => {
    await using it = await rig(variant);
    const script = `
      (setsid sh -c 'trap "" HUP TERM; sleep 1000 & sleep 1000' &)
      sh -c 'kill -STOP $$' &
      sh -c 'sleep 1000 & sleep 1000' &
      sleep 0.2`;
    const { exit } = await it.run({ script });
    expect(exit).toMatchObject({ code: 0 });
    expect(Number(exit["killed"])).toBeGreaterThanOrEqual(4);
    expect(
      marked(it.directory).filter((pid) => readFileSync(`/proc/${pid}/cmdline`, "latin1").includes("1000")),
    ).toEqual([]);
  });

  test("orphans are reaped while the job runs", async () => {
    await using it = await rig(variant);
    const script =
      'for i in 1 2 3 4 5 6 7 8 9; do (sh -c ":" &); done; sleep 0.3; grep -c "State:.Z" /proc/[0-9]*/status | grep -vc ":0"';
    expect((await it.run({ script })).job.output()).toBe("0\n");
  });

  test("what the init of a job's namespace is sent, the job is sent", async () => {
    await using it = await rig(variant);
    const { exit, job } = await it.run({
      script: "trap 'echo USR1; exit 5' USR1; kill -USR1 1; sleep 10 & wait",
      ...OWN,
    });
    expect(job.output()).toBe("USR1\n");
    expect(exit).toMatchObject({ code: 5 });
  });

  test("nobody can look into the init, nor end it", async () => {
    await using it = await rig(variant);
    const script = `kill -KILL 1
      cat /proc/1/environ || cat /proc/1/maps || cat /proc/1/fd/* || ls /proc/1/cwd/ || readlink /proc/1/exe || exit 9`;
    for (const who of [{}, OWN]) expect((await it.run({ script, ...who })).exit).toMatchObject({ code: 9 });
  });

  test("shared memory of the host is not a job's", async () => {
    const id = /\d+/.exec(execFileSync("ipcmk", ["--shmem", "64", "--mode", "0666"], { encoding: "utf8" }))?.[0] ?? "";
    const path = `/dev/shm/jobs-test-${process.pid}`;
    writeFileSync(path, "", { mode: 0o666 });
    try {
      await using it = await rig(variant);
      const script = `tail -n +2 /proc/sysvipc/shm | wc -l; ls /dev/shm | wc -l; echo x > /dev/shm/own && cat /dev/shm/own`;
      expect(await outputOf(it, { script })).toBe("0\n0\nx\n");
      expect(readdirSync("/dev/shm")).not.toContain("own");
    } finally {
      execFileSync("ipcrm", ["--shmem-id", id]);
      execFileSync("rm", [path]);
    }
  });

  test("a job sees no group but its own, and cannot write to it", needsCgroups, async () => {
    await using it = await rig(variant);
    const script = `cat /proc/self/cgroup | grep ^0; ls -d ${FULL.cgroups}/*/ 2>/dev/null | wc -l
      for file in cgroup.procs cgroup.freeze cgroup.kill; do echo 1 > ${FULL.cgroups}/$file; done 2>&1 | grep -c Read-only`;
    expect((await it.run({ script, ...OWN })).job.output()).toBe("0::/\n0\n3\n");
  });

  test("the host's mounts come and go in a job, where the host shares them", needsRoot, async () => {
    const shared = mkdtempSync("/var/tmp/jobs-mounts-");
    const place = join(shared, "place");
    execFileSync("mount", ["-t", "tmpfs", "-o", "mode=755", "tmpfs", shared]);
    try {
      execFileSync("mount", ["--make-shared", shared]);
      mkdirSync(place);
      await using it = await rig(variant);
      const job = await it.start({ script: `read x < "$CUE"; ls ${place}; read x < "$CUE"; ls -A ${place}` });
      execFileSync("mount", ["-t", "tmpfs", "tmpfs", place]);
      writeFileSync(join(place, "file"), "");
      it.cue();
      await job.wrote("file");
      execFileSync("umount", [place]);
      it.cue();
      expect(await job.ended()).toMatchObject({ code: 0 });
      expect(job.output()).toBe("file\n");
    } finally {
      execFileSync("umount", ["-R", shared]);
      rmSync(shared, { recursive: true });
    }
  });

  test("a network of none has a loopback that works, and nothing else", async () => {
    await using it = await rig(variant);
    const script =
      'tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d " "; cat /sys/class/net/lo/flags > /dev/null; exec "$@"';
    const node = `require("net").createServer(s => s.end("hello")).listen(0, "127.0.0.1", function () {
      require("net").connect(this.address().port, "127.0.0.1").on("data", (d) => { console.log(String(d)); process.exit() }) })`;
    const spec = { argv: ["sh", "-c", script, "sh", process.execPath, "-e", node], network: "none" as const };
    expect(await outputOf(it, spec)).toBe("lo\nhello\n");
    expect(await own(it, { network: "none" })).toContain("net");
  });

  test("a private /tmp is empty, writable, and nobody else's", async () => {
    await using it = await rig(variant);
    const script = "ls -A /tmp /var/tmp; echo x > /tmp/own && cat /tmp/own; echo y > /var/tmp/own; stat -c %a /tmp";
    expect(await outputOf(it, { script, privateTmp: true })).toBe("/tmp:\n\n/var/tmp:\nx\n1777\n");
    expect(readdirSync("/tmp")).not.toContain("own");
    await using bare = await rig(variant, { isolation: { wanted: without("mount", "pid", "cgroup") } });
    await expect(bare.start({ script, privateTmp: true })).rejects.toMatchObject({
      facts: { stage: "isolation", errno: "EPERM" },
    });
  });

  test("a private /tmp that is made ahead is the same, and away for a job that is to see the host's", async () => {
    await using it = await rig(variant, { isolation: { ownTmp: true } });
    const script = "ls -A /tmp /var/tmp; echo x > /tmp/own && cat /tmp/own; stat -c %a /tmp";
    expect(await outputOf(it, { script, privateTmp: true })).toBe("/tmp:\n\n/var/tmp:\nx\n1777\n");
    expect(await outputOf(it, { script: 'ls "$RIG/cue"; grep -c " /tmp tmpfs" /proc/mounts || :' })).toMatch(
      /cue\n0\n$/,
    );
  });

  test("a job that is to be alone with its uid is not started while anything runs under that", needsRoot, async () => {
    await using it = await rig(variant);
    const uid = 2_120_000_000 + Math.floor(Math.random() * 10_000_000);
    const credentials = { ...CREDENTIALS, user: String(uid), uid, gid: uid, groups: [uid], alone: true };
    const limits = "grep processes /proc/self/limits";
    const spec = { script: `id -u; ${limits}`, credentials };
    const stranger = spawn("sleep", ["1000"], { uid, gid: uid, stdio: "ignore" });
    await expect(it.start(spec)).rejects.toMatchObject({ facts: { stage: "user", errno: "EBUSY" } });
    stranger.kill("SIGKILL");
    await once(stranger, "exit");
    expect(await outputOf(it, spec)).toBe(`${uid}\n${await outputOf(it, { script: limits })}`);
  });

  test("rlimits, umask and oom_score_adj are what was asked for", async () => {
    await using it = await rig(variant);
    const rlimits = [
      { resource: 7, soft: 100, hard: 200 },
      { resource: 4, soft: 0, hard: Infinity },
    ];
    const script = "ulimit -S -n; ulimit -H -n; ulimit -c; ulimit -H -c; umask; cat /proc/self/oom_score_adj";
    expect(await outputOf(it, { script, rlimits, umask: 0o27, oomScoreAdj: 300 })).toBe(
      "100\n200\n0\nunlimited\n0027\n300\n",
    );
    const tooMany = { script, rlimits: [{ resource: 7, soft: 1, hard: 2 ** 52 }] };
    await expect(it.start(tooMany)).rejects.toMatchObject({ facts: { stage: "limits", errno: "EPERM" } });
  });

  test("a job of the supervisor's own user can neither read what is hidden, nor change what is sealed, nor set the kernel", async () => {
    const place = mkdtempSync("/var/tmp/jobs-kept-");
    mkdirSync(join(place, "secret"), { mode: 0o700 });
    mkdirSync(join(place, "above/state"), { recursive: true });
    writeFileSync(join(place, "secret/file"), "secret\n");
    writeFileSync(join(place, "key"), "secret\n", { mode: 0o600 });
    writeFileSync(join(place, "program"), "program\n", { mode: 0o755 });
    const kept = {
      hidden: [join(place, "secret"), join(place, "key"), join(place, "above/state"), "/nowhere"],
      sealed: [join(place, "program"), "/nowhere"],
    };
    const script = `exec 2> /dev/null; cd ${place}; cat secret/file key program; ls secret
      (echo x >> program) && echo changed; rm -f program; mv program other; cat program
      mv above other; rmdir above/state above
      for file in /proc/sys/kernel/domainname /proc/sys/vm/swappiness /sys/kernel/mm/ksm/run; do (echo 0 > $file) && echo wrote; done
      mount -t tmpfs none /mnt && echo mounted; umount ${place}/key && echo unmounted; mknod disk b 8 0 && echo made
      unshare --user --mount umount ${place}/key && echo revealed
      unshare --user true && echo capable; unshare --mount --user true && echo capable
      cat /proc/kcore | head -c 1`;
    try {
      await using it = await rig(variant, { isolation: kept });
      expect((await it.run({ script, ...OWN })).job.output()).toBe("program\nprogram\n");
      expect(readdirSync(place).toSorted()).toEqual(["above", "key", "program", "secret"]);
    } finally {
      rmSync(place, { recursive: true });
    }
  });

  test("what is hidden or sealed may lie below what is hidden, without root, too", needsRoot, async () => {
    const place = mkdtempSync("/var/tmp/jobs-kept-");
    mkdirSync(join(place, "state/tls"), { recursive: true });
    writeFileSync(join(place, "state/tls/key"), "secret\n");
    for (const name of ["", "state", "state/tls"]) chownSync(join(place, name), CREDENTIALS.uid, CREDENTIALS.gid);
    const below = [join(place, "state"), join(place, "state/tls/key")];
    try {
      const kept = { hidden: below, sealed: below.slice(1) };
      await using bare = await unprivilegedRig(variant, { wanted: ROOTLESS, ...kept });
      const script = `cat ${place}/state/tls/key 2> /dev/null; echo done`;
      expect(await outputOf(bare, { script, ...UNPRIVILEGED })).toBe("done\n");
    } finally {
      rmSync(place, { recursive: true });
    }
  });

  test("no job runs in real time, or before others", async () => {
    const script = `exec 2> /dev/null; chrt --fifo 1 true && echo fifo; chrt --rr 1 true && echo rr
      renice -n -1 $$ && echo nice; ionice -c 1 true && echo io; ulimit -r 1 && echo rtprio; true`;
    await using it = await rig(variant);
    for (const who of [{}, OWN]) expect(await outputOf(it, { script, ...who })).toBe("");
    if (!isRoot) return;
    await using bare = await unprivilegedRig(variant, { wanted: ROOTLESS });
    expect(await outputOf(bare, { script, ...UNPRIVILEGED })).toBe("");
  });

  test(
    "no job reads the kernel's log",
    unless(existsSync("/dev/kmsg") ? undefined : "there is no /dev/kmsg"),
    async () => {
      const script = "stat -c '%t:%T' /dev/kmsg; head -c 1 /dev/kmsg; dmesg --syslog 2> /dev/null || echo refused";
      await using it = await rig(variant);
      for (const who of [{}, OWN]) expect(await outputOf(it, { script, ...who })).toBe("1:3\nrefused\n");
      if (!isRoot) return;
      await using bare = await unprivilegedRig(variant, { wanted: ROOTLESS });
      expect(await outputOf(bare, { script, ...UNPRIVILEGED })).toBe("1:3\nrefused\n");
    },
  );

  describe("of what is mounted on the host", needsRoot, () => {
    /** Where the kernel's own file systems are not used to be. */
    const KERNEL = ["proc", "sysfs", "cgroup2", "devpts", "debugfs"] as const;
    /** The files that root may write below a place, and how many processes it shows. */
    const looks = (place: string): string =>
      `find ${place} -type f -writable 2> /dev/null | head -n 3; ls ${place}/proc 2> /dev/null | grep -c '^[0-9]'; ls ${place}/devpts 2> /dev/null`;

    async function withPlace(use: (it: Rig, place: string) => Promise<void>): Promise<void> {
      const place = mkdtempSync("/var/lib/jobs-kernel-");
      chmodSync(place, 0o755);
      for (const type of KERNEL) mkdirSync(join(place, type));
      try {
        await using it = await rig(variant, { prelude: OWN_HOST });
        await it.run({ script: "true" }); // supervisors that wait have their mounts
        await use(it, place);
      } finally {
        rmSync(place, { recursive: true });
      }
    }
    const mountAll = (it: Rig, place: string): void => {
      for (const type of KERNEL) onHost(it, "mount", "-t", type, "none", join(place, type));
    };

    test("a job can neither write nor read what is the kernel's, wherever it is", async () => {
      await withPlace(async (it, place) => {
        mountAll(it, place);
        for (const who of [{}, OWN]) expect((await it.run({ script: looks(place), ...who })).job.output()).toBe("0\n");
      });
    });

    test("a job of root gets nothing that comes while it runs", async () => {
      await withPlace(async (it, place) => {
        const job = await it.start({ script: `echo ready; read x < "$CUE"; ${looks(place)}`, ...OWN });
        await job.wrote("ready");
        mountAll(it, place);
        it.cue();
        await job.ended();
        expect(job.output()).toBe("ready\n0\n");
      });
    });

    test("no job gets anything that comes below /sys", async () => {
      await withPlace(async (it) => {
        const at = "/sys/kernel/debug /sys/kernel/config /sys/kernel/security /sys/fs/bpf"
          .split(" ")
          .filter(existsSync);
        const writes = `exec 2> /dev/null; for at in ${at.join(" ")}; do (echo x > $at/file) && echo $at; done; true`;
        const script = `echo ready; read x < "$CUE"; ${writes}`;
        const jobs = [await it.start({ script }), await it.start({ script, ...OWN })];
        for (const job of jobs) await job.wrote("ready");
        for (const path of at) onHost(it, "mount", "-t", "tmpfs", "-o", "mode=777", "none", path);
        for (const _job of jobs) it.cue();
        for (const job of jobs) await job.ended();
        expect(at).not.toEqual([]);
        for (const job of jobs) expect(job.output()).toBe("ready\n");
        expect((await it.run({ script: writes, ...OWN })).job.output()).toBe("");
      });
    });
  });

  test("a job of root may write no file of the kernel's but its own processes'", async () => {
    await using it = await rig(variant);
    const script = `find /proc /sys -path '/proc/[0-9]*' -prune -o -type f -writable -exec test -f {} ';' -print 2> /dev/null`;
    const { job } = await it.run({ script, ...OWN });
    const files = job.output().split("\n").filter(Boolean);
    // Whoever may read how much a machine is short of something may wait for it, too (Documentation/accounting/psi.rst).
    expect(files.filter((path) => !path.startsWith("/proc/pressure/"))).toEqual([]);
  });

  test("a job of root can open the usual devices and no other, where no cgroup says so", needsRoot, async () => {
    await using it = await rig(variant);
    const program = `use Fcntl; for my $path (@ARGV) {
      print "$path\n" if sysopen(my $device, $path, O_RDONLY | O_NONBLOCK | O_NOCTTY) or sysopen($device, $path, O_WRONLY | O_NONBLOCK | O_NOCTTY);
    }`;
    const script = `perl -e '${program}' $(find /dev -xdev '(' -type b -o -type c ')' ! -name 'watchdog*')`;
    const { job } = await it.run({ script, ...OWN });
    const usual = [
      "/dev/full",
      "/dev/kmsg",
      "/dev/null",
      "/dev/ptmx",
      "/dev/random",
      "/dev/urandom",
      "/dev/zero",
    ].filter(existsSync);
    expect(job.output().split("\n").filter(Boolean).toSorted()).toEqual(usual);
  });

  test("terminals are a job's own, and it can have some", async () => {
    const held = spawn("script", ["-qfc", "echo ready; exec sleep 1000", "/dev/null"], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    try {
      await once(held.stdout, "data");
      await using it = await rig(variant);
      const script = "ls /dev/pts; script -qc tty /dev/null < /dev/null";
      for (const who of [{}, OWN]) expect((await it.run({ script, ...who })).job.output()).toBe("ptmx\n/dev/pts/0\r\n");
    } finally {
      held.kill();
    }
  });

  test("a daemon's own root is its jobs' root, also when mounts are made anew", needsRoot, async () => {
    const prelude = `if [ -z "$INNER" ]; then INNER=1 exec unshare --mount --propagation private sh -c '
      mount --rbind / /mnt && mount -t tmpfs none /mnt/media && : > /mnt/media/inside && exec chroot /mnt sh "$0" "$@"' "$0" "$@"; fi`;
    await using it = await rig(variant, { prelude });
    const script = "ls /media";
    expect((await it.run({ script })).job.output()).toBe("inside\n");
    execFileSync("nsenter", ["--target", String(it.pid()), "--mount", "mount", "-t", "tmpfs", "none", "/mnt/srv"]);
    expect((await it.run({ script })).job.output()).toBe("inside\n");
  });

  test("no job can mount its cgroup anew and write to it", needsCgroups, async () => {
    await using it = await rig(variant);
    const argv = [compile("remounts", it)];
    expect((await it.run({ argv, ...OWN })).exit).toMatchObject({ code: 1 });
    expect((await it.run({ argv })).exit).toMatchObject({ code: 1 });
    await using unfiltered = await rig(variant, { isolation: { wanted: without("seccomp") } });
    expect((await unfiltered.run({ argv, ...OWN })).exit).toMatchObject({ code: 1 });
    expect((await unfiltered.run({ argv })).exit).toMatchObject({ code: 3 });
  });

  test("without root a user namespace gives all of it", needsRoot, async () => {
    await using it = await unprivilegedRig(variant, { wanted: ROOTLESS });
    const spec = UNPRIVILEGED;
    expect(await own(it, spec)).toEqual(["pid", "mnt", "ipc", "uts"]);
    expect(it.spawner.lacking).toEqual(new Map());
    const status = await outputOf(it, { script: "id -u; grep CapEff /proc/self/status; echo $$", ...spec });
    expect(status).toBe("65534\nCapEff:\t0000000000000000\n2\n");
    expect(await own(it, { ...spec, network: "none" })).toContain("net");
    const score = { script: "cat /proc/self/oom_score_adj", oomScoreAdj: 300 };
    expect(await outputOf(it, { ...spec, ...score })).toBe("300\n");
  });

  test("what the host does not give is told, and the rest is had", async () => {
    const prelude =
      'if [ -z "$INNER" ]; then INNER=1 exec unshare --user --map-root-user sh -c \'echo 0 > /proc/sys/user/max_ipc_namespaces; exec sh "$0" "$@"\' "$0" "$@"; fi';
    await using it = await rig(variant, { prelude, isolation: { wanted: without("cgroup") } });
    expect(await own(it, UNPRIVILEGED)).toEqual(["pid", "mnt", "uts"]);
    expect(it.spawner.lacking).toEqual(new Map([["ipc", "ENOSPC"]]));
  });
});
