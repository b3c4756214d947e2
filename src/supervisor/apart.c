/*
 * What keeps a job off its supervisor where both have one user. To other users the kernel refuses all of it.
 *
 * Signals and tracing: a job does not reach the init of its pid namespace, nor, by Landlock, anybody outside of itself.
 * Its files in /proc: they are root's, and sealed (isolate.c). Limits, priorities and processors, for which the kernel
 * asks for no more than the same user: a filter of system calls.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/ioprio.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Which argument of a call is a process: the first; the second, after what kind of thing that is. */
enum argument { FIRST, BY_PRIO, BY_IOPRIO };

/* Numbers of 32-bit programs are others. */
#if defined(__x86_64__)
enum { ARCH = AUDIT_ARCH_X86_64, PRLIMIT_32 = 340, SETATTR_32 = 351, IOPRIO_32 = 289 };
#elif defined(__aarch64__)
enum { ARCH = AUDIT_ARCH_AARCH64, PRLIMIT_32 = 369, SETATTR_32 = 380, IOPRIO_32 = 314 };
#endif
static const struct {
	uint32_t number, number_32;
	enum argument argument;
} calls[] = {
	{ SYS_prlimit64, PRLIMIT_32, FIRST },   { SYS_sched_setattr, SETATTR_32, FIRST },
	{ SYS_sched_setscheduler, 156, FIRST }, { SYS_sched_setparam, 154, FIRST },
	{ SYS_sched_setaffinity, 241, FIRST },  { SYS_setpriority, 97, BY_PRIO },
	{ SYS_ioprio_set, IOPRIO_32, BY_IOPRIO },
};
enum { CALLS = sizeof calls / sizeof *calls, X32 = 0x40000000 };

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(value), yes, no)
#define GO(lines) BPF_STMT(BPF_JMP | BPF_JA, lines)
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* Refuses what would set something of `pid`, or of all processes of a user, with EPERM. Jumps count from the line after. */
static bool refuse_settings_of(pid_t pid)
{
	enum { NATIVE = 2, FOREIGN = NATIVE + 2 + CALLS + 1, CHECKS = FOREIGN + 1 + CALLS + 1 };
	const struct sock_filter checks[] = {
		LOAD(args[0]), /* BY_IOPRIO */
		IF(IOPRIO_WHO_USER, 7, 4),
		LOAD(args[0]), /* BY_PRIO */
		IF(PRIO_USER, 5, 2),
		LOAD(args[0]), /* FIRST */
		GO(1),
		LOAD(args[1]),
		IF(pid, 1, 0),
		ALLOW,
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	};
	static const int begins[] = { [BY_IOPRIO] = CHECKS, [BY_PRIO] = CHECKS + 2, [FIRST] = CHECKS + 4 };
	struct sock_filter lines[CHECKS + sizeof checks / sizeof *checks] = {
		LOAD(arch),
		IF(ARCH, 0, FOREIGN - NATIVE),
		LOAD(nr),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, ~(unsigned)X32), /* those of x32 have this bit, too */
		[FOREIGN - 1] = ALLOW,
		LOAD(nr),
		[CHECKS - 1] = ALLOW,
	};
	for (int i = 0; i < CALLS; i++) {
		int native = NATIVE + 2 + i, foreign = FOREIGN + 1 + i, begin = begins[calls[i].argument];
		lines[native] = (struct sock_filter)IF(calls[i].number, (uint8_t)(begin - native - 1), 0);
		lines[foreign] = (struct sock_filter)IF(calls[i].number_32, (uint8_t)(begin - foreign - 1), 0);
	}
	for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
		lines[CHECKS + i] = checks[i];
	struct sock_fprog filter = { sizeof lines / sizeof *lines, lines };
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) == 0;
}

/* Nobody outside is to be sent signals, from Linux 6.12 on, or traced (landlock(7)). Without Landlock this call is let pass. */
static bool refuse_signals(void)
{
	static const struct {
		uint64_t files, network, scoped;
	} rules = { .scoped = 1 << 1 }; /* LANDLOCK_SCOPE_SIGNAL */
	enum { CREATE_RULESET = 444, RESTRICT_SELF = 446 }; /* everywhere */
	int ruleset = (int)syscall(CREATE_RULESET, &rules, sizeof rules, 0);
	bool done = ruleset < 0 || syscall(RESTRICT_SELF, ruleset, 0) == 0;
	close_if_open(ruleset);
	return done;
}

/*
 * Called by a job of the supervisor's user, between the clone and the exec. False with errno when it cannot be had; without
 * no_new_privs this takes CAP_SYS_ADMIN: a daemon that switched it off, and lacks that, does without.
 */
bool keep_off(pid_t supervisor)
{
	/* The memory is the supervisor's own until the exec. */
	bool done = prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 && (isolation.parts & PART_PID || refuse_signals()) &&
		    refuse_settings_of(supervisor);
	return done || (!(isolation.parts & PART_NO_NEW_PRIVILEGES) && (errno == EACCES || errno == EPERM));
}
