/** What jobs try: scripts in sh, with the programs that they need. */

/** System calls by their numbers on x86-64 and on aarch64. */
const CALLS = `my $x86 = \`uname -m\` =~ /x86/;
  my ($ptrace, $readv, $open, $getfd) = $x86 ? (101, 310, 434, 438) : (117, 270, 434, 438);
  my ($unshare, $mount, $umount) = $x86 ? (272, 165, 166) : (97, 40, 39);`;

/** In perl, by their names in /programs. */
export const PROGRAMS = {
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

export interface Attack {
  readonly name: string;
  /** In sh. It prints what it has got, or done: nothing. */
  readonly script: string;
  /** What root in the container sees, which the attack must not change. */
  readonly sees: string;
}

/** That the daemon, its supervisors and other jobs run, neither stopped nor traced. */
export const ALIVE = {
  name: "alive",
  sees: `for pid in $DAEMON $SPAWNER $SUPERVISORS $NEIGHBOURS; do
      echo $pid $(tr '\\0' ' ' < /proc/$pid/cmdline | cut -c1-40) $(grep -e TracerPid -e "State:.[Tt]" /proc/$pid/status)
    done`,
};
const PROGRAM_FILES = "/usr/local/bin/node /opt/jobs /opt/jobs/* /opt/jobs/*/* /etc/jobs /etc/jobs/*";

export const ATTACKS: readonly Attack[] = [
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
export const FILTERED: Attack = {
  name: "makes system calls that no program needs",
  script: "exec /programs/calls-the-kernel",
  sees: ALIVE.sees,
};
