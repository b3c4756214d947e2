import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { Ran } from "./testing/cli.ts";
import { type Daemon, type DaemonOptions, startDaemon } from "./testing/daemon.ts";

// Jobs that try what a job must not be able to do, and what root in the container sees of it.

const USERS = ["nobody", "root"] as const;
type User = (typeof USERS)[number];
type OfEach<T> = Readonly<Record<User, T>>;

/** A container, two jobs and a look at them, on an emulated machine that others use, too. */
const LOOK_MS = 300_000;
const DEADLINE = { timeout: 60_000, interval: 500 };

/** What no job may get of the daemon: its descriptors, its environment. */
const ENTRYPOINT = [
  "bash",
  "-c",
  `exec 9< /etc/jobs/worker.key 50< /etc/shadow 251> /tmp/stray
   export WORD=kept-from-jobs LD_PRELOAD=libm.so.6 NODE_OPTIONS=--no-warnings
   exec tini -- node /opt/jobs/dist/jobsd.js "$@"`,
  "bash",
];
const WITHOUT_ROOT = ENTRYPOINT.map((line) =>
  line.replace(
    "exec tini",
    `chown 65534 /etc/jobs/worker.key /var/lib/jobs
   exec setpriv --reuid=65534 --regid=65534 --clear-groups tini`,
  ),
);

/** System calls by their numbers on x86-64 and on aarch64. */
const CALLS = `my $x86 = \`uname -m\` =~ /x86/;
  my ($ptrace, $readv, $open, $getfd) = $x86 ? (101, 310, 434, 438) : (117, 270, 434, 438);
  my ($unshare, $mount, $umount) = $x86 ? (272, 165, 166) : (97, 40, 39);`;

const PROGRAMS = {
  "eats-memory": `$held = "x" x ${128 << 20};`,
  "forks-forever": "fork while 1",
  // A tracer's end would be the end of what it traces (PTRACE_SEIZE with PTRACE_O_EXITKILL).
  traces: `${CALLS} my $byte = " ";
    for my $pid (map(m,^/proc/(\\d+)$, && $1 != $$ ? $1 : (), glob "/proc/*"), @ARGV) {
      my ($to, $from) = (pack("PQ", $byte, 1), pack("QQ", 0x400000, 1));
      print "traces $pid\\n" if syscall($ptrace, 0x4206, $pid + 0, 0, 0x100000) == 0;
      print "reads $pid\\n" if syscall($readv, $pid + 0, $to, 1, $from, 1, 0) == 1 || $!{EFAULT};
      my $pidfd = syscall($open, $pid + 0, 0);
      print "takes from $pid\\n" if $pidfd >= 0 && syscall($getfd, $pidfd, 0, 0) >= 0;
      for my $file ("environ", "mem", "maps", "fd/0", "root/etc/passwd") {
        print "opens $file of $pid\\n" if open(my $opened, "<", "/proc/$pid/$file");
      }
    }`,
  // In a user namespace it has all capabilities: unshare(2) with NEWUSER, NEWNS, NEWCGROUP and NEWNET.
  unshares: `${CALLS} syscall($unshare, 0x52020000);
    sub mounts { my ($type, $at, $flags) = @_; my $none = "none"; syscall($mount, $none, $at, $type, $flags, 0) == 0 }
    for my $at (qw(/etc/jobs/worker.key /var/lib/jobs /opt/jobs/dist /proc/sys /sys/fs/cgroup /sys)) {
      my $path = $at;
      print "unmounts $at\\n" if syscall($umount, $path, 2) == 0;
    }
    for my $type (qw(cgroup2 sysfs proc)) {
      mounts("$type", "/mnt", 0) or next;
      for my $file (qw(cgroup.procs cgroup.kill memory.max pids.max kernel/mm/ksm/run sys/kernel/core_pattern)) {
        print "may write $file\\n" if open(my $opened, "+<", "/mnt/$file");
        open($opened, ">", "/mnt/$file") and syswrite($opened, "max") if $file eq "memory.max";
      }
    }
    exec @ARGV if @ARGV;`,
  // Each with arguments for which the kernel's own answer would be another one: of those, what is not EPERM, or ENOSYS.
  "calls-the-kernel": `my $x86 = \`uname -m\` =~ /x86/;
    my %denied = (
      add_key => [248, 217], request_key => [249, 218], keyctl => [250, 219, 0, -3, 0], io_uring_setup => [425, 425, 1, 0],
      userfaultfd => [323, 282, 1], perf_event_open => [298, 241, 0, 0, -1, -1, 0], open_by_handle_at => [304, 265, -100],
      unshare => [272, 97, 0], setns => [308, 268, -1], clone => [56, 220, 0x10000011], mount => [165, 40, 0, 0, 0, 0x10],
      open_tree => [428, 428, -100, 0], fsopen => [430, 430, 0], mount_setattr => [442, 442, -1, 0, 0x1000],
      personality => [135, 92, 0x40000], get_mempolicy => [239, 236], kcmp => [312, 272, $$, $$, 1],
      pidfd_getfd => [438, 438, -1], fanotify_init => [300, 262, 0x200], socket_alg => [41, 198, 38, 5],
      socket_vsock => [41, 198, 40, 1], socket_can => [41, 198, 29, 3, 1], $x86 ? (modify_ldt => [154, 154]) : ());
    for my $name (sort keys %denied) {
      my ($x, $arm, @with) = @{$denied{$name}};
      push @with, 0 while @with < 5;
      my $result = syscall($x86 ? $x : $arm, @with);
      exit if $name eq "clone" && $result == 0;
      print "$name: $result $!\n" unless $result == -1 && $!{EPERM};
    }
    print "clone3: $!\n" unless syscall(435, 0, 0) == -1 && $!{ENOSYS};
    print "x32: $!\n" unless !$x86 || syscall(0x40000000 + 39) == -1 && $!{ENOSYS};`,
  // Waits for ever, with a child that its tracer has stopped (PTRACE_TRACEME).
  "holds-a-child": `${CALLS}
    if (fork) { sleep } else { syscall($ptrace, 0, 0, 0, 0); exec "sleep", "4242" }`,
};

