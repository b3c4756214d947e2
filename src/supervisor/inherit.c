/*
 * What fork(2) and execve(2) hand on. A job has each of these as a process of init has it, whatever the daemon was
 * started with. All of it is put back once, in the spawner, which hands it on to supervisors and jobs. What belongs to
 * a start (user, umask, limits, oom_score_adj) and what only a new process can leave (session, descriptors) is in child.c.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Later than the headers of Debian 12. */
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif

enum {
	PROCESSORS = 8192, /* as many as a kernel can be configured for */
	SIGNALS = 64,
	TIMER_SLACK_NS = 50000, /* init's (kernel/fork.c) */
	IOPRIO_WHO_PROCESS = 1,
};

/*
 * Returns whether a call has done what it is to do, or cannot: the kernel does not know the attribute, or the daemon lacks
 * the privilege that it takes. docs/isolation.md says which attributes take one.
 */
static bool settled(long result)
{
	return result >= 0 || errno == ENOSYS || errno == EINVAL || errno == ENXIO || errno == ENODEV || errno == ENOENT ||
	       errno == EOPNOTSUPP || errno == EPERM || errno == EACCES;
}

static bool write_own(const char *path, const char *text)
{
	int fd = open_own(path);
	bool done = settled(fd < 0 ? -1 : write(fd, text, strlen(text)));
	close_if_open(fd);
	return done;
}

static bool put_back_scheduling(void)
{
	static unsigned char processors[PROCESSORS / 8];
	struct sched_attr attr = { .size = sizeof attr, .sched_policy = SCHED_NORMAL };
	struct sched_attr clamps = { .size = sizeof clamps,
				     .sched_flags = SCHED_FLAG_KEEP_ALL | SCHED_FLAG_UTIL_CLAMP,
				     .sched_util_min = ~0U,
				     .sched_util_max = ~0U };
	int nice = getpriority(PRIO_PROCESS, 0);
	long done = syscall(SYS_sched_setattr, 0, &attr, 0);
	if (done < 0 && errno == EPERM) {
		/* A lower nice value takes a privilege, another policy with this one does not. */
		attr.sched_nice = nice;
		done = syscall(SYS_sched_setattr, 0, &attr, 0);
	}
	/* The processors of init, which may leave some to others (isolcpus, CPUAffinity of systemd-system.conf(5)). */
	if (syscall(SYS_sched_getaffinity, 1, sizeof processors, processors) < 0)
		memset(processors, 0xff, sizeof processors);
	return settled(done) && settled(syscall(SYS_sched_setattr, 0, &clamps, 0)) &&
	       settled(syscall(SYS_sched_setaffinity, 0, sizeof processors, processors)) &&
	       settled(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0)) &&
	       settled(syscall(SYS_set_mempolicy, 0, NULL, 0)) &&
	       settled(prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0)); /* after the policy: FIFO has none */
}

static bool put_back_memory(void)
{
	static const int speculation[] = { PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH };
	for (size_t i = 0; i < sizeof speculation / sizeof *speculation; i++)
		if (prctl(PR_GET_SPECULATION_CTRL, speculation[i], 0, 0, 0) == (PR_SPEC_PRCTL | PR_SPEC_DISABLE) &&
		    !settled(prctl(PR_SET_SPECULATION_CTRL, speculation[i], PR_SPEC_ENABLE, 0, 0)))
			return false;
	return settled(personality(PER_LINUX)) && settled(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0)) &&
	       settled(prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0)) &&
	       settled(prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0)) &&
	       settled(prctl(PR_SET_IO_FLUSHER, 0, 0, 0, 0)) &&
	       write_own("/proc/self/coredump_filter", "0x33"); /* core(5) */
}

/* Gives the soft limits that init has (INIT_RLIMITS in the kernel), and no core files; hard limits stay, as the bound that
 * the host has set. The last two limits would let a job pass its CPU limits, so they are 0. */
