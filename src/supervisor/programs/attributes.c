/*
 * `attributes keyring`: prints the number of the session keyring.
 * `attributes`: prints what fork(2) and execve(2) have handed on to this process, "NAME VALUE" in each line.
 * `attributes realtime|batch PROGRAM [ARGUMENT…]`: sets all of it to what nobody expects, as far as it may, and executes
 * the program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <linux/securebits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

enum { PROCESS = 1 /* IOPRIO_WHO_PROCESS */, INTERLEAVE = 3 /* MPOL_INTERLEAVE */ };
static const int SPECULATION[] = { PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH };

static void file(const char *name, const char *path)
{
	char text[256] = "";
	int fd = open(path, O_RDONLY);
	if (fd >= 0 && read(fd, text, sizeof text - 1) >= 0)
		text[strcspn(text, "\n")] = '\0';
	printf("%s %s\n", name, text);
	if (fd >= 0)
		close(fd);
}

static void link_of(const char *name, const char *path)
{
	char text[256] = "";
	if (readlink(path, text, sizeof text - 1) >= 0)
		printf("%s %s\n", name, text);
}

/* The lines of /proc/self/status that are inherited. */
static void status(void)
{
	static const char *const names[] = { "SigBlk", "SigIgn", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
					     "Cpus_allowed_list", "Mems_allowed_list", "Groups", "Uid", "Gid", "Umask" };
	char line[4096];
	FILE *lines = fopen("/proc/self/status", "r");
	while (lines && fgets(line, sizeof line, lines))
		for (size_t i = 0; i < sizeof names / sizeof *names; i++)
			if (strncmp(line, names[i], strlen(names[i])) == 0 && line[strlen(names[i])] == ':')
				printf("%s %s", names[i], line + strlen(names[i]) + 2);
	if (lines)
		fclose(lines);
}

static void scheduling(void)
{
	struct sched_attr attr = { .size = sizeof attr };
	int mode = -1;
	unsigned long nodes[128] = { 0 };
	syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0);
	printf("nice %d\npolicy %u\npriority %u\nslice %llu\nreset-on-fork %llu\nclamps %u %u\n", attr.sched_nice,
	       attr.sched_policy, attr.sched_priority, (unsigned long long)attr.sched_runtime,
	       (unsigned long long)(attr.sched_flags & SCHED_FLAG_RESET_ON_FORK), attr.sched_util_min, attr.sched_util_max);
	printf("ioprio %ld\n", syscall(SYS_ioprio_get, PROCESS, 0));
	syscall(SYS_get_mempolicy, &mode, nodes, sizeof nodes * 8, NULL, 0);
	printf("mempolicy %d %lx\ntimer-slack %d\n", mode, nodes[0], prctl(PR_GET_TIMERSLACK));
}

static void memory(void)
{
	printf("personality %x\n", (unsigned)personality(0xffffffff));
	printf("thp-disable %d\nmemory-merge %d\nmce %d\nio-flusher %d\n", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0),
	       prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0), prctl(PR_MCE_KILL_GET, 0, 0, 0, 0),
	       prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0));
	for (size_t i = 0; i < sizeof SPECULATION / sizeof *SPECULATION; i++)
		printf("speculation-%zu %d\n", i, prctl(PR_GET_SPECULATION_CTRL, SPECULATION[i], 0, 0, 0));
	file("coredump-filter", "/proc/self/coredump_filter");
}

static void print_all(void)
{
	struct itimerval timer;
	struct rlimit limit;
	stack_t stack;
	int reaper = -1, death = -1;
	for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
		getrlimit((__rlimit_resource_t)resource, &limit);
		printf("rlimit-%d-soft %llu\nrlimit-%d-hard %llu\n", resource, (unsigned long long)limit.rlim_cur, resource,
		       (unsigned long long)limit.rlim_max);
	}
	scheduling();
	memory();
	status();
	printf("securebits %x\ndumpable %d\n", (unsigned)prctl(PR_GET_SECUREBITS), prctl(PR_GET_DUMPABLE));
	prctl(PR_GET_CHILD_SUBREAPER, &reaper);
	prctl(PR_GET_PDEATHSIG, &death);
	getitimer(ITIMER_REAL, &timer);
	sigaltstack(NULL, &stack);
	printf("subreaper %d\ndeath-signal %d\ntimer %d\nsignal-stack %d\n", reaper, death, timer.it_value.tv_sec > 0,
	       stack.ss_flags);
	printf("session-keyring %ld\n", syscall(SYS_keyctl, KEYCTL_READ, KEY_SPEC_SESSION_KEYRING, NULL, 0));
	printf("leads-session %d\n", getsid(0) == getpid() && getpgrp() == getpid());
	file("oom_score_adj", "/proc/self/oom_score_adj");
	file("loginuid", "/proc/self/loginuid");
	link_of("stdin", "/proc/self/fd/0");
	link_of("directory", "/proc/self/cwd");
}