const made = new AsyncDisposableStack();
let daemon: Daemon;
/** As sh reads them, and as jobs have them in their environment. */
let facts: Readonly<Record<string, string>>;
let neighbours: OfEach<string>;
let before: Readonly<Record<string, string>>;
/** The daemon is nobody's, and so are all its jobs. */
let withoutRoot = false;

const FLAGS = ["--allow-root", "--allow-user", "nobody", "--allow-user-namespaces"];
beforeAll(() => lookAt({ flags: FLAGS, entrypoint: ENTRYPOINT }), LOOK_MS);
afterAll(() => made.disposeAsync());

/** Starts a daemon with jobs that others are aimed at, and looks at it. */
async function lookAt(options: DaemonOptions): Promise<void> {
  daemon = made.use(await startDaemon(options));
  for (const [name, code] of Object.entries(PROGRAMS))
    await daemon.put(`/programs/${name}`, `#!/usr/bin/perl\n${code}\n`, 0o755);
  await daemon.inside("sh", "-c", "cp /usr/bin/touch /usr/bin/cat /programs; chmod 6755 /programs/touch /programs/cat");
  neighbours = await each(settle);
  facts = await factsOf(neighbours);
  before = await seen(ALIVE, ...ATTACKS, FILTERED);
}

/** For both users at once. */
async function each<T>(what: (user: User) => Promise<T>): Promise<OfEach<T>> {
  const [nobody, root] = await Promise.all([what("nobody"), what("root")]);
  return { nobody, root };
}

/** Starts a job that others are aimed at; resolves to its id. */
async function settle(user: User): Promise<string> {
  const script = "echo its words | tee /dev/shm/words; ipcmk --shmem 64; exec sleep 31337";
  const id = await daemon.start("--user", named(user), "--", "sh", "-c", script);
  await vi.waitFor(
    async () => expect((await daemon.jobs("reader", "stream", id)).stdout).toMatch(/memory id/),
    DEADLINE,
  );
  return id;
}

