import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { constants } from "node:os";
import { delimiter, join } from "node:path";
import { describe, expect, test } from "vitest";
import type { Part } from "../worker/model/isolation.ts";
import { isRoot, needsRoot, unless } from "../testing/root.ts";
import {
  FULL,
  OWN,
  ROOTLESS,
  UNPRIVILEGED,
  compile,
  rig,
  unprivilegedRig,
  without,
  type Rig,
  type Spec,
} from "./testing/rig.ts";

const { EPERM, ENOSYS } = constants.errno;
const VARIANT = { mode: "isolated", build: "hardened" } as const;
/** Other processors have no calls of 32 bits here. */
const onlyX64 = unless(process.arch === "x64" ? undefined : "only x86-64 has calls of 32 bits");
const needsCgroups = unless(FULL.wanted.has("cgroup") ? undefined : "this host has no cgroup v2");
const X32 = 0x4000_0000;
const SANITIZED = { ...VARIANT, build: "sanitized" } as const;

/** An error is told by its number. */
type Answer = "allowed" | number;
const ANSWERS: Readonly<Record<string, Answer>> = { allow: "allowed", deny: EPERM, absent: ENOSYS };

interface Line {
  readonly name: string;
  /** Given for what is newer than headers may be. */
  readonly number: string | undefined;
  /** Of jobs without and with user namespaces. */
  readonly verdicts: readonly [string, string];
}

const TABLE: readonly Line[] = readFileSync(join(import.meta.dirname, "syscalls.table"), "utf8")
  .split("\n")
  .filter((line) => line !== "" && !line.startsWith("#"))
  .flatMap((line) => {
    const [word = "", ...names] = line.replace(/ : .*/, "").split(" ");
    const [strict = "", open = strict] = word.split("/");
    return names.map((call) => {
      const [name = "", number] = call.split("=");
      return { name, number, verdicts: [strict, open] as const };
    });
  });