static void write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void hostile_scheduling(int realtime)
{
	struct sched_attr attr = { .size = sizeof attr,
				   .sched_policy = realtime ? SCHED_FIFO : SCHED_BATCH,
				   .sched_priority = realtime ? 5 : 0,
				   .sched_nice = realtime ? 0 : 10,
				   .sched_runtime = realtime ? 0 : 5000000 };
	struct sched_attr clamps = { .size = sizeof clamps,
				     .sched_flags = SCHED_FLAG_KEEP_ALL | SCHED_FLAG_UTIL_CLAMP,
				     .sched_util_min = 100,
				     .sched_util_max = 200 };
	unsigned long first = 1;
	prctl(PR_SET_TIMERSLACK, 1000000000L, 0, 0, 0);
	if (realtime)
		setpriority(PRIO_PROCESS, 0, -5);
	if (syscall(SYS_sched_setattr, 0, &attr, 0) < 0)
		perror("sched_setattr");
	if (syscall(SYS_sched_setattr, 0, &clamps, 0) < 0)
		perror("clamps");
	syscall(SYS_sched_setaffinity, 0, sizeof first, &first);
	syscall(SYS_ioprio_set, PROCESS, 0, realtime ? 1 << 13 | 2 : 2 << 13 | 7);
	syscall(SYS_set_mempolicy, INTERLEAVE, &first, sizeof first * 8);
}

static void hostile_limits(void)
{
	struct rlimit limit;
	for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
		getrlimit((__rlimit_resource_t)resource, &limit);
		limit.rlim_cur = resource == RLIMIT_CORE                               ? limit.rlim_max :
				 resource == RLIMIT_AS || resource == RLIMIT_DATA      ? (rlim_t)1 << 42 :
				 resource == RLIMIT_STACK                              ? 1 << 20 : 4000;
		if (limit.rlim_cur > limit.rlim_max)
			limit.rlim_cur = limit.rlim_max;
		setrlimit((__rlimit_resource_t)resource, &limit);
	}
}

static void hostile_memory(void)
{
	personality(ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0);
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
	prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
	for (size_t i = 0; i < sizeof SPECULATION / sizeof *SPECULATION; i++)
		prctl(PR_SET_SPECULATION_CTRL, SPECULATION[i], PR_SPEC_DISABLE, 0, 0);
	write_to("/proc/self/coredump_filter", "0x7f");
}

/* Those of a program that ignores all it can, with libc's own signals. */
static void hostile_signals(void)
{
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} ignore = { .handler = (void *)1 };
	uint64_t all = ~(uint64_t)0;
	struct itimerval timer = { .it_value = { .tv_sec = 100000 } };
	for (int number = 1; number <= 64; number++)
		if (number != SIGCHLD)
			syscall(SYS_rt_sigaction, number, &ignore, NULL, sizeof ignore.mask);
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, NULL, sizeof all);
	setitimer(ITIMER_REAL, &timer, NULL);
	prctl(PR_SET_PDEATHSIG, SIGWINCH, 0, 0, 0);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
}

static void hostile_privileges(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
	syscall(SYS_capget, &header, sets);
	for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
		sets[i].inheritable = sets[i].permitted;
	syscall(SYS_capset, &header, sets);
	for (unsigned long number = 0; number < 64; number++)
		prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0);
	prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_CAP_AMBIENT_RAISE, 0, 0, 0);
	syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
	syscall(SYS_add_key, "user", "daemon", "secret", 6, KEY_SPEC_SESSION_KEYRING);
}

int main(int argc, char **argv)
{
	if (argc < 3) {
		if (argc == 2)
			printf("%ld\n", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0));
		else
			print_all();
		return fflush(stdout) ? EXIT_FAILURE : EXIT_SUCCESS;
	}
	write_to("/proc/self/oom_score_adj", "500");
	write_to("/proc/self/loginuid", "1234");
	hostile_scheduling(strcmp(argv[1], "realtime") == 0);
	hostile_limits();
	hostile_memory();
	hostile_privileges();
	hostile_signals();
	umask(077);
	int input = open("/etc/passwd", O_RDONLY);
	if (input < 0 || dup2(input, STDIN_FILENO) < 0 || chdir("/tmp") < 0)
		perror("/etc/passwd or /tmp");
	execvp(argv[2], argv + 2);
	perror(argv[2]);
	return EXIT_FAILURE;
}