/** Pids as the container numbers them. */
async function factsOf(of: OfEach<string>): Promise<Record<string, string>> {
  const pids = await each((user) => daemon.query(of[user]));
  const parents = `parent() { sed -n "s/^PPid:\\t//p" /proc/$1/status; }
    for pid in ${pids.nobody.pid} ${pids.root.pid}; do parent $pid; done
    parent $(parent ${pids.root.pid}); parent $(parent $(parent ${pids.root.pid})); hostname -i`;
  const [first = "", second = "", spawner = "", process = "", address = ""] = (
    await daemon.inside("sh", "-c", parents)
  ).split("\n");
  return {
    DAEMON: process,
    SPAWNER: spawner,
    SUPERVISORS: `${first} ${second}`,
    NEIGHBOURS: `${pids.nobody.pid} ${pids.root.pid}`,
    JOBS: `${of.nobody} ${of.root}`,
    ADDRESS: address.split(" ")[0] ?? "",
  };
}

function run(user: User, flags: readonly string[], ...command: readonly string[]): Promise<Ran> {
  return runAlone(["--user", named(user), ...flags], ...command);
}

/** As the job is by default: under a uid of its own where the daemon is root. */
function runAlone(flags: readonly string[], ...command: readonly string[]): Promise<Ran> {
  const env = Object.entries(facts).flatMap(([name, value]) => ["--env", `${name}=${value}`]);
  return daemon.jobs("writer", "run", ...env, ...flags, "--", ...command);
}

function named(user: User): User {
  return withoutRoot ? "nobody" : user;
}

/** What a script in sh prints that root runs in the container. */
function outside(script: string): Promise<string> {
  const assignments = Object.entries(facts).map(([name, value]) => `${name}='${value}'`);
  return daemon.inside("sh", "-c", `${assignments.join("\n")}\nexec 2>&1\n${script}`);
}

interface Attack {
  readonly name: string;
  /** In sh. It prints what it has got, or done: nothing. */
  readonly script: string;
  /** What root in the container sees, which the attack must not change. */
  readonly sees: string;
}

const ALIVE = {
  name: "alive",
  sees: `for pid in $DAEMON $SPAWNER $SUPERVISORS $NEIGHBOURS; do
      echo $pid $(tr '\\0' ' ' < /proc/$pid/cmdline | cut -c1-40) $(grep -e TracerPid -e "State:.[Tt]" /proc/$pid/status)
    done`,
};
const PROGRAM_FILES = "/usr/local/bin/node /opt/jobs /opt/jobs/* /opt/jobs/*/* /etc/jobs /etc/jobs/*";

