/* Filters of system calls, seccomp(2): that of every job, and what is left of it where that is switched off. */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
enum { ARCH = AUDIT_ARCH_X86_64, UNSHARE_32 = 310, CLONE_32 = 120 };
#elif defined(__aarch64__)
enum { ARCH = AUDIT_ARCH_AARCH64, UNSHARE_32 = 337, CLONE_32 = 120 };
#else
#error "the numbers of system calls are known for x86-64 and aarch64"
#endif
enum { X32 = 0x40000000 }; /* its numbers begin here */

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF(test, value, yes, no) BPF_JUMP(BPF_JMP | BPF_K | (test), (unsigned)(value), yes, no)
#define FAIL(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* filter.awk writes in these words. Calls of 32 bits have other numbers: a process that makes one ends by SIGSYS, because it
 * could not even exit. The numbers of x32's calls are above all others, so these calls are absent, as on most kernels. */
#define DENY FAIL(EPERM)
#define ABSENT FAIL(ENOSYS)
#define PROLOGUE \
	LOAD(arch), IF(BPF_JEQ, ARCH, 1, 0), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS), LOAD(nr)
#include "filter.h"

static bool load(const struct sock_filter *lines, size_t count)
{
	struct sock_fprog filter = { (unsigned short)count, (struct sock_filter *)(uintptr_t)lines };
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) == 0;
}

/* Loads the filter of a job. This takes no_new_privs, or CAP_SYS_ADMIN. */
bool filter_calls(bool user_namespaces)
{
	return user_namespaces ? load(with_namespaces, sizeof with_namespaces / sizeof *with_namespaces) :
				 load(strict, sizeof strict / sizeof *strict);
}

/*
 * No user namespace, for jobs of the supervisor's own user that have no other filter: with its capabilities a job could
 * mount its cgroup anew and write to it, since the files are its user's. clone3 has its flags where no filter sees them;
 * who hears that there is none takes clone. Jumps count from the line after.
 */
bool deny_user_namespaces(void)
{
	struct sock_filter lines[] = {
		LOAD(arch),
		IF(BPF_JEQ, ARCH, 0, 4),
		LOAD(nr),
		IF(BPF_JGE, X32, 8, 0),         /* no such call */
		IF(BPF_JEQ, SYS_unshare, 5, 0), /* flags */
		IF(BPF_JEQ, SYS_clone, 4, 3),   /* flags, or clone3 */
		LOAD(nr),                       /* of 32 bits */
		IF(BPF_JEQ, UNSHARE_32, 2, 0),  /* flags */
		IF(BPF_JEQ, CLONE_32, 1, 0),    /* flags */
		IF(BPF_JEQ, SYS_clone3, 2, 3),  /* no such call; its number is 435 everywhere */
		LOAD(args[0]),                  /* flags; the lower half of them */
		IF(BPF_JSET, CLONE_NEWUSER, 2, 1),
		FAIL(ENOSYS),
		ALLOW,
		FAIL(EPERM),
	};
	return load(lines, sizeof lines / sizeof *lines);
}
