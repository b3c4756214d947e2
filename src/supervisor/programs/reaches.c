/*
 * reaches SIGNALS: tries on its parent all that one process can do to another, and prints what was not refused. With SIGNALS
 * it sends signals, too: the init of a pid namespace is sent them and hears none. Ends with 7. `reaches abi` ends with the
 * version of Landlock that this kernel has.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ioprio.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static void tried(const char *what, long result)
{
	if (result >= 0)
		printf("%s\n", what);
}

static void open_file(pid_t pid, const char *name, int flags)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
	tried(name, open(path, flags));
}

static void set(pid_t pid)
{
	static const struct rlimit none;
	static const struct sched_param plain;
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} attributes = { .size = 48, .nice = 19 };
	cpu_set_t first;
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	tried("prlimit", prlimit(pid, RLIMIT_FSIZE, &none, NULL));
	tried("prlimit of descriptors", prlimit(pid, RLIMIT_NOFILE, &none, NULL));
	tried("setaffinity", sched_setaffinity(pid, sizeof first, &first));
	tried("setscheduler", sched_setscheduler(pid, SCHED_BATCH, &plain));
	tried("setparam", sched_setparam(pid, &plain));
	tried("setattr", syscall(SYS_sched_setattr, pid, &attributes, 0));
	tried("setpriority", setpriority(PRIO_PROCESS, (id_t)pid, 19));
	tried("setpriority of a group", setpriority(PRIO_PGRP, (id_t)getpgid(pid), 19));
	tried("setpriority of a user", setpriority(PRIO_USER, getuid(), 19));
	for (int who = IOPRIO_WHO_PROCESS; who <= IOPRIO_WHO_USER; who++)
		tried("ioprio_set", syscall(SYS_ioprio_set, who, who == IOPRIO_WHO_USER ? (int)getuid() : pid,
					    IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)));
}

static void trace(pid_t pid)
{
	char byte;
	struct iovec own = { &byte, 1 }, other = { (void *)(uintptr_t)&tried, 1 };
	tried("ptrace", ptrace(PTRACE_SEIZE, pid, NULL, NULL));
	tried("process_vm_readv", process_vm_readv(pid, &own, 1, &other, 1, 0));
	open_file(pid, "mem", O_RDONLY);
	open_file(pid, "environ", O_RDONLY);
	open_file(pid, "maps", O_RDONLY);
	for (int fd = 0; fd < 64; fd++) {
		char name[16];
		snprintf(name, sizeof name, "fd/%d", fd);
		open_file(pid, name, O_PATH);
	}
	open_file(pid, "root/etc", O_RDONLY | O_DIRECTORY);
	open_file(pid, "cwd", O_RDONLY | O_DIRECTORY);
	open_file(pid, "oom_score_adj", O_WRONLY);
	open_file(pid, "autogroup", O_WRONLY);
	open_file(pid, "coredump_filter", O_WRONLY);
	open_file(pid, "clear_refs", O_WRONLY);
	open_file(pid, "comm", O_WRONLY);
}

int main(int argc, char **argv)
{
	pid_t pid = getppid();
	siginfo_t told = { .si_code = SI_QUEUE };
	if (argc > 1 && strcmp(argv[1], "abi") == 0) {
		long version = syscall(444 /* landlock_create_ruleset */, NULL, 0, 1);
		return version < 0 ? 0 : (int)version;
	}
	if (argc > 1 && strcmp(argv[1], "signals") == 0)
		for (int signal = SIGKILL; signal <= SIGSTOP; signal += SIGSTOP - SIGKILL) {
			int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
			tried("kill", kill(pid, signal));
			tried("kill of a group", kill(-getpgid(pid), signal));
			tried("tgkill", syscall(SYS_tgkill, pid, pid, signal));
			tried("rt_sigqueueinfo", syscall(SYS_rt_sigqueueinfo, pid, signal, &told));
			tried("pidfd_send_signal", syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
		}
	set(pid);
	trace(pid);
	/* Its own is its to set. */
	if (setpriority(PRIO_PROCESS, 0, 19) < 0 || prlimit(getpid(), RLIMIT_CORE, &(struct rlimit){ 0 }, NULL) < 0)
		perror("own");
	return fflush(stdout) == 0 ? 7 : 1;
}