const ATTACKS: readonly Attack[] = [
  {
    name: "signals the daemon, its supervisors, other jobs, and everybody",
    script: `for signal in STOP KILL; do kill -$signal $DAEMON $SPAWNER $SUPERVISORS $NEIGHBOURS; kill -$signal -1; done`,
    sees: ALIVE.sees,
  },
  {
    name: "traces them, reads their memory, takes their descriptors",
    script: "exec /programs/traces $DAEMON $SPAWNER $SUPERVISORS $NEIGHBOURS",
    sees: ALIVE.sees,
  },
  {
    name: "reads the daemon's key and environment",
    script: `cat /etc/jobs/worker.key /proc/*/root/etc/jobs/worker.key /proc/1/fd/*/etc/jobs/worker.key /proc/*/environ |
      grep -a -e PRIVATE -e kept-from-[j]obs`,
    sees: "cat /etc/jobs/worker.key; tr '\\0' '\\n' < /proc/$DAEMON/environ | grep kept-from-jobs",
  },
  {
    name: "reads the state directory and other jobs' output",
    script: `for root in "" /proc/*/root /proc/1/cwd /proc/1/fd/*; do
        for job in $JOBS; do cat $root/var/lib/jobs/jobs/$job/output; done
        head -n 1 $root/var/lib/jobs/audit.jsonl; wc -c < $root/var/lib/jobs/journal.db; ls $root/var/lib/jobs
      done`,
    sees: "for job in $JOBS; do cat /var/lib/jobs/jobs/$job/output; done; ls /var/lib/jobs/",
  },
  {
    name: "replaces output by a link to a file that it cannot read",
    script: `for output in /var/lib/jobs/jobs/*/output $(printf "/var/lib/jobs/jobs/%s/output " $JOBS); do
        ln -sf /etc/jobs/worker.key $output && echo linked
      done`,
    sees: "find /var/lib/jobs -type l; for job in $JOBS; do stat -c '%n %F %s' /var/lib/jobs/jobs/$job/output; done",
  },
  {
    name: "sees other jobs' processes and shared memory",
    script: `cat /proc/[0-9]*/cmdline | grep -a 'sleep.3133[7]'
      cat /dev/shm/words; ls /dev/shm /dev/mqueue | grep -v -e : -e '^$'; tail -n +2 /proc/sysvipc/shm`,
    sees: `for pid in $NEIGHBOURS; do tail -n +1 /proc/$pid/cmdline /proc/$pid/root/dev/shm/words; done | tr '\\0' ' '`,
  },
  {
    name: "kills, freezes or fills another job's cgroup",
    script: `for file in cgroup.kill cgroup.freeze cgroup.procs; do
        for path in $(find /sys/fs -name $file) $(printf "/sys/fs/cgroup/jobs-*/%s/$file " $JOBS); do
          (echo 1 > $path) && echo wrote $path
        done
      done`,
    sees: `for job in $JOBS; do cat /sys/fs/cgroup/jobs-*/$job/cgroup.freeze /sys/fs/cgroup/jobs-*/$job/cgroup.procs; done
      cat /sys/fs/cgroup/*/cgroup.freeze`,
  },
  {
    name: "mounts",
    script: `mount -t tmpfs none /mnt && echo mounted; mount --bind /tmp /etc && echo bound
      mount -o remount,rw /sys && echo remounted; umount /sys/fs/cgroup && echo unmounted
      unshare --mount true && echo unshared; nsenter --target 1 --mount true && echo entered; chroot /tmp / && echo rooted`,
    sees: "cat /proc/mounts",
  },
  {
    name: "reads the disk, by the node that is there or one that it makes",
    script: `for node in $(find /dev -type b) /dev/mem; do head -c 512 $node > /tmp/of-$USER && echo read $node; done
      for number in $(cat /sys/class/block/*/dev | tr : ,); do
        mknod /tmp/disk b \${number%,*} \${number#*,} && echo made $number
      done
      for node in /dev/console /dev/tty0; do [ -c $node ] && (echo x > $node) && echo wrote $node; done`,
    sees: "ls /tmp/disk; find /dev -type b -exec stat -c '%n %a %u' {} +",
  },
  {
    name: "overwrites the daemon's programs and certificates, by their paths or through /proc",
    script: `for file in /proc/*/exe /usr/local/bin/node /opt/jobs/*.* /opt/jobs/*/* /etc/jobs/*.crt; do
        case $(readlink -f $file) in /usr/bin/*) continue ;; esac
        (echo "# overwritten" >> $file) && echo wrote $file; rm -f $file && echo removed $file
        cp /etc/hostname /tmp/of-$USER; mv -f /tmp/of-$USER $file && echo replaced $file
      done
      for directory in /opt/jobs/dist /opt/jobs/build /opt/jobs /opt /etc/jobs /etc /usr/local/bin /usr/local /var/lib/jobs /var/lib; do
        perl -e 'my ($path) = @ARGV; rename($path, "$path.moved") and print "moved $path\\n" and rename("$path.moved", $path)' $directory
      done`,
    sees: `stat -c '%n %i %s %Z' ${PROGRAM_FILES}`,
  },
  {
    name: "sets the kernel",
    script: `cd /proc/sys; for file in kernel/core_pattern kernel/modprobe kernel/domainname vm/swappiness /proc/irq/default_smp_affinity \\
          /sys/kernel/mm/ksm/run /sys/kernel/mm/ksm/sleep_millisecs; do
        value=$(cat $file) && (echo "$value" > $file) && echo wrote $file
      done
      (echo h > /proc/sysrq-trigger) && echo triggered`,
    sees: "cd /proc/sys/kernel; cat core_pattern modprobe; dmesg | grep -c sysrq",
  },
  {
    name: "reads the kernel's log",
    script: "dmesg; dmesg --syslog; for file in /dev/kmsg /proc/kmsg; do timeout 1 head -c 1 $file; done",
    sees: "ls -l /dev/kmsg /proc/kmsg",
  },
  {
    name: "makes a user namespace, to unmount what hides files and to mount /sys, /proc and its cgroup anew",
    script: "exec /programs/unshares",
    sees: "cat /proc/mounts /etc/jobs/worker.key",
  },
];