/** As the compiler's headers have them. */
const NUMBERS = new Map(
  execFileSync("cc", ["-E", "-dM", "-include", "asm/unistd.h", "-x", "c", "/dev/null"], { encoding: "utf8" })
    .matchAll(/^#define __NR_(\w+) (\w+)$/gm)
    .map(([, name = "", value = ""]) => [name, value] as const)
    .filter(([name]) => name !== "syscalls" && name !== "arch_specific_syscall"),
);
/** A name may stand for another one there. */
function numberOf(name: string): number | undefined {
  const value = NUMBERS.get(name);
  if (value === undefined || /^\d+$/.test(value)) return value === undefined ? undefined : Number(value);
  const text = execFileSync("cc", ["-E", "-P", "-include", "asm/unistd.h", "-x", "c", "-"], {
    input: value,
    encoding: "utf8",
  });
  return Number(text.trim());
}

const CALLS = new Map(
  TABLE.flatMap((line) => {
    const number = numberOf(line.name) ?? line.number;
    return number === undefined ? [] : [[Number(number), line] as const];
  }),
);
const LAST = Math.max(...CALLS.keys());
/** Linux 6.14 lets uretprobe and uprobe of x86-64 pass every filter, and ends who makes them of its own accord. */
const PASSING = process.arch === "x64" ? [335, 336] : [];
const AMONG = Array.from({ length: LAST + 100 }, (_, number) => number).filter((number) => !PASSING.includes(number));

/** What calls of this number come to, with arguments that show it: as programs/calls.c is told, and tells. */
function expected(number: number, which: 0 | 1): (readonly [string, Answer])[] {
  const verdict = CALLS.get(number)?.verdicts[which] ?? "absent";
  const answer = ANSWERS[verdict];
  if (answer !== undefined) return [[String(number), answer]];
  const [, index = "", test = "", list = ""] = /^arg([01])(!?[=&])(.+)$/.exec(verdict.replace("!&", "&")) ?? [];
  const given = (value: number): string => `${number}:${index === "1" ? "7:" : ""}${value}`;
  const values = list.split(",").map(Number);
  const above = 2 ** 32;
  if (test === "&") {
    const bits = Array.from({ length: 32 }, (_, bit) => 2 ** bit);
    return bits.map((bit) => [given(bit), (BigInt(bit) & BigInt(list)) === 0n ? "allowed" : EPERM]);
  }
  const [of, others] = test === "=" ? (["allowed", EPERM] as const) : ([EPERM, "allowed"] as const);
  const neighbours = values.flatMap((value) => [value - 1, value + 1]).filter((value) => value >= 0);
  return [
    ...values.map((value) => [given(value), of] as const),
    // The upper half is nothing that the kernel looks at.
    ...values.filter((value) => value < above - 1).map((value) => [given(above + value), of] as const),
    ...neighbours.filter((value) => !values.includes(value % above)).map((value) => [given(value), others] as const),
  ];
}

/** What programs/calls.c tells as a job. */
async function told(it: Rig, asked: readonly string[], spec: Spec = {}): Promise<(readonly [string, Answer])[]> {
  const { job, exit } = await it.run({ argv: [compile("calls", it), ...asked], ...spec });
  expect(exit).toMatchObject({ code: 0 });
  const lines = job.output().trimEnd().split("\n");
  return lines.map((line) => {
    const [call = "", answer] = line.split(" ");
    return [call, answer === "allowed" ? answer : Number(answer)];
  });
}

async function expectTable(it: Rig, which: 0 | 1, spec: Spec = {}): Promise<void> {
  const table = AMONG.flatMap((number) => expected(number, which));
  const answers = await told(
    it,
    table.map(([call]) => call),
    spec,
  );
  expect(named(answers)).toEqual(named(table));
}

/** With names, for whoever reads what has failed. */
function named(answers: readonly (readonly [string, Answer])[]): Record<string, Answer> {
  return Object.fromEntries(
    answers.map(([call, answer]) => [`${CALLS.get(Number(call.split(":")[0]))?.name ?? "no call"} ${call}`, answer]),
  );
}

test("the table names every system call of this machine's headers", () => {
  const names = new Set(TABLE.map(({ name }) => name));
  expect(NUMBERS.size).toBeGreaterThan(250);
  expect([...NUMBERS.keys()].filter((name) => !name.startsWith("3264") && !names.has(name))).toEqual([]);
});

test("a number that the table gives is that of the headers which know the call", () => {
  const given = TABLE.filter(({ name, number }) => number !== undefined && NUMBERS.has(name));
  expect(given.map(({ name, number }) => [name, Number(number)])).toEqual(
    given.map(({ name }) => [name, numberOf(name)]),
  );
  expect(TABLE.filter(({ number }) => number !== undefined && Number(number) < 424)).toEqual([]);
});

test("the table is at least as strict as docker's default profile for a container without capabilities", () => {
  // Those that it does not let a container make.
  const denied = `acct add_key bpf chroot clock_settime clone3 create_module delete_module fanotify_init finit_module
    fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy init_module io_uring_enter io_uring_register
    io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie lsm_get_self_attr lsm_list_modules
    lsm_set_self_attr mbind migrate_pages mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at
    open_tree open_tree_attr perf_event_open pidfd_getfd pivot_root process_madvise query_module quotactl quotactl_fd
    reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon
    _sysctl sysfs syslog umount2 unshare uselib userfaultfd ustat vhangup`.split(/\s+/);
  const strict = new Map(TABLE.map(({ name, verdicts }) => [name, verdicts[0]]));
  expect(denied.filter((name) => !["deny", "absent"].includes(strict.get(name) ?? ""))).toEqual([]);
  // Those that it lets a container make with some arguments.
  expect(strict.get("clone")).toBe("arg0!&0x7e020000");
  expect(strict.get("personality")).toBe("arg0=0,0xffffffff");
  expect(strict.get("socket")).toBe("arg0=1,2,10,16");
});

describe("each system call is answered as the table has it,", () => {
  test.each([VARIANT, SANITIZED])("for a job of nobody ($build)", async (variant) => {
    await using it = await rig(variant);
    await expectTable(it, 0);
  });

  test("for a job of root", needsRoot, async () => {
    await using it = await rig(VARIANT);
    await expectTable(it, 0, OWN);
  });

  test("for a job of a daemon without root", needsRoot, async () => {
    await using it = await unprivilegedRig(VARIANT, { wanted: ROOTLESS });
    await expectTable(it, 0, UNPRIVILEGED);
    expect(it.spawner.lacking).toEqual(new Map());
  });

  test("for a job that may make user namespaces", async () => {
    await using it = await rig(VARIANT);
    await expectTable(it, 1, { userNamespaces: true });
  });

  test("whatever else is switched off", needsRoot, async () => {
    await using it = await rig(VARIANT, { isolation: { wanted: new Set<Part>(["seccomp"]) } });
    await expectTable(it, 0);
  });
});

test("no call of x32 is there", async () => {
  await using it = await rig(VARIANT);
  const calls = AMONG.map((number) => String(X32 + number));
  for (const who of [{}, { userNamespaces: true }])
    expect(await told(it, calls, who)).toEqual(calls.map((call) => [call, ENOSYS]));
});

test("a job that makes a call of 32 bits ends by SIGSYS", onlyX64, async () => {
  await using it = await rig(VARIANT);
  const argv = [compile("calls", it), "i386"];
  for (const who of [{}, { userNamespaces: true }])
    expect((await it.run({ argv, ...who })).exit).toMatchObject({ signal: constants.signals.SIGSYS });
});

test("without the filter every call is the kernel's to answer", needsRoot, async () => {
  await using it = await rig(VARIANT, { isolation: { wanted: without("seccomp") } });
  expect((await told(it, AMONG.map(String))).filter(([, answer]) => answer !== "allowed")).toEqual([]);
});

test("without the filter a job of the supervisor's own user makes no user namespace either", needsRoot, async () => {
  await using it = await rig(VARIANT, { isolation: { wanted: without("seccomp") } });
  const script = "unshare --user true && echo made; unshare --user --mount true && echo made";
  expect((await it.run({ script, ...OWN })).job.output()).not.toContain("made");
  expect((await it.run({ script })).job.output()).toBe("made\nmade\n");
});

test("a filter that the kernel does not take is told, and jobs run without", needsRoot, async () => {
  // Without no_new_privs it takes CAP_SYS_ADMIN.
  await using it = await unprivilegedRig(VARIANT, { wanted: new Set<Part>(["seccomp", "no-capabilities"]) });
  expect(await told(it, ["321"], UNPRIVILEGED)).toEqual([["321", "allowed"]]);
  expect(it.spawner.lacking).toEqual(new Map([["seccomp", "EACCES"]]));
  expect(it.spawner.parts).toEqual(["no-capabilities"]);
});

describe("a job that may make user namespaces", () => {
  const script = `PATH=$PATH:/usr/sbin
    unshare --user --map-root-user --mount sh -c '
      mount -t tmpfs none /mnt && echo mounted
      chroot / true && echo rooted'
    unshare --user --map-root-user --uts hostname inside && echo named
    unshare --user --net --map-root-user true && echo alone`;

  test("makes and uses them", async () => {
    await using it = await rig(VARIANT);
    const { job, exit } = await it.run({ script, userNamespaces: true });
    expect(job.output()).toBe("mounted\nrooted\nnamed\nalone\n");
    expect(exit).toMatchObject({ code: 0 });
  });

  test("can mount its cgroup anew, and not write to it", needsCgroups, async () => {
    await using it = await rig(VARIANT);
    const argv = [compile("remounts", it)];
    expect((await it.run({ argv, userNamespaces: true })).exit).toMatchObject({ code: 3 });
  });

  test("is no nearer to the kernel's settings, the host's mounts or what is mounted read-only", async () => {
    await using it = await rig(VARIANT);
    const attack = `exec 2> /dev/null
      unshare --user --map-root-user --mount --pid --net --ipc --fork sh -c '
        mount -o remount,rw /sys && echo remounted; mount -t sysfs none /mnt && (echo 0 > /mnt/kernel/mm/ksm/run) && echo wrote
        umount /sys && echo unmounted; umount /proc && echo bared; umount /dev/shm && echo shared
        for file in kernel/core_pattern vm/swappiness kernel/domainname; do (echo 0 > /proc/sys/$file) && echo set $file; done
        umount /dev/kmsg && echo revealed; mount --bind /dev /mnt && stat -c revealed-%t:%T /mnt/kmsg
        mknod /dev/shm/disk b 8 0 && head -c 1 /dev/shm/disk && echo read'
      nsenter --target 1 --mount true && echo entered; nsenter --target 1 --pid true && echo entered`;
    expect((await it.run({ script: attack, userNamespaces: true })).job.output()).toBe("");
  });
});

describe("programs that jobs run work", () => {
  const places = (process.env["PATH"] ?? "").split(delimiter);
  const java =
    "public class J { public static void main(String[] a) throws Exception { Thread t = new Thread(() -> System.out.print(6 * 7)); t.start(); t.join(); } }";
  const c =
    '#include <stdio.h>\\n#include <pthread.h>\\nstatic void *f(void *x) { printf("42"); return x; }\\nint main(void) { pthread_t t; return pthread_create(&t, 0, f, 0) || pthread_join(t, 0); }\\n';
  /** What is printed is 42; a script in sh that begins in an empty directory. */
  const PROGRAMS: Readonly<Record<string, string>> = {
    sh: "seq 1 10 | sort -n | (read a; read b; echo $((a * 40 + b)))",
    bash: "coproc cat; echo 42 >&${COPROC[1]}; read -r x <&${COPROC[0]}; echo $x",
    perl: 'perl -e "use Socket; socketpair(A, B, AF_UNIX, SOCK_STREAM, 0); if (fork) { wait; sysread(B, \\$x, 9); print \\$x } else { syswrite(A, 42) }"',
    python3: `python3 -c 'import multiprocessing as m, subprocess as s, threading as t, asyncio, socket, ssl, tempfile
if __name__ == "__main__":
    socket.create_server(("127.0.0.1", 0)).close()
    asyncio.run(asyncio.sleep(0)); tempfile.TemporaryFile().close(); x = t.Thread(target=lambda: None); x.start(); x.join()
    with m.get_context("fork").Pool(2) as p: print(sum(p.map(int, ["40", "2"])))'`,
    node: `node -e 'const { Worker } = require("worker_threads"); require("fs").readFile(process.execPath, () =>
      require("child_process").exec("echo 42", (_, out) => new Worker(\`require("crypto").scryptSync("a", "b", 64)\`, { eval: true }).on("exit", () => console.log(out))))'`,
    make: `printf '${c}' > p.c; printf 'p: p.c\\n\\tcc -pthread -o p p.c\\n' > Makefile; make -s -j2 && ./p`,
    git: "export GIT_CONFIG_GLOBAL=/dev/null; git init -q a && cd a && echo 42 > f && git add f && git -c user.name=a -c user.email=a@b commit -qm x && cd .. && git clone -q a b && cat b/f",
    tar: "mkdir d; echo 42 > d/f; ln -s f d/l; chmod 4755 d/f; tar -czf t.gz d; rm -r d; tar -xpzf t.gz; cat d/l",
    strace: "strace -f -o trace sh -c 'echo $(echo 42)' && grep -q execve trace",
    openssl: "openssl genpkey -algorithm ed25519 -out k && openssl dgst -sha256 k > /dev/null && echo 42",
    setpriv: "setpriv --no-new-privs echo 42",
    script: "script -qec 'echo 42' /dev/null",
    // It is a Go program itself, and starts others; to compile one would take long.
    go: "export GOCACHE=$PWD/c GOPATH=$PWD/g GOTOOLCHAIN=local; test $(go list -f '{{.Name}}' fmt) = fmt && echo 42",
    java: `echo '${java}' > J.java; java -XX:+UseSerialGC J.java`,
  };

  describe.each(Object.entries(PROGRAMS))("%s", (name, script) => {
    const there = places.some((place) => existsSync(join(place, name)));
    test(
      "as nobody, as root, and without root",
      { timeout: 120_000, ...unless(there ? undefined : `${name} is not on this machine`) },
      async () => {
        const run = async (it: Rig, spec: Spec): Promise<void> => {
          const place = join(it.jobs, `work-${Math.random()}`);
          mkdirSync(place);
          execFileSync("chmod", ["1777", place]);
          writeFileSync(join(place, "script"), script);
          const env = {
            PATH: `/usr/bin:/bin:${places.filter((each) => !each.startsWith("/root")).join(":")}`,
            HOME: place,
          };
          const shell = name === "bash" ? "bash" : "sh";
          const { job, exit } = await it.run({ argv: [shell, "script"], cwd: place, env, ...spec });
          expect({ output: job.output().trim(), exit }).toMatchObject({ output: "42", exit: { code: 0 } });
          execFileSync("rm", ["-rf", place]);
        };
        await using it = await rig(VARIANT);
        await run(it, {});
        await run(it, { userNamespaces: true });
        if (!isRoot) return;
        await run(it, OWN);
        await using bare = await unprivilegedRig(VARIANT, { wanted: ROOTLESS });
        await run(bare, UNPRIVILEGED);
      },
    );
  });
});