static bool put_back_limits(void)
{
	static const struct rlimit init[RLIM_NLIMITS] = {
		[RLIMIT_CPU] = { RLIM_INFINITY, RLIM_INFINITY },
		[RLIMIT_FSIZE] = { RLIM_INFINITY, RLIM_INFINITY },
		[RLIMIT_DATA] = { RLIM_INFINITY, RLIM_INFINITY },
		[RLIMIT_STACK] = { 8 << 20, RLIM_INFINITY },
		[RLIMIT_CORE] = { 0, RLIM_INFINITY },
		[RLIMIT_RSS] = { RLIM_INFINITY, RLIM_INFINITY },
		[RLIMIT_NPROC] = { RLIM_INFINITY, RLIM_INFINITY },
		[RLIMIT_NOFILE] = { RLIM_INFINITY, RLIM_INFINITY }, /* the spawner's; child.c has a job's */
		[RLIMIT_MEMLOCK] = { 8 << 20, RLIM_INFINITY },
		[RLIMIT_AS] = { RLIM_INFINITY, RLIM_INFINITY },
		[RLIMIT_LOCKS] = { RLIM_INFINITY, RLIM_INFINITY },
		[RLIMIT_SIGPENDING] = { RLIM_INFINITY, RLIM_INFINITY },
		[RLIMIT_MSGQUEUE] = { 819200, RLIM_INFINITY },
		[RLIMIT_RTTIME] = { RLIM_INFINITY, RLIM_INFINITY },
		[RLIMIT_NICE] = { 0, 0 },
		[RLIMIT_RTPRIO] = { 0, 0 },
	};
	struct rlimit limit;
	for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
		if (getrlimit((__rlimit_resource_t)resource, &limit) < 0)
			return false;
		if (limit.rlim_max > init[resource].rlim_max)
			limit.rlim_max = init[resource].rlim_max;
		limit.rlim_cur = limit.rlim_max < init[resource].rlim_cur ? limit.rlim_max : init[resource].rlim_cur;
		if (setrlimit((__rlimit_resource_t)resource, &limit) < 0)
			return false;
	}
	return true;
}

/* Makes the system call itself: libc refuses to touch its own two signals, which an execve hands on like any other. */
static bool put_back_signals(void)
{
	static const struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} none;
	for (int number = 1; number <= SIGNALS; number++)
		if (!settled(syscall(SYS_rt_sigaction, number, &none, NULL, sizeof none.mask))) /* EINVAL: SIGKILL, SIGSTOP */
			return false;
	return true;
}

/* The spawner keeps its own capabilities; none of them is handed on through an execve. */
static bool put_back_privileges(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
	if (!settled(prctl(PR_SET_SECUREBITS, 0, 0, 0, 0)) || syscall(SYS_capget, &header, sets) < 0)
		return false;
	for (size_t i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
		sets[i].inheritable = 0; /* and with it the ambient ones */
	return syscall(SYS_capset, &header, sets) == 0 && drop_bounding_set() &&
	       (!(isolation.parts & PART_NO_NEW_PRIVILEGES) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
}

/*
 * Takes an empty session keyring. Each supervisor has one of its own for its job: whoever has a keyring may read, update
 * and revoke the keys in it (session-keyring(7)). Without root each counts in the quota of its user, of 200 keys; a
 * supervisor beyond that shares the spawner's, which has none of the daemon's keys.
 */
bool join_own_keyring(void)
{
	return settled(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL)) || errno == EDQUOT;
}

static bool put_back_input(void)
{
	int null = open("/dev/null", O_RDONLY);
	return null >= 0 && dup2(null, STDIN_FILENO) >= 0 && (null == STDIN_FILENO || close(null) == 0);
}

int oom_score;

/* Learns the oom_score_adj that this process has from the daemon, which the kernel may let no job go below. */
bool read_oom_score(void)
{
	char value[16] = "";
	int fd = open("/proc/self/oom_score_adj", O_RDONLY | O_CLOEXEC);
	bool done = fd >= 0 && read(fd, value, sizeof value - 1) > 0;
	close_if_open(fd);
	oom_score = atoi(value);
	return done;
}

/* Puts back all of it. Returns false with errno when something is refused that needs no privilege. */
bool put_back_inherited(void)
{
	umask(022);
	/* The kernel's audit is not to name the administrator who started the daemon for what a job does. */
	return put_back_input() && put_back_signals() && put_back_scheduling() && put_back_memory() && put_back_limits() &&
	       write_own("/proc/self/loginuid", "4294967295") && join_own_keyring() && put_back_privileges();
}