/** Of a job that may make no user namespace: the others make all of them, and the capabilities that go with one. */
const FILTERED: Attack = {
  name: "makes system calls that no program needs",
  script: "exec /programs/calls-the-kernel",
  sees: ALIVE.sees,
};

/** By name. */
async function seen(...of: readonly Omit<Attack, "script">[]): Promise<Record<string, string>> {
  const all = await outside(of.map(({ sees }) => `( ${sees}\n); printf '\\0'`).join("\n"));
  const parts = all.split("\0");
  return Object.fromEntries(of.map(({ name }, at) => [name, parts[at] ?? ""]));
}

const NOTHING = { nobody: "", root: "" };

describe("a job that", attacks);

function attacks(): void {
  const all = [...ATTACKS, FILTERED];
  it.each(all.map((attack) => [attack.name, attack] as const))("%s gets nothing", async (name, attack) => {
    const { nobody, root } = await each((user) => run(user, [], "sh", "-c", attack.script));
    expect({ nobody: nobody.stdout, root: root.stdout }).toEqual(NOTHING);
    const flags = attack === FILTERED || withoutRoot ? [] : ["--allow-user-namespaces"];
    expect((await runAlone(flags, "sh", "-c", attack.script)).stdout).toBe("");
    expect(before[name]).not.toBe("");
    expect(await seen(ALIVE, attack)).toEqual({ alive: before["alive"], [name]: before[name] });
  });
}

describe("a start", () => {
  starts();

  const others = ["--user=www-data", "--user=daemon", "--group=shadow", "--group=disk", "--user=root --group=shadow"];
  it.each(others)("with %s is refused", async (others) => {
    const flags = others.split(/[ =]/);
    const { code, stdout, stderr } = await runAlone(flags, "head", "-c", "16", "/etc/shadow");
    expect({ code, stdout }).toEqual({ code: 125, stdout: "" });
    expect(stderr).toMatch(/--allow-(user|group)/);
  });
});

function starts(): void {
  it("finds no descriptor of those above it, as a directory, a program or an interpreter", async () => {
    const numbers = Array.from({ length: 10 }, (_, at) => at + 3);
    const path = (number: number): string => `/proc/self/fd/${number}`;
    for (const number of numbers)
      await daemon.put(`/programs/through-${number}`, `#!${path(number)}/bin/cat\nhost\n`, 0o755);
    const got: string[] = [];
    for (const number of numbers) {
      const { nobody, root } = await each((user) =>
        Promise.all([
          run(user, ["--cwd", path(number)], "/bin/ls"),
          run(user, [], `${path(number)}/bin/echo`, "host"),
          run(user, [], `/programs/through-${number}`),
        ]),
      );
      got.push(...[...nobody, ...root].map(({ stdout }) => stdout));
    }
    expect(got.join("")).toBe("");
  }, 300_000);
}

describe("a job has", () => {
  possessions();

  it("a uid, /tmp and /dev/shm that no other job has", async () => {
    const script = "id -u; id -g; id -G; ls -A /tmp /var/tmp /dev/shm | grep -v :; touch /tmp/x /var/tmp/x /dev/shm/x";
    const waits = await daemon.start("--", "sh", "-c", `${script}; exec sleep 31337`);
    await vi.waitFor(async () => expect((await daemon.jobs("reader", "stream", waits)).stdout).not.toBe(""), DEADLINE);
    const { stdout } = await runAlone([], "sh", "-c", script);
    const [uid, gid, groups, ...files] = stdout.trimEnd().split("\n");
    expect({ gid, groups, files: files.filter(Boolean) }).toEqual({ gid: uid, groups: uid, files: [] });
    const first = (await daemon.jobs("reader", "stream", waits)).stdout.split("\n")[0];
    expect(Number(first)).toBeGreaterThan(2_000_000_000);
    expect(first).not.toBe(uid);
    await daemon.jobs("writer", "stop", "--grace", "0", waits);
  });

  it("no more rights by a set-user-id program", async () => {
    const script = `/programs/touch /tmp/made-as-$(id -u); /programs/cat /proc/self/status | grep ^Cap
      su -c id < /dev/null; setpriv --reuid=1 id; setpriv --reuid=0 --inh-caps=+all id; newgrp root < /dev/null`;
    const { nobody, root } = await each((user) => run(user, [], "sh", "-c", script));
    expect(await outside("stat -c '%u %g' /tmp/made-as-*")).toBe("0 0\n65534 65534\n");
    for (const { stdout } of [nobody, root]) expect(stdout).toMatch(/^(Cap(Inh|Prm|Eff|Bnd|Amb):\t0{16}\n){5}$/);
  });

  it("no network but a loopback, when it is to have none", async () => {
    const script = `for address in 127.0.0.1 $ADDRESS; do (exec 3<> /dev/tcp/$address/$PORT) && echo reached; done`;
    const flags = ["--env", `PORT=${await port()}`];
    const reached = async (...more: string[]): Promise<OfEach<string>> => {
      const { nobody, root } = await each((user) => run(user, [...flags, ...more], "bash", "-c", script));
      return { nobody: nobody.stdout, root: root.stdout };
    };
    const both = "reached\nreached\n";
    expect(await reached()).toEqual({ nobody: both, root: both });
    expect(await reached("--network", "none")).toEqual(NOTHING);
  });
});

function possessions(): void {
  it("three descriptors, though the daemon was started with more", async () => {
    expect((await outside("ls /proc/$DAEMON/fd")).split("\n")).toEqual(expect.arrayContaining(["50", "251"]));
    const script = `for (0 .. 1023) { my $to = readlink "/proc/self/fd/$_"; print "$_ $to\\n" if $to }`;
    const { nobody, root } = await each((user) => run(user, [], "perl", "-e", script));
    for (const { stdout } of [nobody, root]) expect(stdout).toMatch(/^0 \/dev\/null\n1 pipe:.*\n2 pipe:.*\n$/);
  });

  it("nothing of the daemon's environment", async () => {
    const its = (await outside("tr '\\0' '\\n' < /proc/$DAEMON/environ | cut -d= -f1")).split("\n");
    expect(its).toEqual(expect.arrayContaining(["LD_PRELOAD", "NODE_OPTIONS", "WORD"]));
    const script = "cut -z -d= -f1 /proc/self/environ | tr '\\0' '\\n'; grep libm /proc/self/maps";
    const { nobody, root } = await each((user) => run(user, [], "sh", "-c", script));
    const names = ["HOME", "LOGNAME", "PATH", "PWD", "USER", ...Object.keys(facts)].toSorted();
    for (const { stdout } of [nobody, root]) expect(stdout.trimEnd().split("\n").toSorted()).toEqual(names);
  });
}

/** Where the daemon listens in the container. */
async function port(): Promise<string> {
  return /\d+$/m.exec(await outside("tr '\\0' '\\n' < /proc/$DAEMON/environ | grep ^JOBSD_LISTEN"))?.[0] ?? "";
}

describe("a job with a limit on its memory", () => {
  const LIMIT = ["--memory", "32M"];
  const killed = expect.objectContaining({ code: 137, stderr: expect.stringContaining("out of memory") });

  it("cannot raise it, nor leave its cgroup, nor mount another one", async () => {
    const script = `exec > /dev/null 2>&1
      for group in /sys/fs/cgroup /sys/fs/cgroup/.. /sys/fs/cgroup/jobs-*/*; do
        echo max > $group/memory.max; echo 0 > $group/cgroup.procs; mkdir $group/more
      done
      exec /programs/unshares /programs/eats-memory`;
    expect(await each((user) => run(user, LIMIT, "sh", "-c", script))).toEqual({ nobody: killed, root: killed });
    expect(await seen(ALIVE)).toEqual({ alive: before["alive"] });
  });

  it.each(["/dev/shm", "/tmp", "/var/tmp"])("cannot get round it by files in %s", async (directory) => {
    const script = `head -c 128M /dev/zero > ${directory}/file; rm ${directory}/file`;
    const flags = [...LIMIT, "--private-tmp"];
    expect(await each((user) => run(user, flags, "sh", "-c", script))).toEqual({ nobody: killed, root: killed });
    expect(await seen(ALIVE)).toEqual({ alive: before["alive"] });
  });
});

describe("a job ends when it is to end,", () => {
  const processes = `for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $file; echo; done | grep -c -e '^sleep 4242' -e '^/usr/bin/perl /programs/forks' || :`;

  it("whatever it has forked away, stopped, traced or put into namespaces", async () => {
    const script = `trap "" TERM HUP
      (setsid sh -c 'sleep 4242 & setsid sleep 4242' &)
      sh -c 'kill -STOP $$; :' & sh -c 'sleep 4242 & sleep 1; kill -STOP $!'
      /programs/holds-a-child & unshare --user --pid --mount-proc --fork sleep 4242 &
      sleep 4242`;
    const flags = { nobody: ["--allow-user-namespaces"], root: [] };
    const ids = await each((user) => daemon.start("--user", user, ...flags[user], "--", "sh", "-c", script));
    await vi.waitFor(async () => expect(Number(await outside(processes))).toBeGreaterThanOrEqual(8), DEADLINE);
    expect(await daemon.jobs("writer", "stop", "--grace", "500ms", ids.nobody, ids.root)).toMatchObject({ code: 0 });
    expect(await outside(processes)).toBe("0\n");
  });

  it("however fast it forks", async () => {
    const ids = await each((user) => daemon.start("--user", user, "--pids", "40", "--", "/programs/forks-forever"));
    await vi.waitFor(async () => expect(Number(await outside(processes))).toBe(80), DEADLINE);
    expect(await daemon.jobs("writer", "stop", "--grace", "0", ids.nobody, ids.root)).toMatchObject({ code: 0 });
    const groups = 'grep -l "populated 1" /sys/fs/cgroup/jobs-*/*/cgroup.events | wc -l';
    expect(await outside(`${processes}; ${groups}`)).toBe("0\n2\n"); // the neighbours'
  });

  it("and not before, whatever it sends to its init", async () => {
    const script = `for signal in KILL STOP ABRT SEGV CONT; do kill -$signal 1; done; echo 1000 > /proc/1/oom_score_adj
      prlimit --pid 1 --fsize=0 --nofile=0; renice -n 19 -p 1; taskset -p 1 1; chrt --batch -p 0 1; ionice -c 3 -p 1; exit 3`;
    const { nobody, root } = await each((user) => run(user, [], "sh", "-c", script));
    expect({ nobody: nobody.code, root: root.code }).toEqual({ nobody: 3, root: 3 });
  });
});

describe("where the daemon is not root", () => {
  beforeAll(async () => {
    withoutRoot = true;
    await lookAt({ entrypoint: WITHOUT_ROOT });
  }, LOOK_MS);

  describe("a job that", attacks);
  describe("a start", starts);
  describe("a job has", possessions);
});
